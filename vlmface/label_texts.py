"""prompts/clip/*.yaml -> the texts that stand for each label of a space.

A label is the mean of its texts' features. Texts are templates filled with the label's word and
with the signs of its action units, and descriptions written out; `negatives` say what is not seen
where the label is true.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from vlmface import facs, label_spaces, prompts
from vlmface.answers import Answer
from vlmface.errors import UserError
from vlmface.registry import Registry
from vlmface.resources import content_sha, definitions, read_yaml
from vlmface.utils import config

FOLDER = "prompts/clip"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class LabelTexts:
    """The texts of a label space as their file holds them.

    `label_space` is the id of a built-in label space, or a label space. `templates` may hold
    {label}, {word} (of `words`, else the label in lower case) and {signs} (of the label's core
    action units, see `facs.PROTOTYPES`). `descriptions` and `negatives` are {label: texts}, written
    out; `negatives` may be left out for some labels.
    """

    id: str
    version: int
    label_space: str | label_spaces.LabelSpace
    source: str
    templates: list[str] = field(default_factory=list)
    words: dict[str, Any] = field(default_factory=dict)
    descriptions: dict[str, Any] = field(default_factory=dict)
    negatives: dict[str, Any] = field(default_factory=dict)
    notes: str | None = None

    has_rationale = False  # nothing is said beside the labels
    uses_evidence = False

    @property
    def multi_label(self) -> bool:
        """Whether a person may have several of the labels, each being true or false by itself."""
        return self.space.multi_label

    @property
    def format(self) -> str:
        """What it answers, in the words of `vlmface.prompts`."""
        return "labels" if self.multi_label else "label"

    @cached_property
    def space(self) -> label_spaces.LabelSpace:
        """The labels that the texts stand for."""
        return label_spaces.space(self.label_space)

    @cached_property
    def sha(self) -> str:
        """12 hex digits over everything that reaches the model or decides how it is read."""
        return content_sha(
            {
                "id": self.id,
                "version": self.version,
                "label_space": [self.space.id, self.space.sha],
                "texts": self.positive,
                "negatives": self.negative,
            }
        )

    @cached_property
    def positive(self) -> dict[str, list[str]]:
        """{label: its texts}, in the space's order; every label has one at least."""
        return {
            label: [self._fill(template, label) for template in self.templates]
            + list(self.descriptions.get(label, []))
            for label in self.space.labels
        }

    @cached_property
    def negative(self) -> dict[str, list[str]]:
        """{label: texts of what it is not}; no text for labels without."""
        return {label: list(self.negatives.get(label, [])) for label in self.space.labels}

    def _fill(self, template: str, label: str) -> str:
        def value(match: re.Match[str]) -> str:
            if match[1] == "label":
                return label
            if match[1] == "word":
                return self.words.get(label, label.lower())
            if match[1] == "signs":
                return signs(label)
            raise UserError(
                f"texts {self.id!r} have the placeholder {match[0]}: use {{label}}, {{word}} or "
                "{signs}"
            )

        return _PLACEHOLDER.sub(value, template)

    def to_mapping(self) -> dict[str, Any]:
        """The content of its YAML file; a label space that is not built in is part of it."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        if isinstance(self.label_space, label_spaces.LabelSpace):
            content["label_space"] = self.label_space.to_mapping()
        return {key: value for key, value in content.items() if value is not None}

    def answer(self, probabilities: Mapping[str, float]) -> Answer:
        """The likeliest label as the answer that a text model would have been read to give; where
        there may be several, all that are likelier than not, and the likeliest in any case."""
        best = max(probabilities, key=probabilities.__getitem__)
        if not self.multi_label:
            return Answer(best, (), "strict", "")
        labels = [name for name, share in probabilities.items() if share > 0.5 or name == best]
        return Answer(
            labels[0] if len(labels) == 1 else None, (), "strict", "", labels=tuple(labels)
        )


def signs(emotion: str) -> str:
    """What one sees of an emotion, from the brow to the jaw: "the brows are lowered and drawn
    together, ...". Of action units that may stand for each other the first is named."""
    if emotion not in facs.PROTOTYPES:
        raise UserError(
            f"{emotion!r} has no action units: {{signs}} is for texts about "
            f"{', '.join(facs.PROTOTYPES)}; write descriptions instead"
        )
    units = facs.top_down(group[0] for group in facs.PROTOTYPES[emotion].core)
    if not units:
        return "no facial muscle is moved"
    return ", ".join(facs.AUS[unit].cue for unit in units)


TEXTS: Registry[Any] = Registry(
    "set of label texts for CLIP",
    "vlmface.prompts",
    {**definitions(FOLDER)},
    hint="or give the path of a YAML file",
)


def names() -> list[str]:
    """The ids of the built-in texts, sorted."""
    return sorted(TEXTS.built_in)


def load(id_or_path: str | Path, space: label_spaces.LabelSpace | None = None) -> LabelTexts:
    """The texts of a name, which is looked up as that of a prompt is (`prompts.find`).

    Args:
        id_or_path: The name, or GENERATED for texts that are written for a label space.
        space: The label space that they must be about; None: their own.

    Raises:
        UserError: There are no such texts, their file has an unknown key or label, a label has no
            text, or they are about another label space.
    """
    if id_or_path == GENERATED:
        if space is None:
            raise UserError(
                f"the texts {GENERATED!r} are written for a label space: name one, such as "
                "--label_space emotion8, or train on the YAML file of a data set"
            )
        return generate(space)
    source = prompts.find(id_or_path, TEXTS)
    texts = read(source) if isinstance(source, Path) else source
    if not isinstance(texts, LabelTexts):
        raise UserError(
            f"{str(id_or_path)!r} is a {type(source).__name__}, but CLIP needs texts of labels"
        )
    if space is not None and texts.space != space:
        raise UserError(
            f"the texts {texts.id} are about {texts.space.id}, and not about {space.id}: use "
            f"prompt: {GENERATED}, or a file of texts with label_space: {space.id}"
        )
    return texts


