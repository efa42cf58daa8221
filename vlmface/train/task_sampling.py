"""Several questions on the same faces: which rows each of them gets."""

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


def labels_of(rows: datasets.Dataset, prompts: Sequence[Prompt]) -> list[list[str | None]]:
    """For each prompt the label of each row in its space, several as one text, None where it has
    none."""
    found: list[list[str | None]] = [[] for _ in prompts]
    for row in rows.remove_columns(["image", "frames"]):
        sample = FaceSample.from_row(row)
        for labels, prompt in zip(found, prompts, strict=True):
            labels.append(answers.join_labels(prompt.truth(sample)) or None)
    return found


def check_balance(balance: Balance, prompts: Sequence[Prompt]) -> None:
    """Raises UserError if labels are to occur equally often that faces have several of."""
    if balance == "labels" and (asked := [prompt.id for prompt in prompts if prompt.several]):
        raise UserError(
            f"balance is 'labels', but {', '.join(asked)} asks for several labels of a face, which "
            "cannot all be made to occur equally often: use tasks or none"
        )


def choose(labels: Sequence[Sequence[str | None]], balance: Balance, seed: int) -> list[np.ndarray]:
    """For each prompt the rows that it is trained on, as sorted indices.

    "none": every row, also those without a label, which the encoder leaves out and counts. "tasks":
    each prompt gets as many rows as the one with most labels, rows occurring again where there are
    too few. "labels": the same, and within each prompt every label occurs equally often, up to
    one row. Deterministic under `seed`.
    """
    if balance == "none":
        return [np.arange(len(words)) for words in labels]
    chance = np.random.default_rng(seed)
    known = [np.array([i for i, word in enumerate(words) if word is not None]) for words in labels]
    size = max(map(len, known))
    chosen = []
    for words, rows in zip(labels, known, strict=True):
        if not len(rows):
            chosen.append(rows)
            continue
        pools = [rows]
        if balance == "labels":
            of = np.array([words[i] for i in rows])
            pools = [rows[of == word] for word in sorted(set(of))]
        counts = [size // len(pools) + (k < size % len(pools)) for k in range(len(pools))]
        drawn = [draw_evenly(pool, n, chance) for pool, n in zip(pools, counts, strict=True)]
        chosen.append(np.sort(np.concatenate(drawn)))
    return chosen


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
