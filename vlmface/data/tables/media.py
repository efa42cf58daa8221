"""The picture or the frames of each row of a table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlmface.data import video
from vlmface.data.records import folder_of_images
from vlmface.data.tables import clips, single_frames
from vlmface.data.tables.cells import BadCellError, as_label, convert
from vlmface.data.tables.columns import Source
from vlmface.data.tables.file_index import FileIndex, missing_path
from vlmface.data.tables.options import TableOptions
from vlmface.data.tables.paths import is_plain, path_in
from vlmface.data.tables.table import Table
from vlmface.errors import UserError
from vlmface.utils.images import SUFFIXES

Skipped = dict[str, list[str]]


@dataclass(frozen=True)
class Media:
    """The pictures of the rows that have any.

    Attributes:
        rows: their numbers in the table (n).
        field: "image" or "frames".
        values: n pictures: paths or bytes, or lists of paths.
        names: what each is called in the table, for ids.
        aligned: whether they are faces that a tool cut out, which boxes do not fit.
        videos: the name of each row's video or folder of frames, where rows are single frames.
    """

    rows: np.ndarray
    field: str
    values: Sequence[Any]
    names: Sequence[str]
    aligned: bool = False
    videos: Sequence[str] | None = None

    def ids(self, several_faces: bool) -> list[str]:
        """An id for each. Pictures inside the table that were all stored under one name are told
        apart by their row; with `several_faces` also files that occur again, as NAME#2."""
        stored = Counter(
            name for name, v in zip(self.names, self.values, strict=True) if isinstance(v, bytes)
        )
        seen: Counter[str] = Counter()
        ids = []
        for name, row in zip(self.names, self.rows.tolist(), strict=True):
            if stored and stored[name] > 1:
                name = f"{name}-{row + 1}"
            if several_faces:
                seen[name] += 1
                name = name if seen[name] == 1 else f"{name}#{seen[name]}"
            ids.append(f"table-{name}")
        return ids


def read_media(
    table: Table, source: Source, rows: np.ndarray, options: TableOptions, skipped: Skipped
) -> Media:
    """The pictures of rows.

    Args:
        table: the table.
        source: its columns.
        rows: the rows to read.
        options: images, num_frames, time_unit, first_frame and tool.
        skipped: rows without a picture are added, by reason.

    Raises:
        UserError: a path leads out of its folder, or a frame or video that is named is missing.
    """
    base = table.path if table.path.is_dir() else table.path.parent
    folder = folder_of_images(options.images, base)
    if "frames" in source:
        return Media(
            *clips.listed_frames(table, str(source["frames"]), rows, folder, options, skipped)
        )
    if "image" in source and not _names_videos(table, source, rows):
        column = str(source["image"])
        if options.find_images != "path":
            return _pictures_by_name(table, column, rows, folder, options, skipped)
        return _pictures(table, column, rows, folder, skipped)
    videos = _videos(table, source, rows, folder, skipped)
    if "frame" in source:
        frames = single_frames.read(table, source, videos, options, skipped)
        return Media(
            frames.rows, "image", frames.paths, frames.names, frames.aligned, frames.videos
        )
    if "video" in source:
        return Media(*clips.video_clips(table, source, videos, options, skipped))
    return _pictures_of_files(table, rows, folder)


def _names_videos(table: Table, source: Source, rows: np.ndarray) -> bool:
    """Whether the column `image` holds videos, of which `frame` is the number of a frame."""
    if "frame" not in source:
        return False
    cells = convert(table, str(source["image"]), rows, as_label)
    videos = [cell.lower().endswith(video.SUFFIXES) for cell in cells if cell is not None]
    if any(videos) and not all(videos):
        raise UserError(
            f"{table.path}: the column {source['image']!r} holds pictures and videos: split the "
            "table into one of each"
        )
    return any(videos)


