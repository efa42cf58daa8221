"""Rows that are single frames: of a video, or of a folder of pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlmface.data import video
from vlmface.data.clips import images_in_order
from vlmface.data.tables.cells import cell_error, numbers
from vlmface.data.tables.columns import Source
from vlmface.data.tables.options import TableOptions
from vlmface.data.tables.table import Table
from vlmface.errors import UserError

# The aligned faces of OpenFace: frame_det_FACE_FRAME.bmp.
_ALIGNED = re.compile(r"frame_det_(\d+)_(\d+)\.")


@dataclass(frozen=True)
class Videos:
    """The video of each row: its number in the table (n), the name there, and the path."""

    rows: np.ndarray
    names: Sequence[str]
    paths: Sequence[str]

    def by_file(self, table: Table) -> dict[Path, list[int]]:
        """{video file or folder of frames: positions of its rows here}. Raises UserError for a
        video that is not there."""
        places: dict[str, Path] = {}
        positions: dict[Path, list[int]] = {}
        for i, path in enumerate(self.paths):
            if path not in places:
                places[path] = _need_video(table, int(self.rows[i]), path)
            positions.setdefault(places[path], []).append(i)
        return positions


@dataclass(frozen=True)
class Frames:
    """The frame of each row: its number in the table (n), the picture's path, a name for ids,
    whether the pictures are faces that OpenFace cut out, and the video's name."""

    rows: np.ndarray
    paths: Sequence[str]
    names: Sequence[str]
    aligned: bool
    videos: Sequence[str]


def find_video(path: str) -> Path | None:
    """The video or the folder of frames of a path without or with a suffix; also the folder
    `PATH_aligned` that OpenFace writes. None if there is none."""
    place = Path(path)
    if place.exists():
        return place
    aligned = place.with_name(f"{place.name}_aligned")
    return video.video_file_of(place) or (aligned if aligned.is_dir() else None)


def read(
    table: Table,
    source: Source,
    videos: Videos,
    options: TableOptions,
    skipped: dict[str, list[str]],
) -> Frames:
    """The frame of each row.

    Args:
        table: the table.
        source: with the column `frame`.
        videos: of the rows.
        options: first_frame.
        skipped: rows whose frame or video is not there are added, by reason.

    Raises:
        UserError: a video is missing, or a frame's number is not a whole number.
    """
    frames = _frame_numbers(table, str(source["frame"]), videos.rows, options)
    first = options.first_frame or 0
    faces = _face_numbers(table, videos.rows, options)
    of_video = videos.by_file(table)
    pictures: dict[int, str] = {}
    extracted = video.frames_by_number(
        {
            place: _chooser(np.unique(frames[index] - first).tolist())
            for place, index in of_video.items()
            if place.is_file()
        }
    )
    aligned = False
    for place, index in of_video.items():
        if place.is_dir():
            in_folder = _FolderOfFrames(place, int(frames[index].max()), first)
            aligned = aligned or in_folder.aligned
            picture_by_row = {i: in_folder.find(int(frames[i]), int(faces[i])) for i in index}
        elif isinstance(outcome := extracted[place], UserError):
            lost = [f"{table.where(int(videos.rows[i]))}: {outcome}" for i in index]
            skipped.setdefault("a video that cannot be decoded", []).extend(lost)
            continue
        else:
            picture_by_row = {i: outcome.get(int(frames[i]) - first) for i in index}
        pictures |= {i: path for i, path in picture_by_row.items() if path is not None}
        if rows_without := [i for i, path in picture_by_row.items() if path is None]:
            places_of = [table.where(int(videos.rows[i])) for i in rows_without]
            skipped.setdefault("no picture of the frame", []).extend(places_of)
    keep = sorted(pictures)
    names = [f"{videos.names[i]}/{int(frames[i]):06d}" for i in keep]
    return Frames(
        videos.rows[np.array(keep, np.int64)],
        [pictures[i] for i in keep],
        names,
        aligned,
        [videos.names[i] for i in keep],
    )


def _frame_numbers(
    table: Table, column: str, rows: np.ndarray, options: TableOptions
) -> np.ndarray:
    frames = numbers(table, column, rows, options.decimal)
    wrong = ~(frames >= (options.first_frame or 0)) | (frames != np.round(frames))
    if wrong.any():
        row = int(rows[int(np.argmax(wrong))])
        raise cell_error(
            table, column, row, f"a whole number from first_frame={options.first_frame or 0} on"
        )
    return frames.astype(np.int64)


def _face_numbers(table: Table, rows: np.ndarray, options: TableOptions) -> np.ndarray:
    """The number of the face in its frame, of tables of OpenFace."""
    column = table.find("face_id") if options.tool == "openface" else None
    if column is None:
        return np.zeros(len(rows), np.int64)
    return np.nan_to_num(numbers(table, column, rows)).astype(np.int64)


def _need_video(table: Table, row: int, path: str) -> Path:
    place = find_video(path)
    if place is None:
        raise UserError(
            f"{table.where(row)}: there is no video and no folder of frames {path}: complete the "
            "copy, or give the folder that holds it, images="
        )
    return place


def _chooser(numbers_of_frames: list[int]) -> Callable[[np.ndarray], list[int]]:
    return lambda times: [number for number in numbers_of_frames if number < len(times)]


class _FolderOfFrames:
    """Pictures by the number of their frame.

    OpenFace numbers the pictures of a folder by their order, whatever their names. Where there are
    fewer pictures than frames, the numbers in the names are those of the frames.
    """

    def __init__(self, folder: Path, last: int, first: int) -> None:
        self.folder = folder
        self.first = first
        self.names = images_in_order(folder) or []
        matches = [_ALIGNED.match(name) for name in self.names]
        self.aligned = bool(matches) and all(matches)
        if self.aligned:
            self.by_face = {(int(m[2]), int(m[1])): m.string for m in matches if m}
        self.in_order = last - first < len(self.names)
        numbered = [re.findall(r"\d+", os.path.splitext(name)[0]) for name in self.names]
        self.by_number = {
            int(digits[-1]): name
            for digits, name in zip(numbered, self.names, strict=True)
            if digits
        }

    def find(self, frame: int, face: int) -> str | None:
        if self.aligned:
            name = self.by_face.get((frame, face))
        elif self.in_order:
            name = self.names[frame - self.first]
        else:
            name = self.by_number.get(frame)
        return None if name is None else os.path.join(self.folder, name)
