"""Rendered clips, whose label is the expression that is sustained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlmface.synth.sharded_dataset import PUBLIC_SPLITS, RenderOptions
from vlmface.utils.ranges import Count

if TYPE_CHECKING:
    import datasets

TITLE, HOME, LICENCE = "vlmface's rendered clips", "docs/synth.md", "CC0"
SPLITS, NEEDS_ROOT = PUBLIC_SPLITS, False


@dataclass(frozen=True)
class Options(RenderOptions):
    """Options of the clips.

    Args:
        num_frames: of each clip, 16 to 64.
    """

    num_frames: Count = 16


def read(root: Path | None, split: str, options: Options) -> datasets.Dataset:
    """The first clips of a split; see `RenderedSet.read`."""
    from vlmface.synth.clips import CLIPS, check_frames

    check_frames(options.num_frames)
    return CLIPS.read(root, split, options, frames=options.num_frames)
