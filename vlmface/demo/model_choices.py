"""Who can be asked in the demo: a model with one of its prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vlmface import manifest
from vlmface.infer.face_report import EMOTION, FaceReport
from vlmface.infer.predictor import Predictor
from vlmface.prompts import Question

if TYPE_CHECKING:
    from PIL import Image

    from vlmface.data.detect import Box
    from vlmface.infer.face_views import FaceView, ViewSettings


@dataclass(frozen=True)
class Voice:
    """A model asked one prompt."""

    predictor: Predictor
    prompt: Question

    @property
    def name(self) -> str:
        return f"{self.predictor.name or 'server'} · {self.prompt.id}"

    def ask(self, view: FaceView) -> FaceReport:
        return self.predictor.predict_views([view], {self.prompt.space.field: self.prompt})[0]


def voices(predictors: Sequence[Predictor]) -> list[Voice]:
    """Each model with each of its prompts."""
    return [Voice(one, prompt) for one in predictors for prompt in one.backend.prompts]


def first_task(predictor: Predictor) -> str:
    """The task whose answer is written word by word: the emotion, where a model knows it."""
    return EMOTION if EMOTION in predictor.tasks else predictor.tasks[0]


def names_units(predictor: Predictor) -> bool:
    """Whether the first task's prompt asks for a rationale, which may name action units."""
    return predictor.prompts_by_task[first_task(predictor)].reasons


def view_of(predictor: Predictor, image: Image.Image, box: Box | None) -> FaceView:
    """What the model is shown of a face, or without a box of the picture by default."""
    faces = predictor.default_faces if box is None else None
    return predictor.face_views(image, faces=faces, box=box)[0]


def by_default(predictor: Predictor, box: Box | None) -> Box | None:
    """The box, unless the model is shown pictures as a whole where nobody chooses a face."""
    return None if predictor.default_faces == "none" else box


def write(predictor: Predictor, view: FaceView) -> Iterator[str | FaceReport]:
    """The answer to the first task as far as it is written, then the report on it, and where the
    model knows more tasks the report on all."""
    first = first_task(predictor)
    report = None
    for piece in predictor.stream_view(view, predictor.select_prompts(first)):
        if isinstance(piece, FaceReport):
            report = piece
        yield piece
    others = [task for task in predictor.tasks if task != first]
    if report is not None and others:
        rest = predictor.predict_views([view], predictor.select_prompts(others))[0]
        yield replace(
            report,
            answers={**report.answers, **rest.answers},
            prompts={**report.prompts, **rest.prompts},
        )


@dataclass(frozen=True)
class Card:
    """What a page says about a model."""

    name: str
    facts: list[tuple[str, str]]
    server: bool = False


def card(predictor: Predictor, run: str | None, *, server: bool = False) -> Card:
    """The facts of a run's manifest, or of a model without one; `server`: it is on another
    machine."""
    asked = ", ".join(f"{prompt.id} (sha {prompt.sha})" for prompt in predictor.backend.prompts)
    if run is None:
        facts = [("prompts", asked), ("trained", "nothing is known: this is no run of a recipe")]
        return Card(predictor.name, facts, server)
    found, _ = manifest.load(run)
    data = found.data
    trained = ", ".join(f"{part} {how}" for part, how in found.trainable.items())
    return Card(
        predictor.name,
        [
            ("base model", f"{found.base['id']} (sha {found.base['sha']})"),
            ("family", found.family),
            ("recipe", found.recipe),
            ("trained", f"{found.created}; {trained}"),
            ("data", f"{data['name']}, {data['split']} split, {data['n']:,} samples"),
            ("prompts", asked),
            ("action units", ", ".join(f"AU{au}" for au in found.au_set) or "none"),
            ("shown", in_words(predictor.view_settings)),
            ("vlmface", found.vlmface),
        ],
        server,
    )


SHOWN = {
    "face": "the face cut out",
    "boxed": "the whole picture with the face in a red box",
    "context": "the whole picture with the face blacked out",
    "scene": "the whole picture",
    "person": "the person cut out",
    "landmarks": "the lines of the face's landmarks",
    "parsed": "the parts of the face in colours",
}
_WHOLE = "pictures whole"
# Of a model that was trained on pictures whole, which were portraits.
_PORTRAITS = f"{_WHOLE}; of a photograph the face cut out, as in a portrait"


def in_words(view_settings: ViewSettings) -> str:
    """What a model is shown, in words."""
    named = " and ".join(SHOWN[one.show] for one in view_settings.views)
    named = named or (_WHOLE if view_settings.faces == "none" else _PORTRAITS)
    return (
        named if view_settings.frames == 1 else f"{named}; {view_settings.frames} frames of a clip"
    )


def shown(predictor: Predictor) -> str | None:
    """A sentence about what the model is shown of a picture, where that is not one cut-out or one
    picture."""
    if len(predictor.views) < 2 and predictor.frames == 1:
        return None
    named = " and ".join(SHOWN[one.show] for one in predictor.views) or "the picture"
    if predictor.frames == 1:
        return f"The model was shown {named}."
    return (
        f"The model was shown {named}, as a clip of {predictor.frames} frames that stands still: "
        "it was trained on clips."
    )


def shown_of_clip(predictor: Predictor) -> str | None:
    """A sentence about what the model is shown of each frame, where that is not one picture."""
    if len(predictor.views) < 2:
        return None
    named = " and ".join(SHOWN[one.show] for one in predictor.views)
    return f"Of each frame the model was shown {named}."


def sees_around(predictor: Predictor) -> bool:
    """Whether the model is shown more of a picture than a face that is cut out of it."""
    return not all(one.is_face for one in predictor.views)


def no_face(
    predictor: Predictor, report: FaceReport, seen: str = "the picture as a whole"
) -> list[str]:
    """What to say of a picture, or clip, in which a face was looked for and there is none, or in
    which it could not be looked for."""
    if report.scene_only:
        return ["No face was found, so the model has judged the scene alone."]
    if not report.has_prediction:
        return ["No face was found, so the model was not asked."]
    if report.face_found is None and predictor.detector_warning:
        return [f"Faces are not looked for here: the model was shown {seen}."]
    return []
