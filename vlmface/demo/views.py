"""The demo's HTML. Text of models and names of files are untrusted: everything in a page passes
through the templates in views.html.j2, which escape it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from PIL import Image

from vlmface import answers, facs
from vlmface.answers import au_numbers
from vlmface.demo import face_regions, playground
from vlmface.demo.badges import place_badges
from vlmface.infer.face_report import CONFIDENT, EMOTION
from vlmface.utils import html
from vlmface.utils.images import data_uri

if TYPE_CHECKING:
    from vlmface.demo.batch import Row
    from vlmface.demo.face_detection import Face
    from vlmface.demo.model_choices import ModelCard
    from vlmface.infer.face_report import FaceReport
    from vlmface.infer.prediction import Prediction

DEFAULT_LIMITATIONS = (
    "An expression is not proof of what a person feels. Other limitations of this model are not "
    "documented."
)
MAX_SIDE = 1280  # pixels of a displayed picture
BADGE_RADIUS = 2.2  # of a face's number, in hundredths of the picture's longer side
FACE_SIDE = 96  # pixels of a face in a table
VIEW_SIDE = 160  # pixels of the model's input
FRAME_SIDE = 200  # pixels of a frame of a clip
TICK_SIDE = 56  # pixels of a frame above a timeline
STATUS = {
    "strict": "answered in the required format",
    "lenient": "not quite in the required format, but clear",
    "ambiguous": "several labels compete, so none counts",
    "refused": "the model declined to answer",
    "none": "no label was found in the text",
}


@cache
def _template() -> Any:
    return html.template("views.html.j2", {"pct": _percent}).module


def _percent(share: float) -> str:
    return "<1" if 0 < share < 0.005 else f"{100 * share:.0f}"


# --- pictures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Picture:
    uri: str
    width: int
    height: int


def picture(
    image: Image.Image,
    faces: Sequence[Face],
    selected: int | None,
    side: int = MAX_SIDE,
    note: str | None = None,
) -> str:
    """The picture with numbered boxes.

    Args:
        image: The picture.
        faces: Their boxes are drawn.
        selected: The index of the face whose regions are marked when an action unit is pointed at.
        side: Larger pictures are reduced to it, in pixels.
        note: A sentence below the picture.
    """
    unit = max(image.size) / 100
    badges = place_badges([face.box for face in faces], image.size, BADGE_RADIUS * unit)
    face_entries = [
        {
            "left": face.box[0],
            "top": face.box[1],
            "width": face.box[2] - face.box[0],
            "height": face.box[3] - face.box[1],
            "regions": {
                region: [face_regions.svg_path(outline) for outline in outlines]
                for region, outlines in face.regions.items()
            },
            "badge": badge,
        }
        for face, badge in zip(faces, badges, strict=True)
    ]
    entry = _Picture(data_uri(image, max_side=side), image.width, image.height)
    alt = {0: "The picture, no face found", 1: "The picture with the face that was found"}.get(
        len(faces), f"The picture with {len(faces)} faces, numbered from left to right"
    )
    return str(_template().picture(entry, face_entries, selected, alt, note, BADGE_RADIUS))


# --- text -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextSpan:
    """A part of a text; `aus` are the action units that it names, and `denied` whether the text
    states their absence."""

    text: str
    aus: tuple[int, ...] = ()
    denied: bool = False

    @property
    def regions(self) -> str:
        """The regions of the face that its AUs move."""
        return " ".join(dict.fromkeys(facs.AUS[au].region for au in self.aus))

    @property
    def title(self) -> str:
        """The names and cues of its AUs."""
        return "; ".join(f"{facs.AUS[au].name} ({facs.AUS[au].cue})" for au in self.aus)


def text_spans(text: str, denied: Sequence[int] = ()) -> list[TextSpan]:
    """Split a text at the action units that it names.

    Args:
        text: The text.
        denied: The AUs whose absence it states.
    """
    spans, last = [], 0
    for start, end, aus in au_numbers.au_spans(text):
        if start > last:
            spans.append(TextSpan(text[last:start]))
        spans.append(TextSpan(text[start:end], aus, all(au in denied for au in aus)))
        last = end
    return [*spans, TextSpan(text[last:])] if last < len(text) else spans


def writing(text: str, heading: str) -> str:
    """An incomplete answer: the rationale generated so far."""
    thought, _, after_tags = answers.split_tags(text)
    return str(_template().writing(text_spans(thought or after_tags.strip()), heading))


def error(text: str) -> str:
    """An error message."""
    return str(_template().error(text[:1].upper() + text[1:]))


def note(text: str) -> str:
    """A note."""
    return str(_template().note(text))


# --- answers --------------------------------------------------------------------------------------


def answer(
    report: FaceReport,
    heading: str,
    notes: Sequence[str] = (),
    input_sentence: str | None = None,
    input_images: Sequence[Image.Image] = (),
) -> str:
    """A complete report.

    Args:
        report: The report.
        heading: What it is about.
        notes: Sentences after the label.
        input_sentence: On the model's input.
        input_images: The model's input.
    """
    primary = report.primary
    # A model that only selects a label has generated no other text.
    generated = primary.text if primary.text.strip() != primary.answer.text_labels else None
    if report.evidence is not None:
        notes = [*notes, f"Measured in the picture, for the prompt: {report.evidence}."]
    values = {
        "heading": heading,
        "label": primary.label_text,
        "expected": primary.expected,
        "has_prediction": report.has_prediction,
        "labels": primary.answer.labels,
        "probability": _probability(report, None),
        "affect": primary.affect,
        "input_sentence": input_sentence,
        "input_images": [data_uri(image, max_side=VIEW_SIDE) for image in input_images],
        "unsure": _unsure(report),
        "notes": notes,
        "rationale": text_spans(report.rationale, primary.answer.negated_aus),
        "probabilities": _label_probabilities(primary),
        "shows_units": bool(report.rationale or report.aus),
        "units": _units(report.aus),
        "attributes": [
            (task.replace("_", " "), report.answers[task].label_text, _probability(report, task))
            for task in report.attributes
            if report.answers[task] is not primary and report.has_prediction
        ],
        "limitations": report.limitations or DEFAULT_LIMITATIONS,
        "status": STATUS[report.status] if generated is not None else None,
        "latency_s": report.latency_s,
        "text": generated,
    }
    return str(_template().answer(values))


def _probability(report: FaceReport, task: str | None) -> float | None:
    """The probability of a task's label (None: of the primary task)."""
    prediction = report.primary if task is None else report.answers[task]
    label, probabilities = prediction.answer.label, _label_probabilities(prediction)
    return dict(probabilities)[label] if probabilities and label else None


