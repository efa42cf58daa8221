"""Columns of 0 and 1, of votes or of probabilities, one for each label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlmface import label_spaces
from vlmface.data.init.columns import Column, is_unit
from vlmface.data.init.names import role_of

_SEVERAL = 0.1  # share of the rows with several marks from which on a face has several labels
_MOSTLY = 0.95  # share of the rows with one mark from which on columns of own words are labels


@dataclass(frozen=True)
class LabelColumns:
    """Columns that each hold a label's votes.

    Attributes:
        names: Of the columns.
        several: Whether a face may have several of the labels.
    """

    names: Sequence[str]
    several: bool


def find_label_columns(columns: Mapping[str, Column]) -> LabelColumns | None:
    """The columns that are named by emotions and hold votes, probabilities or 0 and 1; or else all
    columns of 0 and 1, if just one of them is 1 in almost every row."""
    emotions = label_spaces.space("emotion8")
    voted = [
        name
        for name, column in columns.items()
        if emotions.match(name) and column.numbers and min(column.numbers) >= 0
    ]
    if len(voted) > 2:
        return of_columns(columns, voted)
    marks = [name for name in mark_columns(columns) if role_of(name) is None]
    if len(marks) < 2:
        return None
    ones = _ones([columns[name] for name in marks])
    return LabelColumns(marks, several=False) if (ones == 1).mean() >= _MOSTLY else None


def of_columns(columns: Mapping[str, Column], names: Sequence[str]) -> LabelColumns:
    """Columns as labels, of which a face has several if many rows have several marks."""
    chosen = [columns[name] for name in names]
    marks = all(_is_mark(column) for column in chosen)
    return LabelColumns(names, marks and bool((_ones(chosen) > 1).mean() >= _SEVERAL))


def mark_columns(columns: Mapping[str, Column]) -> list[str]:
    """The columns of 0 and 1 that are not action units."""
    return [n for n, column in columns.items() if _is_mark(column) and not is_unit(n)]


def _is_mark(column: Column) -> bool:
    return bool(column.numbers) and set(column.numbers or ()) <= {0.0, 1.0}


def _ones(columns: Sequence[Column]) -> np.ndarray:
    """(rows,) how many of the columns are 1."""
    total = np.zeros(len(columns[0].codes), np.int64)
    for column in columns:
        ones = {
            i
            for i, value in enumerate(column.values)
            if str(value).strip().casefold() in ("1", "1.0", "true")
        }
        total += np.isin(column.codes, list(ones))
    return total
