"""Check the options of a data set or a mixture before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmface.data import mixture, options
from vlmface.data.catalog import dataset_module, is_mixture
from vlmface.data.loading import load_dataset
from vlmface.errors import UserError, did_you_mean

OF_LOAD = (
    "n",
    "root",
    "split",
    "name",
    "streaming",
)  # parameters of `data.load` other than options


def check_options(
    name: str, values: Mapping[Any, Any], *, reserved: Mapping[str, str], where: str = "the options"
) -> None:
    """Check options of `data.load(name, **options)`.

    Args:
        name: a data set, or the path of a mixture.
        values: {option: value}.
        reserved: options that are settings of their own, with their names: {"n": "n_train"}.
        where: name of the options in messages.

    Raises:
        UserError: an unknown option, or a value of another type.
    """
    option_kinds = options_of(name)
    for option, value in values.items():
        if option in reserved:
            raise UserError(
                f"{where} has {option!r} ({value!r}), which is a setting of its own: use "
                f"{reserved[option]}"
            )
        if option not in option_kinds:
            hint = did_you_mean(option, option_kinds)
            raise UserError(
                f"{where}: {name} has no option {option!r}{hint}; it has "
                f"{', '.join(option_kinds) or 'none'}"
            )
        options.check_type(f"{where}: {option}", option_kinds[option], value)


def options_of(name: str) -> dict[str, Any]:
    """{option: its type} of a data set or a mixture, those of `data.load` included. Raises
    UserError for an unknown data set."""
    shared = {
        option: kind
        for option, kind in options.declared_types(load_dataset).items()
        if option not in (*OF_LOAD, "protocol")
    }
    if is_mixture(name):
        specific = {"seed": options.declared_types(mixture.load)["seed"]}
    else:
        specific = options.option_types(dataset_module(name).read)
    return {option: kind for option, kind in specific.items() if option not in OF_LOAD} | shared
