"""Several questions on the same faces: which rows each of them gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

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
    too few. "labels": the same, and within each prompt every label occurs equally often, or once
    more. Deterministic under `seed`.
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


def join(parts: Sequence[datasets.Dataset], chosen: Sequence[np.ndarray]) -> Any:
    """The encoded rows of all prompts (`sft.encode_rows` of the chosen ones) as one data set, their
    `row` numbers those of the faces and their `length` rounded up to 32 tokens.

    Rows of one length are batched together. A question's rows are all equally long, so that every
    batch would ask one question only, and the next one undo what it taught; rounded lengths mix.
    """
    from datasets import concatenate_datasets

    joined = []
    for part, index in zip(parts, chosen, strict=True):
        rows = index[np.array(part["row"][:])].tolist()
        lengths = (np.ceil(np.array(part["length"][:]) / 32) * 32).astype(int).tolist()
        plain = part.remove_columns(["row", "length"])
        joined.append(plain.add_column("row", rows).add_column("length", lengths))
    return concatenate_datasets(joined)
