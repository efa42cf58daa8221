"""JAFFE: three of its ten women with seven expressions, one twice."""

from __future__ import annotations

from pathlib import Path

from miniatures import face, text

ARGUMENTS = {"folds": 3}
NAMES = [
    *(
        f"{subject}.{expression}1.{30 * i + k}"
        for i, subject in enumerate(("KA", "KL", "YM"))
        for k, expression in enumerate(("AN", "DI", "FE", "HA", "NE", "SA", "SU"))
    ),
    "KA.AN2.40",
]


def write(root: Path) -> None:
    for i, name in enumerate(NAMES):
        face(root / "jaffe" / f"{name}.tiff", i, (64, 64), mode="L")
    text(root / "jaffe" / "README", "KA.AN1.39.tiff")
