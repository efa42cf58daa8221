"""AffectNet: faces from web searches, 440,000 of them labelled by hand (Mollahosseini, Hasani &
Mahoor, IEEE Transactions on Affective Computing 2019).

official    Manually_Annotated_file_lists/{training,validation}.csv    the latter may lack a header
            Manually_Annotated_Images/689/<hash>.jpg                   or in Manually_Annotated
npy         {train,val}_set/images/7.jpg
            {train,val}_set/annotations/7_exp.npy, 7_val.npy, 7_aro.npy
sample      {train,valid}-sample-affectnet.csv: `image,emotion`, emotions counted from 1
            {train,val}_class/class001/image0000006.jpg

folders     {train,val}/3/<name>.jpg or {train,val}/surprise/<name>.jpg, as uploaded to Kaggle
labels      labels.csv: `pth,label,relFCs`, and surprise/<name>.jpg; all rows are training rows.
            The column decides over the folder, from which it differs in places.

The test part was never given out; results are reported on the validation part.
"""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from vlmface import label_spaces
from vlmface.data.numbered_folders import PARTS, part_folder, read_class_folders
from vlmface.data.published import published_counts
from vlmface.data.rows import (
    Rows,
    boxes,
    canonical_labels,
    csv_header,
    emotions,
    exists_mask,
    image_names,
    json_meta,
    read_csv,
    require_path,
)
from vlmface.errors import UserError

TITLE = "AffectNet"
HOME = "http://mohammadmahoor.com/affectnet/"
LICENCE = "non-commercial research, on request"
SPLITS = ("train", "validation")
PUBLISHED = published_counts(
    """
    split         rows  neutral  happiness  sadness  surprise  fear  disgust  anger  contempt
    train       287651    74874     134415    25459     14090  6378     3803  24882      3750
    validation    4000      500        500      500       500   500      500    500       500
    """
)
PUBLISHED_BY = {("classes", 7): {"train": {"rows": 283901}, "validation": {"rows": 3500}}}
LISTS = "Manually_Annotated_file_lists"
PATH = "subDirectory_filePath"
BOX = ["face_x", "face_y", "face_width", "face_height"]
HEADER = [PATH, *BOX, "facial_landmarks", "expression", "valence", "arousal"]
IMAGES = (
    "Manually_Annotated_Images",
    "Manually_Annotated/Manually_Annotated_Images",
    "Manually_Annotated",
)
NOT_RATED = -2


def read(root: Path, split: str, *, classes: int = 8, layout: str | None = None) -> Rows:
    """Images labelled None, Uncertain or Non-face are skipped.

    Args:
        root: as above.
        split: one of SPLITS.
        classes: 8, or 7 without contempt. Both are in use: report which.
        layout: "official", "npy", "sample", "labels" or "folders"; by default the first of them
            that the root holds.
    """
    if classes not in (7, 8):
        raise UserError(f"classes={classes!r}: AffectNet is used with 8 classes, or 7")
    marks = {
        "official": [LISTS],
        "npy": ["train_set", "val_set"],
        "sample": ["train-sample-affectnet.csv", "valid-sample-affectnet.csv"],
        "labels": ["labels.csv"],
        "folders": [name for names in PARTS.values() for name in names],
    }
    if layout is None:
        layout = next((k for k, v in marks.items() if any((root / m).exists() for m in v)), None)
    if layout not in marks:
        expected_marks = "; ".join(f"{k!r} has {' or '.join(v)}" for k, v in marks.items())
        raise UserError(f"no layout of AffectNet in {root} (layout={layout!r}): {expected_marks}")
    if layout in ("labels", "folders"):
        rows = {"labels": _labels, "folders": _folders}[layout](root, split)
        return _of_seven(rows) if classes == 7 else rows
    rows, codes = {"official": _official, "npy": _npy, "sample": _sample}[layout](root, split)
    coding = "affectnet_sample" if layout == "sample" else "affectnet"
    rows.columns["emotion"] = emotions(coding, codes)
    return _of_classes(rows, codes, classes)


def _of_classes(rows: Rows, codes: np.ndarray, classes: int) -> Rows:
    import pyarrow as pa
    import pyarrow.compute as pc

    space = label_spaces.space(f"emotion{classes}")
    wrong = ~np.asarray(pc.is_in(rows.columns["emotion"], pa.array(space.labels)))
    for code in np.unique(codes[wrong]):
        reason = f"expression {int(code)}, not among the {classes} classes"
        rows.skipped[reason] = [rows.columns["id"][i] for i in np.flatnonzero(codes == code)]
    return rows.take(~wrong)


def _of_seven(rows: Rows) -> Rows:
    contempt = np.array([label == "contempt" for label in rows.columns["emotion"]], bool)
    if contempt.any():
        names = [rows.columns["id"][i] for i in np.flatnonzero(contempt)]
        rows.skipped["contempt, not among the 7 classes"] = names
    return rows.take(~contempt)


