"""Rows above the header of a table, such as the title of a spreadsheet."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

TITLES = 20  # rows in which the header is looked for
_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?")
_FILE = re.compile(r".*\.[A-Za-z0-9]{2,5}")


def num_title_rows(rows: Sequence[Sequence[Any]]) -> int:
    """How many rows come before the header.

    Rows that fill at most half of the columns are titles if the first row after them names columns:
    distinct texts, and neither numbers nor names of files.

    Args:
        rows: The cells of the first rows, without rows that are empty.
    """
    filled = [_filled(row) for row in islice(rows, TITLES)]
    width = max(map(len, filled), default=0)
    for number, cells in enumerate(filled):
        if len(cells) > max(1, width // 2):
            return number if _names_columns(cells) else 0
    return 0


def _filled(row: Sequence[Any]) -> list[Any]:
    return [cell for cell in row if cell is not None and str(cell).strip()]


def _names_columns(cells: Sequence[Any]) -> bool:
    texts = [cell.strip() for cell in cells if isinstance(cell, str)]
    return len(texts) == len(cells) == len(set(texts)) and not any(
        _NUMBER.fullmatch(text) or _FILE.fullmatch(text) for text in texts
    )


def warn_of_titles(path: Path, titles: int, place: int, unit: str) -> None:
    """Warn that rows were taken for titles.

    Args:
        path: Of the table.
        titles: How many.
        place: Of the header.
        unit: What places are: "line" or "row".
    """
    warnings.warn(
        f"{path}: the header is in {unit} {place}; {titles} above it with titles left out",
        stacklevel=5,
    )
