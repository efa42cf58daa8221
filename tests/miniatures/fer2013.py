"""FER2013: a csv with ten training, two public and three private faces.

`write_folders` makes the usual copy as pictures, which puts both test parts into `test`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from miniatures import face, text

ARGUMENTS: dict = {}
ROWS = [
    *(("Training", code) for code in (0, 1, 2, 3, 4, 5, 6, 3, 4, 6)),
    *(("PublicTest", code) for code in (6, 5)),
    *(("PrivateTest", code) for code in (4, 0, 1)),
]


def write(root: Path) -> None:
    text(root / "fer2013.csv", "emotion,pixels,Usage", *lines())


def lines() -> list[str]:
    """The rows of the csv; the picture of row i starts with the grey values i, 0, 255."""
    found = []
    for i, (usage, code) in enumerate(ROWS):
        grey = np.random.default_rng(i).integers(0, 256, 48 * 48)
        grey[:3] = i, 0, 255
        found.append(f"{code},{' '.join(map(str, grey))},{usage}")
    return found


def write_folders(root: Path) -> None:
    words = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    for i, (usage, code) in enumerate(ROWS):
        part = "train" if usage == "Training" else "test"
        face(root / part / words[code] / f"{usage}_{i}.jpg", i, mode="L")
