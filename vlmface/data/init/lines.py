"""The lines that `data init` prints about what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlmface.data.init.columns import Column
from vlmface.data.init.labels import LabelGuess
from vlmface.data.tables.table import Table

EXAMPLES = 5  # rows that are shown


def line(role: str, column: str, text: str) -> str:
    """A line about a role, the column that holds it, and what is in it."""
    return f"  {role:13}{column:20} {text}".rstrip()


def counted(guess: LabelGuess) -> str:
    """The labels with their numbers of rows, or the numbers of a scale."""
    if guess.text:
        return guess.text
    by_count = sorted(((label, n) for label, n in guess.counts.items() if n), key=lambda x: -x[1])
    listed = ", ".join(f"{label} ({n:,})" for label, n in by_count[:12])
    more = f", ... {len(by_count)} labels" if len(by_count) > 12 else ""
    kind = "; a face may have several" if guess.space.multi_label else ""
    space_name = f"; label space {guess.space.id}" if guess.space.is_built_in else ""
    return listed + more + kind + space_name


def role_lines(
    columns: Mapping[str, Column], roles: Mapping[str, str], guess: LabelGuess, picture_text: str
) -> list[str]:
    """A line for each role that a column has."""
    lines = []
    for role, name in roles.items():
        column = columns[name]
        if role in ("image", "video"):
            text = picture_text
        elif role == "label":
            text = counted(guess)
        elif role == "subject":
            text = f"{len(column.words):,} people, such as {next(iter(column.words))}"
        elif column.numbers:
            text = f"{min(column.numbers):g} to {max(column.numbers):g}"
        else:
            text = ", ".join(list(column.words)[:4])
        lines.append(line(role, name, text))
    return lines


def unused(table: Table, used: Sequence[str]) -> list[str]:
    """A line about the columns that are not used."""
    names = [name for name in table.columns if name not in used]
    more = f", ... {len(names)} columns" if len(names) > 12 else ""
    return [line("not used", "", ", ".join(names[:12]) + more)] if names else []


def examples(table: Table, names: Sequence[str]) -> list[str]:
    """The first rows of some columns."""
    chosen = np.linspace(0, len(table) - 1, min(EXAMPLES, len(table))).round().astype(int)
    rows = [[_cell(table.columns[name][row]) for name in names] for row in chosen.tolist()]
    widths = [max(map(len, cells)) for cells in zip(names, *rows, strict=True)]
    return [
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (names, *rows)
    ]


def _cell(value: Any) -> str:
    value = value.as_py() if hasattr(value, "as_py") else value
    if isinstance(value, bytes | dict):
        return "(picture)"
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:18]}…{text[-21:]}"
