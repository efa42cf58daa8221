"""The embedded data set: faces rendered with exactly known action units."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlmface.errors import UserError
from vlmface.utils.ranges import Seed

if TYPE_CHECKING:
    import datasets

TITLE = "vlmface's rendered faces"
HOME = "docs/synth.md"
LICENCE = "CC0"
SPLITS = ("train", "validation", "test")
NEEDS_ROOT = False
PUBLISHED: dict[str, dict[str, int]] = {}


def read(
    root: Path | None,
    split: str,
    *,
    n: int | None = None,
    seed: Seed = 0,
    size: int = 96,
    progress: bool = True,
) -> datasets.Dataset:
    """The first `n` faces of a split; rendered where they are not cached.

    Args:
        root: None.
        split: one of SPLITS.
        n: number of faces, by default that of the split.
        seed: of the set.
        size: pixels of a side.
        progress: show a progress bar.
    """
    from vlmface.synth.dataset import FACES

    if root is not None:
        raise UserError(f"synth is rendered, not read from a folder: leave out the root ({root})")
    return FACES.load(split, n=n, seed=seed, size=size, progress=progress)