def _label_probabilities(prediction: Prediction) -> list[tuple[str, float]] | None:
    """(label, probability) of each label; None if they are not known, and for a scale, of which the
    expected number is shown."""
    if not prediction.probabilities or prediction.answer.scale is not None:
        return None
    return list(prediction.probabilities.items())


def _unsure(report: FaceReport) -> str | None:
    if report.is_confident or report.face_found is False:  # a note explains the missing face
        return None
    labels = report.primary.answer.labels
    if not labels:
        return f"The model gave no valid answer: {STATUS[report.status]}."
    probabilities = report.primary.probabilities or {}
    best = max(probabilities, key=probabilities.__getitem__)
    if best not in labels:
        return f"The model was not sure: it wrote one label, but finds {best} more likely."
    return f"The model was not sure: no label has a probability of {CONFIDENT:.0%}."


def _units(aus: Sequence[int]) -> list[facs.ActionUnit]:
    return [facs.AUS[au] for au in facs.top_down(aus)]


def _task_answers(report: FaceReport, tasks: Sequence[str]) -> list[dict[str, Any]]:
    entries = []
    for task in tasks:
        probability = _probability(report, task)
        entries.append(
            {
                "label": report.answers[task].label_text,
                "probability": probability,
                "unsure": (probability or 0) < CONFIDENT,
            }
        )
    return entries


def people(
    image: Image.Image,
    faces: Sequence[Face],
    reports: Sequence[FaceReport],
    tasks: Sequence[str],
    *,
    show_rationale: bool,
) -> str:
    """A table of the faces of a picture.

    Args:
        image: The picture.
        faces: Its faces.
        reports: A report on each.
        tasks: Columns.
        show_rationale: Whether the model gives rationales.
    """
    rows = [
        {
            "name": str(number),
            "image": data_uri(image.crop(face.box), max_side=FACE_SIDE),
            "answers": _task_answers(report, tasks),
            "units": _units(report.aus),
            "rationale": report.rationale,
        }
        for number, (face, report) in enumerate(zip(faces, reports, strict=True), start=1)
    ]
    return str(_template().people(rows, tasks, show_rationale))


def batch(
    rows: Sequence[Row],
    files: int,
    tasks: Sequence[str],
    downloads: Mapping[str, tuple[str, str]],
    *,
    show_rationale: bool = True,
) -> str:
    """The table of a batch.

    Args:
        rows: Its rows.
        files: How many files it has.
        tasks: Columns.
        downloads: {file name: (MIME type, content)}; they are embedded in the page, so that nothing
            is written to disk.
        show_rationale: Whether the model gives rationales.
    """
    entries = [_batch_entry(row, tasks) for row in rows]
    links = [
        {
            "name": name,
            "title": f"Download {name.rpartition('.')[2].upper()}",
            "href": f"data:{kind};base64,{base64.b64encode(content.encode()).decode()}",
        }
        for name, (kind, content) in downloads.items()
    ]
    counts = {
        "files": files,
        "answers": sum(row.report is not None and row.report.has_prediction for row in rows),
        "without_face": sum(entry["is_absent"] for entry in entries),
        "problems": sum(row.problem is not None for row in rows),
        "searched": sum(row.report is not None and bool(row.report.search_note) for row in rows),
    }
    return str(_template().batch(entries, tasks, counts, links, show_rationale))


