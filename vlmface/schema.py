"""FaceSample: the one typed record that every data set is turned into.

Every label may be None, and None means "not annotated", never "absent".
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from vlmface import facs, label_spaces
from vlmface.errors import UserError

if TYPE_CHECKING:
    import datasets

RATIONALE_SOURCES = ("human", "rules", "teacher", "model", "none")
VERSION = 3  # raise whenever a column changes its name or type
AFFECT = ("valence", "arousal")  # fields of FaceSample, -1..1


@dataclass(frozen=True)
class AULabel:
    """One annotated action unit. `intensity` is 0..5 or None where only presence was coded."""

    au: int
    intensity: float | None
    present: bool


@dataclass
class FaceSample:
    """A labelled face. `face_box` is [x0, y0, x1, y1] in pixels, `valence` and `arousal` are -1..1,
    `aus` lists the annotated AUs only (None: no AU was annotated). `label_votes` are counts or
    probabilities >= 0 of the words of any label space, and of words such as other, unknown and
    no_face (`label_votes.distribution` turns them into a distribution). `age_group`, `gender`,
    `race` and `context` keep the data set's own words, `context` also the number of a rating as
    text. `rationale_saw_label`: the writer of the
    rationale was told the labels, so it is not evidence of what the face alone shows."""

    id: str
    dataset: str
    split: str | None = None
    subject: str | None = None
    image: Any = None
    frames: list[Any] | None = None
    face_box: list[float] | None = None
    emotion: str | None = None
    label_votes: dict[str, float] | None = None
    valence: float | None = None
    arousal: float | None = None
    aus: list[AULabel] | None = None
    age: float | None = None
    age_group: str | None = None
    gender: str | None = None
    race: str | None = None
    context: list[str] | None = None
    rationale: str | None = None
    rationale_source: str = "none"
    rationale_saw_label: bool = False
    meta: dict[str, Any] = field(default_factory=dict)

    def validate(self) -> FaceSample:
        """Return self. Raises UserError that names the sample, the field, the value found and what
        is allowed."""
        for name in ("id", "dataset"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                self._wrong(name, "a non-empty string")
        for name in ("split", "subject", "age_group", "gender", "race", "rationale"):
            if not isinstance(getattr(self, name), str | None):
                self._wrong(name, "a string or None")
        if self.image is not None and self.frames is not None:
            self._wrong("frames", "None beside an image: a sample has an image or frames")
        if self.face_box is not None:
            box = self.face_box
            if len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
                self._wrong("face_box", "[x0, y0, x1, y1] with x0 < x1 and y0 < y1")
        if self.emotion is not None and self.emotion not in label_spaces.EMOTIONS:
            self._wrong("emotion", f"one of {', '.join(label_spaces.EMOTIONS)}, or None")
        for word, votes in (self.label_votes or {}).items():
            if not isinstance(word, str) or not word.strip() or not 0 <= votes < math.inf:
                self._wrong("label_votes", "{word: finite number >= 0}")
        for name in ("valence", "arousal"):
            if getattr(self, name) is not None and not -1 <= getattr(self, name) <= 1:
                self._wrong(name, "a number from -1 to 1, or None")
        if self.age is not None and not 0 <= self.age <= 130:
            self._wrong("age", "years from 0 to 130, or None")
        for label in self.aus or []:
            if label.au not in facs.AUS:
                self._wrong("aus", f"AU numbers of FACS ({', '.join(map(str, facs.AUS))})", label)
            if label.intensity is not None and not 0 <= label.intensity <= 5:
                self._wrong("aus", "intensities from 0 to 5, or None", label)
            if label.present and label.intensity == 0:
                self._wrong("aus", "no AU that is present with intensity 0", label)
        if len(self.annotated_aus()) != len(self.aus or []):
            self._wrong("aus", "each AU once")
        if self.rationale_source not in RATIONALE_SOURCES:
            self._wrong("rationale_source", f"one of {', '.join(RATIONALE_SOURCES)}")
        if (self.rationale is None) != (self.rationale_source == "none"):
            self._wrong("rationale_source", "'none' exactly where there is no rationale")
        return self

    def _wrong(self, name: str, allowed: str, value: object = None) -> NoReturn:
        actual = getattr(self, name) if value is None else value
        raise UserError(
            f"sample {self.id!r}: field {name!r} is {actual!r}, allowed: {allowed}; "
            "correct the annotation or the adapter that read it"
        )

    def label(self, space: label_spaces.LabelSpace) -> str | None:
        """The sample's one label of a label space; None if it has none of the space's labels, or
        several of them."""
        labels = self.labels(space)
        return labels[0] if len(labels) == 1 else None

    def labels(self, space: label_spaces.LabelSpace) -> tuple[str, ...]:
        """The sample's labels of a label space, in the space's order; () if it has none of them. An
        age makes an age group."""
        if space.field == "age_group" and self.age_group is None and self.age is not None:
            return (space.age_group_of(self.age),)
        value = getattr(self, space.field)
        words = value if isinstance(value, list) else [value]
        return space.labels_of(word for word in words if word)

    def value(self, space: label_spaces.LabelSpace) -> float | None:
        """The sample's exact number on the scale of a label space; None without one, and for a
        space of words."""
        return None if space.scale is None else space.scale.value_of(self.context or ())

    def annotated_aus(self) -> tuple[int, ...]:
        """The AUs that were coded, present or not, sorted; () if none was."""
        return tuple(sorted({label.au for label in self.aus or []}))

    def present_aus(self, threshold: float | None = None) -> tuple[int, ...]:
        """The AUs annotated as present, sorted. With a `threshold` (0..5), an AU that has an
        intensity is present from that intensity on, whatever its `present` says."""
        return tuple(sorted(self.intensities(threshold)))

    def intensities(self, threshold: float | None = None) -> dict[int, float | None]:
        """Present AU -> intensity (None: not graded): what the rule writer and `facs.evidence`
        take. `threshold` as in `present_aus`."""
        return {
            label.au: label.intensity
            for label in self.aus or []
            if (
                label.present
                if threshold is None or label.intensity is None
                else label.intensity >= threshold
            )
        }

    def to_row(self) -> dict[str, Any]:
        """A row for `datasets` under `features()`: votes and meta as JSON, AUs as structs."""
        row = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        row["aus"] = None if self.aus is None else [dataclasses.asdict(a) for a in self.aus]
        row["label_votes"] = None if self.label_votes is None else _json(self.label_votes)
        row["meta"] = _json(self.meta)
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> FaceSample:
        """The inverse of `to_row`; `image` and `frames` stay whatever objects the row holds.
        Columns of other names are ignored, missing ones take the defaults."""
        values = {f.name: row[f.name] for f in dataclasses.fields(cls) if f.name in row}
        if values.get("aus") is not None:
            values["aus"] = [AULabel(a["au"], a["intensity"], a["present"]) for a in values["aus"]]
        if values.get("label_votes") is not None:
            values["label_votes"] = json.loads(values["label_votes"])
        values["meta"] = json.loads(values.get("meta") or "{}")
        return cls(**values)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def features() -> datasets.Features:
    """The `datasets` features of a FaceSample row."""
    from datasets import Features, Image, Value

    text, real = Value("string"), Value("float32")
    au = {"au": Value("int32"), "intensity": real, "present": Value("bool")}
    return Features(
        {
            "id": text,
            "dataset": text,
            "split": text,
            "subject": text,
            "image": Image(),
            "frames": [Image()],
            "face_box": [real],
            "emotion": text,
            "label_votes": text,
            "valence": real,
            "arousal": real,
            "aus": [au],
            "age": real,
            "age_group": text,
            "gender": text,
            "race": text,
            "context": [text],
            "rationale": text,
            "rationale_source": text,
            "rationale_saw_label": Value("bool"),
            "meta": text,
        }
    )
