"""The options of data sets, as their `read` declares them: as parameters after root and split, or
as the fields of a dataclass, the type of its parameter `options`."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import numbers
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmface.errors import UserError, did_you_mean
from vlmface.utils.ranges import alternatives, bare, describe, in_range, kinds


@functools.cache
def declared_types(function: Any) -> dict[str, Any]:
    """{parameter: its type}, Any where that cannot be evaluated."""
    names = getattr(function, "__globals__", {})
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


def options_class(read: Any) -> type | None:
    """The dataclass of a reader `read(root, split, options: Options)`; None if its options are
    parameters of their own."""
    kind = declared_types(read).get("options")
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def option_types(read: Any) -> dict[str, Any]:
    """{option: its type} of a data set's `read`."""
    if holder := options_class(read):
        return kinds(holder)
    types = declared_types(read)
    return {name: types[name] for name in list(inspect.signature(read).parameters)[2:]}


def call_reader(read: Any, root: Path | None, split: str, values: Mapping[str, Any]) -> Any:
    """Call a data set's `read` with the values of its options."""
    if holder := options_class(read):
        return read(root, split, holder(**values))
    return read(root, split, **values)


def check_options(dataset_name: str, read: Any, values: Mapping[str, Any]) -> None:
    """Raise UserError for an option that a data set does not have, or of the wrong type.

    Args:
        dataset_name: Name of the data set.
        read: Its function `read(root, split, ...)`.
        values: {option: value}.
    """
    declared = option_types(read)
    for option, value in values.items():
        if option not in declared:
            raise UserError(
                f"data set {dataset_name!r} has no option {option!r}"
                f"{did_you_mean(option, declared)}; it has {', '.join(declared) or 'none'}"
            )
        check_type(f"{dataset_name}: {option}", declared[option], value)


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
