"""CAER-S: fourteen training and seven test frames."""

from __future__ import annotations

from pathlib import Path

from miniatures import face

ARGUMENTS: dict = {}
FOLDERS = ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")


def write(root: Path, anger: str = "Anger") -> None:
    for split, n in (("train", 2), ("test", 1)):
        for i, folder in enumerate((anger, *FOLDERS[1:])):
            for k in range(1, n + 1):
                face(root / split / folder / f"{k:04d}.png", 10 * i + k, (72, 40))
