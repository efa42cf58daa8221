"""FER+: ten people's votes on each face of FER2013 (Barsoum et al., ICMI 2016).

    fer2013new.csv     `Usage,Image name,neutral,happiness,...,contempt,unknown,NF`
    fer2013.csv        row by row the same faces; or instead the pictures made of it:
    FER2013Train/fer0000000.png, FER2013Valid, FER2013Test     here or in `data`

A row without an image name was taken out of the set. Only the position of a row links votes to a
face: both files must keep their order, the numbers in the names drift away from the rows,
and four names stand in two rows. Of those the folders hold the later face only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlmface import label_spaces
from vlmface.data.adapters import fer2013
from vlmface.data.published import published_counts
from vlmface.data.rows import Rows, emotions, json_meta, read_csv, require_path, vote_column
from vlmface.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

TITLE = "FER+"
HOME = "https://github.com/microsoft/FERPlus"
LICENCE = "MIT for the votes; the pictures are FER2013's"
SPLITS = ("train", "validation", "test")
# What the owners' code makes of the owners' file in mode `majority`.
PUBLISHED = published_counts(
    """
    split        rows  neutral  happiness  surprise  sadness  anger  disgust  fear  contempt
    train       25060     8740       7287      3149     3014   2100      119   532       119
    validation   3199     1182        865       415      351    287       24    62        13
    test         3153     1090        893       396      384    273       18    83        16
    """
)
FOLDERS = {"train": "FER2013Train", "validation": "FER2013Valid", "test": "FER2013Test"}
SEEN = tuple(word for word in label_spaces.CODINGS["ferplus"].codes.values() if word)
COLUMNS = (*SEEN, "unknown", "NF")


def read(root: Path, split: str, *, protocol: str = "majority") -> Rows:
    """Each face with a label that follows from ten votes.

    Args:
        root: as above, or the file of votes itself under any name, next to the faces.
        split: one of SPLITS.
        protocol: "majority" (the paper's and its code's) drops single votes, then requires more
            than half of the others for one emotion; ties, other faces and "unknown" are skipped,
            and `label_votes` are the numbers of votes. "distribution" keeps every face with a
            vote for one of the eight emotions; `emotion` is the one with most votes, null for a
            tie, and `label_votes` are shares that sum to 1, unknown and no_face among them.
            Papers that test on 3,573 faces do so on these.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if protocol not in ("majority", "distribution"):
        raise UserError(f"protocol={protocol!r}: FER+ is read by 'majority' or 'distribution'")
    listing = require_path(root if root.is_file() else root / "fer2013new.csv", "FER+'s votes")
    root = listing.parent
    types = {"Usage": "string", "Image name": "string"} | dict.fromkeys(COLUMNS, "int32")
    table = read_csv(listing, types)
    fer2013.check_usages(listing, table)
    names = np.array([name.strip() for name in table["Image name"].to_pylist()])
    counts = np.stack([np.asarray(table[name]) for name in COLUMNS], 1)
    skipped = {}
    keep = np.asarray(table["Usage"]) == fer2013.USAGES[split]

    def leave_out(reason: str, wrong: np.ndarray) -> None:
        rows = np.flatnonzero(keep & wrong)
        if len(rows):
            skipped[reason] = [f"line {row + 2}" for row in rows]
        keep[rows] = False

    leave_out("no image name", names == "")
    if not (root / "fer2013.csv").exists():
        last = {name: row for row, name in enumerate(names)}
        lost = [last[name] != row for row, name in enumerate(names)]
        leave_out("its picture is that of a later row of the same name", np.array(lost, bool))
    if protocol == "majority":
        counted = np.where(counts > 1, counts, 0)
        leave_out("no majority", 2 * counted.max(1) <= counted.sum(1))
        emotion = emotions("ferplus", counted.argmax(1))
        leave_out("majority for unknown or no face", np.asarray(emotion.is_null()))
    else:
        face_votes = counts[:, : len(SEEN)]
        leave_out("no vote for an emotion", face_votes.sum(1) == 0)
        tied = (face_votes == face_votes.max(1, keepdims=True)).sum(1) > 1
        emotion = pc.if_else(pa.array(tied), None, emotions("ferplus", face_votes.argmax(1)))
        counts = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    columns = {
        "id": [f"ferplus-{row:07d}" for row in np.flatnonzero(keep)],  # as in FER2013
        "image": _images(root, split, table["Usage"], names, keep),
        "emotion": emotion.filter(pa.array(keep)),
        "label_votes": vote_column((*SEEN, "unknown", "no_face"), counts[keep]),
        "meta": json_meta(int(keep.sum()), name=names[keep]),
    }
    return Rows(columns, skipped)


def _images(
    root: Path, split: str, usages: pa.ChunkedArray, names: np.ndarray, keep: np.ndarray
) -> list[str] | list[bytes]:
    path = root / "fer2013.csv"
    if path.exists():
        table = fer2013.faces(path)
        if table["Usage"].to_pylist() != usages.to_pylist():
            raise UserError(
                f"{path} ({len(table)} rows) and fer2013new.csv ({len(usages)} rows) are not the "
                "same faces row by row; take both as their owners give them out, neither sorted "
                "nor filtered"
            )
        return fer2013.pictures(table, keep, path)
    folders = [base / FOLDERS[split] for base in (root, root / "data")]
    folder = next((f for f in folders if f.is_dir()), None)
    if folder is None:
        raise UserError(
            f"{root} has FER+'s votes but no faces: put FER2013's fer2013.csv there, or the folder "
            f"{FOLDERS[split]} of pictures made of it"
        )
    return [str(folder / name) for name in names[keep]]
