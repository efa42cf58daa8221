"""Labels of a user's own table or folders, read as labels of any label space."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlmface.data.tables import NULLS, Table, cell_error, key_of, text_cell, with_plain
from vlmface.errors import UserError
from vlmface.label_spaces import LabelSpace

_SEPARATORS = re.compile(r"[;,|]")  # between several labels in one cell


class LabelReader:
    """Reads words as labels of a label space.

    Args:
        space: The label space.
        labels: {word: label, or None for words that are not annotated}; words are compared without
            letter case, numbers by their value.

    Raises:
        UserError: `labels` maps a word to something that is not a label.
    """

    def __init__(self, space: LabelSpace, labels: Mapping[Any, str | None]) -> None:
        self._space = space
        self._labels: dict[str, str | None] = {}
        for word, label in with_plain(labels).items():
            self._labels[word] = None if label is None else space.canonical(label)
            if label is not None and self._labels[word] is None:
                raise UserError(
                    f"labels maps {word!r} to {label!r}: use one of {', '.join(space.labels)}, or "
                    "None"
                )

    def cell(self, table: Table, column: str, row: int) -> list[str] | None:
        """The labels of a cell, several only where the space allows them; None if it has none."""
        value = table.columns[column][row]
        where = f"{table.where(row)}: {column!r}"
        if isinstance(value, list | tuple):
            if not all(isinstance(word, str) for word in value):
                raise cell_error(table, column, row, "a list of texts")
            words: Sequence[str] = value
        else:
            text = text_cell(table, column, row)
            words = [] if text is None else [text]
            if text is not None and self._space.several and not self._is_label(text):
                words = _SEPARATORS.split(text)
        labels = [self.word(word.strip(), where) for word in words if word.strip()]
        known = list(dict.fromkeys(label for label in labels if label is not None))
        if len(known) > 1 and not self._space.several:
            raise UserError(
                f"{where} is {value!r}, but a face has one label of {self._space.id}: add "
                "multi_label: true to the label space, or keep one"
            )
        return known or None

    def word(self, word: str, where: str) -> str | None:
        """The label of a word; None for one that is mapped to None or stands for an empty cell.

        Raises:
            UserError: The word is not a label; the message starts with `where`.
        """
        if (key := key_of(word, self._labels)) is not None:
            return self._labels[key]
        label = self._space.canonical(word)
        if label is None and word.casefold() not in NULLS:
            labels = self._space.labels
            raise UserError(
                f"{where} is {word!r}, which is not one of {', '.join(labels)}: add it to the "
                f"aliases of the label space {self._space.id}, or map it, "
                f"labels={{{word!r}: {labels[0]!r}}}, or to None"
            )
        return label

    def _is_label(self, text: str) -> bool:
        return key_of(text, self._labels) is not None or self._space.canonical(text) is not None
