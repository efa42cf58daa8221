"""Open the data: a table, a folder of tables, or a folder of label folders."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from vlmface.data.init import columns as guesses
from vlmface.data.init import known_files
from vlmface.data.tables.file_index import is_system_file
from vlmface.data.tables.files import TEXT, SeveralSheetsError, ending, open_table
from vlmface.data.tables.folders import SAVED, open_folder, table_files
from vlmface.data.tables.options import TableOptions
from vlmface.data.tables.splits import SPLIT_WORDS
from vlmface.data.tables.table import Table
from vlmface.errors import UserError
from vlmface.utils.images import SUFFIXES

Opened = tuple[Path, Table | None, dict[str, Any]]


def open_data(path: Path, sheet: str | None, encoding: str | None) -> Opened:
    """(the data's root, its table or None for label folders, options to read it with).

    Args:
        path: A file or a folder.
        sheet: Of a workbook; None: the one that names pictures, if there are several.
        encoding: Of a text file; None: as its byte order mark says, or UTF-8.

    Raises:
        UserError: It cannot be read.
    """
    if path.is_dir():
        saved = any((path / name).is_file() for name in SAVED)
        tables = [] if saved else table_files(path)
        if not saved and not tables:
            return _innermost(path), None, {}
        if (known_file := known_files.find_in(path)) is not None:
            path = known_file
        elif len(tables) == 1 and ending(tables[0]) != ".parquet":
            path = tables[0]
        else:  # a split column makes it read all files
            return path, open_folder(path, "", TableOptions(split_column="")), {}
    options: dict[str, Any] = {}
    if encoding is not None:
        options["encoding"] = encoding
    if sheet is not None:
        options["sheet"] = sheet
    try:
        table = open_table(path, TableOptions(**options))
    except SeveralSheetsError as error:
        options["sheet"] = _sheet_of_pictures(path, error.sheets)
        table = open_table(path, TableOptions(**options))
    if ending(path) in TEXT and any(name.lower().endswith(SUFFIXES) for name in table.columns):
        options["header"] = False
        table = open_table(path, TableOptions(**options))
    if not len(table):
        raise UserError(f"{path} has a header, but no rows ({table.names()})")
    return path, table, options


def _sheet_of_pictures(path: Path, sheets: list[str]) -> str:
    """The only sheet with a column of names of pictures."""
    fitting = []
    for name in sheets:
        table = open_table(path, TableOptions(sheet=name))
        if guesses.files_column("image", guesses.all_columns(table)):
            fitting.append(name)
    if len(fitting) != 1:
        raise UserError(
            f"{path} has the sheets {', '.join(map(repr, sheets))}, of which {len(fitting)} name "
            "pictures: choose one with --sheet NAME, or join their columns in one sheet"
        )
    others = ", ".join(repr(name) for name in sheets if name != fitting[0])
    warnings.warn(
        f"{path}: the sheet {fitting[0]!r} is read, which alone names pictures, and not {others}",
        stacklevel=3,
    )
    return fitting[0]


def _innermost(path: Path) -> Path:
    """The folder of label or split folders: below folders that hold a single folder alone."""
    while True:
        entries = [p for p in path.iterdir() if not is_system_file(p.name)]
        folders = [p for p in entries if p.is_dir()]
        pictures_here = any(p.name.lower().endswith(SUFFIXES) for p in entries)
        if len(folders) != 1 or pictures_here or folders[0].name.lower() in SPLIT_WORDS:
            return path
        path = folders[0]
