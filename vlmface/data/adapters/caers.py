"""CAER-S: frames of television series with their scene (Lee et al., ICCV 2019).

    train/Anger/0001.png     seven folders, named by the emotion; some copies say `Angry`
    test/Anger/0001.png

The set has no validation part.
"""

from __future__ import annotations

from pathlib import Path

from vlmface.data.rows import Rows, class_folders, require_path

TITLE = "CAER-S"
HOME = "https://caer-dataset.github.io"
LICENCE = "non-commercial research"
SPLITS = ("train", "test")
WHOLE_SCENES = True


def read(root: Path, split: str) -> Rows:
    """The frames as they are: faces are neither boxed nor cut out.

    Args:
        root: as above.
        split: one of SPLITS.
    """
    return class_folders(require_path(root / split, "CAER-S' folder"), "emotion7", f"caers-{split}")
