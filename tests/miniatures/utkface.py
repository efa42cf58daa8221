"""UTKFace: the owners' names, among them the known malformed ones."""

from __future__ import annotations

from pathlib import Path

from miniatures import face, text

ARGUMENTS: dict = {}
GOOD = (
    "1_0_2_20161219140530307",
    "26_1_0_20170116234521122",
    "35_1_1_20170117012345678",
    "61_0_3_20170109150557335",
    "90_1_4_20170110184515456",
    "116_1_0_20170120134921760",
    "24_0_1_20170116220224657",
    "8_0_0_20170110215648859",
    "45_0_2_20170117135034485",
)
BAD = ("61_3_20170109150557335", "39_1_20170116174525125", "53__0_20170116184028385")
TEST = GOOD[-2:]


def write(root: Path, folder: str = "UTKFace", suffix: str = ".jpg.chip.jpg") -> None:
    for i, stem in enumerate((*GOOD, *BAD)):
        face(root / folder / f"{stem}{suffix}", i, (50, 50))
    text(root / "test.txt", *[f"{stem}{suffix}" for stem in TEST])
    text(root / folder / "readme.txt", "not an image")
