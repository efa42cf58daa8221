"""RAF-DB: seven training and two test faces; this copy has dropped `_aligned` from its names."""

from __future__ import annotations

from pathlib import Path

from miniatures import face, text

ARGUMENTS: dict = {}
CODES = (5, 1, 2, 3, 4, 6, 7)


def write_compound(root: Path) -> None:
    lines = [f"train_{i:05d}.jpg {code}" for i, code in enumerate((11, 1, 10), 1)]
    lines.append("test_0001.jpg 2")
    text(root / "EmoLabel" / "list_patition_label.txt", *lines)
    for i, line in enumerate(lines):
        stem = line.split(".")[0]
        face(root / "Image" / "aligned" / f"{stem}_aligned.jpg", 50 + i, (100, 100))


def write(root: Path, suffix: str = "") -> None:
    lines = [f"train_{i:05d}.jpg {code}" for i, code in enumerate(CODES, 1)]
    lines += ["test_0001.jpg 6", "test_0002.jpg 7"]
    text(root / "EmoLabel" / "list_patition_label.txt", *lines)
    for i, line in enumerate(lines):
        stem = line.split(".")[0]
        face(root / "Image" / "aligned" / f"{stem}{suffix}.jpg", i, (100, 100))
        text(
            root / "Annotation" / "manual" / f"{stem}_manu_attri.txt",
            *["10.0\t20.0"] * 5,
            str(i % 3),
            str(i % 3),
            str(i % 5),
        )
