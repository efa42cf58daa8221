"""RAF-DB: real-world faces with crowd-sourced expressions (Li, Deng & Du, CVPR 2017).

    EmoLabel/list_patition_label.txt     `train_00001.jpg 5`; file names say the split
    Image/aligned/train_00001_aligned.jpg, or Image/original/train_00001.jpg
    Annotation/manual/train_00001_manu_attri.txt    five points, then gender, race, age; may lack

or, as uploaded to Kaggle, with the same numbers:
    train_labels.csv, test_labels.csv    `image,label`
    DATASET/train/5/train_00001_aligned.jpg    or train/5 next to the lists, which may lack

The part of compound expressions ("Happily Surprised") has the same layout in a folder of its own,
`compound/` beside `basic/`. Its labels are 1 to 11 (label space rafdb_compound11).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from vlmface import label_spaces
from vlmface.data.numbered_folders import part_folder, read_class_folders
from vlmface.data.published import published_counts
from vlmface.data.rows import Rows, emotions, exists_mask, read_csv, require_path
from vlmface.data.text_files import read_lines, read_text
from vlmface.errors import UserError

TITLE = "RAF-DB"
HOME = "http://www.whdeng.cn/RAF/model1.html"
LICENCE = "non-commercial research, no redistribution"
SPLITS = ("train", "test")
PUBLISHED = published_counts(
    """
    split   rows  surprise  fear  disgust  happiness  sadness  anger  neutral
    train  12271      1290   281      717       4772     1982    705     2524
    test    3068       329    74      160       1185      478    162      680
    """
)
PUBLISHED_BY = {("part", "compound"): {"train": {"rows": 3162}, "test": {"rows": 792}}}
# Codes of Annotation/manual, as re-users of the set report them; its readme is the authority.
GENDERS = ("male", "female", "unsure")
RACES = ("Caucasian", "African-American", "Asian")
AGES = ("0-3", "4-19", "20-39", "40-69", "70+")


def read(
    root: Path,
    split: str,
    *,
    part: str = "basic",
    images: str = "aligned",
    attributes: bool = False,
) -> Rows:
    """The images of one of the two parts.

    Args:
        root: the folder of the part, or the one that holds it under its name.
        split: one of SPLITS.
        part: "basic" (seven emotions) or "compound" (eleven, in `context`).
        images: "aligned" (100x100, the usual protocol) or "original".
        attributes: also read gender, race and age group from the annotation files.
    """
    if part not in ("basic", "compound"):
        raise UserError(f"part={part!r}: RAF-DB has 'basic' and 'compound'")
    if images not in ("aligned", "original"):
        raise UserError(f"images={images!r}: RAF-DB has 'aligned' and 'original'")
    root = root / part if (root / part).is_dir() else root
    folder = part_folder(root, split, ("", "DATASET"))
    if folder is not None and not (root / "EmoLabel").exists():
        _check_upload(root, part=part, images=images, attributes=attributes)
        return _numbered(root, folder, split)
    listing = require_path(root / "EmoLabel" / "list_patition_label.txt", "RAF-DB's list of labels")
    stems, codes, malformed = [], [], []
    for number, line in enumerate(read_lines(listing), 1):
        name, code, *more = [*line.split(), "", ""]
        prefix, _, _ = name.partition("_")
        code = re.sub(r"\.0*$", "", code)  # a spreadsheet's 5.0
        if prefix not in SPLITS or not code.isdigit() or any(more):
            if line.strip():
                malformed.append(f"{listing.name}:{number}: {line[:60]}")
            continue
        if prefix == split:
            stems.append(Path(name).stem)
            codes.append(int(code))
    folder = require_path(root / "Image" / images, f"RAF-DB's {images} images")
    paths = [str(folder / f"{stem}_aligned.jpg") for stem in stems]
    if images == "original" or not exists_mask(paths[:1]).all():  # some copies drop `_aligned`
        plain = [str(folder / f"{stem}.jpg") for stem in stems]
        paths = plain if images == "original" or exists_mask(plain[:1]).all() else paths
    columns: dict[str, Any] = {"id": [f"rafdb-{stem}" for stem in stems], "image": paths}
    if part == "compound":
        columns |= {
            "id": [f"rafdb-compound-{stem}" for stem in stems],
            "context": [[_compound(code, listing)] for code in codes],
        }
    else:
        columns["emotion"] = emotions("rafdb", np.array(codes, int))
    if attributes:
        columns |= _attributes(root, stems)
    return Rows(columns, {"malformed line": malformed} if malformed else {})


def _check_upload(root: Path, **options: Any) -> None:
    """Raise UserError for options that a copy in folders 1 to 7 does not have."""
    for option, value in {"part": "basic", "images": "aligned", "attributes": False}.items():
        if options[option] != value:
            raise UserError(
                f"{root} is a copy in folders 1 to 7, which has the aligned faces of the basic "
                f"emotions only: {option}={options[option]!r} needs the owners' copy"
            )


def _numbered(root: Path, folder: Path, split: str) -> Rows:
    """The rows of a copy in folders 1 to 7. A list next to them decides over the folders."""
    places = [base / f"{split}_labels.csv" for base in (root, folder.parent)]
    listing = next((path for path in places if path.exists()), None)
    if listing is None:
        rows = read_class_folders(folder, "rafdb", "rafdb")
        rows.columns["id"] = [name.removesuffix("_aligned") for name in rows.columns["id"]]
        rows.columns["id"] = [name.replace("/", "-", 1) for name in rows.columns["id"]]
        return rows
    table = read_csv(listing, {"image": "string", "label": "int32"})
    names, codes = table["image"].to_pylist(), np.asarray(table["label"])
    columns = {
        "id": [f"rafdb-{name.rpartition('.')[0].removesuffix('_aligned')}" for name in names],
        "image": [f"{folder}/{code}/{n}" for n, code in zip(names, codes, strict=True)],
        "emotion": emotions("rafdb", codes),
    }
    return Rows(columns)


def _compound(code: int, listing: Path) -> str:
    labels = label_spaces.space("rafdb_compound11").labels
    if not 1 <= code <= len(labels):
        raise UserError(f"{listing}: code {code}, but compound expressions have 1 to {len(labels)}")
    return labels[code - 1]


def _attributes(root: Path, stems: list[str]) -> dict[str, list[str | None]]:
    attributes: dict[str, list[str | None]] = {"gender": [], "race": [], "age_group": []}
    folder = require_path(root / "Annotation" / "manual", "RAF-DB's attribute files")
    for stem in stems:
        path = folder / f"{stem}_manu_attri.txt"
        codes = read_text(require_path(path, "gender, race and age of a face")).split()[-3:]
        for (name, values), words, code in zip(
            attributes.items(), (GENDERS, RACES, AGES), codes, strict=True
        ):
            if not code.isdigit() or int(code) >= len(words):
                raise UserError(f"{path}: {name} code {code!r}, expected 0 to {len(words) - 1}")
            word = words[int(code)]
            values.append(None if word == "unsure" else word)
    return attributes
