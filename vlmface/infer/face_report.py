"""What is said of one face, whoever said it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmface import facs
from vlmface.data import crops

if TYPE_CHECKING:
    from vlmface.infer.local import Prediction

EMOTION = "emotion"
CONFIDENT = 0.5  # probability of the label below which a report calls its model unsure


@dataclass(frozen=True)
class FaceReport:
    """`answers` {task: what was said}: a task is the field of a face that a prompt asks for, such
    as "emotion" or "gender"; `prompts` {task: id of the prompt}. `box` of the face in its upright
    picture, [left, top, right, bottom] in pixels, None if the picture was taken whole;
    `face_found`: whether a face was found in it, None if none was looked for. Where there is none,
    nothing is asked and no answer has a label, unless `scene_only`. `note`: what the model is not
    fit for, None if nobody wrote it down. `views`: what the model was shown of the picture."""

    answers: Mapping[str, Prediction]
    prompts: Mapping[str, str]
    box: tuple[float, float, float, float] | None = None
    face_found: bool | None = None
    note: str | None = None
    views: crops.Views = ()

    @property
    def scene_only(self) -> bool:
        """Whether no face was found by a model that is shown a face and what is around it: it has
        judged the scene alone."""
        return self.face_found is False and crops.falls_back(self.views)

    @property
    def was_asked(self) -> bool:
        """Whether the model was asked, and not left out of it as there is no face."""
        return self.face_found is not False or self.scene_only

    @property
    def main(self) -> Prediction:
        """The answer about the emotion, or else the first."""
        return self.answers.get(EMOTION) or next(iter(self.answers.values()))

    @property
    def emotion(self) -> str | None:
        """None if there was no valid answer, or nobody asked."""
        said = self.answers.get(EMOTION)
        return said.answer.label if said else None

    @property
    def probabilities(self) -> dict[str, float] | None:
        """{emotion: 0..1, summing to 1}; None where whoever answers does not tell."""
        said = self.answers.get(EMOTION)
        return said.probabilities if said else None

    @property
    def aus(self) -> tuple[int, ...]:
        return self.main.answer.aus

    @property
    def rationale(self) -> str:
        return self.main.answer.rationale

    @property
    def attributes(self) -> dict[str, str | None]:
        """{task: label, or several as one text} of what else was asked."""
        return {task: said.answer.said for task, said in self.answers.items() if task != EMOTION}

    @property
    def status(self) -> str:
        """How the main answer could be read, see `vlmface.answers`."""
        return self.main.answer.status

    @property
    def sure(self) -> bool:
        """Whether there is a valid answer about a face, and no other label is about as likely."""
        if self.face_found is False:
            return False
        labels, likely = self.main.answer.labels, self.main.probabilities
        return bool(labels) and (likely is None or all(likely[one] >= CONFIDENT for one in labels))

    @property
    def seconds(self) -> float:
        return sum(said.latency_s for said in self.answers.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON: {"box", "face_found", "scene_only", "sure", "aus": [{"au", "name", "region"}],
        "rationale", "answers": {task: {"prompt", "label", "probabilities", "status", "complete",
        "text", "seconds"}}, "note"}. Several labels of a face are one text, divided by commas."""
        return {
            "box": None if self.box is None else [round(float(x), 1) for x in self.box],
            "face_found": self.face_found,
            "scene_only": self.scene_only,
            "sure": self.sure,
            "aus": [
                {"au": au, "name": facs.AUS[au].name, "region": facs.AUS[au].region}
                for au in self.aus
            ],
            "rationale": self.rationale,
            "answers": {
                task: {
                    "prompt": self.prompts[task],
                    "label": said.answer.said,
                    "probabilities": said.probabilities,
                    "status": said.answer.status,
                    "complete": said.complete,
                    "text": said.text,
                    "seconds": round(said.latency_s, 4),
                }
                for task, said in self.answers.items()
            },
            "note": self.note,
        }
