"""The choices of a model and one of its prompts in the demo, and descriptions of the models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vlmface import manifest
from vlmface.infer.face_report import EMOTION, FaceReport
from vlmface.infer.predictor import Predictor
from vlmface.prompts import PromptLike

if TYPE_CHECKING:
    from PIL import Image

    from vlmface.data.detect import Box
    from vlmface.infer.face_views import FaceView, ViewSettings


@dataclass(frozen=True)
class ModelChoice:
    """A model with one of its prompts."""

    predictor: Predictor
    prompt: PromptLike

    @property
    def name(self) -> str:
        """What the page's menus call it."""
        return f"{self.predictor.name or 'server'} · {self.prompt.id}"

    def predict(self, view: FaceView) -> FaceReport:
        """The report on one view."""
        return self.predictor.predict_views([view], {self.prompt.space.field: self.prompt})[0]


def list_choices(predictors: Sequence[Predictor]) -> list[ModelChoice]:
    """Each model with each of its prompts."""
    return [
        ModelChoice(predictor, prompt)
        for predictor in predictors
        for prompt in predictor.backend.prompts
    ]


def primary_task(predictor: Predictor) -> str:
    """The task whose answer is streamed: the emotion, if it is one of the model's tasks."""
    return EMOTION if EMOTION in predictor.tasks else predictor.tasks[0]


def outputs_action_units(predictor: Predictor) -> bool:
    """Whether the primary task's prompt asks for a rationale, which may name action units."""
    return predictor.prompts_by_task[primary_task(predictor)].has_rationale


def face_view(predictor: Predictor, image: Image.Image, box: Box | None) -> FaceView:
    """The model's input for a face, or without a box its default input for the picture."""
    faces = predictor.default_faces if box is None else None
    return predictor.face_views(image, faces=faces, box=box)[0]


def default_box(predictor: Predictor, box: Box | None) -> Box | None:
    """The box, or None for a model that uses whole pictures by default."""
    return None if predictor.default_faces == "none" else box


def stream_report(predictor: Predictor, view: FaceView) -> Iterator[str | FaceReport]:
    """Stream the primary task, then predict the others.

    Args:
        predictor: The model.
        view: Its input.

    Yields:
        The text generated so far, the report on the primary task, and the report on all tasks if
        there are more.
    """
    primary = primary_task(predictor)
    report = None
    for piece in predictor.stream_view(view, predictor.select_prompts(primary)):
        if isinstance(piece, FaceReport):
            report = piece
        yield piece
    others = [task for task in predictor.tasks if task != primary]
    if report is not None and others:
        (other_report,) = predictor.predict_views([view], predictor.select_prompts(others))
        yield replace(
            report,
            answers={**report.answers, **other_report.answers},
            prompts={**report.prompts, **other_report.prompts},
        )


@dataclass(frozen=True)
class ModelCard:
    """The description of a model. `server`: whether it runs behind a server."""

    name: str
    facts: list[tuple[str, str]]
    server: bool = False


def model_card(predictor: Predictor, run_dir: str | None, *, server: bool = False) -> ModelCard:
    """Describe a model.

    Args:
        predictor: The model.
        run_dir: Its run folder, from whose manifest the facts are read; None for a base model.
        server: Whether it runs behind a server.
    """
    prompts = ", ".join(f"{prompt.id} (sha {prompt.sha})" for prompt in predictor.backend.prompts)
    if run_dir is None:
        facts = [("prompts", prompts), ("trained", "unknown: this model has no vlmface manifest")]
        return ModelCard(predictor.name, facts, server)
    run_manifest, _ = manifest.load(run_dir)
    data, base = run_manifest.dataset, run_manifest.base_model
    trained = ", ".join(f"{part} {mode}" for part, mode in run_manifest.trainable.items())
    facts = [
        ("base model", f"{base['id']} (sha {base['sha']})"),
        ("family", run_manifest.family),
        ("recipe", run_manifest.recipe),
        ("trained", f"{run_manifest.created}; {trained}"),
        ("data", f"{data['name']}, {data['split']} split, {data['n']:,} samples"),
        ("prompts", prompts),
        ("action units", ", ".join(f"AU{au}" for au in run_manifest.au_set) or "none"),
        ("input", describe_views(predictor.view_settings)),
        ("vlmface", run_manifest.vlmface),
    ]
    return ModelCard(predictor.name, facts, server)


VIEW_NAMES = {
    "face": "the cropped face",
    "face_boxed": "the whole picture with the face in a red box",
    "face_masked": "the whole picture with the face blacked out",
    "scene": "the whole picture",
    "person": "the cropped person",
    "landmarks": "the lines of the face's landmarks",
    "face_parsing": "the parts of the face in colours",
}
_WHOLE = "whole pictures"
# Of a model that was trained on whole pictures, which were portraits.
_PORTRAITS = f"{_WHOLE}; the face of a photograph is cropped like a portrait"


def describe_views(view_settings: ViewSettings) -> str:
    """A model's input, as a noun phrase."""
    names = _view_names(view_settings)
    names = names or (_WHOLE if view_settings.faces == "none" else _PORTRAITS)
    frames = view_settings.frames
    return names if frames == 1 else f"{names}; {frames} frames of a clip"


def _view_names(settings: ViewSettings | Predictor) -> str:
    return " and ".join(VIEW_NAMES[view.view] for view in settings.views)


def describe_input(predictor: Predictor) -> str | None:
    """A sentence about a model's input for a picture; None if it is one crop or one picture."""
    if len(predictor.views) < 2 and predictor.frames == 1:
        return None
    names = _view_names(predictor) or "the picture"
    if predictor.frames == 1:
        return f"The model received {names}."
    return (
        f"The model received {names}, as a static clip of {predictor.frames} frames: it was "
        "trained on clips."
    )


def describe_clip_input(predictor: Predictor) -> str | None:
    """A sentence about a model's input for each frame; None if it is one picture."""
    if len(predictor.views) < 2:
        return None
    return f"Of each frame the model received {_view_names(predictor)}."


def uses_context(predictor: Predictor) -> bool:
    """Whether the model's input is more than a cropped face."""
    return not all(view.is_face for view in predictor.views)


def no_face_notes(
    predictor: Predictor, report: FaceReport, received: str = "the whole picture"
) -> list[str]:
    """Notes on a picture or clip in which no face was found, or detection could not be run.

    Args:
        predictor: The model.
        report: Its report.
        received: The model's input without a face.
    """
    if report.scene_only:
        return ["No face was found, so the model has judged the scene alone."]
    if not report.has_prediction:
        return ["No face was found, so the model was not run."]
    if report.face_found is None and predictor.detector_warning:
        return [f"The face detector is not installed: the model received {received}."]
    return []
