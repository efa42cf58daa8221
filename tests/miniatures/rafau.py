"""RAF-AU: codes with prefixes, a line that ends with a space, an image without any AU."""

from __future__ import annotations

from pathlib import Path

from miniatures import face, text

ARGUMENTS: dict = {}
CODES = {
    "0001": "1+4+25",
    "0002": "L12+24",
    "0003": "null",
    "0004": "25 ",
    "0005": "4+B22+T23+AD19",
    "0006": "L12+R12+26+26",
    "0007": "12+L14",
}
TEST = ("0006", "0007")


def write(root: Path) -> None:
    text(root / "RAFAU_label.txt", *[f"{stem}.jpg {codes}" for stem, codes in CODES.items()])
    text(root / "test.txt", *[f"{stem}.jpg" for stem in TEST])
    for i, stem in enumerate(CODES):
        face(root / "aligned" / f"{stem}_aligned.jpg", i, (100, 100))
        face(root / "original" / f"{stem}.jpg", i, (120, 90))
