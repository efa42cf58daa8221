"""People whose names begin the names of the pictures, as in P03_happy_02.png."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PureWindowsPath

import numpy as np

from vlmface.data.init.columns import Column
from vlmface.data.tables.name_pattern import NamePattern
from vlmface.errors import UserError

NAMES = "names of files"  # stands for a column
_PERSON = re.compile(r"([^\W\d_]{1,12}-?\d{1,6})([_\-. ]).")
_NOT_PEOPLE = ("img", "image", "frame", "face", "pic", "photo", "picture", "bild", "foto", "dsc")


def guess_pattern(paths: Sequence[str]) -> str | None:
    """The pattern of names of files that all begin with a name such as P03, which repeats; None if
    they do not.

    Args:
        paths: Of the pictures.
    """
    people, marks = [], set()
    for path in paths:
        fit = _PERSON.match(PureWindowsPath(path).name)
        if fit is None or fit[1].rstrip("-0123456789").casefold() in _NOT_PEOPLE:
            return None
        people.append(fit[1])
        marks.add(fit[2])
    if len(marks) != 1 or not 2 <= len(set(people)) <= len(paths) / 2:
        return None
    return f"{{subject}}{marks.pop()}*"


def fields_of(pattern: str) -> tuple[str, ...]:
    """What a pattern of names of files finds, of "subject" and "label"."""
    return NamePattern(pattern).fields


def column_of_names(paths: Sequence[str | None], pattern: str, field: str = "subject") -> Column:
    """The field that a pattern finds in the path of each row, as if it were a column.

    Raises:
        UserError: A path does not fit.
    """
    names = NamePattern(pattern)
    file_names = [path for path in paths if path is not None]
    texts = names.read(file_names)
    if field not in texts:
        raise UserError(f"--name-pattern {pattern!r} names no {{{field}}}: add it")
    values = list(dict.fromkeys(texts[field]))
    numbers = {text: i for i, text in enumerate(values)}
    field_texts = iter(texts[field])
    codes = [-1 if path is None else numbers[next(field_texts)] for path in paths]
    return Column(NAMES, values, np.array(codes, np.int64))
