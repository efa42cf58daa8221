"""AffectNet: eleven training rows, one for each code, and three for validation without a header.

`write_npy` and `write_sample` make the two other layouts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from miniatures import face, text

ARGUMENTS: dict = {}
HEADER = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,"
    "expression,valence,arousal"
)


def write(root: Path, images: str = "Manually_Annotated_Images") -> None:
    lists = root / "Manually_Annotated_file_lists"
    text(lists / "training.csv", HEADER, *(_line(root / images, i, i) for i in range(11)))
    text(lists / "validation.csv", *(_line(root / images, 20 + code, code) for code in (6, 7, 3)))


def _line(folder: Path, number: int, code: int) -> str:
    name = f"{number % 3}/{number:056x}.jpg"
    face(folder / name, number)
    landmarks = ";".join(f"{i}.5;{i}.25" for i in range(68))
    rating = "-2,-2" if code > 8 else f"{code / 10 - 0.4},{0.5 - code / 10}"
    return f"{name},{number},2,30,{40 - number},{landmarks},{code},{rating}"


def write_npy(root: Path) -> None:
    for split, codes in (("train", (1, 6, 7, 2)), ("val", (0, 4))):
        for number, code in zip((9, 10, 100, 101), codes, strict=False):
            face(root / f"{split}_set" / "images" / f"{number}.jpg", number)
            notes = root / f"{split}_set" / "annotations"
            notes.mkdir(exist_ok=True)
            np.save(notes / f"{number}_exp.npy", np.array(str(code)))
            np.save(notes / f"{number}_val.npy", np.array(code / 10))
            np.save(notes / f"{number}_aro.npy", np.array("-2" if code == 2 else "0.25"))


def write_sample(root: Path) -> None:
    for split, folder in (("train", "train_class"), ("valid", "val_class")):
        lines = []
        for code in range(1, 9):
            name = f"{folder}/class{code:03d}/image{code:07d}.jpg"
            face(root / name, code)
            lines.append(f"../input/affectnetsample/{name},{code}.0")
        text(root / f"{split}-sample-affectnet.csv", "image,emotion", *lines)
