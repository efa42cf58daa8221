"""Rendered people at a desk, whose label needs both the face and what they have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlmface.errors import UserError
from vlmface.utils.ranges import Seed

if TYPE_CHECKING:
    import datasets

TITLE = "vlmface's rendered scenes"
HOME = "docs/synth.md"
LICENCE = "CC0"
SPLITS = ("train", "validation", "test")
WHOLE_SCENES = True
NEEDS_ROOT = False
PUBLISHED: dict[str, dict[str, int]] = {}


def read(
    root: Path | None,
    split: str,
    *,
    n: int | None = None,
    seed: Seed = 0,
    size: int = 192,
    progress: bool = True,
) -> datasets.Dataset:
    """The first `n` scenes of a split; rendered where they are not cached.

    Args:
        root: None.
        split: one of SPLITS.
        n: number of scenes, by default that of the split.
        seed: of the set.
        size: pixels of a side.
        progress: show a progress bar.
    """
    from vlmface.synth.scenes import SCENES

    if root is not None:
        raise UserError(
            f"synth_scenes is rendered, not read from a folder: leave out the root ({root})"
        )
    return SCENES.load(split, n=n, seed=seed, size=size, progress=progress)
