"""EMOTIC: as csv files of Tandon-A/emotic, or as the owners' mat file, with the same people."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from miniatures import face

ARGUMENTS: dict = {}
HEADER = (
    "Index",
    "Folder",
    "Filename",
    "Image Size",
    "BBox",
    "Categorical_Labels",
    "Continuous_Labels",
    "Gender",
    "Age",
)
SIZE = (160, 120)
# A person a line: split; folder/file; box; categories; valence, arousal, dominance; gender; age.
TABLE = """
train; mscoco/images/COCO_val2014_000000562243.jpg; 86 8 150 110; Disconnection,Doubt/Confusion; \
    5 3 9; Male; Adult
train; framesdb/images/frame_tm7bg50wghz2wg2k.jpg; 0 0 80 119; Anticipation; 10 1 4; Male; Adult
train; framesdb/images/frame_tm7bg50wghz2wg2k.jpg; 70 10 159 119; Happiness,Pleasure; \
    7 6 5.5; Female; Kid
val; emodb_small/images/2b9g4t4y8lgkh5x6pn.jpg; 3 4 90 100; Engagement,Happiness; \
    6.3333 4.5 7; Female; Teenager
test; ade20k/images/ade_train_00001.jpg; 1 2 40 60; Pain,Sadness; 2 8 3; Male; Adult
test; ade20k/images/ade_train_00002.jpg; 1 2 40 60; Peace; 7 2 6; Female; Adult
"""


def _people() -> dict[str, list[tuple[Any, ...]]]:
    """split: [(folder, file, box, categories, valence arousal dominance, gender, age)]"""
    people: dict[str, list[tuple[Any, ...]]] = {}
    for line in TABLE.strip().splitlines():
        split, path, box, categories, dimensions, gender, age = line.split("; ")
        folder, _, file = path.strip().rpartition("/")
        numbers = [int(n) for n in box.split()], [float(n) for n in dimensions.split()]
        person = (folder, file, numbers[0], categories.split(","), numbers[1], gender, age)
        people.setdefault(split, []).append(person)
    return people


PEOPLE = _people()


def write(root: Path, mat: bool = False) -> None:
    for people in PEOPLE.values():
        for i, (folder, file, *_) in enumerate(people):
            face(root / "emotic" / folder / file, i, SIZE)
    (_mat if mat else _csv)(root)


def _csv(root: Path) -> None:
    for split, people in PEOPLE.items():
        path = root / "emotic_pre" / f"{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(HEADER)
            for index, (folder, name, *rest) in enumerate(people):
                writer.writerow([index, folder, name, list(SIZE), *rest])


def _mat(root: Path) -> None:
    """Structs as MATLAB stores them; with several annotators in val and test."""
    variables = {}
    for split, people in PEOPLE.items():
        images: dict[str, dict] = {}
        for folder, name, box, categories, dimensions, gender, age in people:
            vad = dict(zip(("valence", "arousal", "dominance"), dimensions, strict=True))
            cell = np.array(categories, object)
            person = {"body_bbox": np.array(box, np.uint16)}
            if split == "train":
                person |= {
                    "annotations_categories": {"categories": cell},
                    "annotations_continuous": vad,
                }
            else:
                one = {"categories": np.array(["Fear"], object)}
                other = dict.fromkeys(vad, 1)
                person |= {
                    "annotations_categories": _structs([one, {"categories": cell}]),
                    "combined_categories": cell,
                    "annotations_continuous": _structs([other, vad]),
                    "combined_continuous": vad,
                }
            person |= {"gender": gender, "age": age}
            image = images.setdefault(
                name,
                {
                    "filename": name,
                    "folder": folder,
                    "image_size": {"n_col": SIZE[0], "n_row": SIZE[1]},
                    "original_database": {"name": folder.split("/")[0]},
                    "person": [],
                },
            )
            image["person"].append(person)
        for image in images.values():
            image["person"] = _structs(image["person"])
        variables[split] = _structs(list(images.values()))
    path = root / "Annotations" / "Annotations.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables)


def _structs(dicts: list[dict]) -> np.ndarray:
    """A MATLAB struct array."""
    array = np.empty((1, len(dicts)), [(name, object) for name in dicts[0]])
    for i, values in enumerate(dicts):
        array[0, i] = tuple(values.values())
    return array
