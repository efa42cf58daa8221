"""DISFA: the 27 people with three frames each, extracted by a tool that counts from 0.

SN001's second frame was not extracted; SN003's has intensities on both sides of the threshold.
"""

from __future__ import annotations

from pathlib import Path

from miniatures import face, text
from vlmface.data.adapters.disfa import AUS, PARTS

ARGUMENTS: dict = {}
SN003 = {1: 1, 2: 2, 4: 3, 5: 5, 12: 4, 26: 2}  # AU: intensity in its second frame
LOST = ("SN001", 2)


def write(root: Path, name: str = "{person}/{number}.png", first: int = 0) -> None:
    """`name` is where a frame lies below Images, `first` the number of the first."""
    people = sorted(person for part in PARTS for person in part)
    for i, person in enumerate(people):
        for au in AUS:
            grades = (0, SN003.get(au, 0) if person == "SN003" else 0, 0)
            text(
                root / "ActionUnit_Labels" / person / f"{person}_au{au}.txt",
                *[f"{frame},{grade}" for frame, grade in enumerate(grades, 1)],
            )
        for frame in (1, 2, 3):
            if (person, frame) != LOST:
                path = name.format(person=person, number=frame - 1 + first)
                face(root / "Images" / path, 3 * i + frame)
