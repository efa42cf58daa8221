"""The options of data sets, as their `read` declares them: as parameters after root and split, or
as the fields of a dataclass, the type of a parameter `options`."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import numbers
import sys
import typing
from collections.abc import Mapping
from typing import Any

from vlmface.errors import UserError, did_you_mean
from vlmface.utils.ranges import alternatives, bare, describe, in_range


@functools.cache
def declared_types(function: Any) -> dict[str, Any]:
    """{parameter: its type}, Any where that cannot be evaluated; the fields of a dataclass of
    options instead of the parameter `options`."""
    types = {}
    for parameter in inspect.signature(function).parameters.values():
        names = getattr(inspect.unwrap(function), "__globals__", {})
        types[parameter.name] = _evaluated(parameter.annotation, names)
    if (kind := options_class(function)) is not None:
        del types["options"]
        names = vars(sys.modules[kind.__module__])
        types |= {f.name: _evaluated(f.type, names) for f in dataclasses.fields(kind)}
    return types


def _evaluated(annotation: Any, names: Mapping[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(names))  # the module's own annotation
    except NameError:
        return Any


def options_class(function: Any) -> type | None:
    """The dataclass that is the type of the parameter `options`; None if there is none."""
    parameter = inspect.signature(function).parameters.get("options")
    kind = parameter and _evaluated(parameter.annotation, function.__globals__)
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def declared_options(read: Any) -> dict[str, Any]:
    """{option: its type} of a data set's `read(root, split, ...)`."""
    return dict(list(declared_types(read).items())[2:])


def arguments(read: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `read` for options. Raises UserError as a dataclass of options
    does."""
    kind = options_class(read)
    return dict(given) if kind is None else {"options": kind(**given)}


def check_options(what: str, read: Any, given: Mapping[str, Any]) -> None:
    """Raise UserError for an option that a data set does not have, or of the wrong type.

    Args:
        what: Name of the data set.
        read: Its function `read(root, split, ...)`.
        given: {option: value}.
    """
    declared = declared_options(read)
    for option, value in given.items():
        if option not in declared:
            raise UserError(
                f"data set {what!r} has no option {option!r}{did_you_mean(option, declared)}; it "
                f"has {', '.join(declared) or 'none'}"
            )
        check_type(f"{what}: {option}", declared[option], value)


def check_type(name: str, kind: Any, value: Any) -> None:
    """Raise UserError for a value of another type than a parameter's."""
    if kind is Any or kind is inspect.Parameter.empty:
        return
    if any(_is(option, value) for option in alternatives(kind)):
        return
    raise UserError(f"{name} is {value!r}, but must be {_words(kind)}")


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
        return all(
            any(_is(item_kinds, item) for item_kinds in alternatives(items[0])) for item in value
        )
    if origin is collections.abc.Mapping:
        return isinstance(value, Mapping) and all(
            any(_is(item_kinds, item) for item_kinds in alternatives(items[1]))
            for item in value.values()
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
            item_kinds = alternatives(typing.get_args(bare(option)[0])[0])
            parts.append(
                "a list of " + " or ".join(_PLURAL.get(item, "values") for item in item_kinds)
            )
        elif origin is collections.abc.Mapping:
            parts.append("a mapping {name: value}")
        elif isinstance(bare(option)[0], type) and bare(option)[0] not in (int, float, bool, str):
            parts.append("null" if option is type(None) else bare(option)[0].__name__)
        else:
            parts.append(describe(option))
    return " or ".join(parts)


_PLURAL: dict[Any, str] = {int: "whole numbers", str: "texts", float: "numbers"}
