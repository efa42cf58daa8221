"""BAH: videos of two people, with commas and a quotation mark in what they said."""

from __future__ import annotations

from pathlib import Path

from miniatures import text
from miniatures.dfew import clip

ARGUMENTS: dict = {"num_frames": 4}
TRAIN = [
    "Videos/82711/Visite_1/82711_Question_1_2024-11-18_16-07-42_Video.mp4,1,Well, I, um, sleep.",
    "Videos/82711/Visite_1/82711_Question_2_2024-11-18 16-09-44_Video.mp4,0,",
    'Videos/82729/Visite_1/82729_Question_1_2024-11-19_19-40-18_Video.mp4,0,"No".',
]
OTHERS = {
    "val.txt": ["Videos/82579/Visite_1/82579_Question_1_2024-10-02 16-03-28_Video.mp4,1,Yes"],
    "test.txt": ["Videos/82593/Visite_1/82593_Question_5_2024-10-02 16-21-02_Video.mp4,0,Eat."],
}


def write(root: Path) -> None:
    for name, lines in {"train.txt": TRAIN, **OTHERS}.items():
        text(root / "split" / name, *lines)
        for number, line in enumerate(lines):
            folder = root / "cropped-aligned-faces" / line.split(",")[0]
            clip(folder, (f"frame-{i}.jpg" for i in range(12)), number)
