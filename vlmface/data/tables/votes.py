"""Votes, probabilities, one-hot columns and soft labels, and the label that follows from them."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlmface.data.rows import vote_column
from vlmface.data.tables.cells import BadCellError, as_label, cell_error, convert, numbers
from vlmface.data.tables.columns import Source, matching_columns
from vlmface.data.tables.labels import LabelWords
from vlmface.data.tables.options import TableOptions
from vlmface.data.tables.ratings import mean_ratings, rater_votes
from vlmface.data.tables.table import Table
from vlmface.errors import UserError
from vlmface.label_spaces import EMOTIONS

_PAIR = re.compile(r"\s*[\"']?([^:=\"']+?)[\"']?\s*[:=]\s*([^;,:=\s]+)\s*")


def read_votes(
    table: Table, source: Source, rows: np.ndarray, options: TableOptions
) -> dict[str, Any]:
    """The column `label_votes`, and the labels with most votes where no column holds the label.

    Returns:
        {} if the table has no votes.

    Raises:
        UserError: a cell is not a number >= 0, or the votes of a soft label cannot be read.
    """
    if options.votes is not None and "label_votes" in source:
        raise UserError(
            f"votes= and the column {source['label_votes']!r} both hold votes: leave one out, "
            "columns={'label_votes': None}"
        )
    if options.raters is not None and (options.votes is not None or "label_votes" in source):
        raise UserError("raters= and other votes cannot be combined: leave one out")
    if options.space_of_labels is not None and options.space_of_labels.scale is not None:
        return _of_scale(table, source, rows, options)
    if options.raters is not None:
        words, votes = rater_votes(table, rows, options)
        options = dataclasses.replace(options, labels=None)  # these are labels already
    elif options.votes is not None:
        words, votes = _from_columns(table, rows, options)
        space = options.space_of_labels
        if space is not None and space.multi_label:
            return {options.label_field: _marked(words, votes, LabelWords(options))}
    elif "label_votes" in source:
        words, votes = _from_cells(table, str(source["label_votes"]), rows)
    else:
        return {}
    fields: dict[str, Any] = {"label_votes": _column(words, votes)}
    if options.label_field not in source:
        labels = LabelWords(options)
        fields[options.label_field] = labels.column(majority(words, votes, labels, str(table.path)))
    return fields


def _of_scale(
    table: Table, source: Source, rows: np.ndarray, options: TableOptions
) -> dict[str, Any]:
    """The mean of several raters' numbers; {} without columns of raters. Raises UserError for
    votes, of which a scale has none."""
    if options.votes is not None or "label_votes" in source:
        raise UserError(
            f"{table.path}: there are votes, but the labels are numbers of a scale: name columns "
            "of raters' numbers with raters=, or leave votes and label_votes out"
        )
    if options.raters is None:
        return {}
    if options.label_field in source:
        raise UserError(
            f"{table.path}: raters= and the column {source[options.label_field]!r} both hold the "
            "rating: leave one out"
        )
    return {options.label_field: mean_ratings(table, rows, options)}


def _marked(words: list[str], marks: np.ndarray, labels: LabelWords) -> list[list[str] | None]:
    """All labels of each row, where a face may have several: those marked with 1, True or a
    probability of at least 0.5.

    Raises:
        UserError: There are larger numbers, or a column's name is not a label.
    """
    if np.nanmax(marks, initial=0) > 1:
        raise UserError(
            f"votes={words!r}: a face may have several labels, which columns of 0 and 1 or of "
            "probabilities mark, but there are larger numbers"
        )
    names = [labels.label(word, "a column of labels") for word in words]
    return [
        [name for name, mark in zip(names, row, strict=True) if name and mark >= 0.5] or None
        for row in marks.tolist()
    ]


def _from_columns(
    table: Table, rows: np.ndarray, options: TableOptions
) -> tuple[list[str], np.ndarray]:
    """(words, votes (n, words), NaN where a cell is empty)."""
    votes = options.votes
    if isinstance(votes, Mapping):
        words = [str(word) for word in votes]
        columns = [table.need(name, "votes") for name in votes.values()]
    else:
        columns = words = matching_columns(table, votes or (), "votes")
    matrix = np.stack([numbers(table, c, rows, options.decimal, flags=True) for c in columns], 1)
    for row, column in np.argwhere(matrix < 0)[:1]:
        raise cell_error(table, columns[column], int(rows[row]), "votes or a probability >= 0")
    return words, matrix


def _from_cells(table: Table, column: str, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
    """`_from_columns` of a column of soft labels."""
    cells = convert(table, column, rows, parse_votes)
    words = list(dict.fromkeys(word for cell in cells for word in cell or ()))
    index = {word: i for i, word in enumerate(words)}
    matrix = np.full((len(cells), len(words)), np.nan)
    for row, cell in enumerate(cells):
        for word, count in (cell or {}).items():
            matrix[row, index[word]] = count
    return words, matrix


def parse_votes(value: Any) -> dict[str, float] | None:
    """{word: votes} of a soft label: a mapping, JSON of one, or "anger:0.3;fear:0.7".

    Raises:
        BadCellError: it is none of these, a word occurs twice, or a number is below 0.
    """
    expected = 'votes >= 0 such as {"anger": 0.3, "fear": 0.7} or anger:0.3;fear:0.7'
    if isinstance(value, str):
        text = as_label(value)
        if text is None:
            return None
        if text.startswith("{"):
            try:
                value = json.loads(text, object_pairs_hook=_without_repetition)
            except ValueError as error:
                raise BadCellError(expected) from error
        else:
            pairs = [_PAIR.fullmatch(part) for part in re.split(r"[;,|]", text) if part.strip()]
            if not all(pairs):
                raise BadCellError(expected)
            value = _without_repetition([(pair[1], pair[2]) for pair in pairs if pair])
    if not isinstance(value, dict):
        raise BadCellError(expected)
    try:
        votes = {str(word).strip(): float(n) for word, n in value.items() if n is not None}
    except (TypeError, ValueError) as error:
        raise BadCellError(expected) from error
    if not all(word and 0 <= n < np.inf for word, n in votes.items()):
        raise BadCellError(expected)
    return votes or None


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    votes = dict(pairs)
    if len(votes) != len(pairs):
        raise BadCellError("votes in which each word occurs once")
    return votes


def _column(words: list[str], votes: np.ndarray) -> list[str | None]:
    """The column `label_votes`; a row without any votes is None."""
    empty = np.isnan(votes)
    if not empty.any():
        whole = votes.size and (votes == np.round(votes)).all()
        return list(vote_column(words, votes.astype(np.int64) if whole else votes))
    rows = [
        {word: n for word, n in zip(words, row, strict=True) if n == n} for row in votes.tolist()
    ]
    return [json.dumps(row, ensure_ascii=False) if row else None for row in rows]


def majority(
    words: list[str], votes: np.ndarray, labels: LabelWords, where: str
) -> list[str | None]:
    """The label with most votes in each row. Words for the same label are added up. Warns of rows
    without one: with a tie, without votes, or with most votes for a word that is not a label.

    Args:
        words: what was voted for.
        votes: (n, words), NaN for none.
        labels: what the words mean.
        where: name of the table in the warning.
    """
    groups: dict[tuple[str | None, str], list[int]] = {}
    for i, word in enumerate(words):
        is_label = labels.field == "context" or labels.is_label(word)
        label = labels.label(word, "a word of the votes") if is_label else None
        groups.setdefault((label, "" if label else word), []).append(i)
    names = [label for label, _ in groups]
    filled = np.nan_to_num(votes)
    counts = np.stack([filled[:, index].sum(1) for index in groups.values()], 1)
    most = counts.max(1, keepdims=True)
    tied = ((counts == most).sum(1) > 1) & (most[:, 0] > 0)
    winner = np.where(tied | (most[:, 0] == 0), -1, counts.argmax(1))
    other = (winner >= 0) & np.array([name is None for name in names])[winner]
    none = most[:, 0] == 0
    reasons = {"tied votes": tied, "no votes": none, f"most votes for none of {_of(labels)}": other}
    if rows := {reason: int(mask.sum()) for reason, mask in reasons.items() if mask.any()}:
        counted = "; ".join(f"{n:,} have {reason}" for reason, n in rows.items())
        warnings.warn(f"{where}: rows without a label: {counted}", stacklevel=4)
    names.append(None)  # of winner -1
    return [names[i] for i in winner.tolist()]


def _of(labels: LabelWords) -> str:
    return "the words in labels=" if labels.field == "context" else ", ".join(EMOTIONS)
