"""A working folder of small pictures, for tests of tables that name them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image


def enter_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `path`, with img/0.png to img/29.png, the working folder."""
    monkeypatch.chdir(path)
    for i in range(30):
        write_picture(Path(f"img/{i}.png"), i)
    return path


def write_picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (seed * 8 % 256, seed % 256, 90)).save(path)
