"""A data set: one folder of pictures per label in ROOT/SPLIT."""

from pathlib import Path

from vlmface.data.rows import Rows

SPLITS = ("train", "test")


def read(root: Path, split: str, *, moods: str | None = None) -> Rows:
    """Every picture, or those of one mood."""
    files = sorted((root / split).glob(f"{moods or '*'}/*.png"))
    return Rows(
        {
            "id": [f"portraits-{split}/{file.parent.name}/{file.stem}" for file in files],
            "image": [str(file) for file in files],
            "context": [[file.parent.name] for file in files],
        }
    )
