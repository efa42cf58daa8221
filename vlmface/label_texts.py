"""prompts/clip/*.yaml -> the texts that stand for each label of a space.

A label is the mean of its texts' features. Texts are templates filled with the label's word and
with the signs of its action units, and descriptions written out; `negatives` say what is not seen
where the label is true.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vlmface import facs, label_spaces, prompts
from vlmface.answers import Answer
from vlmface.errors import UserError, did_you_mean
from vlmface.utils import config
from vlmface.utils.files import resource

FOLDER = "prompts/clip"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class LabelTexts:
    """The texts of a label space as their file holds them.

    `templates` may hold {label}, {word} (of `words`, else the label in lower case) and {signs} (of
    the label's core action units, see `facs.PROTOTYPES`). `descriptions` and `negatives` are
    {label: texts}, written out; `negatives` may be left out for some labels.
    """

    id: str
    version: int
    label_space: str
    source: str
    templates: list[str] = field(default_factory=list)
    words: dict[str, Any] = field(default_factory=dict)
    descriptions: dict[str, Any] = field(default_factory=dict)
    negatives: dict[str, Any] = field(default_factory=dict)
    notes: str | None = None

    reasons = False  # nothing is said beside the labels

    @property
    def several(self) -> bool:
        """Whether a person may have several of the labels, each being true or false by itself."""
        return self.space.several

    @property
    def form(self) -> str:
        """What it answers, in the words of `vlmface.prompts`."""
        return "labels" if self.several else "label"

    @cached_property
    def space(self) -> label_spaces.LabelSpace:
        return label_spaces.space(self.label_space)

    @cached_property
    def sha(self) -> str:
        """12 hex digits over everything that reaches the model or decides how it is read."""
        content = {
            "id": self.id,
            "version": self.version,
            "label_space": [self.space.id, self.space.sha],
            "texts": self.positive,
            "negatives": self.negative,
        }
        text = json.dumps(content, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

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

    def answer(self, probabilities: Mapping[str, float]) -> Answer:
        """The likeliest label as the answer that a text model would have been read to give; where
        there may be several, all that are likelier than not, and the likeliest in any case."""
        best = max(probabilities, key=probabilities.__getitem__)
        if not self.several:
            return Answer(best, (), "strict", "")
        found = [name for name, share in probabilities.items() if share > 0.5 or name == best]
        return Answer(found[0] if len(found) == 1 else None, (), "strict", "", labels=tuple(found))


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


def names() -> list[str]:
    """The ids that `load` knows, sorted."""
    return sorted(file.stem for file in resource(FOLDER).glob("*.yaml"))


def load(id_or_path: str | Path) -> LabelTexts:
    """Load texts by their id ("clip_emotion") or from a YAML file of your own. Raises UserError for
    an unknown id, key or label, and for a label without a text."""
    path = Path(id_or_path)
    if path.suffix not in (".yaml", ".yml"):
        known = names()
        if str(id_or_path) not in known:
            hint = did_you_mean(id_or_path, known)
            raise UserError(
                f"there are no texts {str(id_or_path)!r} for CLIP{hint}: use one of "
                f"{', '.join(known)}, or the path of a .yaml file"
            )
        path = resource(FOLDER) / f"{id_or_path}.yaml"
    texts = config.build(LabelTexts, config.read(path), where=str(path))
    prompts.check_id(texts.id, path)
    labels = texts.space.labels
    for name in ("words", "descriptions", "negatives"):
        for label, value in getattr(texts, name).items():
            if label not in labels:
                raise UserError(
                    f"{path}: {name} has {label!r}, which is not in label space "
                    f"{texts.label_space} ({', '.join(labels)})"
                )
            right = (
                isinstance(value, str)
                if name == "words"
                else isinstance(value, list) and all(isinstance(text, str) for text in value)
            )
            if not right:
                wanted = "a text" if name == "words" else "a list of texts"
                raise UserError(f"{path}: {name} of {label!r} is {value!r}, but must be {wanted}")
    if bare := [label for label, found in texts.positive.items() if not found]:
        raise UserError(
            f"{path}: no text for {', '.join(bare)}: add templates, or descriptions of each label"
        )
    return texts


# --- how long they are ----------------------------------------------------------------------------


def lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text with those that begin and end it, uncut."""
    if hasattr(tokenizer, "encode") and hasattr(tokenizer, "sot_token_id"):
        return [len(tokenizer.encode(text)) + 2 for text in texts]
    ids = tokenizer.tokenizer(list(texts), truncation=False, padding=False)["input_ids"]
    return [len(one) for one in ids]


def check_lengths(tokenizer: Any, texts: Sequence[str], what: str) -> None:
    """Raises UserError if a text does not fit: open_clip's tokenizers cut it without a word."""
    limit = tokenizer.context_length
    found = lengths(tokenizer, texts)
    if long := [(n, text) for n, text in zip(found, texts, strict=True) if n > limit]:
        n, text = max(long)
        raise UserError(
            f"{len(long)} of {len(texts)} texts of {what} have more than the {limit} tokens that "
            f"this model reads, the longest {n}: {text!r}; shorten them"
        )
