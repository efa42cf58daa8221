"""Action units in the columns of a table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlmface import facs
from vlmface.data.rows import action_units
from vlmface.data.tables.cells import (
    BadCellError,
    as_flag_or_number,
    as_text,
    cell_error,
    convert,
    normalise_cell,
    plain_numbers,
)
from vlmface.data.tables.columns import matching_columns, number_in
from vlmface.data.tables.options import AU_VALUES, TableOptions
from vlmface.data.tables.table import Table
from vlmface.errors import UserError

GRADES = {letter: float(i) for i, letter in enumerate("ABCDE", 1)}  # of FACS
_SIDE = re.compile(r"\b(left|right)\b|(?<=au)[lr](?=\d)|(?<=\d)[lr]\b", re.IGNORECASE)
EXPECTED = {
    "presence": "0 or 1 (intensities: au_values='intensity'; probabilities: "
    "au_values='probability'; a code for not annotated: au_missing=9)",
    "intensity": "an intensity from 0 to 5, or A to E (a code for not annotated: au_missing=9)",
    "probability": "a probability from 0 to 1 (a code for not annotated: au_missing=9)",
}
TOP = {"presence": 1, "intensity": 5, "probability": 1}
Units = Mapping[int, list[str]]  # AU number -> its columns: one, or its left and right side
NO_UNIT = "no action unit"  # the label of a face whose action units are all absent


def read_units(table: Table, rows: np.ndarray, options: TableOptions, clip: bool = False) -> Any:
    """The column `aus`.

    Args:
        table: the table.
        rows: the rows to read.
        options: with `aus`.
        clip: intensities of a program that writes -0.1 and 5.2 as 0 and 5.

    Raises:
        UserError: a cell is not as the options say, or a column does not name one AU.
    """
    assert options.aus is not None
    kind = options.au_values
    values = _values(table, rows, au_columns(table, options.aus, "aus"), kind, options)
    numbers_of = list(values)
    if options.au_intensities is None:
        matrix = np.stack(list(values.values()), 1)
        if kind == "presence":
            return action_units(numbers_of, matrix == 1, annotated=~np.isnan(matrix))
        threshold = options.au_threshold or AU_VALUES[kind]
        present, annotated = matrix >= threshold, ~np.isnan(matrix)
        if kind == "probability":
            return action_units(numbers_of, present, annotated=annotated)
        _check_not_probabilities(table, matrix[annotated], options)
        return action_units(numbers_of, present, matrix, annotated)
    columns = au_columns(table, options.au_intensities, "au_intensities")
    grades = _values(table, rows, columns, "intensity", options, clip)
    return _joined(values, grades, options.au_threshold or AU_VALUES["intensity"])


def unit_labels(aus: Any) -> list[list[str] | None]:
    """The action units that are present as labels, AU1, AU12, ..., or NO_UNIT; None for a row
    without annotation.

    Args:
        aus: the column `aus` of `read_units`.
    """
    labels: list[list[str] | None] = []
    for units in aus.to_pylist():
        present = [facs.name(unit["au"]) for unit in units or () if unit["present"]]
        labels.append(None if not units else present or [NO_UNIT])
    return labels


def _joined(
    values: Mapping[int, np.ndarray], grades: Mapping[int, np.ndarray], threshold: float
) -> Any:
    """AUs with presence from their own columns, or else from their intensities."""
    all_units = sorted({*values, *grades})
    none = np.full(len(next(iter(grades.values()))), np.nan)
    present = np.stack([values.get(au, none) for au in all_units], 1)
    grade = np.stack([grades.get(au, none) for au in all_units], 1)
    annotated = ~(np.isnan(present) & np.isnan(grade))
    is_present = np.where(np.isnan(present), grade >= threshold, present == 1)
    grade = np.where(is_present & (grade == 0), np.nan, grade)  # two models may disagree
    return action_units(all_units, is_present, grade, annotated)


# --- columns --------------------------------------------------------------------------------------


def au_columns(table: Table, aus: str | Sequence[str] | Mapping[Any, Any], option: str) -> Units:
    """The columns of each AU.

    Args:
        table: the table.
        aus: a pattern, a list of names or patterns, or {AU: column, or a list of its sides}.
        option: its name in messages.

    Raises:
        UserError: no column fits, or one does not name one AU, or two fit one AU that are not its
            left and right side.
    """
    if isinstance(aus, Mapping):
        columns_by_unit = {
            facs.parse_name(str(au)): names if isinstance(names, list | tuple) else [names]
            for au, names in aus.items()
        }
        return {au: [table.need(n, option) for n in names] for au, names in columns_by_unit.items()}
    columns: dict[int, list[str]] = {}
    for column in matching_columns(table, aus, option):
        number = number_in(column)
        if number is None:
            raise UserError(
                f"{option}={aus!r} fits the column {column!r}, which does not name one AU: "
                "narrow the pattern, or give {'AU1': 'column', ...}"
            )
        au = facs.parse_name(number)
        others = columns.setdefault(au, [])
        if others and not _are_sides(others, column):
            raise UserError(
                f"{option}={aus!r} fits {others[0]!r} and {column!r}, both of AU{au}: "
                "narrow the pattern, as in 'AU*_c'"
            )
        others.append(column)
    return columns


def _are_sides(columns: list[str], column: str) -> bool:
    """Whether two columns are the left and the right side of one AU."""
    if len(columns) != 1:
        return False
    names = (columns[0], column)
    sides = {match[0].lower()[0] for name in names if (match := _SIDE.search(name))}
    plain = {_SIDE.sub("", name).lower() for name in names}
    return sides == {"l", "r"} and len(plain) == 1


# --- cells ----------------------------------------------------------------------------------------


def _values(
    table: Table,
    rows: np.ndarray,
    columns: Units,
    kind: str,
    options: TableOptions,
    clip: bool = False,
) -> dict[int, np.ndarray]:
    """{AU: value of each row, NaN where it is not annotated}; of two sides the larger one."""
    read = {
        au: [_column(table, column, rows, kind, options, clip) for column in names]
        for au, names in columns.items()
    }
    return {
        au: values[0] if len(values) == 1 else np.fmax(values[0], values[1])
        for au, values in read.items()
    }


def _column(
    table: Table, column: str, rows: np.ndarray, kind: str, options: TableOptions, clip: bool
) -> np.ndarray:
    codes: list[Any] = np.ravel(np.array(options.au_missing, object)).tolist()
    words = {normalise_cell(code) for code in codes}

    def of_cell(value: Any) -> float | None:
        word = as_text(value)
        if word is None or normalise_cell(word) in words:
            return None
        if kind == "intensity" and word.upper() in GRADES:
            return GRADES[word.upper()]
        try:
            return as_flag_or_number(value, options.decimal)
        except BadCellError as error:
            raise BadCellError(EXPECTED[kind]) from error

    values = plain_numbers(table.columns[column], rows, options.decimal)
    if values is None:
        cells = convert(table, column, rows, of_cell)
        values = np.array([np.nan if x is None else x for x in cells], np.float64)
    numeric = [float(code) for code in codes if not isinstance(code, str)]
    values = np.where(np.isin(values, numeric), np.nan, values)
    if clip:
        values = np.clip(values, 0, TOP[kind])
    wrong = (values < 0) | (values > TOP[kind])
    if kind == "presence":
        wrong = ~np.isnan(values) & ~np.isin(values, (0, 1))
    if wrong.any():
        raise cell_error(table, column, int(rows[int(np.argmax(wrong))]), EXPECTED[kind])
    return values


def _check_not_probabilities(table: Table, values: np.ndarray, options: TableOptions) -> None:
    fractions = values[values != np.round(values)]
    if options.au_threshold is None and len(fractions) and values.max() <= 1:
        raise UserError(
            f"{table.path}: all AU values lie between 0 and 1 (such as {fractions[0]:g}), which "
            "reads as probabilities: set au_values='probability', or au_threshold= if they are "
            "intensities from 0 to 5"
        )
