"""What the demo shows, as HTML. A model's text and a file's name are untrusted: all that goes into
a page goes through the templates in views.html.j2, which escape it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from PIL import Image

from vlmface import answers, facs
from vlmface.answers import au_mentions
from vlmface.demo import face_regions
from vlmface.infer.face_report import CONFIDENT, EMOTION
from vlmface.utils import html

if TYPE_CHECKING:
    from vlmface.demo.batch import Row
    from vlmface.demo.face_detection import Face
    from vlmface.demo.model_choices import Card
    from vlmface.demo.playground import Followed
    from vlmface.infer.face_report import FaceReport

LIMITS = (
    "An expression is not proof of what somebody feels. Nobody has written down what else this "
    "model is not fit for."
)
MAX_SIDE = 1280  # pixels of a picture that is shown
FACE_SIDE = 96  # pixels of a face in a table
VIEW_SIDE = 160  # pixels of what a model was shown
FRAME_SIDE = 200  # pixels of a frame of a clip
TICK_SIDE = 56  # pixels of a frame above a timeline
STATUS = {
    "strict": "answered in the asked form",
    "lenient": "not quite in the asked form, but clear",
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
class _Shown:
    uri: str
    width: int
    height: int


def picture(
    image: Image.Image, faces: Sequence[Face], chosen: int | None, side: int = MAX_SIDE
) -> str:
    """The picture, at most `side` pixels a side, with numbered boxes, and the regions of the chosen
    face, drawn when a word that names them is pointed at."""
    placed = [
        {
            "left": face.box[0],
            "top": face.box[1],
            "width": face.box[2] - face.box[0],
            "height": face.box[3] - face.box[1],
            "regions": {
                region: [face_regions.path(outline) for outline in outlines]
                for region, outlines in face.regions.items()
            },
        }
        for face in faces
    ]
    shown = _Shown(_data_uri(image, side), image.width, image.height)
    alt = {0: "The picture, no face found", 1: "The picture with the face that was found"}.get(
        len(faces), f"The picture with {len(faces)} faces, numbered from left to right"
    )
    return str(_template().picture(shown, placed, chosen, alt))


def _data_uri(image: Image.Image, side: int) -> str:
    small = image.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


# --- words ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """Text; where it names action units, these."""

    text: str
    aus: tuple[int, ...] = ()
    denied: bool = False

    @property
    def regions(self) -> str:
        return " ".join(dict.fromkeys(facs.AUS[au].region for au in self.aus))

    @property
    def title(self) -> str:
        return "; ".join(f"{facs.AUS[au].name} ({facs.AUS[au].cue})" for au in self.aus)


def pieces(text: str, denied: Sequence[int] = ()) -> list[Piece]:
    """The text cut where it names action units; `denied`: those it says are not there."""
    found, last = [], 0
    for start, end, aus in au_mentions.au_spans(text):
        if start > last:
            found.append(Piece(text[last:start]))
        found.append(Piece(text[start:end], aus, all(au in denied for au in aus)))
        last = end
    return [*found, Piece(text[last:])] if last < len(text) else found


def writing(text: str, heading: str) -> str:
    """An answer that is not finished: its rationale as far as it is written."""
    thought, _, rest = answers.regions(text)
    return str(_template().writing(pieces(thought or rest.strip()), heading))


def problem(text: str) -> str:
    """What went wrong, in words."""
    return str(_template().problem(text[:1].upper() + text[1:]))


def note(text: str) -> str:
    return str(_template().note(text))


# --- answers --------------------------------------------------------------------------------------


def answer(
    report: FaceReport,
    heading: str,
    notes: Sequence[str] = (),
    shown: str | None = None,
    pictures: Sequence[Image.Image] = (),
) -> str:
    """All that a report says. `shown`: a sentence on what the model was shown, with `pictures`."""
    main = report.primary
    # Of a model that only chooses among labels there is nothing else to read.
    wrote = main.text if main.text.strip() != main.answer.said else None
    return str(
        _template().answer(
            {
                "heading": heading,
                "label": main.answer.said,
                "asked": report.has_prediction,
                "labels": main.answer.labels,
                "likely": _likely(report, None),
                "affect": main.affect,
                "shown": shown,
                "pictures": [_data_uri(one, VIEW_SIDE) for one in pictures],
                "unsure": _unsure(report),
                "notes": notes,
                "pieces": pieces(report.rationale, main.answer.negated_aus),
                "probabilities": list(main.probabilities.items()) if main.probabilities else None,
                "shows_units": bool(report.rationale or report.aus),
                "units": _units(report.aus),
                "attributes": [
                    (task.replace("_", " "), label, _likely(report, task))
                    for task, label in report.attributes.items()
                    if report.answers[task] is not main and report.has_prediction
                ],
                "limits": report.limitations or LIMITS,
                "status": STATUS[report.status] if wrote is not None else None,
                "seconds": report.latency_s,
                "text": wrote,
            }
        )
    )


def _likely(report: FaceReport, task: str | None) -> float | None:
    said = report.primary if task is None else report.answers[task]
    label = said.answer.label
    return said.probabilities[label] if said.probabilities and label else None


def _unsure(report: FaceReport) -> str | None:
    if (
        report.is_confident or report.face_found is False
    ):  # without a face that is what is said instead
        return None
    if not report.primary.answer.labels:
        return f"The model gave no answer that counts: {STATUS[report.status]}."
    likely = report.primary.probabilities or {}
    best = max(likely, key=likely.__getitem__)
    if best not in report.primary.answer.labels:
        return f"The model was not sure: it wrote one label, but finds {best} more likely."
    return f"The model was not sure: no label is as likely as {CONFIDENT:.0%}. Take it as a guess."


def _units(aus: Sequence[int]) -> list[facs.ActionUnit]:
    return [facs.AUS[au] for au in facs.top_down(aus)]


def _answers(report: FaceReport, tasks: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for task in tasks:
        likely = _likely(report, task)
        label = report.answers[task].answer.said
        found.append({"label": label, "likely": likely, "unsure": (likely or 0) < CONFIDENT})
    return found


def people(
    image: Image.Image,
    faces: Sequence[Face],
    reports: Sequence[FaceReport],
    tasks: Sequence[str],
    *,
    reasons: bool,
) -> str:
    """A table of the faces of a picture; `reasons`: the model says why."""
    rows = [
        {
            "name": str(number),
            "image": _data_uri(image.crop(face.box), FACE_SIDE),
            "answers": _answers(report, tasks),
            "units": _units(report.aus),
            "rationale": report.rationale,
        }
        for number, (face, report) in enumerate(zip(faces, reports, strict=True), start=1)
    ]
    return str(_template().people(rows, tasks, reasons))


def batch(
    rows: Sequence[Row],
    files: int,
    tasks: Sequence[str],
    downloads: Mapping[str, tuple[str, str]],
    *,
    reasons: bool = True,
) -> str:
    """The table of a batch of that many files; `downloads` {file name: (MIME type, content)} hang
    on the page itself, so that nothing is written to disk."""
    shown = [
        {
            "file": row.file,
            "problem": row.problem,
            "face": row.face or (_whole(row.report) if row.report else ""),
            "answers": _answers(row.report, tasks) if row.report else [],
            "units": _units(row.report.aus) if row.report else [],
        }
        for row in rows
    ]
    links = [
        {
            "name": name,
            "title": f"Download {name.rpartition('.')[2].upper()}",
            "href": f"data:{kind};base64,{base64.b64encode(content.encode()).decode()}",
        }
        for name, (kind, content) in downloads.items()
    ]
    problems = sum(row.problem is not None for row in rows)
    return str(_template().batch(shown, tasks, files, problems, links, reasons))


def _whole(report: FaceReport) -> str:
    """What a row is about that is about no face."""
    if report.scene_only:
        return "no face found: the scene alone"
    return "no face found" if report.face_found is False else "the picture whole"


def clip(frames: Sequence[Image.Image], faces: Sequence[Face | None], seen: int | None) -> str:
    """The frames of a clip with the face in each; `seen`: the one that the model was shown, None if
    it was shown them all."""
    large = ""
    if seen is not None:
        face = faces[seen]
        large = picture(frames[seen], [face] if face else [], 0 if face else None)
    small = [
        {"picture": _small(image, face), "seen": seen is None or number == seen}
        for number, (image, face) in enumerate(zip(frames, faces, strict=True))
    ]
    return str(_template().clip(large, small, seen))


def _small(image: Image.Image, face: Face | None) -> str:
    """A frame of a strip, with its face."""
    return picture(image, [face] if face else [], 0 if face else None, FRAME_SIDE)


def timeline(
    frames: Sequence[Image.Image], faces: Sequence[Face | None], reports: Sequence[FaceReport]
) -> str:
    """What was said of each frame by itself: a row for each label, a column for each frame."""
    said = [report.primary for report in reports]
    told = next((one.probabilities for one in said if one.probabilities), None)
    labels = list(told or dict.fromkeys(x for s in said for x in s.answer.labels))
    rows: list[dict[str, Any]] = []
    for label in labels:
        chosen = [label in one.answer.labels for one in said]
        likely = [
            one.probabilities[label] if one.probabilities else float(named)
            for one, named in zip(said, chosen, strict=True)
        ]
        rows.append(
            {
                "label": label,
                "cells": list(zip(likely, chosen, strict=True)),
                "frames": sum(chosen),
            }
        )
    ticks = [
        _data_uri(image.crop(face.box) if face else image, TICK_SIDE)
        for image, face in zip(frames, faces, strict=True)
    ]
    without = [number for number, face in enumerate(faces, start=1) if face is None]
    counted = sorted((row for row in rows if row["frames"]), key=lambda row: -row["frames"])
    return str(_template().timeline(rows, ticks, counted, told is not None, without))


def truth(
    aus: Mapping[int, int],
    said: Followed,
    report: FaceReport,
    *,
    expected: Sequence[str],
    clashing: Sequence[int],
    lips_parted: bool,
    names_units: bool,
) -> str:
    """The drawn action units beside those that the model named."""
    rows = [
        {"au": facs.AUS[au], "intensity": aus[au], "named": au in said.named}
        for au in facs.top_down(aus)
    ]
    says = (report.emotion or "nothing that counts") if EMOTION in report.answers else None
    clash = [facs.name(au) for au in clashing]
    return str(
        _template().truth(rows, _units(said.extra), expected, says, clash, lips_parted, names_units)
    )


# --- the page around them -------------------------------------------------------------------------


def header(name: str, limits: str) -> str:
    return str(_template().header(name, limits))


def about(
    cards: Sequence[Card], limits: str, missing: str | None, videos: str | None = None
) -> str:
    """`missing`: why no faces are looked for; `videos`: how to make videos readable here."""
    return str(_template().about(cards, limits, missing, videos))
