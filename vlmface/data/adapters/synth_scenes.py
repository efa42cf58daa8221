"""Rendered people at a desk, whose label needs both the face and what they have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlmface.synth.sharded_dataset import PUBLIC_SPLITS, RenderOptions

if TYPE_CHECKING:
    import datasets

TITLE, HOME, LICENCE = "vlmface's rendered scenes", "docs/synth.md", "CC0"
SPLITS, NEEDS_ROOT, WHOLE_SCENES = PUBLIC_SPLITS, False, True


def read(root: Path | None, split: str, options: RenderOptions) -> datasets.Dataset:
    """The first scenes of a split; see `RenderedSet.read`."""
    from vlmface.synth.scenes import SCENES

    return SCENES.read(root, split, options)
