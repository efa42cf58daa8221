"""Rows that are clips: lists of frame files, and parts of videos."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmface.data import video
from vlmface.data.clips import images_in_order
from vlmface.data.rows import exists_mask
from vlmface.data.tables.cells import BadCellError, convert, numbers
from vlmface.data.tables.columns import Source
from vlmface.data.tables.options import TableOptions
from vlmface.data.tables.paths import path_in
from vlmface.data.tables.single_frames import Videos
from vlmface.data.tables.table import Table
from vlmface.errors import UserError
from vlmface.utils.images import SUFFIXES

Clips = tuple[np.ndarray, str, Sequence[list[str]], Sequence[str]]  # the fields of `media.Media`
_LATE = 1.0  # seconds by which a clip may end after the last frame of its video


def listed_frames(
    table: Table,
    column: str,
    rows: np.ndarray,
    folder: Path,
    options: TableOptions,
    skipped: dict[str, list[str]],
) -> Clips:
    """The frames of clips that are listed in a column: a list of files, a pattern, or a folder.

    Raises:
        UserError: a file is missing, or a path leads out of the folder.
    """
    cells = convert(table, column, rows, lambda value: _files(value, folder))
    index = [i for i, cell in enumerate(cells) if cell is not None and cell[1]]
    if len(index) < len(cells):
        empty_rows = np.delete(rows, index).tolist()
        skipped["no frames"] = [table.where(row) for row in empty_rows]
    count = options.num_frames
    names, values = [], []
    for i in index:
        name, files = cells[i]  # type: ignore[misc]  # those of index are not None
        names.append(name)
        values.append([files[j] for j in video.segment_midpoints(len(files), count)])
    for i, files, exists in zip(index, values, _exist(values), strict=True):
        if not all(exists):
            missing_file = files[exists.index(False)]
            raise UserError(
                f"{table.where(int(rows[i]))}: the frame {missing_file} is missing: complete the "
                "copy, or give the folder that paths start from, images="
            )
    return rows[np.array(index, np.int64)], "frames", values, names


def _exist(clips: Sequence[Sequence[str]]) -> list[list[bool]]:
    present = iter(exists_mask([path for clip in clips for path in clip]).tolist())
    return [[next(present) for _ in clip] for clip in clips]


def _files(value: Any, folder: Path) -> tuple[str, list[str]] | None:
    """(name, paths of all frames) of a cell."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadCellError("files, a pattern such as clips/7/*.jpg, or a folder") from error
    if isinstance(value, str):
        parts = [part for part in re.split(r"[;|]", value) if part.strip()]
        value = parts if len(parts) > 1 else value
    if isinstance(value, list):
        paths = [path_in(_path_of(item), folder) for item in value]
        files = [path for path in paths if path is not None]
        return (files[0][0], [path for _, path in files]) if files else None
    resolved = path_in(value, folder)
    if resolved is None:
        return None
    name, path = resolved
    if os.path.isdir(path):
        return name, [os.path.join(path, file) for file in images_in_order(Path(path)) or []]
    if not any(mark in name for mark in "*?[") or os.path.exists(path):
        return name, [path]
    matches = [file for file in glob.glob(path) if file.lower().endswith(SUFFIXES)]
    return name, sorted(matches, key=_by_number)


def _path_of(item: Any) -> Any:
    """The path of a frame; of {"path": ...} as `datasets` stores it too."""
    return item.get("path") if isinstance(item, dict) else item


def _by_number(path: str) -> list[Any]:
    parts: list[Any] = re.split(r"(\d+)", path)
    parts[1::2] = map(int, parts[1::2])
    return parts


# --- parts of videos ------------------------------------------------------------------------------


def video_clips(
    table: Table,
    source: Source,
    videos: Videos,
    options: TableOptions,
    skipped: dict[str, list[str]],
) -> Clips:
    """The frames of videos, or of folders of frames, between `start` and `end`.

    Times are in seconds from the first frame; the frame at `end` does not belong to the clip.
    Numbers of frames count from first_frame; the frame `end` belongs to it.

    Raises:
        UserError: a video is missing.
    """
    bounds = np.stack(
        [
            numbers(table, str(source[name]), videos.rows, options.decimal)
            if name in source
            else np.full(len(videos.rows), np.nan)
            for name in ("start", "end")
        ],
        1,
    )
    of_video = videos.by_file(table)
    selection = _Selection(bounds, options)
    frames: dict[int, list[str]] = {}
    extracted = video.frames_by_number(
        {place: selection.of_all(index) for place, index in of_video.items() if place.is_file()}
    )
    for place, index in of_video.items():
        outcome = selection.of_folder(place, index) if place.is_dir() else extracted[place]
        if isinstance(outcome, UserError):
            lost = [f"{table.where(int(videos.rows[i]))}: {outcome}" for i in index]
            skipped.setdefault("a video that cannot be decoded", []).extend(lost)
            continue
        for i in index:
            if chosen := selection.chosen.get(i):
                frames[i] = [outcome[number] for number in chosen]
            else:
                where = table.where(int(videos.rows[i]))
                text = f"{where}: {selection.errors[i]}"
                skipped.setdefault("start and end are not in the video", []).append(text)
    keep = sorted(frames)
    names = [_name(videos.names[i], bounds[i]) for i in keep]
    return videos.rows[np.array(keep, np.int64)], "frames", [frames[i] for i in keep], names


def _name(video_name: str, bounds: np.ndarray) -> str:
    if np.isnan(bounds).all():
        return video_name
    start, end = ("" if np.isnan(bound) else f"{bound:g}" for bound in bounds)
    return f"{video_name}@{start}-{end}"


class _Selection:
    """The numbers of the frames of each clip, counted from 0, once the times of its video are
    known."""

    def __init__(self, bounds: np.ndarray, options: TableOptions) -> None:
        self.bounds = bounds
        self.options = options
        self.chosen: dict[int, list[int]] = {}
        self.errors: dict[int, str] = {}

    def of_all(self, index: Sequence[int]) -> Callable[[np.ndarray], list[int]]:
        """The function from the times of a video to the numbers of the frames of its clips."""

        def choose(times: np.ndarray) -> list[int]:
            for i in index:
                self._choose(i, times)
            return sorted({number for i in index for number in self.chosen.get(i, ())})

        return choose

    def of_folder(self, folder: Path, index: Sequence[int]) -> dict[int, str] | UserError:
        """The pictures of a folder by number."""
        if self.options.time_unit == "seconds" and not np.isnan(self.bounds[list(index)]).all():
            return UserError(
                f"{folder} is a folder of frames, which have no times: give start and end as "
                "numbers of frames, time_unit='frames'"
            )
        names = images_in_order(folder) or []
        for i in index:
            self._choose(i, np.arange(len(names), dtype=np.float64))
        return {n: os.path.join(folder, name) for n, name in enumerate(names)}

    def _choose(self, i: int, times: np.ndarray) -> None:
        start, end = self.bounds[i]  # NaN: not bounded
        in_frames = self.options.time_unit == "frames"
        positions = np.arange(len(times)) + (self.options.first_frame or 0) if in_frames else times
        last = float(positions[-1]) if len(positions) else -np.inf
        inside = ~(positions < start) & ~(positions >= (end + 1 if in_frames else end))
        if not inside.any() or end > last + (0 if in_frames else _LATE):
            unit = "frames" if in_frames else "s"
            self.errors[i] = (
                f"start {start:g} and end {end:g} {unit}, but the video has {len(times)} frames, "
                f"the last at {last:g} {unit}"
            )
            return
        numbers_inside = np.flatnonzero(inside)
        midpoints = video.segment_midpoints(len(numbers_inside), self.options.num_frames)
        self.chosen[i] = numbers_inside[midpoints].tolist()
