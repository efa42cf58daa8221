"""BP4D: the 41 people in two tasks, two coded frames each; M001's AU 12 was not codable (9)."""

from __future__ import annotations

from pathlib import Path

from miniatures import face, text
from vlmface.data.adapters.bp4d import PARTS

ARGUMENTS: dict = {"tasks": ["T1", "T8"]}
HEADER = (0, 1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22, 23, 24, 27, 28)
FRAMES = (2440, 2441)


def write(root: Path, name: str = "{frame:04d}.jpg") -> None:
    for i, person in enumerate(sorted(person for part in PARTS for person in part)):
        for task in ARGUMENTS["tasks"]:
            lines = [",".join(map(str, HEADER))]
            for frame in FRAMES:
                codes = dict.fromkeys(HEADER[1:], 0) | {6: 1, 24: int(task == "T8"), 5: 1}
                codes[12] = 9 if person == "M001" else frame % 2
                lines.append(",".join(map(str, (frame, *codes.values()))))
                face(root / "Sequences(2D+3D)" / person / task / name.format(frame=frame), i)
            text(root / "AUCoding" / "AU_OCC" / f"{person}_{task}.csv", *lines)
