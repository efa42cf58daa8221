"""RAER: a training clip of each of the five labels, frames `0.jpg` ... `11.jpg`, boxes for some."""

from __future__ import annotations

import json
from pathlib import Path

from miniatures import text
from miniatures.dfew import clip

ARGUMENTS: dict = {"num_frames": 4}
WORDS = ("Neutrality", "Enjoyment", "Confusion", "Fatigue", "Distraction")


def write(root: Path, above: str = "") -> None:
    """`above` is put before each folder in the lists and boxes, as in "RAER/"."""
    lists = {
        "train_80.txt": [f"{above}train/{word}/001 12 {i}" for i, word in enumerate(WORDS, 1)],
        "val_20.txt": [f"{above}train/Fatigue/002 12 4"],
        "test.txt": [f"{above}test/Distraction/007 12 5", f"{above}test/Neutrality/003 12 1"],
    }
    for name, lines in lists.items():
        text(root / "annotation" / name, *lines)
        for number, line in enumerate(lines):
            folder = root / line.split()[0].removeprefix(above)
            clip(folder, (f"{i}.jpg" for i in range(12)), number)
    first, second = (f"{above}train/{word}/001" for word in WORDS[:2])
    faces = {first: {f"{i}.jpg": [i, 1, i + 20, 30] for i in range(12)}, second: {}}
    text(root / "bounding_box" / "face.json", json.dumps(faces))
    text(root / "bounding_box" / "body.json", json.dumps({second: [0, 5, 40, 48]}))
