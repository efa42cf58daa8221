"""Counts of labels that the owners of a data set published, for `vlmface data check`."""

from __future__ import annotations


def published_counts(table: str) -> dict[str, dict[str, int]]:
    """The counts of each split, from a table whose columns are set apart by spaces.

    Args:
        table: a header "split rows anger ..." and one line for each split. Blank lines are skipped;
            "-" stands for a number that is not published.

    Returns:
        {split: {"rows" or a label: number}}.
    """
    header, *lines = [line.split() for line in table.splitlines() if line.strip()]
    return {
        split: {
            label: int(count)
            for label, count in zip(header[1:], counts, strict=True)
            if count != "-"
        }
        for split, *counts in lines
    }
