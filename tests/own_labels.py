"""Rendered faces with labels of one's own, as a table and a folder of pictures.

    python tests/own_labels.py FOLDER [ratings]

writes FOLDER/faces.csv and FOLDER/pictures with 300 faces of 75 people, labelled approach, withdraw
or neutral, or FOLDER/ratings.csv with the mean of three simulated raters of each face: what
docs/your-own-data.md measures.
"""

from __future__ import annotations

import csv
import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vlmface import data
from vlmface.schema import FaceSample

HEADER = ("picture", "state", "person")
RATED = ("picture", "engagement", "person")
MIDDLE = 0.2  # distance from (0, 0) in the plane of valence and arousal


def motivation(sample: FaceSample) -> str:
    """Neutral near the middle of the plane of valence and arousal, else approach for a positive and
    withdraw for a negative valence."""
    assert sample.valence is not None and sample.arousal is not None
    if np.hypot(sample.valence, sample.arousal) < MIDDLE:
        return "neutral"
    return "approach" if sample.valence > 0 else "withdraw"


def rating(sample: FaceSample) -> str:
    """The mean of three raters, who each see 5 + 5 times the valence, err with a standard deviation
    of 1, and give a whole number from 0 to 10."""
    assert sample.valence is not None
    seed = int.from_bytes(hashlib.sha256(sample.id.encode()).digest()[:8])
    seen = 5 + 5 * sample.valence + np.random.default_rng(seed).normal(0, 1, 3)
    return f"{np.clip(seen.round(), 0, 10).mean():.2f}"


def write(
    folder: Path,
    n: int,
    *,
    header: Sequence[str] = HEADER,
    label: Callable[[FaceSample], str] = motivation,
    people: int | None = None,
    seed: int = 7,
    name: str = "faces.csv",
) -> Path:
    """Write a table of rendered faces with its pictures, and return its path.

    Args:
        folder: To write to.
        n: Number of faces.
        header: Names of the columns picture, label and person.
        label: The label of a face.
        people: How many people; None: as rendered, about four faces each.
        seed: Of the faces.
        name: Of the table.
    """
    rows = data.load("synth", split="train", n=n, seed=seed)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    table = folder / name
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
    folder, *kind = sys.argv[1:]
    if kind:
        table = write(Path(folder), 300, header=RATED, label=rating, name="ratings.csv")
    else:
        table = write(Path(folder), 300)
    print(table)
