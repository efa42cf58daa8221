"""Rendered clips, whose label is the expression that is sustained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlmface.errors import UserError
from vlmface.utils.ranges import Count, Seed

if TYPE_CHECKING:
    import datasets

TITLE = "vlmface's rendered clips"
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
    num_frames: Count = 16,
    progress: bool = True,
) -> datasets.Dataset:
    """The first `n` clips of a split; rendered where they are not cached.

    Args:
        root: None.
        split: one of SPLITS.
        n: number of clips, by default that of the split.
        seed: of the set.
        size: pixels of a side.
        num_frames: of each clip, 16 to 64.
        progress: show a progress bar.
    """
    from vlmface.synth.clips import CLIPS, check_frames

    if root is not None:
        raise UserError(
            f"synth_clips is rendered, not read from a folder: leave out the root ({root})"
        )
    check_frames(num_frames)
    return CLIPS.load(split, n=n, seed=seed, size=size, progress=progress, frames=num_frames)
