"""DFEW: seven training and three test clips of frames `1.jpg` ... `12.jpg`, without zeros."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from miniatures import face, text

ARGUMENTS: dict = {"num_frames": 4}
TEST = {11: 4, 12: 7, 10013: 3}


def clip(folder: Path, names: Iterable[str], number: int = 0) -> None:
    """Write the frames of a clip."""
    for i, name in enumerate(names):
        face(folder / name, 100 * number + i)


def write(root: Path) -> None:
    labels = root / "EmoLabel_DataSplit"
    train = {number: number for number in range(1, 8)}
    for split, codes in (("train", train), ("test", TEST)):
        lines = [f"{number},{code}" for number, code in codes.items()]
        text(labels / f"{split}(single-labeled)" / "set_1.csv", "video_name,label", *lines)
        for number in codes:
            folder = root / "Clip" / "clip_224x224_16f" / f"{number:05d}"
            clip(folder, (f"{i}.jpg" for i in range(1, 13)), number)
