"""The values that a setting may have: declared with its field, checked when settings are made.

    batch_size: Count = 16
    layer_decay: Annotated[float, Range(above=0, max=1)] = 1.0

`config` reads the same declarations for its messages and for `--help`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from vlmface.errors import UserError

_LARGEST = 2**63 - 1  # of whole numbers: libraries cannot take more


@dataclass(frozen=True)
class Range:
    """Bounds of a finite number: `min` and `max` belong to it, `above` and `below` do not."""

    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a number is within the bounds."""
        if isinstance(value, int):
            if abs(value) > _LARGEST:
                return False
        elif not math.isfinite(value):
            return False
        return (
            (self.min is None or value >= self.min)
            and (self.max is None or value <= self.max)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = {"min": "at least", "above": "above", "max": "at most", "below": "below"}
        return " and ".join(
            f"{word} {bound:.15g}"
            for name, word in words.items()
            if (bound := getattr(self, name)) is not None
        )


@dataclass(frozen=True)
class Describes:
    """Of a text about another field: a settings file's text is dropped where the command line gives
    that field another value, because it would describe something else."""

    field: str


Count = Annotated[int, Range(min=1)]
Natural = Annotated[int, Range(min=0)]
Seed = Annotated[int, Range(min=0, max=2**32 - 1)]  # what NumPy takes
Port = Annotated[int, Range(min=0, max=65535)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(min=0)]
Share = Annotated[float, Range(min=0, max=1)]
PositiveShare = Annotated[float, Range(above=0, max=1)]
# A number of steps, or the share of all steps, as transformers takes it.
Warmup = Annotated[int, Range(min=0)] | Annotated[float, Range(min=0, below=1)]


class Unused(NamedTuple):
    """A field that nothing reads under the present settings: `why`, and the other fields that
    decide that; `by` None: a settings file may prepare it for the option that would read it."""

    name: str
    why: str
    by: tuple[str, ...] | None = ()


class Checked:
    """A base of settings: no object of a subclass, a dataclass, holds a value out of range."""

    def __post_init__(self) -> None:
        for name, kind in kinds(type(self)).items():
            value = getattr(self, name)
            if not (in_range(kind, value) and in_words(kind, value)):
                raise UserError(f"{name} is {value!r}, but must be {describe(kind)}")

    @classmethod
    def implied(cls, stored: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Values of fields that follow from those of others and were not chosen.

        Args:
            stored: {field: value} of the settings file.
            overrides: {field: text} of the command line.

        Returns:
            {field: value}, which replaces the value of the settings file.
        """
        return {}

    def check(self) -> None:
        """Refuse fields that contradict each other. Raises UserError."""

    def unused(self) -> Iterator[Unused]:
        """The fields that have no effect beside the others."""
        yield from ()


def kinds(cls: Any) -> dict[str, Any]:
    """{field: its type, with the range} of a dataclass."""
    return _kinds(cls)


@functools.cache
def _kinds(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@functools.cache
def help_texts(cls: Any) -> dict[str, str]:
    """{field: its meaning} of a dataclass, from the `Args:` of its docstring and of its bases'; ""
    for a field that these do not mention."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        texts |= _arguments_of(vars(base).get("__doc__") or "")
    return {name: texts.get(name, "") for name in kinds(cls)}


def _arguments_of(docstring: str) -> dict[str, str]:
    """{name: text} of the section `Args:` of a Google-style docstring."""
    lines = inspect.cleandoc(docstring).splitlines()
    texts: dict[str, str] = {}
    name = ""
    for line in lines[lines.index("Args:") + 1 :] if "Args:" in lines else []:
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if not text or indent == 0:
            break
        if indent == 4:
            name, _, text = text.partition(":")
        texts[name] = f"{texts.get(name, '')} {text.strip()}".strip()
    return texts


def bare(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """(a type without its annotations, these)."""
    if typing.get_origin(kind) is Annotated:
        inner, *extras = typing.get_args(kind)
        return inner, tuple(extras)
    return kind, ()


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    inner, _ = bare(kind)
    return typing.get_args(inner) if typing.get_origin(inner) in _UNIONS else (kind,)


_UNIONS = (types.UnionType, typing.Union)


def range_of(kind: Any) -> Range | None:
    """The range that is declared with a type, if any."""
    return next((extra for extra in bare(kind)[1] if isinstance(extra, Range)), None)


def in_range(kind: Any, value: Any) -> bool:
    """Whether a value's numbers are within what `kind` declares; of other values, True."""
    options = alternatives(kind)
    if isinstance(value, list | tuple):
        inner = [
            typing.get_args(alternative)[0]
            for alternative in options
            if typing.get_origin(alternative) is list
        ]
        return not inner or all(in_range(inner[0], item) for item in value)
    if isinstance(value, dict):
        inner = [
            typing.get_args(alternative)[1]
            for alternative in options
            if typing.get_origin(alternative) is dict
        ]
        return not inner or all(in_range(inner[0], item) for item in value.values())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    fitting = [
        range_of(alternative)
        for alternative in options
        if bare(alternative)[0] is float or (bare(alternative)[0] is int and isinstance(value, int))
    ]
    return not fitting or any(limit is None or limit.holds(value) for limit in fitting)


def in_words(kind: Any, value: Any) -> bool:
    """Whether a text is one of the words that `kind` names, if it is of words alone."""
    options = [bare(alternative)[0] for alternative in alternatives(kind)]
    words = [
        typing.get_args(alternative)
        for alternative in options
        if typing.get_origin(alternative) is typing.Literal
    ]
    return not isinstance(value, str) or not words or str in options or value in sum(words, ())


def describe(kind: Any) -> str:
    """What a field may hold, for people."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    parts = []
    for alternative in alternatives(kind):
        inner, limit = bare(alternative)[0], range_of(alternative)
        if typing.get_origin(inner) is typing.Literal:
            parts.append(" | ".join(map(str, typing.get_args(inner))))
        elif typing.get_origin(inner) in (list, dict):
            parts.append(_of_items(inner))
        elif inner is type(None):
            parts.append("null")
        else:
            parts.append(words[inner] + (f" {limit}" if limit else ""))
    return " or ".join(parts)


def _of_items(kind: Any) -> str:
    """A list or a mapping, and what is in it if it is of numbers."""
    word = "a list" if typing.get_origin(kind) is list else "a mapping"
    item = typing.get_args(kind)[-1]
    limit = range_of(item)
    return f"{word} of numbers, each {limit}" if limit else word
