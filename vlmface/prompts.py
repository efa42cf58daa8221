"""prompts/*.yaml -> chat messages, targets and answers.

One file is one prompt, for training and for serving; its `sha` changes whenever the text that a
model sees or the answer that is asked for changes. `load` finds a prompt by name, in a YAML file
anywhere, or in an installed package.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from vlmface import answers, facs, label_spaces
from vlmface.errors import UserError, did_you_mean
from vlmface.evidence import VERSION as EVIDENCE_VERSION
from vlmface.registry import Registry
from vlmface.resources import content_sha, definitions, is_yaml, read_yaml
from vlmface.schema import FaceSample

_KEYS = ("id", "version", "format", "label_space", "images", "system", "user", "source", "notes")
_NUMBERS = ("version", "images")
_EVIDENCE = "{evidence}"
_MOST_IMAGES = 128
_REQUIRED = ("id", "version", "format", "label_space", "user", "source")


class PromptLike(Protocol):
    """What evaluation and manifests need to know of a question: a prompt is one, and so are the
    texts of a CLIP's labels."""

    @property
    def id(self) -> str: ...
    @property
    def sha(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def space(self) -> label_spaces.LabelSpace: ...
    @property
    def multi_label(self) -> bool: ...
    @property
    def has_rationale(self) -> bool: ...
    @property
    def uses_evidence(self) -> bool: ...


@dataclass(frozen=True)
class Prompt:
    """A prompt as its file holds it: `system` and `user` still have their placeholders.

    `{candidates}` and `{au_definitions}` are the same in all rows. `{evidence}` is the text of
    `vlmface.evidence` about the face that is shown.

    `label_space` is the id of a built-in label space, or a label space. `images`: how many pictures
    it is about, which stand before the question, so that it may call them image 1, image 2, ...
    `order`: the candidates as they are listed, None for that of the label space.
    """

    id: str
    version: int
    format: str
    label_space: str | label_spaces.LabelSpace
    user: str
    source: str
    images: int = 1
    system: str | None = None
    notes: str | None = None
    order: tuple[str, ...] | None = None

    @cached_property
    def space(self) -> label_spaces.LabelSpace:
        """The labels that may be answered."""
        return label_spaces.space(self.label_space)

    @cached_property
    def sha(self) -> str:
        """12 hex digits over everything that reaches the model or decides how it is read."""
        return content_sha(
            {
                "id": self.id,
                "version": self.version,
                "format": self.format,
                "label_space": [self.space.id, self.space.sha],
                "messages": self.messages(f"{{evidence {EVIDENCE_VERSION}}}"),
            }
        )

    @cached_property
    def uses_evidence(self) -> bool:
        """Whether it contains measured movements of the face."""
        return _EVIDENCE in f"{self.system} {self.user}"

    def messages(self, evidence: str | None = None) -> list[dict[str, Any]]:
        """Chat messages in the block form of transformers: the images first, then the question.

        Args:
            evidence: The text of `vlmface.evidence` about the face; without effect for a
                prompt that does not use it.

        Raises:
            UserError: The prompt uses evidence, and there is none.
        """
        pictures = [{"type": "image"} for _ in range(self.images)]
        text = self._fill(self.user, evidence)
        content = [*pictures, {"type": "text", "text": text}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self.system is not None:
            system = [{"type": "text", "text": self._fill(self.system, evidence)}]
            messages.insert(0, {"role": "system", "content": system})
        return messages

    def _fill(self, text: str, evidence: str | None) -> str:
        values: dict[str, str | None] = {
            "candidates": ", ".join(self.order) if self.order else self.space.candidates,
            "au_definitions": "\n".join(
                f"{facs.name(au)} {facs.AUS[au].name}: {facs.AUS[au].cue}."
                for au in facs.DEFINED_AUS
            ),
            "evidence": evidence,
        }

        def value(match: re.Match[str]) -> str:
            if match[1] not in values:
                raise UserError(
                    f"prompt {self.id!r} has the placeholder {match[0]}: "
                    f"use one of {', '.join('{' + name + '}' for name in values)}"
                )
            filled = values[match[1]]
            if filled is None:
                raise UserError(
                    f"prompt {self.id!r} contains measured movements of each face, which cannot be "
                    "given here: use a prompt without {evidence}"
                )
            return filled

        return re.sub(r"\{(\w+)\}", value, text)

    def with_label_space(self, space: label_spaces.LabelSpace) -> Prompt:
        """The same words about another label space of the same kind, with its candidates. Raises
        UserError where the words would not fit."""
        if space == self.space:
            return self
        alike = _kind(space) == _kind(self.space)
        if not alike or "{candidates}" not in f"{self.system} {self.user}":
            raise UserError(
                f"prompt {self.id} asks for {self.space.field} out of {self.space.id}, and "
                f"cannot ask for {space.id}: use another prompt, such as label"
            )
        return replace(self, label_space=space.id if space.is_built_in else space)

    def with_label_order(self, order: Sequence[str]) -> Prompt:
        """The same prompt with its candidates in another order."""
        if self.space.scale is not None:
            raise UserError(f"{self.space.id} is a scale of numbers, which have no other order")
        if sorted(order) != sorted(self.space.labels):
            raise UserError(
                f"the order {', '.join(order)} should hold each label of {self.space.id} once"
            )
        return replace(self, order=tuple(order))

    def to_mapping(self) -> dict[str, Any]:
        """The content of its YAML file; a label space that is not built in is part of it."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        if isinstance(self.label_space, label_spaces.LabelSpace):
            content["label_space"] = self.label_space.to_mapping()
        return {key: value for key, value in content.items() if value is not None}

    @property
    def has_rationale(self) -> bool:
        """Whether a rationale is asked for before the labels."""
        return answers.has_rationale(self.format)

    @property
    def multi_label(self) -> bool:
        """Whether all labels that apply are asked for."""
        return self.format in answers.MULTI_LABEL_FORMATS

    def target_labels(self, sample: FaceSample) -> tuple[str, ...]:
        """The labels that an answer about the sample should give; () if it is not annotated, or
        has several where one is asked for."""
        labels = sample.labels(self.space)
        return labels if self.multi_label or len(labels) == 1 else ()

    @property
    def answer_suffix(self) -> str:
        """What follows the label in a completion."""
        return answers.SUFFIX[self.format]

    def answer_prefix(self, rationale: str) -> str:
        """The completion up to where the label starts: labels are scored after it."""
        return answers.completion_prefix(rationale, self.format)

    def completion(self, rationale: str, label: str) -> str:
        """A completion in the prompt's format; several labels as `answers.join_labels` has them."""
        return self.answer_prefix(rationale) + label + self.answer_suffix

    def parse(self, text: str) -> answers.Answer:
        """Read a completion; see `vlmface.answers`."""
        return answers.parse(text, self.space, self.format)

    def target(self, sample: FaceSample) -> str:
        """The completion to train on. Raises UserError if the sample lacks the label or the
        rationale, or if its rationale would make the completion unreadable."""
        labels = self.target_labels(sample)
        if not labels:
            value = getattr(sample, self.space.field)
            raise UserError(
                f"sample {sample.id!r} has {self.space.field} {value!r}, which is not in label "
                f"space {self.space.id!r} ({self.space.candidates}): leave the sample out "
                "or use a prompt with another label space"
            )
        if self.has_rationale and not (sample.rationale or "").strip():
            raise UserError(
                f"sample {sample.id!r} has no rationale, but prompt {self.id!r} asks for one: "
                f"write it with vlmface.rationale.rules or use a prompt of format "
                f"{'labels' if self.multi_label else 'label'!r}"
            )
        text = self.completion(sample.rationale or "", answers.join_labels(labels))
        read = self.parse(text)
        if (read.status, read.labels) != ("strict", labels):
            raise UserError(
                f"sample {sample.id!r}: its rationale {sample.rationale!r} does not fit the format "
                f"{self.format!r} (read back as {read.status}): take tags and headings out of it"
            )
        return text


def _kind(space: label_spaces.LabelSpace) -> tuple[str, bool, bool]:
    """What the words of a prompt depend on, of a label space."""
    return space.field, space.multi_label, space.scale is not None


def check_images(prompts: Sequence[Prompt], views: int, frames: int) -> None:
    """Raises UserError unless all prompts are about as many pictures as a model is shown: `frames`
    of each of `views` (0: the picture as it is)."""
    num_images = max(1, views) * frames
    for prompt in prompts:
        if prompt.images != num_images:
            raise UserError(
                f"prompt {prompt.id} is about {prompt.images} picture(s), but {num_images} would "
                f"be shown: there are {views or 'no'} views, and num_frames is {frames}. Use a "
                f"prompt with images: {num_images}, or other views"
            )


def check_id(id: str, path: Path) -> None:
    """Raises UserError unless `id` can be a part of a file's name."""
    if not re.fullmatch(label_spaces.ID, id):
        raise UserError(
            f"{path}: the id is {id!r}: use letters, digits, dots, dashes and underscores, at most "
            "100, and none of these marks in front"
        )


# --- of any label space ---------------------------------------------------------------------------

_QUESTIONS = {
    "emotion": "What is the emotion of the person in the image?",
    "gender": "What is the gender of the person in the image?",
    "age_group": "How old is the person in the image?",
    "race": "What is the race of the person in the image?",
    "context": "Which label describes the person in the image?",
}
_SEVERAL = "Which labels describe the person in the image?"
_UNITS = "Which facial muscles moved? Name each with its AU number inside <think></think>."
_TEXT = "Describe what the image shows of it inside <think></think>."
GENERATED = ("label", "rationale", "au_rationale")
"""Prompts that are written for any label space: the label alone, after a text about the image, or
after the action units."""


def _rated(name: str) -> str:
    """What is rated of a person, for a question."""
    return f"the {name} of the person" if name else "the person"


def generate(name: str, space: label_spaces.LabelSpace) -> Prompt:
    """The prompt of a name in GENERATED for a label space.

    Its id is the name and the space's id, as in label_engagement3.

    Args:
        name: One of GENERATED.
        space: What may be answered.
    """
    question = _SEVERAL if space.multi_label else _QUESTIONS[space.field]
    quantifier = "all that apply of" if space.multi_label else "one of"
    choice, listed = f"{quantifier} {{candidates}}", f"{quantifier}: {{candidates}}"
    if space.scale is not None:
        question = f"How would you rate {_rated(space.scale.name)} in the image?"
        choice = listed = "{candidates}"
    if name == "label":
        format = "labels" if space.multi_label else "label"
        user = f"{question} Answer with {listed}."
    else:
        format = "think_labels" if space.multi_label else "think_answer"
        steps = _UNITS if name == "au_rationale" else f"{question} {_TEXT}"
        user = f"{steps}\nThen give {choice} inside <answer></answer>."
    return Prompt(
        id=f"{name}_{space.id}"[: label_spaces.LONGEST_ID],
        version=1,
        format=format,
        label_space=space.id if space.is_built_in else space,
        user=user,
        source="vlmface",
    )


# --- loading --------------------------------------------------------------------------------------

PROMPTS: Registry[Any] = Registry(
    "prompt", "vlmface.prompts", {**definitions("prompts")}, hint="or give the path of a YAML file"
)


def find(name: str | Path, registry: Registry[Any]) -> Any:
    """Where a prompt, or the texts of a CLIP's labels, are defined.

    Args:
        name: A built-in name, the path of a YAML file, or an entry point of the group
            `vlmface.prompts` in an installed package, which refers to the path of a YAML file
            (`my_prompt = "my_package:PROMPT"`) or to a `Prompt`.
        registry: What has a name.

    Returns:
        The path of a YAML file, or what the entry point refers to.

    Raises:
        UserError: Nothing has that name.
    """
    source = name if is_yaml(name) else registry.get(str(name))
    return Path(source).expanduser() if isinstance(source, str | Path) else source


def load(id_or_path: str | Path, space: label_spaces.LabelSpace | None = None) -> Prompt:
    """The prompt of a name; see `find`.

    Args:
        id_or_path: The name, or one of GENERATED.
        space: The label space to ask for; None: the prompt's own.

    Raises:
        UserError: There is no such prompt, its file has a missing or unknown key, or a wrong value,
            or it cannot ask for the label space.
    """
    if id_or_path in GENERATED:
        if space is None:
            raise UserError(
                f"prompt {str(id_or_path)!r} is written for a label space: name one, such as "
                "--label_space emotion8, or train on the YAML file of a data set"
            )
        return generate(str(id_or_path), space)
    prompt = _load_named(id_or_path)
    return prompt if space is None else prompt.with_label_space(space)


def _load_named(id_or_path: str | Path) -> Prompt:
    source = find(id_or_path, PROMPTS)
    if isinstance(source, Path):
        return read(source)
    if not isinstance(source, Prompt):
        raise UserError(f"prompt {str(id_or_path)!r} is a {type(source).__name__}, not a prompt")
    return source


def read(path: Path, *, trusted: bool = True) -> Prompt:
    """The prompt of a YAML file.

    Args:
        path: The file.
        trusted: Whether the user wrote it; see `label_spaces.of_definition`.

    Raises:
        UserError: A key is missing or unknown, or a value is wrong.
    """
    content = _check_content(read_yaml(path, "the prompt"), path)
    content["label_space"] = label_spaces.of_definition(
        content["label_space"], where=path, trusted=trusted
    )
    content["user"] = content["user"].strip()
    content["system"] = (content.get("system") or "").strip() or None
    prompt = Prompt(**content)
    prompt.messages("")
    if prompt.space.multi_label != prompt.multi_label:
        fitting = [
            f
            for f in answers.FORMATS
            if (f in answers.MULTI_LABEL_FORMATS) == prompt.space.multi_label
        ]
        raise UserError(
            f"the prompt {path}: format is {prompt.format!r}, but a face has "
            f"{'several labels' if prompt.space.multi_label else 'one label'} of "
            f"{prompt.space.id}: use {' or '.join(fitting)}"
        )
    return prompt


def _check_content(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The content of a prompt's file without empty keys. Raises UserError."""
    for key in content:
        if key not in _KEYS:
            hint = did_you_mean(key, _KEYS)
            raise UserError(
                f"the prompt {path} has the unknown key {key!r}{hint}: use {', '.join(_KEYS)}"
            )
    for key in _REQUIRED:
        if not str(content.get(key) or "").strip():
            raise UserError(f"the prompt {path} lacks {key!r}: add it")
    content = {key: value for key, value in content.items() if value is not None}
    for key, value in content.items():
        kind = int if key in _NUMBERS else str
        if key != "label_space" and type(value) is not kind:
            raise UserError(f"the prompt {path}: {key!r} is {value!r}, but must be {kind.__name__}")
    check_id(content["id"], path)
    if content["format"] not in answers.FORMATS:
        raise UserError(
            f"the prompt {path}: format is {content['format']!r}, use one of "
            f"{', '.join(answers.FORMATS)}"
        )
    if not 1 <= content.get("images", 1) <= _MOST_IMAGES:
        raise UserError(
            f"the prompt {path}: images is {content['images']}, expected 1 to {_MOST_IMAGES}, "
            "as many pictures as it is about"
        )
    return content
