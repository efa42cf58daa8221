"""RAER: students at their books and screens, academic emotions (Zhao et al., ICCV 2025).

    annotation/train_80.txt    `RAER/train/Fatigue/003 120 4`: folder of frames, frames, label
    annotation/val_20.txt      the other fifth of the training clips; annotation/test.txt
    bounding_box/face.json     {folder: {frame's file: [left, top, right, bottom]}}, optional
    bounding_box/body.json     {folder: [left, top, right, bottom]}, optional

Labels are 1 to 5 (label space raer5), and none of the eight emotions. Frame files are `0.jpg`,
`1.jpg` ... without zeros in front.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vlmface import label_spaces
from vlmface.data.clips import FRAMES, read_list, with_frames
from vlmface.data.records import read_json, short_repr
from vlmface.data.rows import Rows, json_meta, require_path
from vlmface.errors import UserError
from vlmface.utils.ranges import Count

TITLE = "RAER"
HOME = "https://github.com/zgsfer/CLIP-CAER"
LICENCE = "non-commercial research"
SPLITS = ("train", "validation", "test")
WHOLE_SCENES = True
LISTS = {"train": "train_80.txt", "validation": "val_20.txt", "test": "test.txt"}
FACES, BODIES = "bounding_box/face.json", "bounding_box/body.json"


def read(
    root: Path,
    split: str,
    *,
    num_frames: Count = FRAMES,
    listing: str | None = None,
    faces: str | None = FACES,
    bodies: str | None = BODIES,
) -> Rows:
    """`context` holds the label, `meta` the boxes: `face_boxes`, one for each sampled frame, and
    `body_box`, null where no person was found.

    Args:
        root: as above.
        split: one of SPLITS.
        num_frames: of each clip.
        listing: the file in annotation/ to read in place of the split's own in LISTS; the whole
            training set is "train.txt".
        faces: the file of the faces' boxes, under the root; None: no boxes.
        bodies: the file of the bodies' boxes, under the root; None: no boxes.
    """
    path = require_path(root / "annotation" / (listing or LISTS[split]), "RAER's list of clips")
    lines, skipped = read_list(path, lambda line: line.rsplit(None, 2), 3)
    places = [folder for folder, _, _ in lines]
    base = _base(root, places)
    folders = [base / folder for folder in places]
    columns = {
        "id": [f"raer-{folder}" for folder in places],
        "context": [[_label(code, path)] for _, _, code in lines],
        "place": places,
    }
    rows = with_frames(columns, folders, num_frames, skipped)

    clip_folders = rows.columns.pop("place")
    files = [[os.path.basename(frame) for frame in clip] for clip in rows.columns["frames"]]
    extra: dict[str, list[Any]] = {}
    if boxes := _boxes(root, faces, FACES, places):
        extra["face_boxes"] = [
            [boxes.get(folder, {}).get(name) for name in clip]
            for folder, clip in zip(clip_folders, files, strict=True)
        ]
    if boxes := _boxes(root, bodies, BODIES, places):
        extra["body_box"] = [boxes.get(folder) for folder in clip_folders]
    rows.columns["meta"] = json_meta(len(clip_folders), **extra)
    return rows


def _base(root: Path, places: list[str]) -> Path:
    """What the listed folders are relative to: the root, or the folder that holds it, since some
    lists begin with "RAER/"."""
    above = not any((root / folder).is_dir() for folder in places)
    return root.parent if above and (root.parent / places[0]).is_dir() else root


def _label(code: str, path: Path) -> str:
    labels = label_spaces.space("raer5").labels
    if not code.isdigit() or not 1 <= int(code) <= len(labels):
        raise UserError(
            f"{path}: label {code!r}, expected 1 to {len(labels)} ({', '.join(labels)}); a list "
            "that counts from 0 is not RAER's own"
        )
    return labels[int(code) - 1]


def _boxes(root: Path, boxes_file: str | None, usual: str, places: list[str]) -> dict[str, Any]:
    """The boxes by listed folder; {} without a file, which only the `usual` one may be."""
    if boxes_file is None or (boxes_file == usual and not (root / usual).exists()):
        return {}
    path = require_path(root / boxes_file, "RAER's boxes")
    boxes = read_json(path)
    if not isinstance(boxes, dict):
        raise UserError(f"{path} holds {short_repr(boxes)}, expected the boxes of each folder")
    if not any(folder in boxes for folder in places):
        raise UserError(
            f"{path} has boxes for {next(iter(boxes), 'nothing')!r} ..., none for the clips of the "
            f"list ({places[0]!r} ...): rename its keys, or give faces=None, bodies=None"
        )
    return boxes
