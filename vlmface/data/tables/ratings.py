"""Ratings of several people: a column for each rater, or a row for each rating of a picture."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vlmface.data.rows import vote_column
from vlmface.data.tables.cells import convert
from vlmface.data.tables.columns import NUMBERS, matching_columns
from vlmface.data.tables.labels import LabelWords
from vlmface.data.tables.options import TableOptions
from vlmface.data.tables.table import Table
from vlmface.errors import UserError
from vlmface.scales import number_text

_DIGITS = 9  # decimal places of a mean, whose last ones are rounding
# Picks a label from (words, votes (n, words)), NaN for none: `votes.majority`.
Majority = Callable[[list[str], np.ndarray, LabelWords, str], list[str | None]]


def rater_votes(
    table: Table, rows: np.ndarray, options: TableOptions
) -> tuple[list[str], np.ndarray]:
    """(labels, votes (n, labels)) of the columns of the option `raters`, each of which holds the
    labels that one rater gave. An empty cell does not count.

    Raises:
        UserError: A cell is not a label, or a face may have several.
    """
    of_raters = _cells_of_raters(table, rows, options)
    words = list(dict.fromkeys(word for column in of_raters for word in column if word))
    return words, sum(
        (_counts(column, words) for column in of_raters), np.zeros((len(rows), len(words)))
    )


def mean_ratings(table: Table, rows: np.ndarray, options: TableOptions) -> list[list[str] | None]:
    """The mean of the numbers in the columns of the option `raters`, as texts, for a scale. An
    empty cell does not count.

    Raises:
        UserError: A cell is not a number of the scale.
    """
    of_raters = _cells_of_raters(table, rows, options)
    cells = [cell for column in of_raters for cell in column]
    groups = np.tile(np.arange(len(rows)), len(of_raters))
    return _as_texts(_means(cells, groups, len(rows)))


def _cells_of_raters(
    table: Table, rows: np.ndarray, options: TableOptions
) -> list[list[str | None]]:
    """The labels in each column of the option `raters`."""
    columns = matching_columns(table, options.raters or (), "raters")
    read: Callable[[Any], Any] = one_label_words(options, "raters=").of_cell
    return [convert(table, column, rows, read) for column in columns]


def _as_texts(values: np.ndarray) -> list[list[str] | None]:
    """Numbers of a scale as the column of their field contains them, None for NaN."""
    return [
        None if value != value else [number_text(round(value, _DIGITS))]
        for value in values.tolist()
    ]


def one_label_words(options: TableOptions, option: str) -> LabelWords:
    """The words of labels. Raises UserError if a face may have several, which cannot be counted."""
    space = options.space_of_labels
    if space is not None and space.multi_label:
        raise UserError(
            f"{option} counts votes for one label a face, but {space.id} has several: leave "
            "multi_label out of the label space"
        )
    return LabelWords(options)


def _counts(labels: Sequence[str | None], words: list[str]) -> np.ndarray:
    """(n, words) 1 for the label of each row."""
    index = {word: i for i, word in enumerate(words)}
    codes = np.array([index.get(label or "", -1) for label in labels], np.int64)
    return (codes[:, None] == np.arange(len(words))).astype(float)


def join_ratings(
    columns: dict[str, Any], options: TableOptions, where: str, majority: Majority
) -> dict[str, Any]:
    """One row for each picture, where each row was one person's rating of its picture.

    The labels are counted as votes, and valence, arousal, age and the numbers of a scale are means.
    Of all other fields the value is kept if the rows of a picture agree, and left empty otherwise,
    with a warning; a rationale is that of the first row.

    Args:
        columns: Of FaceSample, a row for each rating.
        options: How the table is read.
        where: Name of the table, for messages.
        majority: Picks the label of a row from its votes.

    Raises:
        UserError: No column holds the label, or there are votes already.
    """
    labels = one_label_words(dataclasses.replace(options, labels=None), "votes_in_rows=")
    if "label_votes" in columns or options.label_field not in columns:
        raise UserError(
            f"{where}: votes_in_rows= counts the labels of the rows of each picture: name their "
            "column in columns=, and leave out columns of votes"
        )
    first, groups = _groups(columns)
    joined: dict[str, Any] = {}
    for name, values in columns.items():
        cells = values.tolist() if isinstance(values, np.ndarray) else list(values)
        if name == options.label_field and labels.space is not None and labels.space.scale:
            numbers = [cell[0] if cell else None for cell in cells]
            joined[name] = _as_texts(_means(numbers, groups, len(first)))
        elif name in NUMBERS:
            joined[name] = _means(cells, groups, len(first))
        elif name == options.label_field:
            joined |= _voted(cells, groups, len(first), labels, where, majority)
        else:
            joined[name] = _common(cells, first, groups, name, where)
    return joined


def _groups(columns: dict[str, Any]) -> tuple[list[int], np.ndarray]:
    """(the first row of each picture, the number of the picture of each row)."""
    media = columns["image" if "image" in columns else "frames"]
    boxes = columns.get("face_box") or [None] * len(media)
    number: dict[Any, int] = {}
    first: list[int] = []
    groups = np.zeros(len(media), np.int64)
    for row, (picture, box) in enumerate(zip(media, boxes, strict=True)):
        key = (
            tuple(picture) if isinstance(picture, list) else picture,
            None if box is None else tuple(box),
        )
        if key not in number:
            number[key] = len(first)
            first.append(row)
        groups[row] = number[key]
    return first, groups


def _means(cells: Sequence[Any], groups: np.ndarray, n: int) -> np.ndarray:
    values = np.array([np.nan if cell is None else float(cell) for cell in cells], np.float64)
    is_number = ~np.isnan(values)
    sums = np.bincount(groups[is_number], values[is_number], n)
    counts = np.bincount(groups[is_number], minlength=n)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _voted(
    cells: Sequence[Any],
    groups: np.ndarray,
    n: int,
    labels: LabelWords,
    where: str,
    majority: Majority,
) -> dict[str, Any]:
    """The columns of votes and of the labels with most of them."""
    row_labels = [cell[0] if isinstance(cell, list) else cell for cell in cells]
    words = list(dict.fromkeys(word for word in row_labels if word))
    votes = np.zeros((n, len(words)))
    np.add.at(votes, groups, _counts(row_labels, words))
    return {
        "label_votes": vote_column(words, votes.astype(np.int64)),
        labels.field: labels.column(majority(words, votes, labels, where)),
    }


def _common(
    cells: Sequence[Any], first: Sequence[int], groups: np.ndarray, name: str, where: str
) -> list[Any]:
    """The value of each picture's first row, None where its rows differ."""
    values = [cells[row] for row in first]
    if name in ("id", "image", "frames", "face_box") or name.startswith("rationale"):
        return values
    differing = {
        group for group, cell in zip(groups.tolist(), cells, strict=True) if cell != values[group]
    }
    if differing:
        warnings.warn(
            f"{where}: {name} differs between the rows of {len(differing):,} of {len(first):,} "
            "pictures, and is left empty there",
            stacklevel=4,
        )
    return [None if group in differing else value for group, value in enumerate(values)]
