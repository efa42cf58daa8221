"""BP4D-Spontaneous: 41 people in eight tasks, AUs coded frame by frame (Zhang et al., IVC 2014).

    AUCoding/AU_OCC/F001_T1.csv        header: AU numbers; first column: frame; 0, 1, 9 unknown
    Sequences(2D+3D)/F001/T1/2440.jpg  a person's task; the name is the frame, zero-padded or not

Only the most expressive stretch of each task is coded; other images are not rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlmface.data.folds import people_of_split
from vlmface.data.rows import (
    Rows,
    action_units,
    frames_by_number,
    json_meta,
    read_csv,
    require_path,
)
from vlmface.errors import UserError

TITLE = "BP4D-Spontaneous"
HOME = "https://www.cs.binghamton.edu/~lijun/Research/3DFE/3DFE_Analysis.html"
LICENCE = "non-commercial research, agreement with the owners"
SPLITS = ("train", "test")  # of a fold: two parts train, one tests
AUS = (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)
TASKS = ("T1", "T2", "T3", "T4", "T5", "T6", "T7", "T8")
# The parts of 14, 14 and 13 people of ME-GraphAU (Luo et al., IJCAI 2022;
# tool/BP4D_image_label_process.py). Its fold 1 tests on the third, 2 on the second, 3 on the first.
PARTS = tuple(
    (*(f"F{number:03d}" for number in women), *(f"M{number:03d}" for number in men))
    for women, men in (
        ((1, 2, 8, 9, 10, 16, 18, 23), (1, 4, 7, 8, 12, 14)),
        ((3, 5, 11, 13, 20, 22), (2, 5, 10, 11, 13, 16, 17, 18)),
        ((4, 6, 7, 12, 14, 15, 17, 19, 21), (3, 6, 9, 15)),
    )
)


@dataclass(frozen=True)
class Options:
    """Options of BP4D.

    Args:
        fold: 1 to 3.
        aus: the AUs to read, by default the benchmark's twelve.
        tasks: some of the eight tasks.
        images: the folder of the people's folders, under the root.
        unknown: the code of an AU that could not be coded.
        offset: a coded frame f is the image numbered f + `offset`.
    """

    fold: int = 1
    aus: Sequence[int] = AUS
    tasks: Sequence[str] = TASKS
    images: str = "Sequences(2D+3D)"
    unknown: int = 9
    offset: int = 0


def read(root: Path, split: str, options: Options) -> Rows:
    """The coded frames of the people of a fold."""
    aus, unknown, offset = options.aus, options.unknown, options.offset
    if options.fold not in (1, 2, 3):
        raise UserError(f"fold={options.fold}: BP4D has folds 1 to 3")
    if wrong := [task for task in options.tasks if task not in TASKS]:
        raise UserError(f"tasks has {wrong[0]!r}: BP4D has {', '.join(TASKS)}")
    people = people_of_split(PARTS, options.fold, split)
    folder = require_path(root / options.images, "the people's folders of images (see images)")
    ids, paths, subjects, seen_in, codes, lacking = [], [], [], [], [], []
    for person in people:
        for task in options.tasks:
            frames, grid = _labels(root / "AUCoding" / "AU_OCC" / f"{person}_{task}.csv", aus)
            if wrong_codes := set(np.unique(grid).tolist()) - {0, 1, unknown}:
                raise UserError(
                    f"{person}_{task}.csv has the code {min(wrong_codes)}, expected 0, 1 or "
                    f"{unknown} for unknown (see unknown)"
                )
            images_by_number = frames_by_number(
                require_path(folder / person / task, f"{person}'s images of task {task}")
            )
            has_image = np.array([frame + offset in images_by_number for frame in frames], bool)
            lacking += [f"{person} {task} frame {frame}" for frame in np.array(frames)[~has_image]]
            with_image = [frame for frame in frames if frame + offset in images_by_number]
            ids += [f"bp4d-{person}-{task}-{frame:04d}" for frame in with_image]
            paths += [images_by_number[frame + offset] for frame in with_image]
            subjects += [person] * len(with_image)
            seen_in += [task] * len(with_image)
            codes.append(grid[has_image])
    labels = np.concatenate(codes)
    columns = {
        "id": ids,
        "image": paths,
        "subject": subjects,
        "aus": action_units(aus, labels == 1, None, labels != unknown),
        "meta": json_meta(len(ids), task=seen_in),
    }
    return Rows(columns, {"coded frame without an image": lacking} if lacking else {})


def _labels(path: Path, aus: Sequence[int]) -> tuple[list[int], np.ndarray]:
    """The coded frames, and their codes (frames, AUs)."""
    table = read_csv(require_path(path, "the AU codes of a person's task"))
    if lacking := [au for au in aus if str(au) not in table.column_names[1:]]:
        raise UserError(
            f"{path} has no column of AU{lacking[0]}: its header is "
            f"{','.join(table.column_names[:12])}..."
        )
    # The first column is named 0 or frame, but never as an AU.
    columns = [table.column(table.column_names.index(str(au), 1)) for au in aus]
    try:
        frames = table.column(0).to_numpy().astype(int).tolist()
        return frames, np.stack([column.to_numpy().astype(int) for column in columns], 1)
    except ValueError as error:
        raise UserError(f"{path} holds something else than codes: {error}") from error
