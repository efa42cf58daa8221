"""Rendered faces, version 2: closer to photographs, turned further, with AUs that are hidden."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlmface.synth.sharded_dataset import PUBLIC_SPLITS, RenderOptions

if TYPE_CHECKING:
    import datasets

TITLE, HOME, LICENCE = "vlmface's rendered faces, version 2", "docs/synth.md", "CC0"
SPLITS, NEEDS_ROOT = PUBLIC_SPLITS, False


def read(root: Path | None, split: str, options: RenderOptions) -> datasets.Dataset:
    """The first faces of a split; see `RenderedSet.read`."""
    from vlmface.synth.v2.dataset import FACES_V2

    return FACES_V2.read(root, split, options)
