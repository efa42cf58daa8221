"""The data sets that there are: one module each in `vlmface/data/adapters/`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from types import ModuleType

from vlmface.data import adapters
from vlmface.errors import UserError


def names() -> list[str]:
    """The names that `load` knows, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(adapters.__path__))


def dataset_module(name: str) -> ModuleType:
    """The module of a data set. Raises UserError if there is none of that name."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise UserError(f"there is no data set {name!r}: {hint}")
    return importlib.import_module(f"vlmface.data.adapters.{name}")


def is_mixture(name: str) -> bool:
    """Whether what stands for a data set's name is the file of a mixture."""
    return str(name).endswith((".yaml", ".yml"))
