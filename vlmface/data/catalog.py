"""Data sets by name: built in, from a Python file or module, or from an installed package.

The built-in ones are one module each in `vlmface/data/adapters/`.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

from vlmface.data import adapters
from vlmface.data.dataset_file import DatasetFile, is_dataset_file
from vlmface.errors import UserError
from vlmface.registry import Registry, load_module
from vlmface.resources import YAML, is_yaml

DATASETS: Registry[str | ModuleType] = Registry(
    "data set",
    "vlmface.datasets",
    {
        module.name: f"{adapters.__name__}.{module.name}"
        for module in pkgutil.iter_modules(adapters.__path__)
    },
    hint="name your own as my_set.py or package.module",
)


def names() -> list[str]:
    """The names of the built-in data sets and of those of installed packages, sorted."""
    return DATASETS.names()


def is_built_in(name: str) -> bool:
    """Whether a data set is part of vlmface, so that looking it up imports no other code."""
    return name in DATASETS.built_in


def dataset_module(name: str) -> Any:
    """The module of a data set, or the `DatasetFile` of a YAML file, which has the same attributes.

    Args:
        name: A built-in name, an entry point of the group `vlmface.datasets` in an installed
            package (`my_set = "my_package.my_set"`), a file `my_set.py`, `package.module`, or the
            YAML file of a data set.

    Raises:
        UserError: There is no such data set, its module cannot be imported, or it lacks `read` or
            SPLITS.
    """
    if is_dataset_file(name):
        return DatasetFile(name, dataset_module)
    if is_yaml(name) and not Path(name).expanduser().exists():
        raise UserError(
            f"{name} does not exist: write one with `vlmface data init`, or name a data set"
        )
    if name in DATASETS:
        module = DATASETS.get(name)
        if isinstance(module, str):
            return importlib.import_module(module)
    elif name.endswith(".py") or ("." in name and name.replace(".", "").isidentifier()):
        module = load_module(name, f"data set {name!r}")
    else:
        raise DATASETS.unknown(name)
    if not callable(getattr(module, "read", None)):
        raise UserError(f"data set {name!r}: it has no function read(root, split) -> Rows: add it")
    if not isinstance(getattr(module, "SPLITS", None), tuple | list):
        raise UserError(
            f"data set {name!r}: it has no SPLITS: add the names of its splits, such as "
            "SPLITS = ('train', 'test')"
        )
    return module


def describe(name: str) -> dict[str, str]:
    """The title, home and licence of a data set, for people.

    Raises:
        UserError: As `dataset_module`.
    """
    module = dataset_module(name)
    return {
        "title": getattr(module, "TITLE", short_name(name)),
        "home": getattr(module, "HOME", "home unknown"),
        "licence": getattr(module, "LICENCE", "licence unknown"),
    }


def short_name(name: str) -> str:
    """The name of a data set without folders or packages: my_set of `sets/my_set.py`."""
    is_file = name.endswith((".py", *YAML))
    return Path(name).stem if is_file else name.rpartition(".")[2]


def is_mixture(name: str) -> bool:
    """Whether a data set's name is the file of a mixture."""
    return is_yaml(name) and not is_dataset_file(name)