def _pictures(table: Table, column: str, rows: np.ndarray, folder: Path, skipped: Skipped) -> Media:
    import pyarrow as pa

    cells = table.columns[column]
    if isinstance(cells, pa.Array) and pa.types.is_string(cells.type) and is_plain(cells):
        names = cells.take(pa.array(rows)).to_pylist()
        return Media(rows, "image", [f"{folder}{os.sep}{name}" for name in names], names)

    def picture(value: Any) -> tuple[str, str | bytes] | None:
        if isinstance(value, bytes):
            value = {"bytes": value}
        if isinstance(value, dict) and value.get("bytes"):
            return value.get("path") or "", value["bytes"]
        if isinstance(value, dict) and value.keys() & {"bytes", "path"}:  # as `datasets` has a file
            value = value.get("path")
        return path_in(value, folder)

    cells_of_rows = convert(table, column, rows, picture)
    rows_with_image, pictures = _without_empty(table, rows, cells_of_rows, skipped, "no image")
    names = [
        name or str(row + 1)
        for (name, _), row in zip(pictures, rows_with_image.tolist(), strict=True)
    ]
    return Media(rows_with_image, "image", [picture for _, picture in pictures], names)


def _pictures_by_name(
    table: Table,
    column: str,
    rows: np.ndarray,
    folder: Path,
    options: TableOptions,
    skipped: Skipped,
) -> Media:
    """`_pictures` of the option `find_images`."""
    index = FileIndex(folder, stems=options.find_images == "stem")
    cell_of: dict[str, str] = {}

    def picture(value: Any) -> tuple[str, str] | None:
        name = as_label(value)
        if name is None:
            return None
        path = index.find(name) or missing_path(folder, name)
        if (other := cell_of.setdefault(path, name)) != name:
            raise BadCellError(f"another picture than {other!r}, which {path} is for")
        return os.path.relpath(path, folder), path

    cells = convert(table, column, rows, picture)
    rows_with_image, pictures = _without_empty(table, rows, cells, skipped, "no image")
    return Media(
        rows_with_image, "image", [path for _, path in pictures], [name for name, _ in pictures]
    )


def _without_empty(
    table: Table, rows: np.ndarray, values: Sequence[Any], skipped: Skipped, reason: str
) -> tuple[np.ndarray, list[Any]]:
    """(the rows whose value is not None, these values); the others are added to `skipped`."""
    empty = np.array([value is None for value in values], bool)
    if empty.any():
        skipped[reason] = [table.where(row) for row in rows[empty].tolist()]
    return rows[~empty], [value for value in values if value is not None]


def _videos(
    table: Table, source: Source, rows: np.ndarray, folder: Path, skipped: Skipped
) -> single_frames.Videos:
    """The video, or the folder of frames, of each row that names one: in a column, or by the name
    of the table's file."""
    column = source.get("video") or source.get("image")
    if column is None:
        stems = table.stems(rows)
        return single_frames.Videos(rows, stems, [str(folder / stem) for stem in stems])
    paths = convert(table, str(column), rows, lambda value: path_in(value, folder))
    rows_with_video, named = _without_empty(table, rows, paths, skipped, "no video")
    return single_frames.Videos(
        rows_with_video, [name for name, _ in named], [path for _, path in named]
    )


def _pictures_of_files(table: Table, rows: np.ndarray, folder: Path) -> Media:
    """The picture that is named as the table's file, as OpenFace names the table of a picture."""
    picture_by_stem: dict[str, str] = {}
    for stem in dict.fromkeys(table.stems(rows)):
        files = [str(folder / f"{stem}{suffix}") for suffix in SUFFIXES]
        present = [path for path in files if os.path.isfile(path)]
        if len(present) != 1:
            raise UserError(
                f"{table.path}: expected one picture {folder / stem}.jpg (or another ending), "
                f"there are {len(present)}: give the folder of the pictures, images="
            )
        picture_by_stem[stem] = present[0]
    stems = table.stems(rows)
    return Media(rows, "image", [picture_by_stem[stem] for stem in stems], stems)
