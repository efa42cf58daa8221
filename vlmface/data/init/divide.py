"""How the rows of a user's data are split into train, validation and test."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from vlmface.data.splits import rare_label
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


def check_rows(
    table: Table, groups: Sequence[str], labels: Sequence[Sequence[str]], *, by: str
) -> None:
    """Raise UserError for too few rows, and for a label that cannot be in train and in test.

    Args:
        table: The table.
        groups: The person, video or picture of each row.
        labels: The labels of each row.
        by: What the groups are: "subject", "video" or "image".
    """
    labelled = sum(bool(words) for words in labels)
    if labelled < MIN_ROWS:
        raise UserError(
            f"{table.path} has {labelled} rows with a label, too few to train on some and to test "
            f"on others: {MIN_ROWS} at least"
        )
    if rare := rare_label(groups, labels):
        label, row = rare
        single = {
            "subject": f"pictures of a single person ({groups[row]})",
            "video": f"frames of a single video ({groups[row]})",
        }.get(by, "a single row")
        raise UserError(
            f"{table.where(row)}: the label {label!r} is on {single}, so it cannot be in train and "
            f"in test: correct it, or leave it out with --labels {label!r}=null"
        )
