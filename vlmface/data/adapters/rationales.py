"""What `vlmface rationale build` has written: faces of another data set with checked rationales."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlmface.errors import UserError

if TYPE_CHECKING:
    import datasets

TITLE = "faces with built rationales"
HOME = "docs/rationales.md"
LICENCE = "that of the data set which the faces are from: README.md in the build's folder"
SPLITS = ("train", "validation", "test")
NEEDS_ROOT = False  # `folder` will do


def read(root: Path | None, split: str, *, folder: str | None = None) -> datasets.Dataset:
    """The rows of a build, which is of one split. `dataset` and `id` of a row are those of the data
    set that the face is from.

    Args:
        root: the folder of the build.
        split: the split that the build was made of.
        folder: the folder of the build if `root` is that of another data set, on which the model is
            evaluated.
    """
    from datasets import load_from_disk

    root = Path(folder).expanduser() if folder else root
    if root is None:
        raise UserError("rationales needs a root, or the option folder: that of the build")
    if not (root / "dataset_info.json").exists():
        why = "has no dataset_info.json" if root.exists() else "does not exist"
        raise UserError(f"{root} is not a folder of `vlmface rationale build`: it {why}")
    rows = load_from_disk(root)
    built_splits = sorted(map(str, rows.unique("split")))
    if built_splits != [split]:
        raise UserError(
            f"{root} was built from split {', '.join(map(repr, built_splits))}, not {split!r}: use "
            "that split, or build the other one"
        )
    return rows
