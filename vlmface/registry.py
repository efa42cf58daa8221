"""Extensions by name: built in, from a file, as `module:object`, or from an installed package.

Everything that a user may add (label spaces, prompts, data sets, model families, rewards, metrics)
is looked up by one `Registry` per kind. A name is resolved in this order: a built-in name, an entry
point of an installed package, a file (`rewards.py:kindness`), an object (`my_package:kindness`).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from vlmface.errors import UserError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """The extensions of one kind.

    Args:
        kind: What messages call one of them, such as "reward".
        group: The entry point group of installed packages, such as "vlmface.rewards".
        built_in: {name: object}; `register` adds to it.
        hint: How messages tell users to name one of their own.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        built_in: dict[str, T] | None = None,
        *,
        hint: str = "name your own as FILE.py:NAME or MODULE:NAME",
    ) -> None:
        self.kind = kind
        self.group = group
        self.built_in: dict[str, T] = {} if built_in is None else built_in
        self.hint = hint

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that adds a built-in object. Raises ValueError if the name is taken."""

        def add(item: T) -> T:
            if name in self.built_in:
                raise ValueError(f"there is already a {self.kind} named {name!r}")
            self.built_in[name] = item
            return item

        return add

    @cached_property
    def entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        """{name: entry point} of the packages that are installed."""
        return {point.name: point for point in importlib.metadata.entry_points(group=self.group)}

    def names(self) -> list[str]:
        """All names that are known without a file or a module, sorted."""
        return sorted({*self.built_in, *self.entry_points})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: str) -> bool:
        return name in self.built_in or name in self.entry_points

    def get(self, name: str) -> T:
        """The object of a name.

        Args:
            name: A built-in name, the name of an entry point, `path/to/file.py:object`, or
                `package.module:object`.

        Raises:
            UserError: Nothing has that name, or its file or module cannot be imported.
        """
        if name in self.built_in:
            return self.built_in[name]
        if name in self.entry_points:
            return self._load_entry_point(self.entry_points[name])
        if ":" in name:
            return load_object(name, self.kind)
        raise self.unknown(name)

    def unknown(self, name: str) -> UserError:
        """The error for a name that nothing has, with the nearest name that something has."""
        names = self.names()
        return UserError(
            f"there is no {self.kind} {name!r}{did_you_mean(name, names)}: "
            f"use one of {', '.join(names)}, {self.hint}"
        )

    def _load_entry_point(self, point: importlib.metadata.EntryPoint) -> T:
        try:
            loaded: T = point.load()
        except Exception as error:
            raise UserError(
                f"{self.kind} {point.name!r} of an installed package cannot be imported from "
                f"{point.value!r}: {error!r}. Update or uninstall that package"
            ) from error
        return loaded


def load_object(reference: str, kind: str = "object") -> Any:
    """The object of `path/to/file.py:name` or `package.module:name`.

    Args:
        reference: The file or module, a colon, and the object's name.
        kind: What messages call the object.

    Raises:
        UserError: The file or module is missing, cannot be imported, or lacks the name.
    """
    source, _, name = reference.rpartition(":")
    module = load_module(source, f"{kind} {reference!r}")
    if not hasattr(module, name):
        hint = did_you_mean(name, vars(module))
        raise UserError(f"{kind} {reference!r}: {source} has no {name!r}{hint}")
    return getattr(module, name)


def load_module(source: str, description: str) -> ModuleType:
    """The module of `path/to/file.py` or `package.module`.

    Args:
        source: The file or module.
        description: What messages say that it is for.

    Raises:
        UserError: It is missing or cannot be imported.
    """
    try:
        return (
            load_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
        )
    except UserError as error:
        raise UserError(f"{description}: {error}") from error
    except Exception as error:
        raise UserError(f"{description}: {source} cannot be imported: {error!r}") from error


def load_file(path: Path) -> ModuleType:
    """The module of a Python file, imported once per process.

    Raises:
        UserError: There is no such file.
    """
    path = path.expanduser().resolve()
    if not path.is_file():
        raise UserError(f"{path} does not exist: check the spelling of the path")
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]  # the same in every process
    name = f"vlmface_extension_{path.stem}_{digest}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
