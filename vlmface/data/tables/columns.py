"""Which column of a table holds which field."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from vlmface.data.records import check_choice, short_repr
from vlmface.data.tables.options import TableOptions
from vlmface.data.tables.table import Table
from vlmface.errors import UserError

MEDIA = ("image", "frames", "video")
PLACES = ("frame", "start", "end")  # in a video, or a folder of frames
TEXTS = ("subject", "rationale")
WORDS = ("gender", "race", "age_group")
NUMBERS = ("valence", "arousal", "age")
LABELS = ("emotion", "context", "label_votes")
FIELDS = (*MEDIA, *PLACES, "id", *LABELS, *TEXTS, *WORDS, *NUMBERS, "face_box")

Source = Mapping[str, str | list[str]]  # field -> its column; of face_box perhaps four


def find_columns(table: Table, columns: Mapping[str, Any]) -> dict[str, Any]:
    """The column of each field that the table has.

    Args:
        table: the table.
        columns: the option: {field: column, list of columns, or None to ignore it}.

    Raises:
        UserError: a field or a column is unknown.
    """
    source: dict[str, Any] = {"id": "id"} if "id" in table.columns else {}  # "ID": often a person's
    for field in FIELDS:
        # A column "frame" or "start" means something only next to a video, and one "video" or
        # "frames" next to a picture is a note.
        if field in ("id", *PLACES) or field in columns:
            continue
        if field in MEDIA and any(columns.get(m) or m in source for m in MEDIA):
            continue
        if name := table.find(field):
            source[field] = name
    for field, column in columns.items():
        check_choice("columns", field, FIELDS)
        source.pop(field, None)
        option = f"columns={{{field!r}: {column!r}}}"
        if isinstance(column, list | tuple):
            if field != "face_box" or len(column) != 4:
                raise UserError(f"{option}: only face_box takes a list, of four columns")
            source[field] = [table.need(name, option) for name in column]
        elif column is not None:
            source[field] = table.need(column, option)
    if "video" in source:
        for field in PLACES:
            if field not in columns and (name := table.find(field)):
                source[field] = name
    return source


def check_media(table: Table, source: Source) -> None:
    """Raise UserError if no column says where the pictures are."""
    if not {*MEDIA, "frame"} & source.keys():
        raise UserError(
            f"{table.path} has no column 'image', only {table.names()}: name the one with the "
            "paths, columns={'image': '...'} (or frames, or video), or add the header if it has "
            "none, or pass header=False"
        )


def matching_columns(table: Table, patterns: str | Sequence[str], option: str) -> list[str]:
    """The columns whose names fit a pattern or one of a list, in any letter case.

    Raises:
        UserError: there is none.
    """
    names = columns_like(table, patterns)
    if not names:
        raise UserError(f"{option}={patterns!r} fits no column of {table.path}: {table.names()}")
    return names


def columns_like(table: Table, patterns: str | Sequence[str]) -> list[str]:
    """The columns whose names fit a pattern or one of a list, in any letter case."""
    lowered = [p.lower() for p in ([patterns] if isinstance(patterns, str) else map(str, patterns))]

    def fits(name: str) -> bool:
        return any(name == pattern or fnmatchcase(name, pattern) for pattern in lowered)

    return [column for column in table.columns if fits(column.lower())]


def warn_of_no_label(table: Table, source: Source, options: TableOptions) -> None:
    """Warn that no column was read as a label, if others are left."""
    read = {options.split_column}
    for column in source.values():
        read |= {column} if isinstance(column, str) else set(column)
    if others := [name for name in table.columns if name not in read]:
        warnings.warn(
            f"{table.path}: no column was read as a label, of {short_repr(others)}: name them in "
            "columns=, as in {'emotion': '...'}, votes= or aus=",
            stacklevel=3,
        )


def number_in(column: str) -> str | None:
    """The digits of the one action unit that a column's name is about: "AU01_r" and "AU 12 (left)"
    have one, "au1_au2" has two."""
    numbers = re.findall(r"au[\s_.-]*[lr]?(\d+)", column.lower()) or re.findall(r"\d+", column)
    return numbers[0].lstrip("0") if len(numbers) == 1 else None
