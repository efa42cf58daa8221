"""Aff-Wild2: frames of videos from the web, three tracks of labels (Kollias & Zafeiriou 2019).

    ABAW Annotations/EXPR_Classification_Challenge/Train_Set/VIDEO.txt    also Validation_Set
    ABAW Annotations/VA_Estimation_Challenge/..., AU_Detection_Challenge/...
    cropped_aligned/VIDEO/00001.jpg                                       faces, counted from 1

A label file has a header and then one line a frame, also for frames without a label. There is no
face image where no face was found, so that the n-th image of a folder need not be frame n.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlmface import facs, label_spaces
from vlmface.data.rows import Rows, action_units, emotions, frames_by_number, read_csv, require_path
from vlmface.data.text_files import read_lines
from vlmface.errors import UserError
from vlmface.utils.ranges import Count

TITLE = "Aff-Wild2"
HOME = "https://ibug.doc.ic.ac.uk/resources/aff-wild2/"
LICENCE = "non-commercial research, no redistribution"
SPLITS = ("train", "validation")
FOLDERS = {"train": "Train_Set", "validation": "Validation_Set"}
INVALID = {"expr": -1, "va": -5, "au": -1}


@dataclass(frozen=True)
class Options:
    """Options of Aff-Wild2.

    Args:
        track: "expr", "va" or "au".
        every: n keeps the frames 1, n + 1, 2n + 1 ... of each video.
        images: the folder of the faces, under the root.
        annotations: the folder of the track (EXPR_...), under the root; found by default.
        invalid: the value of a frame that is not annotated, by default -1, and -5 for valence and
            arousal.
    """

    track: str = "expr"
    every: Count = 1
    images: str = "cropped_aligned"
    annotations: str | None = None
    invalid: float | None = None

    def __post_init__(self) -> None:
        if self.track not in INVALID:
            raise UserError(f"track={self.track!r}: Aff-Wild2 has {', '.join(INVALID)}")


def read(root: Path, split: str, options: Options) -> Rows:
    """One row for each frame that has a label and a face. The track's class "Other" has no emotion,
    and its word in `context`.
    """
    track, every = options.track, options.every
    code = INVALID[track] if options.invalid is None else options.invalid
    labels = _track(root, track, options.annotations) / FOLDERS[split]
    files = sorted(require_path(labels, "Aff-Wild2's label files").glob("*.txt"))
    faces = require_path(
        root / options.images, "Aff-Wild2's cropped and aligned faces, one folder a video"
    )

    ids: list[str] = []
    subjects: list[str] = []
    paths: list[str] = []
    blocks: list[np.ndarray] = []
    unlabelled: list[str] = []
    faceless: list[str] = []
    header: list[str] = []
    for video, names, values in _read_all(files, track, code):
        header = names
        face_of = frames_by_number(faces / video) if (faces / video).is_dir() else {}
        numbers = np.arange(1, len(values) + 1, every)
        labelled = (values != code).any(1)[::every]
        with_face = np.isin(numbers, np.fromiter(face_of, int))
        unlabelled += [f"{video}/{n:05d}" for n in numbers[~labelled].tolist()]
        faceless += [f"{video}/{n:05d}" for n in numbers[labelled & ~with_face].tolist()]
        used = numbers[labelled & with_face]
        blocks.append(values[used - 1])
        ids += [f"affwild2-{video}-{n:05d}" for n in used.tolist()]
        subjects += [video] * len(used)
        paths += [face_of[n] for n in used.tolist()]
    if not paths:
        raise UserError(
            f"none of the {len(files)} label files in {labels} has a frame with a label and a face "
            f"in {faces}: are these the faces of this track?"
        )
    columns = {"id": ids, "subject": subjects, "image": paths}
    columns |= _columns(track, header, np.concatenate(blocks), code)
    reasons = {"not annotated": unlabelled, "no face image": faceless}
    return Rows(columns, {reason: frames for reason, frames in reasons.items() if frames})


def _track(root: Path, track: str, annotations: str | None) -> Path:
    if annotations is not None:
        return require_path(root / annotations, "Aff-Wild2's annotations")
    pattern = f"{track.upper()}_*Challenge"
    folders = sorted(p for depth in ("", "*/") for p in root.glob(depth + pattern) if p.is_dir())
    if len(folders) != 1:
        raise UserError(
            f"{root} has {len(folders) or 'no'} folders {pattern} in it or one level down"
            + "".join(f", {path.relative_to(root)}" for path in folders)
            + ": give the one to read as annotations=..., a path under the root"
        )
    return folders[0]


def _read_all(
    files: Sequence[Path], track: str, invalid: float
) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """(video, header, values) of each label file, as `_read`; all headers must be the same."""
    header: list[str] = []
    for file in files:
        names, values = _read(file, track, invalid)
        if header and names != header:
            raise UserError(f"{file} has the header {names}, the files before it {header}")
        header = names
        yield file.stem, names, values


def _read(file: Path, track: str, invalid: float) -> tuple[list[str], np.ndarray]:
    """The names in the header and the values (lines, columns), an empty one as `invalid`."""
    lines = read_lines(file)
    while lines and not lines[-1].strip():
        lines.pop()
    if not all(line.strip() for line in lines):
        raise UserError(f"{file} has an empty line: the frames after it would get wrong labels")
    header = [name.strip() for name in lines[0].split(",")] if lines else []
    names = ["code"] if track == "expr" else header  # its header lists the classes instead
    table = read_csv(file, dict.fromkeys(names, "float32"), skip_rows=1, column_names=names)
    values = np.stack([column.to_numpy() for column in table.columns], 1)
    return header, np.nan_to_num(values, nan=invalid)


def _columns(track: str, header: list[str], values: np.ndarray, invalid: float) -> dict[str, Any]:
    missing = values == invalid
    if track == "au":
        numbers = [facs.parse_name(name) for name in header]
        if (odd := values[~missing & ~np.isin(values, (0, 1))]).size:
            raise UserError(f"an action unit is {odd[0]:g}: expected 0, 1, or {invalid:g} for none")
        return {"aus": action_units(numbers, values == 1, annotated=~missing)}
    if track == "va":
        real = np.where(missing, np.nan, values)
        columns_by_name = dict(zip(map(str.lower, header), real.T, strict=True))
        if set(columns_by_name) != {"valence", "arousal"}:
            raise UserError(f"the header is {header}, expected valence,arousal in either order")
        return columns_by_name
    coding = label_spaces.CODINGS["affwild2"].codes
    expected = [word or "other" for code, word in coding.items() if code >= 0]
    if [label_spaces.normalise(word) for word in header] != expected[: len(header)]:
        raise UserError(f"the header lists the classes {header}, expected {expected}")
    codes = values[:, 0].astype(int)
    labels = emotions("affwild2", codes)
    other = codes == expected.index("other")
    return {"emotion": labels, "context": [["Other"] if o else None for o in other.tolist()]}
