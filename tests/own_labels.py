"""Rendered faces with labels of one's own, as a table and a folder of pictures.

    python tests/own_labels.py FOLDER

writes FOLDER/faces.csv and FOLDER/pictures with 300 faces of 75 people, labelled approach, withdraw
or neutral: what docs/your-own-data.md measures.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vlmface import data
from vlmface.schema import FaceSample

HEADER = ("picture", "state", "person")
MIDDLE = 0.2  # distance from (0, 0) in the plane of valence and arousal


def motivation(sample: FaceSample) -> str:
    """Neutral near the middle of the plane of valence and arousal, else approach for a positive and
    withdraw for a negative valence."""
    assert sample.valence is not None and sample.arousal is not None
    if np.hypot(sample.valence, sample.arousal) < MIDDLE:
        return "neutral"
    return "approach" if sample.valence > 0 else "withdraw"


def write(
    folder: Path,
    n: int,
    *,
    header: Sequence[str] = HEADER,
    label: Callable[[FaceSample], str] = motivation,
    people: int | None = None,
    seed: int = 7,
) -> Path:
    """Write a table of rendered faces with its pictures, and return its path.

    Args:
        folder: To write to.
        n: Number of faces.
        header: Names of the columns picture, label and person.
        label: The label of a face.
        people: How many people; None: as rendered, about four faces each.
        seed: Of the faces.
    """
    rows = data.load("synth", split="train", n=n, seed=seed)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    table = folder / "faces.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for number, row in enumerate(rows):
            sample = FaceSample.from_row(row)
            name = f"pictures/{number:04d}.png"
            sample.image.save(folder / name)
            person = sample.subject if people is None else f"P{number % people:02d}"
            writer.writerow([name, label(sample), person])
    return table


if __name__ == "__main__":
    print(write(Path(sys.argv[1]), 300))
