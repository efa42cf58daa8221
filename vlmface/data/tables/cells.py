"""The cells of a table, column by column.

Every distinct value of a column is read once, so that a million rows with few labels cost little
more than one row of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from vlmface.data.records import short_repr
from vlmface.data.tables.table import Table
from vlmface.errors import UserError

T = TypeVar("T")
# Cells that stand for "not annotated", in lower case.
NULLS = {"", "-", "nan", "na", "n/a", "<na>", "none", "null", "nil", "nat", "#n/a"}
NUMBER = "a number, such as 0.5 (with a point, and no mark for thousands; decimal=',' reads 0,5)"


class BadCellError(Exception):
    """A cell that cannot be used. Its text is what is expected instead."""


def cell_error(table: Table, column: str, row: int, allowed: str) -> UserError:
    """The error of a cell that is not as `allowed`."""
    value = table.columns[column][row]
    value = value.as_py() if hasattr(value, "as_py") else value
    return UserError(f"{table.where(row)}: {column!r} is {short_repr(value)}, expected {allowed}")


def convert(
    table: Table, column: str, rows: np.ndarray, function: Callable[[Any], T]
) -> list[T | None]:
    """The value of a function for each cell.

    Args:
        table: of the cells.
        column: its name.
        rows: the rows to read (n).
        function: called once for each distinct cell that is not null, in the order of the rows. It
            raises BadCellError for one that cannot be used.

    Returns:
        n values, None for null.

    Raises:
        UserError: of the first cell that cannot be used, with its place.
    """
    values, codes = distinct(table, column, rows)
    results: list[T | None] = []
    for code, value in enumerate(values):
        try:
            results.append(function(value))
        except BadCellError as error:
            row = int(rows[int(np.argmax(codes == code))])
            raise cell_error(table, column, row, str(error)) from error
    if len(results) == len(codes):
        return results
    results.append(None)  # of code -1
    return [results[code] for code in codes.tolist()]


def distinct(table: Table, column: str, rows: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """(the distinct cells that are not null in the order of the rows, for each of the rows (n) its
    number among them, -1 for null)."""
    import pyarrow as pa

    cells = table.columns[column]
    if not isinstance(cells, pa.Array):
        return _distinct_objects([cells[row] for row in rows.tolist()])
    if len(rows) != len(table):
        cells = cells.take(pa.array(rows))
    if pa.types.is_nested(cells.type):
        return _distinct_objects(cells.to_pylist())
    encoded = cells.dictionary_encode()
    codes = np.asarray(encoded.indices.fill_null(-1))
    return encoded.dictionary.to_pylist(), codes


def _distinct_objects(cells: list[Any]) -> tuple[list[Any], np.ndarray]:
    values: list[Any] = []
    seen: dict[Any, int] = {}
    codes = np.full(len(cells), -1)
    for i, cell in enumerate(cells):
        if cell is None:
            continue
        if isinstance(cell, dict | list | bytes):
            codes[i] = len(values)
            values.append(cell)
            continue
        key = (type(cell), cell)
        if key not in seen:
            seen[key] = len(values)
            values.append(cell)
        codes[i] = seen[key]
    return values, codes


# --- one cell -------------------------------------------------------------------------------------


def as_text(value: Any) -> str | None:
    """The text of a cell; None for an empty one. Whole numbers lose a ".0" that pandas adds."""
    if isinstance(value, str):
        return value.strip() or None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int | float):
        raise BadCellError("a text")
    return str(value)


def as_label(value: Any) -> str | None:
    """The text of a cell; None for one of NULLS."""
    word = as_text(value)
    return None if word is None or word.casefold() in NULLS else word


def as_required_text(value: Any) -> str:
    """The text of a cell that must not be empty."""
    word = as_text(value)
    if word is None:
        raise BadCellError("a text")
    return word


def as_number(value: Any, decimal: str = ".") -> float | None:
    """The number of a cell; None for one of NULLS."""
    word = as_label(value)
    if word is None:
        return None
    if decimal == "," and isinstance(value, str):
        word = "_" if "." in word else word.replace(",", ".")
    try:
        number = float("_" if "_" in word else word)  # to Python, 1_0 is ten
    except ValueError as error:
        raise BadCellError(NUMBER) from error
    if not math.isfinite(number):
        raise BadCellError("a finite number")
    return number


def as_flag_or_number(value: Any, decimal: str = ".") -> float | None:
    """Like `as_number`, and "True" and "False" as 1 and 0, as pandas writes them."""
    word = as_label(value)
    if word is not None and word.lower() in ("true", "false"):
        return float(word.lower() == "true")
    return as_number(value, decimal)


# --- columns --------------------------------------------------------------------------------------


def texts(table: Table, column: str, rows: np.ndarray) -> list[str | None]:
    """The texts of a column (n), as `as_label`."""
    return convert(table, column, rows, as_label)


def required_texts(table: Table, column: str, rows: np.ndarray) -> list[str]:
    """The texts of a column (n). Raises UserError for an empty cell."""
    words = convert(table, column, rows, as_required_text)
    if None in words:
        raise cell_error(table, column, int(rows[words.index(None)]), "a text")
    return words  # type: ignore[return-value]  # None is excluded


def numbers(
    table: Table, column: str, rows: np.ndarray, decimal: str = ".", *, flags: bool = False
) -> np.ndarray:
    """The numbers of a column, float64 (n); NaN where it has none. With `flags`, "True" and "False"
    are 1 and 0."""
    values = plain_numbers(table.columns[column], rows, decimal)
    if values is None:
        read = as_flag_or_number if flags else as_number
        of_cells = convert(table, column, rows, lambda value: read(value, decimal))
        values = np.array([np.nan if x is None else x for x in of_cells], np.float64)
    return values


def plain_numbers(cells: Any, rows: np.ndarray, decimal: str) -> np.ndarray | None:
    """The numbers of a column of texts that are all finite numbers or empty, or of one of numbers;
    None for any other."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not isinstance(cells, pa.Array):
        return None
    if len(rows) != len(cells):
        cells = cells.take(pa.array(rows))
    if pa.types.is_string(cells.type):
        if decimal == ",":
            return None
        cells = pc.utf8_trim_whitespace(cells)
        cells = pc.if_else(pc.equal(cells, ""), None, cells)
    elif not (pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type)):
        return None
    try:
        values = pc.cast(cells, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return None
    return None if np.isinf(values).any() else values


# --- words ----------------------------------------------------------------------------------------


def normalise_cell(word: Any) -> str:
    """A word or number as mappings of words are looked up: in lower case, "3.0" and "3e0" as 3."""
    text = str(word).strip()
    try:
        number = float("_" if "_" in text else text)
    except ValueError:
        return text.casefold()
    return str(int(number)) if math.isfinite(number) and number.is_integer() else text.casefold()


def key_of(word: str, mapping: Mapping[str, Any]) -> str | None:
    """The key of a mapping that a word is: letter by letter, or as `normalise_cell`."""
    return next((key for key in (word, normalise_cell(word)) if key in mapping), None)


def with_plain(mapping: Mapping[Any, T]) -> dict[str, T]:
    """A mapping of words, also by `normalise_cell`."""
    exact = {str(word).strip(): value for word, value in mapping.items()}
    return {normalise_cell(word): value for word, value in mapping.items()} | exact
