"""prompts/teacher/*.yaml -> chat messages for the model that writes rationales.

{aus}, {label}, {candidates} and {max_words} are filled in for each face. Information that a prompt
does not contain is not in a repair request either.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmface import facs
from vlmface.errors import UserError
from vlmface.label_spaces import LabelSpace
from vlmface.rationale.ground_truth import GroundTruth
from vlmface.rationale.verify import AU_REASONS, Limits, Verdict
from vlmface.resources import resource
from vlmface.utils import config

FORMS = ("think_answer", "three_part")
_USER_PLACEHOLDERS = ("aus", "label", "candidates", "max_words")


@dataclass(frozen=True)
class TeacherPrompt:
    """A teacher prompt as its file holds it; `repair` has the placeholder {faults}."""

    id: str
    version: int
    format: str
    user: str
    repair: str
    source: str
    system: str | None = None
    notes: str | None = None

    @property
    def shows_label(self) -> bool:
        return "{label}" in self.user

    @property
    def shows_aus(self) -> bool:
        return "{aus}" in self.user

    def sha(self, space: LabelSpace, limits: Limits) -> str:
        """12 hex digits over all that the teacher receives except the face and its labels."""
        all_aus = GroundTruth(space.labels[0], dict.fromkeys(facs.AU_NUMBERS, 3.0), frozenset())
        content = [self.id, self.version, self.format, space.sha, self.repair]
        text = json.dumps([*content, self.messages(all_aus, space, limits, "")], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def messages(
        self, truth: GroundTruth, space: LabelSpace, limits: Limits, image: str
    ) -> list[dict[str, Any]]:
        """Messages of the OpenAI chat format about one face; `image` is a data URI."""
        values = {
            "aus": describe(truth.aus),
            "label": truth.label,
            "candidates": space.candidates,
            "max_words": str(limits.max_words),
        }
        content = [
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "text", "text": _fill(self.user, values).strip()},
        ]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system.strip()})
        return messages

    def repair_messages(self, text: str, verdict: Verdict) -> list[dict[str, Any]]:
        """The messages after an answer with faults."""
        faults = "\n".join(f"- {fault.message}" for fault in verdict.faults)
        return [
            {"role": "assistant", "content": text or "(nothing)"},
            {"role": "user", "content": _fill(self.repair, {"faults": faults}).strip()},
        ]

    def may_repair(self, verdict: Verdict) -> bool:
        """Whether the faults can be described without information that the prompt withholds."""
        withheld = {"refused"}
        withheld |= set() if self.shows_label else {"wrong_label"}
        withheld |= set() if self.shows_aus else AU_REASONS
        return not verdict.kept and not withheld & set(verdict.reasons)


def describe(aus: Mapping[int, float | None]) -> str:
    """Action units as text, a line each: "- AU4 brow lowerer (strongly): the brows are ..."."""
    lines = []
    for au in facs.top_down(aus):
        unit, intensity = facs.AUS[au], aus[au]
        grade = "" if intensity is None else f" ({facs.GRADES[facs.grade(intensity) - 1]})"
        lines.append(f"- {facs.name(au)} {unit.name}{grade}: {unit.cue}")
    return "\n".join(lines) or "- none: no muscle moves visibly"


def load(id_or_path: str | Path) -> TeacherPrompt:
    """Load a teacher prompt.

    Args:
        id_or_path: An id, such as "with_label", or the path of a YAML file.

    Raises:
        UserError: The id, the format, a placeholder or a key is unknown, or a key is missing.
    """
    path = Path(id_or_path)
    if path.suffix not in (".yaml", ".yml"):
        folder = resource("prompts/teacher")
        path = folder / f"{id_or_path}.yaml"
        if not path.is_file():
            names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
            raise UserError(
                f"unknown teacher prompt {str(id_or_path)!r}: use one of {names}, or the path "
                "of a .yaml file"
            )
    prompt = config.from_dict(TeacherPrompt, config.read_yaml(path), where=str(path))
    if prompt.format not in FORMS:
        raise UserError(f"{path}: format is {prompt.format!r}, use one of {', '.join(FORMS)}")
    for text, allowed in ((prompt.user, _USER_PLACEHOLDERS), (prompt.repair, ("faults",))):
        for name in re.findall(r"\{(\w+)\}", text):
            if name not in allowed:
                raise UserError(
                    f"{path} has the placeholder {{{name}}}: use {_braces(allowed)} there"
                )
    return prompt


def _fill(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], text)


def _braces(names: Sequence[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)
