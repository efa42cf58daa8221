"""FairFace: faces balanced over seven races (Karkkainen & Joo, WACV 2021).

    fairface_label_train.csv, fairface_label_val.csv   `file,age,gender,race,service_test`
    fairface-img-margin025-trainval/train/1.jpg        or -margin125-; or train/1.jpg in the root

Read from the owners' csv files: mirrors that store numbers disagree on what they mean.
"""

from __future__ import annotations

import os
from pathlib import Path

from vlmface.data.rows import Rows, canonical_labels, json_meta, read_csv, require_path
from vlmface.errors import UserError

TITLE = "FairFace"
HOME = "https://github.com/joojs/fairface"
LICENCE = "CC BY 4.0"
SPLITS = ("train", "validation")
PUBLISHED = {"train": {"rows": 86744}, "validation": {"rows": 10954}}
COLUMNS = ("file", "age", "gender", "race", "service_test")
MARGINS = {0.25: "margin025", 1.25: "margin125"}


def read(root: Path, split: str, *, margin: float = 0.25) -> Rows:
    """The rows of the owners' csv files.

    Args:
        root: as above.
        split: one of SPLITS.
        margin: what the crops show around the face, 0.25 (the usual choice) or 1.25. It is not
            known for images that are in the root itself.
    """
    if margin not in MARGINS:
        raise UserError(f"margin={margin}: FairFace has 0.25 and 1.25")
    part = "train" if split == "train" else "val"
    listing = require_path(root / f"fairface_label_{part}.csv", "FairFace's labels")
    table = read_csv(listing, dict.fromkeys(COLUMNS, "string"))
    files, ages, genders, races, service = (table[name].to_pylist() for name in COLUMNS)
    folder = root / f"fairface-img-{MARGINS[margin]}-trainval"
    if not folder.exists() and (root / part).exists():
        folder = root
    require_path(folder / part, f"FairFace's images with margin {margin}")
    return Rows(
        {
            "id": [f"fairface-{file.partition('.')[0]}" for file in files],
            "image": [os.path.join(folder, file) for file in files],
            "age_group": canonical_labels("age_group9", ages),
            "gender": canonical_labels("gender", genders),
            "race": canonical_labels("race7", races),
            "meta": json_meta(len(files), service_test=[flag == "True" for flag in service]),
        }
    )
