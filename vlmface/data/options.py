"""The options of data sets: which there are, and of what type, as their `read` declares them."""

from __future__ import annotations

import collections.abc
import difflib
import functools
import inspect
import numbers
import typing
from collections.abc import Mapping
from typing import Any

from vlmface.errors import UserError
from vlmface.utils.ranges import alternatives, bare, describe, in_range

OF_LOAD = ("n", "root", "split", "name", "streaming")  # words of `data.load` that are no options


def check(
    name: str, options: Mapping[Any, Any], *, taken: Mapping[str, str], where: str = "the options"
) -> None:
    """Refuse options that `data.load(name, **options)` would not take. Raises UserError.

    Args:
        name: a data set, or the path of a mixture.
        options: what is given, by name.
        taken: words that are said in another way, and how: {"n": "n_train"}.
        where: how the options are called in messages.
    """
    known = of(name)
    for option, value in options.items():
        if option in taken:
            raise UserError(
                f"{where} has {option!r} ({value!r}), which is a setting of its own: use "
                f"{taken[option]}"
            )
        if option not in known:
            near = difflib.get_close_matches(str(option), known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise UserError(
                f"{where}: {name} has no option {option!r}{hint}; it has "
                f"{', '.join(known) or 'none'}"
            )
        check_type(f"{where}: {option}", known[option], value)


def of(name: str) -> dict[str, Any]:
    """{option: its type} of a data set or a mixture, those of `data.load` included. Raises
    UserError for a data set that there is not."""
    from vlmface import data

    shared = {
        option: kind
        for option, kind in declared(data.load).items()
        if option not in (*OF_LOAD, "protocol")
    }
    if name.endswith((".yaml", ".yml")):
        from vlmface.data import mixture

        read = mixture.load
    else:
        read = data.adapter(name).read
    own = {o: kind for o, kind in declared(read).items() if o not in (*OF_LOAD, "path", "unknown")}
    return own | shared


@functools.cache
def declared(function: Any) -> dict[str, Any]:
    """{parameter: its type}, Any where that cannot be evaluated."""
    names = getattr(function, "__globals__", {})
    found = {}
    for parameter in inspect.signature(function).parameters.values():
        kind = parameter.annotation
        if isinstance(kind, str):
            try:
                kind = eval(kind, dict(names))  # the module's own annotation
            except NameError:
                kind = Any
        found[parameter.name] = kind
    return found


def check_type(what: str, kind: Any, value: Any) -> None:
    """Refuse a value of another type than a parameter's. Raises UserError."""
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
    for one in alternatives(kind):
        origin = typing.get_origin(bare(one)[0])
        if origin is collections.abc.Sequence:
            of = alternatives(typing.get_args(bare(one)[0])[0])
            parts.append("a list of " + " or ".join(_PLURAL.get(item, "values") for item in of))
        elif origin is collections.abc.Mapping:
            parts.append("a mapping {name: value}")
        elif isinstance(bare(one)[0], type) and bare(one)[0] not in (int, float, bool, str):
            parts.append("null" if one is type(None) else bare(one)[0].__name__)
        else:
            parts.append(describe(one))
    return " or ".join(parts)


_PLURAL: dict[Any, str] = {int: "whole numbers", str: "texts", float: "numbers"}
