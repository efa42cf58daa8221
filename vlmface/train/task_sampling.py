"""Select the training rows of several prompts about the same faces, their labels and weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from vlmface import answers, label_votes
from vlmface.data.mixture import draw_evenly
from vlmface.errors import UserError
from vlmface.prompts import Prompt, PromptLike
from vlmface.schema import FaceSample
from vlmface.train.label_weights import label_weights

if TYPE_CHECKING:
    import datasets

    from vlmface.train.settings import SFTSettings

Balance = Literal["none", "tasks", "labels"]
Target = Mapping[str, float]
"""{label: share} of a row, the shares of which sum to 1; {} for a row without a label."""

# Columns of `training_rows` that `rows.encode_rows` reads.
TARGET_LABEL, LABEL_WEIGHT = "target_label", "label_weight"


def row_targets(
    rows: datasets.Dataset, prompts: Sequence[PromptLike], *, soft: bool = False
) -> list[list[Target]]:
    """The labels of each row for each prompt.

    Args:
        rows: FaceSample rows.
        prompts: The prompts, or label texts of a CLIP.
        soft: Take the distribution of `label_votes` where a row has votes for labels of the space
            and the prompt asks for one label without a rationale.

    Returns:
        A list for each prompt. Several labels of a face are one text.

    Raises:
        UserError: `soft`, and no row has votes.
    """
    targets: list[list[Target]] = [[] for _ in prompts]
    has_votes = False
    images = [name for name in ("image", "frames", "images") if name in rows.column_names]
    for row in rows.remove_columns(images):
        sample = FaceSample.from_row(row)
        for prompt_targets, prompt in zip(targets, prompts, strict=True):
            shares = vote_shares(sample, prompt) if soft else {}
            has_votes = has_votes or bool(shares)
            labels = sample.labels(prompt.space)
            is_labelled = len(labels) == 1 or (prompt.multi_label and labels)
            hard = {answers.join_labels(labels): 1.0} if is_labelled else {}
            prompt_targets.append(shares or hard)
    if soft and not has_votes:
        raise UserError(
            f"soft_labels is true, but none of the {len(rows)} rows has label_votes for labels of "
            "the prompts: set soft_labels: false, or use data with the votes of annotators"
        )
    return targets


def takes_votes(prompt: PromptLike) -> bool:
    """Whether the votes of annotators can be the target of a prompt. A rationale leads to one
    label, so it is not trained with the others; of a scale the mean is the target."""
    is_scale = prompt.space.scale is not None
    return not (prompt.multi_label or prompt.has_rationale or is_scale)


def vote_shares(sample: FaceSample, prompt: PromptLike) -> Target:
    """The labels of a prompt's space that a sample has votes for; {} without votes, and for a
    prompt that is not trained on them."""
    if not takes_votes(prompt):
        return {}
    shares = label_votes.distribution(sample.label_votes or {}, prompt.space).probabilities
    return {label: share for label, share in (shares or {}).items() if share > 0}


def most_likely(targets: Sequence[Target]) -> list[str | None]:
    """The label of each row with the largest share, the first of equal ones; None without any."""
    return [max(target, key=target.__getitem__) if target else None for target in targets]


def check_balance(balance_by: Balance, prompts: Sequence[PromptLike]) -> None:
    """Raise UserError if labels are to be balanced and a prompt has several per face."""
    multi_label = ", ".join(prompt.id for prompt in prompts if prompt.multi_label)
    if balance_by == "labels" and multi_label:
        raise UserError(
            f"balance_by is 'labels', but {multi_label} asks for several labels of a face, which "
            "cannot all be made equally frequent: set balance_by: none"
        )


def check_prompts(settings: SFTSettings, prompts: Sequence[Prompt]) -> None:
    """Check that the prompts' labels can be balanced, weighted and learnt from votes.

    Raises:
        UserError: A prompt has several labels per face, or none can be learnt from votes.
    """
    check_balance(settings.balance_by, prompts)
    multi_label = ", ".join(prompt.id for prompt in prompts if prompt.multi_label)
    if settings.label_weight_power and multi_label:
        raise UserError(
            f"label_weight_power is {settings.label_weight_power:g}, but {multi_label} asks for "
            "several labels of a face, which cannot be weighted one by one: set it to 0"
        )
    if settings.soft_labels and not any(map(takes_votes, prompts)):
        raise UserError(
            "soft_labels is true, but no prompt asks for one label in words without a rationale "
            f"({', '.join(prompt.id for prompt in prompts)}): add such a prompt, or set "
            "soft_labels: false"
        )


def select_rows(
    labels: Sequence[Sequence[str | None]], balance_by: Balance, seed: int
) -> list[np.ndarray]:
    """Select the rows of each prompt. Deterministic under `seed`.

    Args:
        labels: The label of each row for each prompt, None for a row without.
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


def balanced_rows(
    rows: datasets.Dataset, prompt: PromptLike, balance_by: Balance, seed: int
) -> datasets.Dataset:
    """The rows that a recipe with one prompt trains on, see `select_rows`."""
    if balance_by == "none":
        return rows
    (targets,) = row_targets(rows, [prompt])
    (index,) = select_rows([most_likely(targets)], balance_by, seed)
    return rows.select(index)


def training_rows(
    samples: datasets.Dataset,
    index: np.ndarray,
    prompt: Prompt,
    targets: Sequence[Target],
    power: float,
) -> tuple[datasets.Dataset, np.ndarray]:
    """The rows of a prompt with their labels and weights in the loss: a row for each label of a
    face that is in its target.

    The weighted sum of these rows' losses is the expected loss over the target. Weights have the
    mean 1 over all rows.

    Args:
        samples: FaceSample rows.
        index: The numbers of the chosen samples.
        prompt: The prompt.
        targets: Of all samples.
        power: Of the weights, see `label_weights`.

    Returns:
        (the rows, with columns TARGET_LABEL and LABEL_WEIGHT; the number of each one's sample).
    """
    from datasets import Dataset, concatenate_datasets

    counts: defaultdict[str, float] = defaultdict(float)
    for i in index:
        for label, share in targets[i].items():
            counts[label] += share
    weights = label_weights(counts, power)
    labelled = [i for i in index if targets[i]]
    scale = sum(len(targets[i]) for i in labelled) / max(1, len(labelled))
    numbers: list[int] = []
    labels: list[str | None] = []
    label_weight: list[float] = []
    for i in index:
        for label, share in (targets[i] or {None: 1.0}).items():
            numbers.append(i)
            labels.append(label if takes_votes(prompt) else None)
            label_weight.append(share * scale * (weights[label] if label else 1.0))
    columns = Dataset.from_dict({TARGET_LABEL: labels, LABEL_WEIGHT: label_weight})
    return concatenate_datasets([samples.select(numbers), columns], axis=1), np.array(numbers)


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