def read(path: Path, *, trusted: bool = True) -> LabelTexts:
    """The texts of a YAML file.

    Args:
        path: The file.
        trusted: Whether the user wrote it; see `label_spaces.of_definition`.

    Raises:
        UserError: A key or label is unknown, a value is wrong, or a label has no text.
    """
    content = read_yaml(path, "the texts")
    if "label_space" in content:
        content["label_space"] = label_spaces.of_definition(
            content["label_space"], where=path, trusted=trusted
        )
    texts = config.from_dict(LabelTexts, content, where=str(path))
    prompts.check_id(texts.id, path)
    _check_words(texts.space, str(path))
    for name in ("words", "descriptions", "negatives"):
        for label, value in getattr(texts, name).items():
            _check_label(texts, name, label, value, path)
    if bare := [label for label, filled in texts.positive.items() if not filled]:
        raise UserError(
            f"{path}: no text for {', '.join(bare)}: add templates, or descriptions of each label"
        )
    return texts


def _check_words(space: label_spaces.LabelSpace, where: str) -> None:
    """Refuse a scale of numbers, which no text describes. Raises UserError."""
    if space.scale is not None:
        raise UserError(
            f"{where}: {space.id} is a scale of numbers, and a CLIP compares pictures with words: "
            "train a model that writes numbers, `vlmface train sft_labels`, or make the numbers "
            "ordered labels (`ordered: true`)"
        )


def _check_label(texts: LabelTexts, name: str, label: str, value: Any, path: Path) -> None:
    """Refuse a label that the space lacks, and a value of another type. Raises UserError."""
    if label not in texts.space.labels:
        raise UserError(
            f"{path}: {name} has {label!r}, which is not in label space {texts.space.id} "
            f"({', '.join(texts.space.labels)})"
        )
    is_right = (
        isinstance(value, str)
        if name == "words"
        else isinstance(value, list) and all(isinstance(text, str) for text in value)
    )
    if not is_right:
        expected = "a text" if name == "words" else "a list of texts"
        raise UserError(f"{path}: {name} of {label!r} is {value!r}, but must be {expected}")


# --- of any label space ---------------------------------------------------------------------------

GENERATED = "label"  # the name of the texts that are written for any label space
_TEMPLATES = {
    "emotion": [
        "a photo of a face that looks {word}.",
        "a photo of a person who looks {word}.",
        "a close-up of someone whose expression is {word}.",
        "a portrait that shows {label}.",
    ],
    "gender": ["a photo of a {word} face.", "a portrait of a {word} person."],
    "age_group": ["a photo of a person aged {word}.", "the face of someone aged {word}."],
    "race": ["a photo of a {word} person.", "a portrait of a {word} face."],
    "context": ["a photo of a person: {word}.", "a photo of a face: {word}.", "{word}"],
}
_ADJECTIVES = {
    "anger": "angry",
    "contempt": "contemptuous",
    "disgust": "disgusted",
    "fear": "fearful",
    "happiness": "happy",
    "neutral": "neutral",
    "sadness": "sad",
    "surprise": "surprised",
}
_UNIT = re.compile(r"AU(\d{1,2})")


def generate(space: label_spaces.LabelSpace) -> LabelTexts:
    """The texts of any label space: a few templates with its labels as they are.

    Emotions are written as adjectives, and action units as what one sees of them.

    Args:
        space: What may be answered.

    Raises:
        UserError: It is a scale of numbers.
    """
    _check_words(space, "the texts of a CLIP's labels")
    words = {
        label: word for label in space.labels if (word := _word(space, label)) != label.lower()
    }
    return LabelTexts(
        id=f"texts_{space.id}"[: label_spaces.LONGEST_ID],
        version=1,
        label_space=space.id if space.is_built_in else space,
        source="vlmface",
        templates=_TEMPLATES[space.field],
        words=words,
    )


def _word(space: label_spaces.LabelSpace, label: str) -> str:
    if space.field == "emotion":
        return _ADJECTIVES.get(label, label.lower())
    match = _UNIT.fullmatch(label)
    if match and int(match[1]) in facs.AUS:
        return facs.AUS[int(match[1])].cue
    return label.lower()


# --- how long they are ----------------------------------------------------------------------------


def lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text with those that begin and end it, uncut."""
    if hasattr(tokenizer, "encode") and hasattr(tokenizer, "sot_token_id"):
        return [len(tokenizer.encode(text)) + 2 for text in texts]
    ids = tokenizer.tokenizer(list(texts), truncation=False, padding=False)["input_ids"]
    return [len(token_ids) for token_ids in ids]


def check_lengths(tokenizer: Any, texts: Sequence[str], description: str) -> None:
    """Raises UserError if a text does not fit: open_clip's tokenizers cut it without a word."""
    limit = tokenizer.context_length
    token_counts = lengths(tokenizer, texts)
    if long := [(n, text) for n, text in zip(token_counts, texts, strict=True) if n > limit]:
        n, text = max(long)
        raise UserError(
            f"{len(long)} of {len(texts)} texts of {description} have more than the {limit} tokens "
            f"that this model reads, the longest {n}: {text!r}; shorten them"
        )
