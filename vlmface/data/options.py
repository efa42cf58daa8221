"""Types of the options of data sets, as their `read` declares them."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import numbers
import typing
from collections.abc import Mapping
from typing import Any

from vlmface.errors import UserError, did_you_mean
from vlmface.utils.ranges import alternatives, bare, describe, in_range


@functools.cache
def declared_types(function: Any) -> dict[str, Any]:
    """{parameter: its type}, Any where that cannot be evaluated."""
    names = getattr(inspect.unwrap(function), "__globals__", {})
    types = {}
    for parameter in inspect.signature(function).parameters.values():
        kind = parameter.annotation
        if isinstance(kind, str):
            try:
                kind = eval(kind, dict(names))  # the module's own annotation
            except NameError:
                kind = Any
        types[parameter.name] = kind
    return types


def check_options(what: str, read: Any, given: Mapping[str, Any]) -> None:
    """Raise UserError for an option that a data set does not have, or of the wrong type.

    Args:
        what: Name of the data set in messages.
        read: Its function `read(root, split, **options)`.
        given: {option: value}.
    """
    known = list(inspect.signature(read).parameters)[2:]
    for option, value in given.items():
        if option not in known:
            raise UserError(
                f"{what} has no option {option!r}{did_you_mean(option, known)}; it has "
                f"{', '.join(known) or 'none'}"
            )
        check_type(f"{what}: {option}", declared_types(read)[option], value)


def check_type(what: str, kind: Any, value: Any) -> None:
    """Raise UserError for a value of another type than a parameter's."""
    if kind is Any or kind is inspect.Parameter.empty:
        return
    if any(_is(option, value) for option in alternatives(kind)):
        return
    raise UserError(f"{what} is {value!r}, but must be {_words(kind)}")


def _is(kind: Any, value: Any) -> bool:
    inner = bare(kind)[0]
    origin, items = typing.get_origin(inner), typing.get_args(inner)
    if inner is Any:
        return True
    if inner is type(None):
        return value is None
    if origin is typing.Literal:
        return value in items
    if origin is collections.abc.Sequence:
        if isinstance(value, str) or not isinstance(value, list | tuple | range):
            return False
        return all(any(_is(of, item) for of in alternatives(items[0])) for item in value)
    if origin is collections.abc.Mapping:
        return isinstance(value, Mapping) and all(
            any(_is(of, item) for of in alternatives(items[1])) for item in value.values()
        )
    if inner is float:
        numeric = isinstance(value, numbers.Real) and not isinstance(value, bool)  # NumPy's too
        return numeric and in_range(kind, float(value))
    if inner is int:
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return whole and in_range(kind, value)
    if inner is str:
        return isinstance(value, str) or hasattr(value, "__fspath__")
    return isinstance(value, inner) if isinstance(inner, type) else True


def _words(kind: Any) -> str:
    parts = []
    for option in alternatives(kind):
        origin = typing.get_origin(bare(option)[0])
        if origin is collections.abc.Sequence:
            of = alternatives(typing.get_args(bare(option)[0])[0])
            parts.append("a list of " + " or ".join(_PLURAL.get(item, "values") for item in of))
        elif origin is collections.abc.Mapping:
            parts.append("a mapping {name: value}")
        elif isinstance(bare(option)[0], type) and bare(option)[0] not in (int, float, bool, str):
            parts.append("null" if option is type(None) else bare(option)[0].__name__)
        else:
            parts.append(describe(option))
    return " or ".join(parts)


_PLURAL: dict[Any, str] = {int: "whole numbers", str: "texts", float: "numbers"}
