"""Tables with pictures, and how reading them fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from miniatures import face

from vlmface import data
from vlmface.errors import UserError


def faces(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        face(folder / name, number)


def write(path: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def table(folder: Path, content: str | bytes, name: str = "t.csv", encoding: str = "utf-8") -> Path:
    faces(folder, "0.png", "1.png", "2.png")
    return write(folder / name, content, encoding)


def emotions(path: Path, **options) -> list[str | None]:
    return data.load("table", path, **options)["emotion"][:]


def failure(path: Path, name: str = "table", **options) -> str:
    with pytest.raises(UserError) as caught:
        data.load(name, path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
