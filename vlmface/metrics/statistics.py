"""Bootstrap intervals for scores that are functions of counts summed over rows.

Accuracy, UAR and F1 all follow from a few sums over rows (a confusion matrix, hits and misses).
A bootstrap resample therefore is one product of a matrix of draw counts and the matrix of per-row
counts, and every score of every resample is computed by the code that computes the score itself.

Rows of one person are alike, and an interval that takes them for independent is too narrow. With
`clusters`, whole clusters are drawn with replacement and all their rows come with them (the cluster
bootstrap of Field & Welsh, J. R. Stat. Soc. B 2007): the counts are summed over each cluster first,
and the sums are drawn as rows are.

Shares have intervals that hold at 0 and 1 too: see `shares`. Other scores of which all resamples
are equal (nothing is right, say) get the interval that `shift` makes from that of a share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlmface.errors import UserError
from vlmface.metrics.shares import LEVEL, MIN_UNITS, share_interval, zero_bound

Array = NDArray[np.float64]
Score = Callable[[Array], Mapping[str, Array]]
"""Summed counts of any leading shape (..., D1, D2) -> {score: values of that leading shape}."""

Shift = Callable[[Array, float], Array]
"""(sums, share) -> the sums if that share of what is wrong were right (or, below 0, of what is
right were wrong): how far a score may be from one of which all resamples are equal."""

RESAMPLES = 2000
_NO_WIDTH = 1e-9  # of an interval of which all resamples are equal
MANY = 20_000  # rows; above, alike ones are drawn together
_CHUNK = 2_000_000  # draws held in memory at once


def bootstrap(
    counts: Array,
    score: Score,
    *,
    clusters: Sequence[str] | None = None,
    shift: Shift | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, list[float]]:
    """95 % percentile intervals [low, high] of each score (Efron & Tibshirani 1993, ch. 13).

    `counts` is (rows, D1, D2): what each row adds to the sums. Rows are drawn with replacement, or
    `clusters`, the cluster that each row is in, such as its subject. Resamples in which a score is
    undefined (nan) are left out of its interval. An interval without width is widened by `shift`,
    or left out without one.
    """
    summed = _by_cluster(counts, clusters)
    scores = score(_resample([summed], resamples, seed)[0])
    intervals = {
        name: _interval(values) for name, values in scores.items() if np.isfinite(values).any()
    }
    return _with_width(intervals, summed, score, shift)


def paired_bootstrap(
    before: Array,
    after: Array,
    score: Score,
    *,
    clusters: Sequence[str] | None = None,
    shift: Shift | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Difference after - before of each score, {"difference", "ci95"}, on the same rows.

    Both arrays are (rows, D1, D2) with row i about the same image. Each resample draws the same
    rows, or `clusters` of rows, for both, so what makes an image hard for both does not widen the
    interval. An interval without width is widened as in `bootstrap`, or left out without `shift`.
    """
    if before.shape != after.shape:
        raise ValueError(f"counts of paired runs differ in shape: {before.shape}, {after.shape}")
    summed = [_by_cluster(array, clusters) for array in (before, after)]
    scores = [score(totals) for totals in _resample(summed, RESAMPLES, seed)]
    whole = [score(array.sum(0)) for array in (before, after)]
    differences = {
        name: float(whole[1][name] - whole[0][name])
        for name in whole[0]
        if np.isfinite(whole[1][name] - whole[0][name])
    }
    intervals = {name: _interval(scores[1][name] - scores[0][name]) for name in differences}
    intervals = _with_width(intervals, summed[1], score, shift)
    return {
        name: {"difference": difference} | ({"ci95": intervals[name]} if name in intervals else {})
        for name, difference in differences.items()
    }


