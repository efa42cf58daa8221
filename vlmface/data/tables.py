"""Tables of a user's own: csv, TSV, JSON lines and Parquet files, and the cells in them."""

from __future__ import annotations

import csv
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from vlmface.data.records import LINES, records, short_repr
from vlmface.data.text_files import match_name, read_text, split_header
from vlmface.errors import UserError, did_you_mean

T = TypeVar("T")
# Cells that stand for "not annotated", in lower case.
NULLS = {"", "-", "nan", "na", "n/a", "<na>", "none", "null", "nil", "nat", "#n/a"}


@dataclass(frozen=True)
class Table:
    """The columns of a file, and the place of each row in it for error messages."""

    path: Path
    columns: Mapping[str, Sequence[Any]]
    places: Sequence[str]

    def where(self, row: int) -> str:
        return f"{self.path}, {self.places[row]}"

    def need(self, column: str, option: str) -> str:
        """The column of that name, if the table has it, in any letter case."""
        if name := match_name(column, self.columns, self.path):
            return name
        raise UserError(
            f"{option} names the column {column!r}, but {self.path} has "
            f"{', '.join(self.columns)}{did_you_mean(column, self.columns)}"
        )


def open_table(path: Path) -> Table:
    readers = {
        **dict.fromkeys((".csv", ".tsv", ".tab", ".txt"), _csv),
        **dict.fromkeys((*LINES, ".json"), _json),
        ".parquet": _parquet,
    }
    if path.suffix.lower() not in readers:
        raise UserError(
            f"{path} is not a table that can be read: use one of {', '.join(readers)}, or "
            "a folder of label folders"
        )
    return readers[path.suffix.lower()](path)


def _csv(path: Path) -> Table:
    text = read_text(path)
    reader, header = _reader(path, text)
    cells: list[list[str]] = []
    places: list[str] = []
    try:
        for row in reader:
            where = f"line {reader.line_num}"
            while len(row) > len(header) and not row[-1].strip():  # a delimiter at the line's end
                row.pop()
            if row and len(row) != len(header):
                raise UserError(
                    f"{path}, {where}: {len(row)} cells, but the header has "
                    f"{len(header)}: {short_repr(row)}"
                )
            if row and row[0].strip() == header[0] and [cell.strip() for cell in row] == header:
                raise UserError(
                    f"{path}, {where} repeats the header: if tables were joined, remove that line"
                )
            if row:
                cells.append(row)
                places.append(where)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error
    columns = zip(*cells, strict=True) if cells else ((),) * len(header)
    return Table(path, {k: v for k, v in zip(header, columns, strict=True) if k}, places)


def _reader(path: Path, text: str) -> tuple[Any, list[str]]:
    """(a csv reader behind the header, the names in the header; those of columns without one are
    "")."""
    line = re.search(r"\S[^\r\n]*", text)
    first = line[0] if line else ""
    mark = re.fullmatch(r'"?sep=(.)"?', first.strip(), re.IGNORECASE)  # as Excel writes it
    usual = "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
    delimiter = mark[1] if mark else split_header(first, usual)[1]
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = list(islice((row for row in reader if row), 2 if mark else 1))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error
    header = [name.strip() for name in rows[-1]] if rows else []
    names = [name for name in header if name]
    if len(set(names)) != len(names) or not names:
        raise UserError(
            f"{path} needs a header of different column names, found {short_repr(header)}"
        )
    return reader, header


def _json(path: Path) -> Table:
    entries = records(path)
    names = dict.fromkeys(name for record in entries for name in record.fields)
    columns = {name: [record.fields.get(name) for record in entries] for name in names}
    return Table(path, columns, [record.where.removeprefix(f"{path}, ") for record in entries])


def _parquet(path: Path) -> Table:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        columns = {name: table[name].to_pylist() for name in table.column_names}
    except (pa.ArrowException, OSError, KeyError) as error:  # KeyError: a name occurs twice
        raise UserError(f"{path} is not a Parquet file that can be read: {error}") from error
    if (shard := re.search(r"-(\d{5})-of-(\d{5})$", path.stem)) and int(shard[2]) > 1:
        warnings.warn(
            f"{path} is part {int(shard[1]) + 1} of {int(shard[2])}: the other parts are not read",
            stacklevel=2,
        )
    return Table(path, columns, [f"row {n}" for n in range(1, len(table) + 1)])


# --- cells ----------------------------------------------------------------------------------------


def cell_error(table: Table, column: str, row: int, allowed: str) -> UserError:
    value = short_repr(table.columns[column][row])
    return UserError(f"{table.where(row)}: {column!r} is {value}, expected {allowed}")


def text_cell(table: Table, column: str, row: int) -> str | None:
    """The text of a cell; None for an empty one. Whole numbers lose a ".0" that pandas adds."""
    value = table.columns[column][row]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float):
        raise cell_error(table, column, row, "a text")
    return str(value).strip() or None


def label_cell(table: Table, column: str, row: int) -> str | None:
    """`word_of`, and None for one of NULLS."""
    word = text_cell(table, column, row)
    return None if word is None or word.casefold() in NULLS else word


def required_cell(table: Table, column: str, row: int) -> str:
    word = text_cell(table, column, row)
    if word is None:
        raise cell_error(table, column, row, "a text")
    return word


def number_cell(table: Table, column: str, row: int) -> float | None:
    word = label_cell(table, column, row)
    if word is None:
        return None
    try:
        value = float("_" if "_" in word else word)  # to Python, 1_0 is ten
    except ValueError as error:
        raise cell_error(
            table, column, row, "a number, such as 0.5 (with a point, and no mark for thousands)"
        ) from error
    if not math.isfinite(value):
        raise cell_error(table, column, row, "a finite number")
    return value


def flag_cell(table: Table, column: str, row: int) -> float | None:
    """Like `number_of`, and "True" and "False" as 1 and 0, as pandas writes them."""
    word = (text_cell(table, column, row) or "").lower()
    return float(word == "true") if word in ("true", "false") else number_cell(table, column, row)


def normalise_cell(word: Any) -> str:
    """A word or number as mappings of words are looked up: in lower case, "3.0" and "3e0" as 3."""
    text = str(word).strip()
    try:
        number = float("_" if "_" in text else text)
    except ValueError:
        return text.casefold()
    return str(int(number)) if math.isfinite(number) and number.is_integer() else text.casefold()


def key_of(word: str, mapping: Mapping[str, Any]) -> str | None:
    """The key of a mapping that a word is: letter by letter, or as `plain`."""
    return next((key for key in (word, normalise_cell(word)) if key in mapping), None)


def with_plain(mapping: Mapping[Any, T]) -> dict[str, T]:
    """A mapping of words, also by `plain`."""
    exact = {str(word).strip(): value for word, value in mapping.items()}
    return {normalise_cell(word): value for word, value in mapping.items()} | exact
