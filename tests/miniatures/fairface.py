"""FairFace: all seven races, both ends of the ages, both margins."""

from __future__ import annotations

from pathlib import Path

from miniatures import face, text

ARGUMENTS: dict = {}
HEADER = "file,age,gender,race,service_test"
TRAIN = (
    "train/1.jpg,50-59,Male,East Asian,True",
    "train/2.jpg,30-39,Female,Indian,False",
    "train/3.jpg,3-9,Female,Black,False",
    "train/4.jpg,more than 70,Male,White,True",
    "train/5.jpg,20-29,Female,Latino_Hispanic,True",
    "train/6.jpg,0-2,Male,Middle Eastern,False",
    "train/7.jpg,10-19,Female,Southeast Asian,True",
)
VALIDATION = ("val/1.jpg,3-9,Male,East Asian,False", "val/2.jpg,60-69,Female,White,True")


def write(root: Path) -> None:
    text(root / "fairface_label_train.csv", HEADER, *TRAIN)
    text(root / "fairface_label_val.csv", HEADER, *VALIDATION)
    for margin, size in (("025", (56, 56)), ("125", (80, 80))):
        for i, line in enumerate((*TRAIN, *VALIDATION)):
            file = line.split(",")[0]
            face(root / f"fairface-img-margin{margin}-trainval" / file, i, size)