def reweighted(
    score: Callable[[Array], Mapping[str, Array]],
    rows: int,
    *,
    clusters: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, list[float]]:
    """As `bootstrap`, for scores that are not a function of sums, such as those of a ranking.

    `score` takes how often each row is drawn, (some resamples, rows), and gives {score: (some
    resamples,)}. The rows, or clusters of rows, are drawn as in `bootstrap`. A score of which all
    resamples are equal has no interval.
    """
    inside = np.arange(rows)
    if clusters is not None:
        if len(clusters) != rows:
            raise ValueError(f"clusters are named for {len(clusters)} of {rows} rows")
        inside = np.unique(np.asarray(clusters), return_inverse=True)[1]
    parts: dict[str, list[Array]] = {}
    for draws in _draws(int(inside.max()) + 1, resamples, seed):
        for start in range(0, len(draws), step := max(1, _CHUNK // rows)):
            for name, values in score(draws[start : start + step, inside]).items():
                parts.setdefault(name, []).append(values)
    samples = {name: np.concatenate(values) for name, values in parts.items()}
    intervals = {
        name: _interval(values) for name, values in samples.items() if np.isfinite(values).any()
    }
    return {name: [low, high] for name, (low, high) in intervals.items() if high - low > _NO_WIDTH}


def mean(
    values: ArrayLike,
    clusters: Sequence[str] | None = None,
    *,
    signed: bool = False,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """{"value", "ci95"} of the mean of one number a row, by the bootstrap over rows or `clusters`
    of rows; the interval is of another `level` where that is given, and None for fewer than
    MIN_UNITS clusters.

    A share, the mean of values that are all 0 or 1, gets the interval of `shares.share_interval`;
    where values are `signed` and all 0, the bound of a share that was never seen is on both sides.
    """
    array = np.asarray(values, float)
    if not len(array):
        raise ValueError("a mean needs one value at least")
    value = float(array.mean())
    units = len(set(clusters)) if clusters is not None else len(array)
    if not signed and np.isin(array, (0, 1)).all():
        ones = np.ones_like(array)
        return {"value": value, "ci95": share_interval(array, ones, clusters=clusters, level=level)}
    if units < MIN_UNITS:
        return {"value": value, "ci95": None}
    counts = np.stack([array, np.ones_like(array)], 1)[:, None]
    if np.ptp(array) == 0:
        bound = zero_bound(units, level)
        return {"value": value, "ci95": [value - bound if signed or value else 0.0, value + bound]}
    # Far tails need more draws: fifty of them beyond either end, at least.
    resamples = max(resamples, round(100 / (1 - level)))
    means = _resample([_by_cluster(counts, clusters)], resamples, seed)[0][:, 0]
    return {"value": value, "ci95": _interval(means[:, 0] / means[:, 1], level)}


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
    for name, keyed_rows, other in (("first", keyed[0], keyed[1]), ("second", keyed[1], keyed[0])):
        if lone := [id for id in keyed_rows if id not in other]:
            raise UserError(
                f"the two runs did not answer the same images: {len(lone)} of "
                f"{len(keyed_rows)} ids are only in the {name} run, for example {lone[0]!r}: "
                "evaluate both on the same split and n"
            )
    for id, row in keyed[0].items():
        if row["truth"] != keyed[1][id]["truth"]:
            raise UserError(
                f"the two runs disagree about the truth of id {id!r}, {row['truth']} and "
                f"{keyed[1][id]['truth']}: evaluate both on the same version of the data"
            )
    return [keyed[1][row["id"]] for row in before]


def _by_cluster(counts: Array, clusters: Sequence[str] | None) -> Array:
    """The sums over the rows of each cluster, (clusters, D1, D2), clusters sorted by name; the
    counts of the rows as they are without clusters."""
    if clusters is None:
        return counts
    if len(clusters) != len(counts):
        raise ValueError(f"clusters are named for {len(clusters)} of {len(counts)} rows")
    index = np.unique(np.asarray(clusters), return_inverse=True)[1]
    order = np.argsort(index, kind="stable")
    starts = np.flatnonzero(np.diff(index[order], prepend=-1))
    return np.add.reduceat(counts[order], starts)


def _resample(counts: Sequence[Array], resamples: int, seed: int) -> list[Array]:
    """For each array, its sums over `resamples` draws of the rows: (resamples, D1, D2)."""
    flat = [array.reshape(len(array), -1) for array in counts]
    if len(flat[0]) > MANY:
        # Most rows of large sets are alike. How often each kind is drawn is multinomial.
        both, times = np.unique(np.concatenate(flat, 1), axis=0, return_counts=True)
        weights = np.random.default_rng(seed).multinomial(
            len(flat[0]), times / times.sum(), size=resamples
        )
        ends = np.cumsum([array.shape[1] for array in flat])[:-1]
        return [
            (weights @ kinds).reshape(resamples, *array.shape[1:])
            for kinds, array in zip(np.split(both, ends, axis=1), counts, strict=True)
        ]
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


def _with_width(
    intervals: dict[str, list[float]], summed: Array, score: Score, shift: Shift | None
) -> dict[str, list[float]]:
    """The intervals, those without width widened by what `shift` makes of the sums over all units,
    by a share as large as it may be though none of the units showed it."""
    flat = [name for name, (low, high) in intervals.items() if high - low <= _NO_WIDTH]
    if not flat:
        return intervals
    if shift is None:
        return {name: interval for name, interval in intervals.items() if name not in flat}
    totals = summed.sum(0)
    bound = zero_bound(int(summed.any((1, 2)).sum()))
    value, lower, higher = (score(shift(totals, share)) for share in (0.0, -bound, bound))
    widened = {
        name: [
            intervals[name][0] - max(0.0, float(value[name] - lower[name])),
            intervals[name][1] + max(0.0, float(higher[name] - value[name])),
        ]
        for name in flat
    }
    return intervals | widened


def _interval(values: Array, level: float = LEVEL) -> list[float]:
    tail = 50 * (1 - level)
    return [float(x) for x in np.nanpercentile(values, [tail, 100 - tail])]