def _batch_entry(row: Row, tasks: Sequence[str]) -> dict[str, Any]:
    report = row.report
    whole = (
        "no face found: the scene alone" if report and report.scene_only else "the whole picture"
    )
    return {
        "file": row.file,
        "problem": row.problem,
        "is_absent": report is not None and not report.has_prediction,
        "note": report.search_note if report else None,
        "face": row.face or whole,
        "answers": _task_answers(report, tasks) if report else [],
        "units": _units(report.aus) if report else [],
    }


def clip(frames: Sequence[Image.Image], faces: Sequence[Face | None], used: int | None) -> str:
    """The frames of a clip with the face in each.

    Args:
        frames: The frames.
        faces: The face in each.
        used: The index of the frame that the model receives, None if it receives all.
    """
    large = ""
    if used is not None:
        large = _frame(frames[used], faces[used], MAX_SIDE)
    small = [
        {"picture": _frame(image, face, FRAME_SIDE), "used": used is None or number == used}
        for number, (image, face) in enumerate(zip(frames, faces, strict=True))
    ]
    return str(_template().clip(large, small, used))


def _frame(image: Image.Image, face: Face | None, side: int) -> str:
    return picture(image, [face] if face else [], 0 if face else None, side)


def timeline(
    frames: Sequence[Image.Image], faces: Sequence[Face | None], reports: Sequence[FaceReport]
) -> str:
    """A table of the frames of a clip: a row for each label, a column for each frame.

    Args:
        frames: The frames.
        faces: The face in each.
        reports: A report on each.
    """
    predictions = [report.primary for report in reports]
    tables = [_label_probabilities(prediction) for prediction in predictions]
    first_table = next((dict(table) for table in tables if table), None)
    predicted = dict.fromkeys(label for p in predictions for label in p.answer.labels)
    if any(prediction.answer.scale for prediction in predictions):
        predicted = dict.fromkeys(sorted(predicted, key=float))
    labels = list(first_table or predicted)
    rows: list[dict[str, Any]] = []
    for label in labels:
        has_label = [label in prediction.answer.labels for prediction in predictions]
        probabilities = [
            dict(table)[label] if table else float(is_chosen)
            for table, is_chosen in zip(tables, has_label, strict=True)
        ]
        cells = list(zip(probabilities, has_label, strict=True))
        rows.append({"label": label, "cells": cells, "frames": sum(has_label)})
    ticks = [
        data_uri(image.crop(face.box) if face else image, max_side=TICK_SIDE)
        for image, face in zip(frames, faces, strict=True)
    ]
    without_face = [number for number, face in enumerate(faces, start=1) if face is None]
    counted = sorted((row for row in rows if row["frames"]), key=lambda row: -row["frames"])
    return str(_template().timeline(rows, ticks, counted, first_table is not None, without_face))


def au_comparison(
    aus: Mapping[int, int], report: FaceReport, *, lips_parted: bool, names_units: bool
) -> str:
    """The rendered action units next to those that the model named.

    Args:
        aus: {AU: intensity 1..5} of the rendered head.
        report: The model's answer.
        lips_parted: Whether AU25 was added to a dropped jaw.
        names_units: Whether the model names action units.
    """
    comparison = playground.compare_aus(aus, report)
    rows = [
        {"au": facs.AUS[au], "intensity": aus[au], "named": au in comparison.matched}
        for au in facs.top_down(aus)
    ]
    predicted = (report.emotion or "no valid label") if EMOTION in report.answers else None
    values = {
        "rows": rows,
        "extra": _units(comparison.extra),
        "expected": playground.supported_emotions(aus),
        "predicted": predicted,
        "incompatible": [facs.name(au) for au in playground.incompatible_aus(aus)],
        "lips_parted": lips_parted,
        "names_units": names_units,
    }
    return str(_template().au_comparison(values))


# --- the page around them -------------------------------------------------------------------------


def header(name: str, limitations: str) -> str:
    """The page's header.

    Args:
        name: Of the model.
        limitations: Of the model.
    """
    return str(_template().header(name, limitations))


def about(
    cards: Sequence[ModelCard],
    limitations: str,
    missing: str | None,
    video_install: str | None = None,
) -> str:
    """The About tab.

    Args:
        cards: Descriptions of the models.
        limitations: Of the first model.
        missing: Why faces cannot be detected, None if they can.
        video_install: How to install the video decoder, None if it is installed.
    """
    return str(_template().about(cards, limitations, missing, video_install))
