"""Boxes of faces in the columns of a table."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmface.data.image_paths import Folders
from vlmface.data.rows import boxes
from vlmface.data.sources import map_in_threads
from vlmface.data.tables.cells import BadCellError, as_label, cell_error, convert, numbers
from vlmface.data.tables.columns import Source
from vlmface.data.tables.options import TableOptions
from vlmface.data.tables.table import Table
from vlmface.errors import UserError
from vlmface.utils.images import size_of

EXPECTED = "four numbers, such as 10 20 110 140 or [10, 20, 110, 140]"
_NO_BOX = (0, -1)  # four of them stand for none


def read_boxes(
    table: Table, source: Source, rows: np.ndarray, images: Sequence[Any], options: TableOptions
) -> Any:
    """The column `face_box`; null where a row has no box, or four times 0 or -1.

    Args:
        table: the table.
        source: with `face_box`.
        rows: the rows to read (n).
        images: the picture of each row, a path or bytes; a list of the frames of a clip.
        options: box_format, box_units and box_outside.

    Raises:
        UserError: a cell is not a number, a box has no area or, under "error", reaches out of its
            picture.
    """
    columns = source["face_box"]
    if isinstance(columns, str):
        values, columns = _from_cells(table, columns, rows), [columns]
    else:
        values = np.stack([numbers(table, c, rows, options.decimal) for c in columns], 1)
    return corners_column(table, columns, rows, images, values, options)


def corners_column(
    table: Table,
    columns: Sequence[str],
    rows: np.ndarray,
    images: Sequence[Any],
    values: np.ndarray,
    options: TableOptions,
) -> Any:
    """The column `face_box` of four values a row (n, 4) in the format and units of the options;
    arguments and errors as `read_boxes`."""
    partly = np.isnan(values).any(1) & ~np.isnan(values).all(1)
    _refuse(table, columns, rows, partly, "four numbers, or none")
    empty = np.isnan(values).any(1)
    coded = np.any([(values == code).all(1) for code in _NO_BOX], 0)
    if coded.any():
        warnings.warn(f"{table.path}: {int(coded.sum()):,} rows have no face box", stacklevel=4)
    corners = _corners(values, options.box_format)
    corners[empty | coded] = np.nan
    with_box = np.flatnonzero(~np.isnan(corners[:, 0]))
    if options.box_units == "relative":
        unlikely = np.zeros(len(rows), bool)
        unlikely[with_box] = (np.abs(corners[with_box]) > 2).any(1)
        _refuse(table, columns, rows, unlikely, "shares of the picture's sides (box_units)")
    sizes = np.full((len(rows), 2), np.nan)
    if options.box_units == "relative" or options.box_outside != "keep":
        sizes[with_box] = _sizes([images[i] for i in with_box.tolist()])
    if options.box_units == "relative":
        corners *= np.tile(sizes, 2)
    if options.box_outside != "keep":
        inside = np.clip(corners, 0, np.tile(sizes, 2))
        if options.box_outside == "error":
            outside = (np.abs(inside - corners) > 1e-3).any(1)  # rounding of shares
            _refuse(table, columns, rows, outside, "a box inside its picture, or box_outside=clip")
        corners = inside
    flat = (corners[:, 0] >= corners[:, 2]) | (corners[:, 1] >= corners[:, 3])
    form = f"a box with an area inside its picture (box_format={options.box_format!r})"
    _refuse(table, columns, rows, flat, form)
    return _arrow(corners)


def _refuse(
    table: Table, columns: Sequence[str], rows: np.ndarray, wrong: np.ndarray, expected: str
) -> None:
    if wrong.any():
        row = int(rows[int(np.argmax(wrong))])
        if len(columns) == 1:
            raise cell_error(table, columns[0], row, expected)
        cells = ", ".join(str(table.columns[column][row]) for column in columns)
        raise UserError(f"{table.where(row)}: the face box is {cells}, expected {expected}")


def _from_cells(table: Table, column: str, rows: np.ndarray) -> np.ndarray:
    cells = convert(table, column, rows, parse_box)
    return np.array([[np.nan] * 4 if cell is None else cell for cell in cells], np.float64)


def parse_box(value: Any) -> list[float] | None:
    """The four numbers of a cell: a list, JSON of one, or numbers with spaces, commas or semicolons
    between them. Raises BadCellError for any other."""
    if isinstance(value, str):
        text = as_label(value)
        if text is None:
            return None
        try:
            value = json.loads(text) if text[0] in "[{" else re.split(r"[\s,;]+", text.strip("()"))
        except ValueError as error:
            raise BadCellError(EXPECTED) from error
    if not isinstance(value, list) or len(value) != 4:
        raise BadCellError(EXPECTED)
    try:
        box = [float(number) for number in value]
    except (TypeError, ValueError) as error:
        raise BadCellError(EXPECTED) from error
    if not np.isfinite(box).all():
        raise BadCellError(EXPECTED)
    return box


def _corners(values: np.ndarray, box_format: str) -> np.ndarray:
    """Boxes (n, 4) as left, top, right, bottom."""
    a, b, c, d = values.T
    return np.stack(
        {
            "xyxy": (a, b, c, d),
            "xywh": (a, b, a + c, b + d),
            "cxcywh": (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
        }[box_format],
        1,
    )


def _sizes(images: Sequence[Any]) -> np.ndarray:
    """(width, height) of each picture, of a clip those of its first frame."""
    sources = [image[0] if isinstance(image, list) else image for image in images]
    folders = Folders()
    files = {s: folders.find(s) for s in dict.fromkeys(sources) if isinstance(s, str)}
    present = {source: path for source, path in files.items() if path is not None}
    outcomes = map_in_threads(size_of, list(present.values()), "reading sizes")
    # A row whose picture is missing is an error, or left out, when all rows are loaded.
    size_by_path: dict[str, Any] = dict.fromkeys(files, (np.nan, np.nan))
    size_by_path |= dict(zip(present, outcomes, strict=True))
    return np.array(
        [size_by_path[s] if isinstance(s, str) else size_of(s) for s in sources], np.float64
    )


def _arrow(corners: np.ndarray) -> Any:
    import pyarrow as pa

    empty = np.isnan(corners[:, 0])
    column = boxes(*corners[~empty].T)
    index = np.full(len(corners), -1)
    index[~empty] = np.arange(int((~empty).sum()))
    return column.take(pa.array(index, mask=empty))


def landmark_boxes(table: Table, rows: np.ndarray, decimal: str) -> np.ndarray | None:
    """The smallest box (n, 4) around the landmarks `x_0` ... `y_67` of OpenFace, in pixels; None if
    the table has none."""
    sides = []
    for axis in ("x_", "y_"):  # in this letter case: `X_0` is in millimetres
        names = [f"{axis}{i}" for i in range(68)]
        if not all(name in table.columns for name in names):
            return None
        low, high = np.full(len(rows), np.inf), np.full(len(rows), -np.inf)
        for name in names:
            values = numbers(table, name, rows, decimal)
            low, high = np.minimum(low, values), np.maximum(high, values)
        sides.append((low, high))
    (left, right), (top, bottom) = sides
    return np.stack([left, top, right, bottom], 1)
