"""Where the pictures of a table are, and how its cells name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from vlmface.data.init import pictures
from vlmface.data.init.columns import Column
from vlmface.data.init.names import place_of, role_of
from vlmface.data.tables.file_index import FileIndex
from vlmface.data.tables.table import Table
from vlmface.errors import UserError

_BY_NAME = {"name": "by their names alone", "stem": "by their names without ending"}
_SAMPLE = 200  # cells that are compared with names of files
_MOSTLY = 0.9  # share of the cells of a column of ids that name a picture


@dataclass(frozen=True)
class Located:
    """The pictures of a table.

    Attributes:
        text: How many exist, and where.
        folder: The folder that paths start from; None for pictures inside the table.
        options: Options of `table` about how cells name them.
    """

    text: str
    folder: Path | None
    options: Mapping[str, Any] = field(default_factory=dict)


def locate(path: Path, column: Column, images: str | None) -> Located:
    """Find the pictures or videos of a column.

    Args:
        path: Of the table.
        column: Of their names.
        images: The folder that was named.

    Raises:
        UserError: None exists, or names fit several files.
    """
    paths = list(column.words)
    if not paths:
        return Located(f"{len(column.codes):,} pictures inside the table", None)
    near = path if path.is_dir() else path.parent
    folder = Path(images) if images else pictures.find_folder(paths, near)
    if folder is not None and not folder.is_dir():
        raise UserError(f"--images {folder} is not a folder")
    if existing := 0 if folder is None else pictures.count_existing(paths, folder):
        assert folder is not None
        return Located(_existing(existing, len(paths), folder), folder)
    folder = folder or near
    # A relative path whose folder does not exist may be of other pictures with the same names.
    by_name = images is not None or not any(map(_is_below_a_folder, paths))
    for kind, what in _BY_NAME.items() if by_name else ():
        index = FileIndex(folder, stems=kind == "stem")
        if existing := sum(map(index.has, paths)):
            text = f"{_existing(existing, len(paths), folder)}, found {what}"
            return Located(text, folder, {"find_images": kind})
    raise UserError(
        f"{path}: no file of column {column.name!r} exists, such as {paths[0]!r}, which was looked "
        f"for in and around {folder}: name the folder that the paths start from, --images FOLDER"
    )


def _is_below_a_folder(cell: str) -> bool:
    """Whether a cell is a relative path with a folder."""
    path = PureWindowsPath(cell)
    return not path.root and not path.drive and len(path.parts) > 1


def _existing(existing: int, all_paths: int, folder: Path) -> str:
    missing = all_paths - existing
    left_out = "; `missing: drop` in the YAML file leaves out the others" if missing else ""
    return f"{existing:,} of {all_paths:,} files exist in {folder}{left_out}"


def column_of_ids(columns: Mapping[str, Column], folder: Path) -> str | None:
    """The column whose cells are the names of pictures without their endings, one a row or almost;
    None if there is none.

    Args:
        columns: By name.
        folder: The pictures are in it or below it.
    """
    if not folder.is_dir():
        return None
    index = FileIndex(folder, stems=True)
    fitting = []
    for name, column in columns.items():
        cells = list(column.words)[:_SAMPLE]
        if len(cells) > 1 and sum(map(index.has, cells)) >= _MOSTLY * len(cells):
            fitting.append(name)
    return min(
        fitting,
        key=lambda n: (role_of(n) != "image", -len(columns[n].words), place_of(n)),
        default=None,
    )


def locate_files_of_table(path: Path, table: Table, images: str | None) -> Located:
    """`locate` of a table whose pictures or videos are named as its files."""
    names = [part.path.stem for part in table.parts]
    near = path if path.is_dir() else path.parent
    if images:
        folder: Path | None = Path(images)
    else:
        folder = pictures.find_folder_of_names(names, near)
    existing = pictures.count_named(names, folder) if folder else 0
    if folder is None or not existing:
        raise UserError(
            f"{path}: no video, picture or folder of frames is named as the table, {names[0]!r} "
            f"with any ending, which was looked for in and around {folder or near}: name the "
            "folder that holds it, --images FOLDER, or the column of pictures, --image COLUMN"
        )
    return Located(
        f"{existing:,} of {len(names):,} named as their tables exist in {folder}", folder
    )
