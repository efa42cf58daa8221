"""FERV39k: seven training and two test clips; the number 0001 occurs in every scene."""

from __future__ import annotations

from pathlib import Path

from miniatures import text
from miniatures.dfew import clip

ARGUMENTS: dict = {"num_frames": 4}
WORDS = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
TRAIN = [f"{scene}/{word}/0001 {word}" for scene, word in zip("ABCDEFG", WORDS, strict=True)]
TEST = ["A/Sad/0001 Sad", "A/Sad/0010 Sad"]


def write(root: Path) -> None:
    for split, lines in (("train", TRAIN), ("test", TEST)):
        text(root / "4_setups" / "All_scenes" / f"{split}_All.csv", *lines)
        for number, line in enumerate(lines):
            folder = root / "2_ClipsforFaceCrop" / line.split()[0]
            clip(folder, (f"{i}.jpg" for i in range(5)), number)
