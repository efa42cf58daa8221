"""How the rows of a user's data are split into train, validation and test."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from vlmface.data.splits import rare_labels
from vlmface.data.tables.table import Table
from vlmface.errors import UserError

VALIDATION, TEST = 0.15, 0.2  # shares
MIN_ROWS = 10  # with a label, to train on some and to test on others


def shares(present: Collection[str], groups: int) -> dict[str, Any]:
    """The shares of validation and test to take from the training rows.

    Args:
        present: The splits that the data have already.
        groups: How many people or pictures there are to divide.
    """
    taken: dict[str, Any] = {}
    if "test" not in present:
        taken["test"] = TEST
    if "validation" not in present and groups > 1 + len(taken):
        taken = {"validation": VALIDATION, **taken}
    return taken


def check_number(table: Table, labels: Sequence[Sequence[str]]) -> None:
    """Raise UserError for too few rows.

    Args:
        table: The table.
        labels: The labels of each row.
    """
    labelled = sum(bool(words) for words in labels)
    if labelled < MIN_ROWS:
        raise UserError(
            f"{table.path} has {labelled} rows with a label, too few to train on some and to test "
            f"on others: {MIN_ROWS} at least"
        )


def check_rare(
    table: Table, groups: Sequence[str], labels: Sequence[Sequence[str]], *, by: str
) -> None:
    """Raise UserError for a label that cannot be in train and in test.

    Args:
        table: The table.
        groups: The person, video or picture of each row.
        labels: The labels of each row.
        by: What the groups are: "subject", "video" or "image".
    """
    if rare := rare_labels(groups, labels):
        raise _rare(table, groups, rare, sorted({w for words in labels for w in words}), by)


def _rare(
    table: Table,
    groups: Sequence[str],
    rare: Mapping[str, int],
    words: Sequence[str],
    by: str,
) -> UserError:
    """The error about labels of a single person or row, with the labels that they may be meant for.

    Args:
        table: The table.
        groups: The person or picture of each row.
        rare: {label: its first row}.
        words: All labels.
        by: What the groups are: "subject", "video" or "image".
    """
    frequent = [word for word in words if word not in rare]
    fixes = {label: (get_close_matches(label, frequent, 1) or ["null"])[0] for label in rare}
    options = " ".join(shlex.quote(f"{label}={word}") for label, word in fixes.items())
    if len(rare) > 1:
        unit = {
            "subject": "pictures of a single person",
            "video": "frames of a single video",
        }.get(by, "a single row")
        named = ", ".join(f"{label!r} ({table.place(row)})" for label, row in rare.items())
        return UserError(
            f"{table.path}: some labels are on {unit} each, so they cannot be in train and in "
            f"test: {named}. Correct them, or replace or leave them out with --labels {options}"
        )
    ((label, row),) = rare.items()
    single = {
        "subject": f"pictures of a single person ({groups[row]})",
        "video": f"frames of a single video ({groups[row]})",
    }.get(by, "a single row")
    return UserError(
        f"{table.where(row)}: the label {label!r} is on {single}, so it cannot be in train and "
        f"in test: correct it, or replace it or leave it out with --labels {options}"
    )
