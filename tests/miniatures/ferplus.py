"""FER+: votes on the faces of FER2013's miniature, with the traps of the real file.

`write_pictures` makes the copy that has the pictures in folders instead of `fer2013.csv`.
"""

from __future__ import annotations

from pathlib import Path

from miniatures import face, fer2013, text

ARGUMENTS: dict = {}
HEADER = (
    "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
)
# The numbers in the names fall behind the rows, and the name of row 3 is used again in row 9.
NAMES = ["fer0000000.png", "fer0000001.png", "", *(f"fer{i - 1:07d}.png" for i in range(3, 15))]
NAMES[9] = NAMES[3]
VOTES = (
    (0, 0, 0, 1, 8, 1, 0, 0, 0, 0),  # 0 anger
    (4, 4, 1, 1, 0, 0, 0, 0, 0, 0),  # 1 a tie
    (0, 0, 0, 0, 0, 0, 0, 0, 0, 10),  # 2 no name: taken out by the owners
    (4, 0, 0, 1, 1, 1, 0, 1, 1, 1),  # 3 four of ten, but of four when single votes are dropped
    (2, 0, 0, 3, 0, 0, 0, 0, 5, 0),  # 4 unknown leads, without a majority
    (0, 0, 1, 0, 0, 0, 1, 0, 8, 0),  # 5 unknown
    (0, 0, 0, 0, 0, 0, 0, 0, 1, 9),  # 6 no face
    (1, 1, 1, 1, 1, 1, 1, 1, 1, 1),  # 7 nothing but single votes
    (0, 0, 0, 0, 0, 0, 0, 9, 0, 0),  # 8 contempt, from nine people
    (0, 0, 0, 6, 3, 0, 0, 0, 1, 0),  # 9 sadness
    (9, 0, 0, 1, 0, 0, 0, 0, 0, 0),  # 10 neutral
    (0, 0, 6, 0, 0, 0, 4, 0, 0, 0),  # 11 surprise
    (0, 0, 0, 0, 0, 10, 0, 0, 0, 0),  # 12 disgust
    (0, 0, 0, 0, 0, 0, 7, 0, 3, 0),  # 13 fear
    (0, 8, 0, 0, 0, 0, 0, 0, 2, 0),  # 14 happiness
)


def write(root: Path) -> None:
    fer2013.write(root)
    write_votes(root)


def write_votes(root: Path) -> None:
    lines = []
    for (usage, _), name, votes in zip(fer2013.ROWS, NAMES, VOTES, strict=True):
        lines.append(f"{usage},{name},{','.join(map(str, votes))}")
    text(root / "fer2013new.csv", HEADER, *lines)


def write_pictures(root: Path, base: str = ".") -> None:
    write_votes(root)
    folders = {"Training": "Train", "PublicTest": "Valid", "PrivateTest": "Test"}
    for i, ((usage, _), name) in enumerate(zip(fer2013.ROWS, NAMES, strict=True)):
        if name:
            face(root / base / f"FER2013{folders[usage]}" / name, i, mode="L")
