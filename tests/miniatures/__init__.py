"""Small copies of data sets, written by the tests in the layouts that the owners distribute.

Each module has `write(root) -> None` and `ARGUMENTS`, the options of `data.load` that read it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def face(path: Path, number: int, size: tuple[int, int] = (48, 48), mode: str = "RGB") -> Path:
    """Write a small picture that differs for each `number`; the format follows the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def text(path: Path, *lines: str) -> Path:
    """Write the lines as a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
