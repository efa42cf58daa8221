"""MAFW: a training clip of each of the eleven words and two test clips."""

from __future__ import annotations

from pathlib import Path

from miniatures import text
from miniatures.dfew import clip

ARGUMENTS: dict = {"num_frames": 4}
WORDS = (
    "anger",
    "disgust",
    "fear",
    "happiness",
    "neutral",
    "sadness",
    "surprise",
    "contempt",
    "anxiety",
    "helplessness",
    "disappointment",
)


def write(root: Path, labels: tuple[str, ...] = WORDS) -> None:
    """`labels` are written as the labels of the training clips 1, 2, 3 ..."""
    lists = root / "Train & Test Set" / "single" / "no_caption" / "set_1"
    train = {i: label for i, label in enumerate(labels, 1)}
    test = {101: "helplessness", 102: "happiness"}
    for split, clips in (("train", train), ("test", test)):
        text(lists / f"{split}.txt", *(f"{i:05d}.mp4 {label}" for i, label in clips.items()))
        for i in clips:
            clip(root / "data" / "frames" / f"{i:05d}", (f"{n:05d}.jpg" for n in range(1, 7)), i)
