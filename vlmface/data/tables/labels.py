"""Labels in the columns of a table: emotions, own words, people's attributes, texts, numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from vlmface import label_spaces
from vlmface.data.records import check_choice, match_label
from vlmface.data.tables.cells import (
    NULLS,
    BadCellError,
    as_label,
    as_text,
    convert,
    key_of,
    numbers,
    with_plain,
)
from vlmface.data.tables.columns import NUMBERS, WORDS, Source
from vlmface.data.tables.options import TableOptions
from vlmface.data.tables.table import Table
from vlmface.errors import UserError

GENDERS = {"f": "female", "w": "female", "m": "male"}


class LabelWords:
    """The words for labels: those of the option `labels`, and the emotions with their aliases; or
    any words, where `label_field` is context."""

    def __init__(self, options: TableOptions) -> None:
        self.field = options.label_field
        self.mapping: dict[str, str | None] = {}
        for word, label in with_plain(options.labels or {}).items():
            if label is None or self.field == "context":
                self.mapping[word] = label
            elif (emotion := match_label("emotion8", str(label))) is not None:
                self.mapping[word] = emotion
            else:
                raise UserError(
                    f"labels maps {word!r} to {label!r}: use one of "
                    f"{', '.join(label_spaces.EMOTIONS)}, or None; label_field='context' keeps "
                    "your own words"
                )

    def is_label(self, word: str) -> bool:
        """Whether the option names the word, or it is an emotion."""
        return key_of(word, self.mapping) is not None or match_label("emotion8", word) is not None

    def of_cell(self, value: Any) -> str | None:
        """The label of a cell. Raises BadCellError for a word that is not one."""
        word = as_text(value)
        if word is None:
            return None
        if (key := key_of(word, self.mapping)) is not None:
            return self.mapping[key]
        if word.casefold() in NULLS:
            return None
        if self.field == "context":
            return word
        if (label := match_label("emotion8", word)) is None:
            raise BadCellError(
                f"one of {', '.join(label_spaces.EMOTIONS)}: map it, labels={{{word!r}: 'anger'}}, "
                "or to None if it is not one of them; label_field='context' keeps your own words"
            )
        return label

    def label(self, word: str, where: str) -> str | None:
        """The label of a word. Raises UserError that begins with `where` for one that is not."""
        try:
            return self.of_cell(word)
        except BadCellError as error:
            raise UserError(f"{where} is {word!r}, expected {error}") from error

    def column(self, labels: Sequence[str | None]) -> list[Any]:
        """The column of the field from one label for each row."""
        if self.field == "emotion":
            return list(labels)
        return [None if label is None else [label] for label in labels]


def read_labels(
    table: Table, source: Source, rows: np.ndarray, options: TableOptions
) -> dict[str, Any]:
    """The columns of emotion, context, TEXTS, WORDS and NUMBERS that the table has.

    Raises:
        UserError: a cell is not a label, a word or a number, or an option maps to other words.
    """
    _check_words(options.words or {})
    words = LabelWords(options)
    fields: dict[str, Any] = {}

    def read(field: str, function: Callable[[Any], Any]) -> None:
        if field in source:
            fields[field] = convert(table, str(source[field]), rows, function)

    if words.field == "emotion":
        read("emotion", words.of_cell)
        read("context", own_words)
    elif "emotion" in source:
        raise UserError(
            f"label_field='context', but {source['emotion']!r} is read as the emotion: use "
            "columns={'emotion': None, 'context': '...'}"
        )
    else:
        read("context", lambda value: _mapped(own_words(value), words))
    read("subject", as_text)
    read("rationale", as_label)
    for field in WORDS:
        mapping = with_plain((options.words or {}).get(field, {}))
        read(field, lambda value, f=field, m=mapping: _person(value, f, m))  # type: ignore[misc]
    for field in (field for field in NUMBERS if field in source):
        fields[field] = numbers(table, str(source[field]), rows, options.decimal)
    return fields


def own_words(value: Any) -> list[str] | None:
    """The words of a cell: a list, a JSON list, or words that `;` or `|` separate."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadCellError("words, or a JSON list of them") from error
    if isinstance(value, str):
        words = re.split(r"[;|]", value)
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        words = value
    elif isinstance(value, int | float):
        words = [as_text(value) or ""]
    else:
        raise BadCellError("words, or a list of them")
    return [w.strip() for w in words if w.strip().casefold() not in NULLS] or None


def _mapped(cell: list[str] | None, words: LabelWords) -> list[str] | None:
    labels = [label for word in cell or () if (label := words.of_cell(word)) is not None]
    return labels or None


def _check_words(words: Mapping[str, Mapping[Any, str | None]]) -> None:
    for field, mapping in words.items():
        check_choice("words", field, WORDS)
        for word, to in mapping.items():
            if to is not None and not any(match_label(name, to) for name in _spaces(field)):
                raise UserError(
                    f"words maps {word!r} to {to!r} for {field}: use one of "
                    f"{', '.join(_labels_of(field))}, or None"
                )


def _person(value: Any, field: str, mapping: Mapping[str, str | None]) -> str | None:
    """A word of gender, race or age group, as it is written if a label space has it."""
    word = as_text(value)
    if word is None:
        return None
    if (key := key_of(word, mapping)) is not None:
        return mapping[key]
    lower = word.casefold()
    if lower in NULLS:
        return None
    if field == "gender" and lower in GENDERS:
        return GENDERS[lower]
    if not any(match_label(name, word) for name in _spaces(field)):
        labels = _labels_of(field)
        option = f"words={{{field!r}: {{{word!r}: {labels[0]!r}}}}}"
        raise BadCellError(
            f"one of {', '.join(labels)}: map it, {option}, or to None; "
            f"columns={{{field!r}: None}} leaves the column out"
        )
    return word


def _labels_of(field: str) -> list[str]:
    """The labels of all its label spaces."""
    return list(
        dict.fromkeys(x for name in _spaces(field) for x in label_spaces.space(name).labels)
    )


@cache
def _spaces(field: str) -> tuple[str, ...]:
    return tuple(name for name, space in label_spaces.SPACES.items() if space.field == field)
