"""FER2013: grey faces of 48 x 48 pixels from web searches (Goodfellow et al., ICONIP 2013).

    fer2013.csv                  `emotion,pixels,Usage`, also as icml_face_data.csv, or instead a
                                 copy as pictures:
    train/angry/Training_3908.jpg
    test/angry/PublicTest_123.jpg, test/angry/PrivateTest_456.jpg

Copies as pictures are read by the names of their folders: their alphabetical order is not the
order of the csv. Most put both test parts into `test`; the file names distinguish them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlmface.data.published import published_counts
from vlmface.data.rows import Rows, class_folders, emotions, read_csv, require_path
from vlmface.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

TITLE = "FER2013"
HOME = (
    "https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression-"
    "recognition-challenge"
)
LICENCE = "rules of the Kaggle challenge; the pictures belong to their unknown owners"
SPLITS = ("train", "validation", "test")
PUBLISHED = published_counts(
    """
    split        rows  anger  disgust  fear  happiness  sadness  surprise  neutral
    train       28709   3995      436  4097       7215     4830      3171     4965
    validation   3589    467       56   496        895      653       415      607
    test         3589    491       55   528        879      594       416      626
    """
)
USAGES = {"train": "Training", "validation": "PublicTest", "test": "PrivateTest"}
FILES = ("fer2013.csv", "icml_face_data.csv")  # the latter has spaces before its names
SIDE = 48


def read(root: Path, split: str) -> Rows:
    """From a file of FILES if it exists, else from the folders of pictures.

    Args:
        root: as above, or the csv file itself under any name.
        split: one of SPLITS.
    """
    files = [root / name for name in FILES]
    path = root if root.is_file() else next((file for file in files if file.exists()), files[0])
    if not path.exists() and (root / "train").is_dir():
        return _folders(root, split)
    table = faces(require_path(path, "FER2013's csv file, or folders train/angry, test/angry"))
    selection = np.asarray(table["Usage"]) == USAGES[split]
    codes = np.asarray(table["emotion"])[selection]
    return Rows(
        {
            "id": [f"fer2013-{row:07d}" for row in np.flatnonzero(selection)],
            "image": pictures(table, selection, path),
            "emotion": emotions("fer2013", codes),
        }
    )


def faces(path: Path) -> pa.Table:
    """The table of `fer2013.csv`. Raises UserError for a part of another name."""
    table = read_csv(path, {"emotion": "int32", "pixels": "string", "Usage": "string"})
    check_usages(path, table)
    return table


def check_usages(path: Path, table: pa.Table) -> None:
    """Raise UserError if column Usage has another word than the three parts."""
    wrong = set(table["Usage"].unique().to_pylist()) - set(USAGES.values())
    if wrong:
        raise UserError(
            f"{path}: Usage {sorted(wrong)[0]!r} is none of {', '.join(USAGES.values())}"
        )


def pictures(table: pa.Table, selection: np.ndarray, path: Path) -> list[bytes]:
    """Column pixels as PGM files, for the rows of the mask `selection`; `path` is for errors."""
    import pyarrow as pa
    import pyarrow.compute as pc

    head = f"P5 {SIDE} {SIDE} 255\n".encode()
    encoded: list[bytes] = []
    start = 0
    for chunk in table["pixels"].chunks:  # small pieces: as text, the numbers fill gigabytes
        mask = selection[start : start + len(chunk)]
        grey = pc.ascii_split_whitespace(pc.ascii_trim_whitespace(chunk.filter(pa.array(mask))))
        lengths = np.asarray(pc.list_value_length(grey))
        short = np.flatnonzero(lengths != SIDE * SIDE)
        if len(short):
            line = start + np.flatnonzero(mask)[short[0]] + 2
            raise UserError(
                f"{path}, line {line}: {lengths[short[0]]} pixels, expected {SIDE} x {SIDE}; the "
                "file is cut off or was edited, take it as its owners give it out"
            )
        try:
            values = np.asarray(grey.flatten().cast(pa.uint8())).reshape(-1, SIDE * SIDE)
        except pa.ArrowInvalid as error:
            raise UserError(
                f"{path}, lines {start + 2} to {start + len(chunk) + 1}: a pixel is not "
                f"a whole number from 0 to 255: {error}"
            ) from error
        encoded += [head + row.tobytes() for row in values]
        start += len(chunk)
    return encoded


def _folders(root: Path, split: str) -> Rows:
    folder_names = {"train": ["train"], "validation": ["validation", "val"], "test": ["test"]}[
        split
    ]
    folder = next((root / name for name in folder_names if (root / name).is_dir()), root / "test")
    rows = class_folders(
        require_path(folder, "the folder of a part"), "emotion7", f"fer2013-{split}"
    )
    if folder.name != "test":
        return rows
    public = np.array([Path(p).name.startswith("PublicTest") for p in rows.columns["image"]], bool)
    if split == "validation" and not public.any():
        raise UserError(
            f"{root} has no validation part: no folder `validation`, and no file PublicTest_* in "
            "`test`; data.hold_out takes a validation part of the training rows"
        )
    return rows.take(public if split == "validation" else ~public)
