"""The files of tables: csv, JSON lines, Parquet, xlsx, data sets of `datasets`, and folders of
them."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmface.data.records import LINES, records
from vlmface.data.tables.csv_files import distinct_names, read_csv_table
from vlmface.data.tables.options import TableOptions
from vlmface.data.tables.table import Part, Table
from vlmface.data.tables.titles import TITLES, num_title_rows, warn_of_titles
from vlmface.data.text_files import read_text
from vlmface.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

TEXT = (".csv", ".tsv", ".tab", ".txt")
ENDINGS = (*TEXT, *LINES, ".json", ".parquet", ".xlsx")
MAX_WORKBOOK = 2 << 30  # bytes of an unpacked xlsx file


def ending(path: Path) -> str:
    """The ending of a table's name, `.csv` also for `faces.csv.gz`."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def open_table(path: Path, options: TableOptions) -> Table:
    """The table in a file.

    Args:
        path: of the file.
        options: header, encoding and sheet.

    Raises:
        UserError: it is not a table that can be read.
    """
    kind = ending(path)
    if kind not in ENDINGS:
        raise UserError(
            f"{path} is not a table that can be read: use one of {', '.join(ENDINGS)}, .gz of a "
            "text file, or a folder"
        )
    if kind in TEXT:
        usual = "\t" if kind in (".tsv", ".tab") else ","
        text = read_text(path, options.encoding)
        return read_csv_table(path, text, header=options.header, delimiter=usual)
    if not options.header:
        raise UserError(f"{path}: header=False is for csv files; this file names its columns")
    if kind == ".parquet":
        return read_parquet(path)
    return _read_workbook(path, options) if kind == ".xlsx" else _read_json(path)


def _read_json(path: Path) -> Table:
    entries = records(path)
    names = dict.fromkeys(name for record in entries for name in record.fields)
    columns = {name: [record.fields.get(name) for record in entries] for name in names}
    places = [re.search(r", (line|record) (\d+)$", record.where) for record in entries]
    unit = places[0][1] if places and places[0] else "record"
    numbers = np.array([int(place[2]) for place in places if place], np.int64)
    return Table(path, columns, [Part(path, unit, numbers)], {})


def read_parquet(path: Path) -> Table:
    """The table of a Parquet file. Numbers of a `ClassLabel` become their names."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pa.ArrowException, OSError, KeyError) as error:  # KeyError: a name occurs twice
        raise UserError(f"{path} is not a Parquet file that can be read: {error}") from error
    return arrow_table(path, table, _class_names(table.schema.metadata or {}))


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """{column: names of its numbers}, as `datasets` stores them in a Parquet file."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        kinds = {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}  # written by another program
    return {
        name: kind["names"]
        for name, kind in kinds.items()
        if kind.get("_type") == "ClassLabel" and isinstance(kind.get("names"), list)
    }


def arrow_table(path: Path, table: pa.Table, class_names: dict[str, list[str]]) -> Table:
    """A table of Arrow.

    Args:
        path: where it is from.
        table: of Arrow.
        class_names: {column: names of its numbers}; a number below 0 is null.
    """
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for name in table.column_names:
        cells = table[name].combine_chunks()
        if pa.types.is_dictionary(cells.type):
            cells = cells.dictionary_decode()
        if pa.types.is_large_string(cells.type):
            cells = cells.cast(pa.string())
        if name in class_names and pa.types.is_integer(cells.type):
            cells = _named(cells, class_names[name])
        columns[name] = cells
    places = np.arange(1, len(table) + 1)
    return Table(path, columns, [Part(path, "row", places)], {})


def _named(codes: pa.Array, names: list[str]) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    is_named = pc.and_(pc.greater_equal(codes, 0), pc.less(codes, len(names)))
    return pa.array(names, pa.string()).take(pc.if_else(is_named, codes, None))


def _read_workbook(path: Path, options: TableOptions) -> Table:
    try:
        import openpyxl
    except ImportError as error:
        raise UserError(
            f"{path}: to read workbooks, pip install 'vlmface[xlsx]' ({error}), or save the sheet "
            "as csv"
        ) from error
    sheets = _sheets(path, openpyxl)
    if options.sheet is not None and options.sheet not in sheets:
        raise UserError(f"sheet={options.sheet!r}: {path} has {', '.join(sheets)}")
    filled = {name: rows for name, rows in sheets.items() if any(map(any, rows))}
    if options.sheet is None and len(filled) != 1:
        raise SeveralSheetsError(path, list(filled))
    return _sheet(path, filled.get(options.sheet or next(iter(filled)), []))


class SeveralSheetsError(UserError):
    """A workbook has several sheets with data, or none.

    Attributes:
        sheets: Their names.
    """

    def __init__(self, path: Path, sheets: list[str]) -> None:
        self.sheets = sheets
        listed = ", ".join(map(repr, sheets)) or "none"
        super().__init__(f"{path} has {len(sheets)} sheets with data: name one, sheet= ({listed})")


def _sheets(path: Path, openpyxl: Any) -> dict[str, list[tuple[Any, ...]]]:
    """{name: rows} of the sheets of a workbook."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_WORKBOOK:
            raise UserError(f"{path} unpacks to {size >> 20:,} MiB: save the sheet as csv")
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        sheets = {sheet.title: list(sheet.iter_rows(values_only=True)) for sheet in book.worksheets}
        book.close()
    except UserError:
        raise
    except Exception as error:  # openpyxl raises many unrelated kinds for a damaged file
        raise UserError(f"{path} is not a workbook that can be read: {error}") from error
    return sheets


def _sheet(path: Path, cells: Iterable[tuple[Any, ...]]) -> Table:
    numbered = [(i, row) for i, row in enumerate(cells, 1) if any(x is not None for x in row)]
    if not numbered:
        raise UserError(f"{path}: the sheet is empty")
    if titles := num_title_rows([row for _, row in numbered[:TITLES]]):
        warn_of_titles(path, titles, numbered[titles][0], "row")
    header = ["" if name is None else str(name).strip() for name in numbered[titles][1]]
    names, repeated = distinct_names(header)
    rows = numbered[titles + 1 :]
    columns = {
        name: [row[i] if i < len(row) else None for _, row in rows]
        for i, name in enumerate(names)
        if name
    }
    places = np.array([number for number, _ in rows], np.int64)
    return Table(path, columns, [Part(path, "row", places)], repeated)
