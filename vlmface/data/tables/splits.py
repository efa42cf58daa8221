"""The split of each row of a table: by a column, by the file's name, or one for all."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from vlmface.data.records import check_choice
from vlmface.data.tables.cells import (
    BadCellError,
    as_required_text,
    cell_error,
    convert,
    normalise_cell,
)
from vlmface.data.tables.options import SPLITS, TableOptions
from vlmface.data.tables.table import Table
from vlmface.errors import UserError

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def split_of_name(name: str) -> str | None:
    """The split that a file's name begins with, as in `train-00000-of-00002.parquet`."""
    word = re.match(r"[a-z]+", name.lower())
    return SPLIT_WORDS.get(word[0]) if word else None


def rows_of_split(table: Table, split: str, options: TableOptions, by_name: bool) -> np.ndarray:
    """The rows of a split (n).

    Args:
        table: all rows.
        split: one of SPLITS.
        options: split_column, splits and file_split.
        by_name: whether the files were chosen by the split in their names.

    Raises:
        UserError: the column has a word that is not a split, or the split is not stated.
    """
    if options.split_column is None:
        if not by_name:
            check_only_split(table.path, split, options.file_split, "split_column=")
        return np.arange(len(table))
    return np.flatnonzero(np.array(splits_of_rows(table, options), object) == split)


def splits_of_rows(table: Table, options: TableOptions) -> list[str]:
    """The split of each row, from `split_column`."""
    assert options.split_column is not None
    column = table.need(options.split_column, "split_column")
    words = SPLIT_WORDS | {
        normalise_cell(word): check_choice("splits", to, SPLITS)
        for word, to in (options.splits or {}).items()
    }

    def split_of(value: object) -> str:
        word = as_required_text(value)
        split = words.get(normalise_cell(word), words.get(word.lower()))
        if split is None:
            raise BadCellError(f"a split: map it, splits={{{word!r}: 'train'}}")
        return split

    splits = convert(table, column, np.arange(len(table)), split_of)
    if None in splits:
        raise cell_error(table, column, splits.index(None), "a text")
    return splits  # type: ignore[return-value]  # None is excluded


def check_only_split(path: Path, split: str, file_split: str, alternative: str) -> None:
    """Raise UserError if all rows of a file are another split."""
    if split != file_split:
        raise UserError(
            f"{path} does not state which rows are split {split!r}: all of them are "
            f"{file_split!r}; name {alternative}, use data.hold_out, or pass file_split={split!r} "
            f"if this is all {split}"
        )
