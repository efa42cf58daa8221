"""What the names of files say: `{subject}_{label}_*` of P03_happy_02.png."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import PureWindowsPath
from typing import Any

from vlmface.data.tables.labels import LabelWords
from vlmface.data.tables.options import TableOptions
from vlmface.errors import UserError
from vlmface.utils.images import without_suffix

FIELDS = ("subject", "label")
MAX_LENGTH = 200  # of a pattern
_PART = re.compile(r"\{([^{}]*)\}|\*|/|[^{}*/]+")


class NamePattern:
    """A pattern of names of files, with the places of `{subject}` and `{label}`.

    `*` stands for any characters. A pattern with `/` is about the last folders, too, as in
    `{subject}/*`. The ending of a picture is not part of its name.

    Args:
        pattern: The pattern.

    Raises:
        UserError: It names no field, another one, or one twice, or nothing parts two of its places.
    """

    def __init__(self, pattern: str) -> None:
        self.text = pattern
        parts = list(_PART.finditer(without_suffix(pattern)))
        self.fields = tuple(part[1] for part in parts if part[1] is not None)
        whole = "".join(part[0] for part in parts) == without_suffix(pattern)
        are_known = set(self.fields) <= set(FIELDS) and len(self.fields) == len(set(self.fields))
        parted = not any(_is_place(a) and _is_place(b) for a, b in pairwise(parts))
        if not (whole and self.fields and are_known and parted and len(pattern) <= MAX_LENGTH):
            raise UserError(
                f"name_pattern={pattern!r}: use {{subject}} or {{label}} once each, * for the "
                "rest, and other characters between them, as in {subject}_{label}_*"
            )
        self._depth = pattern.count("/") + 1
        self._regex = re.compile(_regex(parts))

    def match(self, path: str) -> dict[str, str] | None:
        """{field: text} of a path; None if it does not fit."""
        last = PureWindowsPath(path).parts[-self._depth :]
        if len(last) < self._depth:
            return None
        fit = self._regex.fullmatch("/".join((*last[:-1], without_suffix(last[-1]))))
        return fit.groupdict() if fit else None

    def read(self, paths: Sequence[str]) -> dict[str, list[str]]:
        """{field: its text in each path}.

        Raises:
            UserError: A path does not fit.
        """
        fields: dict[str, list[str]] = {name: [] for name in self.fields}
        for path in paths:
            texts = self.match(path)
            if texts is None:
                raise UserError(
                    f"the picture {path!r} does not fit name_pattern={self.text!r}: rename it, or "
                    "change the pattern"
                )
            for name, text in texts.items():
                fields[name].append(text)
        return fields


def _is_place(part: re.Match[str]) -> bool:
    return part[1] is not None or part[0] == "*"


def _regex(parts: Sequence[re.Match[str]]) -> str:
    """The pattern as a regular expression. Each place ends where the text after it occurs first,
    in an atomic group: trying all places of all texts would take exponential time."""
    pieces, i = [], 0
    while i < len(parts):
        place = f"(?P<{parts[i][1]}>[^/]+?)" if parts[i][1] is not None else "[^/]*?"
        if not _is_place(parts[i]):
            pieces.append(re.escape(parts[i][0]))
        elif any(_is_place(part) for part in parts[i + 2 :]):
            pieces.append(f"(?>{place}{re.escape(parts[i + 1][0])})")
            i += 1
        else:
            pieces.append(place)
        i += 1
    return "".join(pieces)


def fields_of_names(paths: Sequence[str], options: TableOptions) -> dict[str, Any]:
    """The columns that the option `name_pattern` finds in the paths of pictures: `subject`, and the
    labels of `label_field`.

    Raises:
        UserError: A path does not fit, or holds a word that is not a label.
    """
    texts = NamePattern(options.name_pattern or "").read(paths)
    fields: dict[str, Any] = {"subject": texts["subject"]} if "subject" in texts else {}
    if "label" in texts:
        words = LabelWords(options)
        where = f"the label that name_pattern={options.name_pattern!r} finds"
        labels = {word: words.label(word, where) for word in dict.fromkeys(texts["label"])}
        fields[options.label_field] = words.column([labels[word] for word in texts["label"]])
    return fields
