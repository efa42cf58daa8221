"""CelebA: 202,599 celebrity faces with forty yes-or-no attributes (Liu et al., ICCV 2015).

Anno/list_attr_celeba.txt            the number of images; the attributes; `000001.jpg -1  1 ...`
Anno/identity_CelebA.txt             `000001.jpg 2880`; optional; without it there are no subjects
Eval/list_eval_partition.txt         `000001.jpg 0`: 0 train, 1 validation, 2 test
Img/img_align_celeba/000001.jpg      aligned and cropped

Copies that put all of this into the root itself are read too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from vlmface.data.rows import Rows, json_meta, read_spaced, require_path
from vlmface.data.text_files import read_lines
from vlmface.errors import UserError

TITLE = "CelebA"
HOME = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
LICENCE = "non-commercial research, no redistribution"
SPLITS = ("train", "validation", "test")
PUBLISHED = {
    "train": {"rows": 162770},
    "validation": {"rows": 19867},
    "test": {"rows": 19962},
}


def read(root: Path, split: str) -> Rows:
    """Gender is the attribute Male. `meta` lists the attributes that a face has; of the forty, it
    lacks all others.

    Args:
        root: as above.
        split: one of SPLITS.
    """
    import pyarrow.compute as pc

    listing = require_path(_place(root, "Anno", "list_attr_celeba.txt"), "CelebA's attributes")
    attributes = " ".join(read_lines(listing)[1:2]).split()
    if "Male" not in attributes:
        raise UserError(
            f"{listing} should name CelebA's forty attributes in its second line, found: "
            f"{' '.join(attributes[:5]) or 'nothing'}; use the owners' file"
        )
    types = {"image": "string"} | dict.fromkeys(attributes, "int8")
    table = read_spaced(listing, types, skip=2)
    part = _column(root, "Eval", "list_eval_partition.txt", "int8")
    part_rows = pc.index_in(table["image"], value_set=part["image"])
    splits = part["value"].take(part_rows).to_numpy()  # NaN where the image is in no part
    unsplit = table["image"].filter(part_rows.is_null()).to_pylist()

    table = table.filter(np.array(splits == SPLITS.index(split)))
    files = table["image"].to_pylist()
    grid = np.stack([table[name].to_numpy() for name in attributes], 1)
    if not np.isin(grid, (-1, 1)).all():
        row, column = np.argwhere(~np.isin(grid, (-1, 1)))[0]
        raise UserError(
            f"{listing}: {files[row]} has {attributes[column]} {grid[row, column]}, expected -1 "
            "or 1"
        )
    folder = str(require_path(_place(root, "Img", "img_align_celeba"), "CelebA's aligned images"))
    names = np.array(attributes)
    columns: dict[str, Any] = {
        "id": [f"celeba-{file.partition('.')[0]}" for file in files],
        "image": [os.path.join(folder, file) for file in files],
        "gender": np.where(grid[:, attributes.index("Male")] == 1, "male", "female").tolist(),
        "meta": json_meta(len(files), attributes=[names[row].tolist() for row in grid == 1]),
    }
    if _place(root, "Anno", "identity_CelebA.txt").exists():
        people = _column(root, "Anno", "identity_CelebA.txt", "string")
        person_rows = pc.index_in(table["image"], value_set=people["image"])
        columns["subject"] = people["value"].take(person_rows)
    return Rows(columns, {"image in no split": unsplit} if unsplit else {})


def _place(root: Path, folder: str, name: str) -> Path:
    """Where the owners put it, or in the root if only that exists."""
    return root / name if (root / name).exists() else root / folder / name


def _column(root: Path, folder: str, name: str, type_: str) -> Any:
    path = require_path(_place(root, folder, name), "CelebA's value for each image")
    return read_spaced(path, {"image": "string", "value": type_})
