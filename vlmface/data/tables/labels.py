"""Labels in the columns of a table: emotions, own words, people's attributes, texts, numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vlmface import label_spaces
from vlmface.data.records import check_choice, match_label
from vlmface.data.tables.cells import (
    NULLS,
    BadCellError,
    as_label,
    as_number,
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
from vlmface.scales import number_text

GENDERS = {"f": "female", "w": "female", "m": "male"}


class LabelWords:
    """The words for labels: those of the option `labels`, and the labels of the label space with
    their aliases; or any words, where `label_field` is context and there is no label space."""

    def __init__(self, options: TableOptions) -> None:
        self.field = options.label_field
        self.space = options.space_of_labels
        self.decimal = options.decimal
        self.mapping: dict[str, str | None] = {}
        for word, label in with_plain(options.labels or {}).items():
            if label is None or self.space is None:
                self.mapping[word] = label
            elif (canonical := self._known(str(label))) is not None:
                self.mapping[word] = canonical
            else:
                raise UserError(
                    f"labels maps {word!r} to {label!r}: use one of "
                    f"{self.space.candidates}, or None{self._hint()}"
                )

    def _hint(self) -> str:
        return "; label_field='context' keeps your own words" if self.field == "emotion" else ""

    def is_label(self, word: str) -> bool:
        """Whether the option names the word, or the label space has it."""
        if key_of(word, self.mapping) is not None:
            return True
        return self._known(word) is not None

    def _known(self, word: str) -> str | None:
        """The label that a word is; of emotions the one of FaceSample, which a label space may have
        further words for, but whose labels may stand for several."""
        if self.space is None:
            return None
        label = match_label(self.space, word)
        if self.field == "emotion" and label not in label_spaces.EMOTIONS:
            return match_label("emotion8", word)
        return label

    def of_cell(self, value: Any) -> str | None:
        """The label of a cell, of a scale its exact number as text. Raises BadCellError for a word
        that is not one, and for a number outside the range."""
        word = as_text(value)
        if word is None:
            return None
        if (key := key_of(word, self.mapping)) is not None:
            return self.mapping[key]
        if self.space is not None and self.space.scale is not None:
            return self._rating(value)
        label = self._known(word)
        if label is None and word.casefold() in NULLS:
            return None
        if self.space is None:
            return word
        if label is None:
            raise self._bad_word(word)
        return label

    def _rating(self, value: Any) -> str | None:
        """The number of a cell on the scale of the label space, as text."""
        space = self.space
        assert space is not None and space.scale is not None
        number = as_number(value, self.decimal)
        if number is not None and space.scale.nearest(number) is None:
            raise BadCellError(
                f"a number from {space.scale.range_text}, the scale of {space.id}: correct it, "
                f"change min or max of the scale, or leave it out, labels={{{str(value)!r}: None}}"
            )
        return None if number is None else number_text(number)

    def of_words(self, value: Any) -> list[str] | None:
        """The labels of a cell of words. Raises BadCellError for a word that is not a label, and
        for several labels where the label space has one a face."""
        if self.space is not None and self.space.scale is not None:
            rating = self.of_cell(value)
            return None if rating is None else [rating]
        if self.space is not None and isinstance(value, str) and self.is_label(value.strip()):
            words = [value.strip()]  # although it may hold a separator
        else:
            words = (
                own_words(value, several=self.space is not None and self.space.multi_label) or []
            )
        labels = [label for word in words if (label := self.of_cell(word)) is not None]
        labels = list(dict.fromkeys(labels))
        if len(labels) > 1 and self.space is not None and not self.space.multi_label:
            raise BadCellError(
                f"one label of {self.space.id}: keep one, or add multi_label: true to the label "
                "space"
            )
        return labels or None

    def label(self, word: str, where: str) -> str | None:
        """The label of a word. Raises UserError that begins with `where` for one that is not."""
        try:
            return self.of_cell(word)
        except BadCellError as error:
            raise UserError(f"{where} is {word!r}, expected {error}") from error

    def of_folder(self, folder: Path) -> str | None:
        """The label that a folder is named by; "none" is a word like any other there. Raises
        UserError for a name that is not a label."""
        word, where = folder.name, f"the folder name {folder}"
        label = self.label(word, where)
        if label is not None or key_of(word, self.mapping) is not None:
            return label
        if self.space is not None:
            raise UserError(f"{where} is {word!r}, expected {self._bad_word(word)}")
        return word

    def _bad_word(self, word: str) -> BadCellError:
        space = self.space
        assert space is not None
        return BadCellError(
            f"one of {', '.join(space.labels)}: map it, labels={{{word!r}: {space.labels[0]!r}}}, "
            f"or to None if it is not one of them{self._hint()}"
        )

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
    elif "emotion" in source and words.space is None:
        raise UserError(
            f"label_field='context', but {source['emotion']!r} is read as the emotion: use "
            "columns={'emotion': None, 'context': '...'}"
        )
    else:
        read("emotion", LabelWords(TableOptions()).of_cell)
        read("context", words.of_words)
    read("subject", as_text)
    read("rationale", as_label)
    for field in WORDS:
        mapping = with_plain((options.words or {}).get(field, {}))
        read(field, lambda value, f=field, m=mapping: _person(value, f, m))  # type: ignore[misc]
    for field in (field for field in NUMBERS if field in source):
        fields[field] = numbers(table, str(source[field]), rows, options.decimal)
    return fields


def own_words(value: Any, several: bool = False) -> list[str] | None:
    """The words of a cell: a list, a JSON list, or words that `;` or `|` separate; with `several`
    also a comma."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadCellError("words, or a JSON list of them") from error
    if isinstance(value, str):
        words = re.split(r"[;|,]" if several else r"[;|]", value)
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        words = value
    elif isinstance(value, int | float):
        words = [as_text(value) or ""]
    else:
        raise BadCellError("words, or a list of them")
    return [w.strip() for w in words if w.strip().casefold() not in NULLS] or None


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
