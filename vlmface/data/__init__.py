"""Data sets as FaceSample rows: `load(name, root, split=...)`.

Each data set is one module: built in (`vlmface/data/adapters/`), a file `my_set.py`, a
`package.module`, or an entry point of the group `vlmface.datasets` in an installed package; or the
YAML file of a data set (`dataset_file`). Only SPLITS and `read` are required:

    TITLE, HOME, LICENCE    for display
    SPLITS                  the splits that the set defines
    PUBLISHED               split -> {label or "rows": number}, as its owners published them;
                            PUBLISHED_BY: (option, value) -> the same under that option
    WHOLE_SCENES            True where the pictures show people in their surroundings, not faces
    read(root, split, **options) -> Rows (rendered sets have no root and set NEEDS_ROOT = False);
                            many options may be the fields of one dataclass: `options: Options`
    present_splits(root, **options)     optional: which of SPLITS a user's own files hold

A module in that folder is a data set; they are not listed anywhere else.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from vlmface.data.catalog import (
    dataset_module,
    describe,
    is_built_in,
    is_mixture,
    names,
    short_name,
)
from vlmface.data.dataset_file import DatasetFile, is_dataset_file
from vlmface.data.fingerprints import fingerprint
from vlmface.data.loading import OF_ALL, load_dataset, parse_options, read, splits_of
from vlmface.data.people import hold_out

if TYPE_CHECKING:
    import datasets

__all__ = [
    "OF_ALL",
    "DatasetFile",
    "dataset_module",
    "describe",
    "fingerprint",
    "hold_out",
    "is_built_in",
    "is_dataset_file",
    "is_mixture",
    "load",
    "names",
    "parse_options",
    "read",
    "short_name",
    "shows_faces",
    "splits_of",
]


def shows_faces(name: str) -> bool:
    """Whether the pictures of a data set, or of each source of a mixture, are faces, rather than
    people in their surroundings. Raises UserError as `load` does."""
    if is_mixture(name):
        from vlmface.data import mixture

        return all(
            shows_faces(source.dataset) for source in mixture.read(Path(name).expanduser())[1]
        )
    return not getattr(dataset_module(name), "WHOLE_SCENES", False)


@overload
def load(
    name: str,
    root: str | Path | None = ...,
    split: str = ...,
    *,
    streaming: Literal[False] = ...,
    missing: str = ...,
    broken: str = ...,
    n: int | None = ...,
    **protocol: Any,
) -> datasets.Dataset: ...
@overload
def load(
    name: str,
    root: str | Path | None = ...,
    split: str = ...,
    *,
    streaming: Literal[True],
    missing: str = ...,
    broken: str = ...,
    n: int | None = ...,
    **protocol: Any,
) -> datasets.IterableDataset: ...
def load(
    name: str,
    root: str | Path | None = None,
    split: str = "train",
    *,
    streaming: bool = False,
    missing: str = "error",
    broken: str = "keep",
    n: int | None = None,
    **protocol: Any,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load a split of a data set as FaceSample rows (`schema.features()`).

    Args:
        name: of a data set, or the YAML file of one (`vlmface.data.dataset_file`) or of a mixture
            (`vlmface.data.mixture`).
        root: the folder as its owners distribute it; None for rendered sets.
        split: one of the splits that the set defines.
        streaming: return an iterable data set.
        missing: "error", or "drop" rows whose image file does not exist.
        broken: "keep" rows whose image cannot be decoded (default; no image is decoded), "error",
            or "drop" them, which decodes all images.
        n: number of rows: of rendered sets the first ones, of other sets a random choice that is
            always the same, and of which broken images are dropped.
        **protocol: the data set's own options.

    Returns:
        The rows; images are decoded on access.

    Raises:
        UserError: an unknown name, split or option, or a copy that is incomplete or inconsistent.
    """
    if not is_mixture(name):
        loaded = load_dataset(name, root, split, missing=missing, broken=broken, n=n, **protocol)
    else:
        from vlmface.data import mixture

        loaded = mixture.load(name, root, split, missing=missing, broken=broken, n=n, **protocol)
    return loaded.to_iterable_dataset() if streaming else loaded
