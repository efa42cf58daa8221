"""EMOTIC: people in context, 26 emotion categories and valence, arousal, dominance (Kosti et al.,
TPAMI 2020). One row is one person; an image may have several.

Annotations/Annotations.mat         the owners' file: train, val, test
emotic_pre/{train,val,test}.csv     or csv files made of it: `Index,Folder,Filename,Image Size,
                                    BBox,Categorical_Labels,Continuous_Labels,Gender,Age`
emotic/mscoco/images/COCO_....jpg   folders as in the annotations: mscoco, framesdb, emodb_small,
                                    ade20k

The csv layout is that of github.com/Tandon-A/emotic, whose mat2py.py leaves out people without
continuous labels and images that it did not find; the mat file has them all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlmface.data.rows import Rows, canonical_labels, json_meta, read_csv, require_path
from vlmface.errors import UserError

TITLE = "EMOTIC"
HOME = "https://s3.sunai.uoc.edu/emotic/index.html"
LICENCE = "non-commercial research, agreement with the owners"
SPLITS = ("train", "validation", "test")
WHOLE_SCENES = True
COLUMNS = ("Folder", "Filename", "BBox", "Categorical_Labels", "Continuous_Labels", "Gender", "Age")


class Person(NamedTuple):
    """A line of an annotation file."""

    folder: str
    file: str
    box: list[float]
    categories: list[str]
    dimensions: list[float]  # valence, arousal, dominance, 1 to 10; NaN or empty: not annotated
    gender: str
    age: str


def read(root: Path, split: str, *, annotations: str | None = None) -> Rows:
    """Categories are in `context`; valence, arousal and (in `meta`) dominance are scaled from 1..10
    to -1..1. With several annotators (val, test) these are the owners' combined labels. The box of
    the person, not of the face, is `meta`'s person_box.

    Args:
        root: as above.
        split: one of SPLITS.
        annotations: the folder of the csv files or the mat file, under the root; by default
            emotic_pre, else the root, else Annotations/Annotations.mat.
    """
    part = "val" if split == "validation" else split
    source = _source(root, part, annotations)
    people = _from_mat(source, part) if source.suffix == ".mat" else _from_csv(source)
    folder = root / "emotic" if (root / "emotic").exists() else root

    within_range, ids, beyond = [], [], []
    counts: dict[str, int] = {}
    for person in people:
        key = f"{person.folder.split('/')[0]}-{Path(person.file).stem}"
        counts[key] = counts.get(key, 0) + 1
        if any(not np.isnan(x) and not 1 <= x <= 10 for x in person.dimensions):
            beyond.append(f"{person.folder}/{person.file}, person {counts[key]}")
            continue
        within_range.append(person)
        ids.append(f"emotic-{key}-{counts[key]}")
    dimensions = np.full((len(within_range), 3), np.nan)
    for row, person in enumerate(within_range):
        if person.dimensions:
            dimensions[row] = person.dimensions
    valence, arousal, dominance = ((dimensions - 5.5) / 4.5).T
    canonical_labels(
        "emotic26", [category for person in within_range for category in person.categories]
    )
    columns = {
        "id": ids,
        "image": [str(folder / person.folder / person.file) for person in within_range],
        "context": [person.categories or None for person in within_range],
        "valence": valence,
        "arousal": arousal,
        "gender": canonical_labels("gender", [person.gender or None for person in within_range]),
        "age_group": [person.age or None for person in within_range],
        "meta": json_meta(
            len(within_range),
            person_box=[person.box for person in within_range],
            dominance=[None if np.isnan(x) else round(x, 6) for x in dominance.tolist()],
        ),
    }
    return Rows(columns, {"valence, arousal or dominance beyond 1..10": beyond} if beyond else {})


def _source(root: Path, part: str, annotations: str | None) -> Path:
    mat = root / "Annotations" / "Annotations.mat"
    if annotations is not None:
        source_path = require_path(
            root / annotations, "EMOTIC's mat file or the folder of its csv files"
        )
        return (
            source_path
            if source_path.is_file()
            else require_path(source_path / f"{part}.csv", "EMOTIC's annotations")
        )
    candidates = [root / "emotic_pre" / f"{part}.csv", root / f"{part}.csv", mat]
    return next((path for path in candidates if path.exists()), None) or require_path(
        mat, "EMOTIC's labels"
    )


def _from_csv(path: Path) -> list[Person]:
    table = read_csv(path, dict.fromkeys(COLUMNS, "string"))
    people = []
    for number, row in enumerate(zip(*(table[c].to_pylist() for c in COLUMNS), strict=True), 2):
        folder, file, box, categories, dimensions, gender, age = row
        try:  # lists as Python prints them
            people.append(
                Person(
                    folder,
                    file,
                    json.loads(box),
                    json.loads(categories.replace("'", '"')),
                    json.loads(dimensions.replace("nan", "NaN")),
                    gender,
                    age,
                )
            )
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}:{number}: BBox, Categorical_Labels and Continuous_Labels should be lists "
                f"such as [1, 2], found {box}, {categories}, {dimensions}: {error}"
            ) from error
    return people


def _from_mat(path: Path, part: str) -> list[Person]:
    from scipy.io import loadmat

    mat = loadmat(path, variable_names=[part], simplify_cells=True)
    if part not in mat:
        raise UserError(f"{path} has no variable {part!r}: use EMOTIC's Annotations.mat")
    people = []
    for image in _several(mat[part]):
        for person in _several(image["person"]):
            if "combined_categories" in person:
                categories = person["combined_categories"]
                dimensions = person["combined_continuous"]
            else:
                categories = person["annotations_categories"]["categories"]
                dimensions = person["annotations_continuous"]
            people.append(
                Person(
                    image["folder"],
                    image["filename"],
                    [float(x) for x in person["body_bbox"]],
                    [str(category) for category in _several(categories)],
                    _dimensions(dimensions),
                    str(person["gender"]),
                    str(person["age"]),
                )
            )
    return people


def _several(value: Any) -> list[Any]:
    """MATLAB cells and structs of one element come without their list, empty ones as arrays."""
    if isinstance(value, dict | str):
        return [value]
    return list(value)


def _dimensions(struct: Any) -> list[float]:
    if not isinstance(struct, dict):  # an empty MATLAB array: not annotated
        return []
    return [float(struct[name]) for name in ("valence", "arousal", "dominance")]
