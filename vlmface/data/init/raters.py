"""Labels that several raters gave: a column for each rater, or a row for each rating."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from vlmface.data.init.columns import Column, share_words
from vlmface.data.init.names import is_rater, role_of

_NUMBERED = re.compile(r"(.*?)[\W_]*\d{1,4}", re.DOTALL)
_FEWEST = 2  # columns


def rater_columns(columns: Mapping[str, Column]) -> list[str]:
    """The columns that are numbered and named for raters, such as rater1 and rater2, and hold the
    same few words, or numbers; [] if there are not at least two, or another column is named as the
    label."""
    if any(role_of(name) == "label" for name in columns):
        return []
    stems: dict[str, list[str]] = {}
    for name in columns:
        numbered = _NUMBERED.fullmatch(name.strip())
        if numbered and is_rater(numbered[1]):
            stems.setdefault(numbered[1].casefold(), []).append(name)
    named = max(stems.values(), key=len, default=[])
    chosen = [columns[name] for name in named]
    rated = all(column.numbers and len(column.words) > 2 for column in chosen)
    return named if len(named) >= _FEWEST and (rated or share_words(chosen)) else []


def words_of(columns: Sequence[Column]) -> dict[str, int]:
    """{word: how often} of several columns."""
    counts: dict[str, int] = {}
    for column in columns:
        for word, count in column.words.items():
            counts[word] = counts.get(word, 0) + count
    return counts


def num_repeated(image: Column) -> int:
    """How many pictures have several rows. Pictures inside a table are all different."""
    return int((image.counts > 1).sum()) if image.words else 0


def names_people(column: Column, image: Column | None) -> bool:
    """Whether a column may name who is in a picture. It does not if it is named for raters, or if
    the rows of one picture differ in it: then it names who rated."""
    if is_rater(column.name):
        return False
    if image is None or not num_repeated(image):
        return True
    both = (image.codes >= 0) & (column.codes >= 0)
    pairs = np.stack([image.codes[both], column.codes[both]])
    return len(np.unique(pairs, axis=1).T) == len(np.unique(pairs[0]))
