"""The predictions for one face, from any backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmface import facs
from vlmface.data import crops

if TYPE_CHECKING:
    from vlmface.infer.prediction import Prediction

EMOTION = "emotion"
CONFIDENT = 0.5  # a report is confident from this probability of its label on


@dataclass(frozen=True)
class FaceReport:
    """The predictions for one face.

    Attributes:
        answers: {task: prediction}; a task is the field of a face that a prompt is about, such as
            "emotion" or "gender".
        prompts: {task: id of the prompt}.
        box: The face in the upright picture, [left, top, right, bottom] in pixels; None if the
            model received the whole picture.
        face_found: Whether a face was detected; None if detection was not run. Without a face the
            model is not run and no answer has a label, unless `scene_only`.
        limitations: What the model must not be used for; None if this is not documented.
        views: The views of the picture that the model received.
        search_note: Which faces of the picture may have been missed, as a sentence; None if it was
            not searched for all faces.
        evidence: The measured movements of the face that the prompts contained; None if they
            contain none.
    """

    answers: Mapping[str, Prediction]
    prompts: Mapping[str, str]
    box: tuple[float, float, float, float] | None = None
    face_found: bool | None = None
    limitations: str | None = None
    views: crops.Views = ()
    search_note: str | None = None
    evidence: str | None = None

    @property
    def scene_only(self) -> bool:
        """Whether a model of a face and its surroundings judged the surroundings alone, because no
        face was detected."""
        return self.face_found is False and crops.mixes_face_and_scene(self.views)

    @property
    def has_prediction(self) -> bool:
        """Whether the model was run: it is not if a face is required and none was detected."""
        return self.face_found is not False or self.scene_only

    @property
    def primary(self) -> Prediction:
        """The prediction of the emotion, or else of the first task."""
        return self.answers.get(EMOTION) or next(iter(self.answers.values()))

    @property
    def emotion(self) -> str | None:
        """None if there was no valid answer, or the emotion is not among the tasks."""
        prediction = self.answers.get(EMOTION)
        return prediction.answer.label if prediction else None

    @property
    def probabilities(self) -> dict[str, float] | None:
        """{emotion: 0..1, summing to 1}; None if the backend does not provide them."""
        prediction = self.answers.get(EMOTION)
        return prediction.probabilities if prediction else None

    @property
    def aus(self) -> tuple[int, ...]:
        """The AUs of the primary answer."""
        return self.primary.answer.aus

    @property
    def rationale(self) -> str:
        """The rationale of the primary answer."""
        return self.primary.answer.rationale

    @property
    def attributes(self) -> dict[str, str | None]:
        """{task: label, or several labels as one text} of the tasks other than the emotion."""
        return {
            task: prediction.answer.text_labels
            for task, prediction in self.answers.items()
            if task != EMOTION
        }

    @property
    def status(self) -> str:
        """How the primary answer was parsed, see `vlmface.answers`."""
        return self.primary.answer.status

    @property
    def is_confident(self) -> bool:
        """Whether there is a valid answer about a face, and no other label is about as likely. Of
        the numbers of a scale, which are as likely as their neighbours, whether there is one."""
        if self.face_found is False:
            return False
        labels, probabilities = self.primary.answer.labels, self.primary.probabilities
        is_number = self.primary.answer.scale is not None
        return bool(labels) and (
            probabilities is None
            or is_number
            or all(probabilities[label] >= CONFIDENT for label in labels)
        )

    @property
    def latency_s(self) -> float:
        """Seconds that all answers took."""
        return sum(prediction.latency_s for prediction in self.answers.values())

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON.

        Returns:
            {"box", "face_found", "search_note", "scene_only", "is_confident", "evidence", "aus":
            [{"au", "name", "region"}], "rationale", "answers": {task: {"prompt", "label",
            "probabilities", "status", "complete", "text", "latency_s", "value", "range",
            "expected"}}, "limitations"}. Several labels of a face are one text, separated by
            commas. "value" (the number), "range" ([lowest, highest]) and "expected"
            (`Prediction.expected`) are of answers on a scale, None for words.
        """
        return {
            "box": None if self.box is None else [round(float(x), 1) for x in self.box],
            "face_found": self.face_found,
            "search_note": self.search_note,
            "scene_only": self.scene_only,
            "is_confident": self.is_confident,
            "evidence": self.evidence,
            "aus": [
                {"au": au, "name": facs.AUS[au].name, "region": facs.AUS[au].region}
                for au in self.aus
            ],
            "rationale": self.rationale,
            "answers": {
                task: {
                    "prompt": self.prompts[task],
                    "label": prediction.answer.text_labels,
                    "probabilities": prediction.probabilities,
                    "status": prediction.answer.status,
                    "complete": prediction.complete,
                    "text": prediction.text,
                    "latency_s": round(prediction.latency_s, 4),
                    "value": prediction.answer.value,
                    "range": _range(prediction),
                    "expected": prediction.expected,
                }
                for task, prediction in self.answers.items()
            },
            "limitations": self.limitations,
        }


def _range(prediction: Prediction) -> list[float] | None:
    """The lowest and the highest number of an answer's scale; None for words."""
    scale = prediction.answer.scale
    return None if scale is None else list(scale.limits)
