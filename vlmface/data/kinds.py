"""The types of a data set's options, checked by the annotations of its `read`."""

from __future__ import annotations

import numbers
import os
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

_WORDS = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a text",
    type(None): "null",
}  # fmt: skip


def fits(kind: Any, value: Any) -> bool:
    """Whether a value is of an annotated type: `str | None`, `Sequence[int]`, `Mapping[Any, str]`.
    A list is a sequence and a text is not, a whole number is a number, true is neither."""
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(fits(one, value) for one in of)
    if origin is typing.Literal:
        return value in of
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            fits(of[0], key) and fits(of[1], item) for key, item in value.items()
        )
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(fits(of[0], item) for item in value)
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real  # NumPy's too
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, str | os.PathLike if kind is str else kind)


def described(kind: Any) -> str:
    """A type in words, for a message."""
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(described(one) for one in of))
    if origin is typing.Literal:
        return " or ".join(map(repr, of))
    if origin is not None and issubclass(origin, Mapping):
        return "a mapping such as {a: b}"
    if origin is not None and issubclass(origin, Sequence):
        return f"a list ({described(of[0])} each)"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))
