"""Select the training rows of several prompts about the same faces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from vlmface import answers
from vlmface.data.mixture import draw_evenly
from vlmface.errors import UserError
from vlmface.prompts import Prompt
from vlmface.schema import FaceSample

if TYPE_CHECKING:
    import datasets

Balance = Literal["none", "tasks", "labels"]


def row_labels(rows: datasets.Dataset, prompts: Sequence[Prompt]) -> list[list[str | None]]:
    """The label of each row for each prompt.

    Args:
        rows: FaceSample rows.
        prompts: The prompts.

    Returns:
        A list for each prompt: labels of its space (several as one text), None for a row without.
    """
    labels_by_prompt: list[list[str | None]] = [[] for _ in prompts]
    for row in rows.remove_columns(["image", "frames"]):
        sample = FaceSample.from_row(row)
        for labels, prompt in zip(labels_by_prompt, prompts, strict=True):
            labels.append(answers.join_labels(prompt.target_labels(sample)) or None)
    return labels_by_prompt


def check_balance(balance_by: Balance, prompts: Sequence[Prompt]) -> None:
    """Check that labels can be balanced.

    Raises:
        UserError: `balance_by` is "labels" and a prompt has several labels per face.
    """
    if balance_by == "labels" and (multi_label := [p.id for p in prompts if p.multi_label]):
        raise UserError(
            f"balance_by is 'labels', but {', '.join(multi_label)} asks for several labels of a "
            "face, which cannot all be made equally frequent: use tasks or none"
        )


def select_rows(
    labels: Sequence[Sequence[str | None]], balance_by: Balance, seed: int
) -> list[np.ndarray]:
    """Select the rows of each prompt. Deterministic under `seed`.

    Args:
        labels: From `row_labels`.
        balance_by: "none": every row, including those without a label, which the encoder skips and
            counts. "tasks": each prompt gets as many rows as the one with most labels; rows are
            repeated if there are too few. "labels": in addition, the numbers of rows of a prompt's
            labels differ by at most one.
        seed: Of the random choice.

    Returns:
        Sorted row indices for each prompt.
    """
    if balance_by == "none":
        return [np.arange(len(words)) for words in labels]
    rng = np.random.default_rng(seed)
    labelled = [
        np.array([i for i, word in enumerate(words) if word is not None]) for words in labels
    ]
    size = max(map(len, labelled))
    selected = []
    for words, rows in zip(labels, labelled, strict=True):
        if not len(rows):
            selected.append(rows)
            continue
        pools = [rows]
        if balance_by == "labels":
            row_words = np.array([words[i] for i in rows])
            pools = [rows[row_words == word] for word in sorted(set(row_words))]
        counts = [size // len(pools) + (k < size % len(pools)) for k in range(len(pools))]
        indices = [draw_evenly(pool, n, rng) for pool, n in zip(pools, counts, strict=True)]
        selected.append(np.sort(np.concatenate(indices)))
    return selected


def number(rows: datasets.Dataset, index: np.ndarray) -> datasets.Dataset:
    """The encoded rows of chosen samples, with the number of the sample in column `row`.

    Args:
        rows: Of `encode_rows`, whose `row` is the place in `index`.
        index: The numbers of the chosen samples.
    """
    if (index == np.arange(len(index))).all():
        return rows
    return _replace_column(rows, "row", index[np.array(rows["row"][:])].tolist())


def round_lengths(rows: datasets.Dataset, multiple: int = 32) -> datasets.Dataset:
    """The rows with their `length`, by which they are batched, rounded up to a multiple of so many
    tokens."""
    lengths = np.ceil(np.array(rows["length"][:]) / multiple) * multiple
    return _replace_column(rows, "length", lengths.astype(int).tolist())


def _replace_column(rows: datasets.Dataset, name: str, values: list[int]) -> datasets.Dataset:
    """The rows with another column of numbers in the place of one."""
    changed: datasets.Dataset = rows.remove_columns(name).add_column(name, values)
    return changed.select_columns(rows.column_names)