def _labels(root: Path, split: str) -> Rows:
    listing = root / "labels.csv"
    if split != "train":
        raise UserError(
            f"{listing} lists training rows only; data.hold_out takes a validation part of them"
        )
    table = read_csv(listing, {"pth": "string", "label": "string", "relFCs": "float32"})
    paths = [path.strip().replace("\\", "/") for path in table["pth"].to_pylist()]
    columns = {
        "id": [f"affectnet-{path}" for path in paths],
        "image": [f"{root}/{path}" for path in paths],
        "emotion": canonical_labels("emotion8", table["label"].to_pylist()),
        "meta": json_meta(len(paths), relFCs=table["relFCs"].to_pylist()),
    }
    return Rows(columns)


def _folders(root: Path, split: str) -> Rows:
    folder = part_folder(root, split)
    if folder is None and split == "validation":
        folder = part_folder(root, "test")  # what some copies call it
    wanted = " or ".join(PARTS[split])
    folder = require_path(folder or root / PARTS[split][0], f"the class folders in {wanted}")
    return read_class_folders(folder, "affectnet", f"affectnet-{split}")


def _rated(values: Any) -> np.ndarray:
    values = np.asarray(values, np.float32)
    return np.where(values == NOT_RATED, np.nan, values)


def _official(root: Path, split: str) -> tuple[Rows, np.ndarray]:
    file = {"train": "training.csv", "validation": "validation.csv"}[split]
    listing = require_path(root / LISTS / file, "AffectNet's list of labels")
    has_header = [name.casefold() for name in csv_header(listing)[:1]] == [PATH.casefold()]
    types = dict.fromkeys(HEADER, "float32") | {PATH: "string", "expression": "int32"}
    del types["facial_landmarks"]  # nine tenths of the file
    options: dict[str, Any] = {} if has_header else {"column_names": HEADER}
    table = read_csv(listing, types, **options)
    paths = table[PATH].to_pylist()
    places = [root / name for name in IMAGES]
    folder = next((p for p in places if p.is_dir()), places[0])
    require_path(folder, "AffectNet's images, 689/<hash>.jpg")
    x, y, width, height = (np.asarray(table[name]) for name in BOX)
    columns = {
        "id": [f"affectnet-{path}" for path in paths],
        "image": [f"{folder}/{path}" for path in paths],
        "face_box": boxes(x, y, x + width, y + height),
        "valence": _rated(table["valence"]),
        "arousal": _rated(table["arousal"]),
    }
    return Rows(columns), np.asarray(table["expression"])


def _npy(root: Path, split: str) -> tuple[Rows, np.ndarray]:
    folder = root / {"train": "train_set", "validation": "val_set"}[split]
    annotations = require_path(folder / "annotations", "AffectNet's annotations, N_exp.npy")
    names, _ = image_names(require_path(folder / "images", "AffectNet's images, N.jpg"))
    images = {name.rpartition(".")[0]: name for name in names}
    labelled = [name.removesuffix("_exp.npy") for name in os.listdir(annotations)]
    stems = sorted((s for s in labelled if not s.endswith(".npy")), key=lambda s: (len(s), s))
    skipped = sorted(set(images) - set(stems))

    def read(suffix: str) -> np.ndarray:
        paths = [f"{annotations}/{stem}_{suffix}.npy" for stem in stems]
        values = np.full(len(paths), np.nan)
        exists = exists_mask(paths)
        values[exists] = _numbers([paths[i] for i in np.flatnonzero(exists)])
        return values

    columns = {
        "id": [f"affectnet-{split}/{stem}" for stem in stems],
        "image": [f"{folder}/images/{images.get(stem, stem + '.jpg')}" for stem in stems],
        "valence": _rated(read("val")),
        "arousal": _rated(read("aro")),
    }
    return Rows(columns, {"no _exp.npy": skipped} if skipped else {}), read("exp")


def _numbers(paths: list[str]) -> list[float]:
    """The one number that each npy file holds, as text or as a number."""
    types: dict[bytes, np.dtype] = {}  # by header: parsing it takes longer than reading the file
    numbers = []
    for path in paths:
        with open(path, "rb") as file:
            data = file.read()
        header = data[: 10 + int.from_bytes(data[8:10], "little")]
        try:
            if header not in types:
                types[header] = np.load(BytesIO(data)).dtype
            numbers.append(float(np.frombuffer(data[len(header) :], types[header]).item()))
        except (ValueError, EOFError) as error:
            raise UserError(f"{path} does not hold one number: {error}") from error
    return numbers


def _sample(root: Path, split: str) -> tuple[Rows, np.ndarray]:
    file = {"train": "train-sample-affectnet.csv", "validation": "valid-sample-affectnet.csv"}
    listing = require_path(root / file[split], "the list of AffectNet's sample")
    table = read_csv(listing, {"image": "string", "emotion": "float32"})
    # `../input/affectnetsample/val_class/class003/x.jpg`: the start is where it once was mounted
    paths = ["/".join(path.split("/")[-3:]) for path in table["image"].to_pylist()]
    columns = {
        "id": [f"affectnet-{path}" for path in paths],
        "image": [f"{root}/{path}" for path in paths],
    }
    return Rows(columns), np.asarray(table["emotion"])
