"""Data sets as FaceSample rows: `load(name, root, split=...)`."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface.errors import UserError

if TYPE_CHECKING:
    import datasets


def _synth(root: Path | None, split: str, **protocol: Any) -> datasets.Dataset:
    from vlmface.synth import dataset

    if root is not None:
        raise UserError(f"synth is rendered, not read from a folder: leave out the root ({root})")
    return dataset.load(split, **protocol)


# name -> function(root, split, **protocol) -> datasets.Dataset with schema.features()
LOADERS: dict[str, Callable[..., datasets.Dataset]] = {"synth": _synth}


def load(
    name: str, root: str | Path | None = None, split: str = "train", **protocol: Any
) -> datasets.Dataset:
    """Load a split of a data set as a `datasets.Dataset` of FaceSample rows (`schema.features()`).

    `root` is the folder as its owners distribute it (None for `synth`); `protocol` are the data
    set's own options. Raises UserError for an unknown name or option.
    """
    if name not in LOADERS:
        near = difflib.get_close_matches(name, LOADERS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(LOADERS))}"
        raise UserError(f"there is no data set {name!r}: {hint}")
    try:
        return LOADERS[name](Path(root) if root is not None else None, split, **protocol)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        option = str(error).rsplit("'", 2)[-2]
        raise UserError(f"data set {name!r} has no option {option!r} ({protocol})") from error


def fingerprint(rows: datasets.Dataset) -> str:
    """12 hex digits over the ids and labels of all rows in order: same data, same digits."""
    digest = hashlib.sha256()
    for column in ("id", "emotion", "aus", "age", "gender", "race", "rationale"):
        digest.update(repr(rows.data.column(column).to_pylist()).encode())
    return digest.hexdigest()[:12]
