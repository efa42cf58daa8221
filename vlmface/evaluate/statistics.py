"""Bootstrap intervals for scores that are functions of counts summed over rows.

Accuracy, UAR and F1 all follow from a few sums over rows (a confusion matrix, hits and misses).
A bootstrap resample therefore is one product of a matrix of draw counts and the matrix of per-row
counts, and every score of every resample is computed by the code that computes the score itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmface.errors import UserError

Array = NDArray[np.float64]
Score = Callable[[Array], Mapping[str, Array]]
"""Summed counts of any leading shape (..., D1, D2) -> {score: values of that leading shape}."""

RESAMPLES = 2000
LEVEL = 0.95
_CHUNK = 2_000_000  # draws held in memory at once


def bootstrap(
    counts: Array, score: Score, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, list[float]]:
    """95 % percentile intervals [low, high] of each score (Efron & Tibshirani 1993, ch. 13).

    `counts` is (rows, D1, D2): what each row adds to the sums. Rows are drawn with replacement.
    Resamples in which a score is undefined (nan) are left out of its interval.
    """
    scores = score(_resample([counts], resamples, seed)[0])
    return {name: _interval(values) for name, values in scores.items() if np.isfinite(values).any()}


def paired_bootstrap(
    before: Array, after: Array, score: Score, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Difference after - before of each score, {"difference", "ci95"}, on the same rows.

    Both arrays are (rows, D1, D2) with row i about the same image. Each resample draws the same
    rows for both, so what makes an image hard for both does not widen the interval.
    """
    if before.shape != after.shape:
        raise ValueError(f"counts of paired runs differ in shape: {before.shape}, {after.shape}")
    drawn = [score(totals) for totals in _resample([before, after], resamples, seed)]
    whole = [score(array.sum(0)) for array in (before, after)]
    return {
        name: {
            "difference": float(whole[1][name] - whole[0][name]),
            "ci95": _interval(drawn[1][name] - drawn[0][name]),
        }
        for name in whole[0]
        if np.isfinite(whole[1][name] - whole[0][name])
    }


def align(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The rows of `after` in the order of `before`, matched by `id`.

    Raises UserError if an id occurs twice or in one list only, or with another `truth`: that would
    be a difference between data sets.
    """
    keyed: list[dict[Any, Mapping[str, Any]]] = []
    for name, rows in (("first", before), ("second", after)):
        ids = Counter(row["id"] for row in rows)
        if twice := [id for id, times in ids.items() if times > 1]:
            raise UserError(f"the {name} run has several predictions for id {twice[0]!r}: keep one")
        keyed.append({row["id"]: row for row in rows})
    for name, one, other in (("first", keyed[0], keyed[1]), ("second", keyed[1], keyed[0])):
        if lone := [id for id in one if id not in other]:
            raise UserError(
                f"the two runs did not answer the same images: {len(lone)} of {len(one)} ids are "
                f"only in the {name} run, for example {lone[0]!r}: "
                "evaluate both on the same split and n"
            )
    for id, row in keyed[0].items():
        if row["truth"] != keyed[1][id]["truth"]:
            raise UserError(
                f"the two runs disagree about the truth of id {id!r}, {row['truth']} and "
                f"{keyed[1][id]['truth']}: evaluate both on the same version of the data"
            )
    return [keyed[1][row["id"]] for row in before]


def _resample(counts: Sequence[Array], resamples: int, seed: int) -> list[Array]:
    """For each array, its sums over `resamples` draws of the rows: (resamples, D1, D2)."""
    flat = [array.reshape(len(array), -1) for array in counts]
    parts = [[draws @ array for array in flat] for draws in _draws(len(flat[0]), resamples, seed)]
    return [
        np.concatenate(blocks).reshape(resamples, *array.shape[1:])
        for blocks, array in zip(zip(*parts, strict=True), counts, strict=True)
    ]


def _draws(rows: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each row is drawn: blocks of (some resamples, rows), each line summing to rows."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // rows)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        picks = rng.integers(rows, size=(size, rows)) + rows * np.arange(size)[:, None]
        yield np.bincount(picks.ravel(), minlength=size * rows).reshape(size, rows).astype(float)


def _interval(values: Array) -> list[float]:
    tail = 50 * (1 - LEVEL)
    return [float(x) for x in np.nanpercentile(values, [tail, 100 - tail])]
