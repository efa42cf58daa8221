"""Measures of affective computing beside accuracy, UAR and F1 of labels: from arrays to numbers.

    label probabilities   top-k accuracy, negative log-likelihood, Brier score, calibration
    AU intensities        ICC(3,1), PCC, MSE, MAE
    valence and arousal   CCC, PCC, RMSE, SAGR
    several labels        F1, Jaccard, average precision of classes that may occur together
    age                   MAE, accuracy of the age group
    two runs              McNemar's exact test, Holm's correction

Those of words and texts are in `text_measures`.

A row is one prediction; rows that are not annotated must be left out before. A measure that is not
defined on its rows, such as the correlation with a constant, is nan. What cannot be measured at all
(no rows, other lengths, values that are not finite or out of range) is a UserError.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from vlmface.errors import UserError
from vlmface.metrics.array_checks import (
    Flags,
    check_range,
    check_same_length,
    check_same_shape,
    flags_of,
    pair,
    probability_table,
    table_of,
    vector,
)
from vlmface.metrics.statistics import Array

ECE_BINS = 15
NLL_FLOOR = float(np.finfo(float).eps)  # 2.2e-16, as in scikit-learn's log_loss


# --- label probabilities --------------------------------------------------------------------------


def top_k_accuracy(probabilities: ArrayLike, truth: ArrayLike, k: int) -> float:
    """Share of the rows whose true label is among the `k` most probable ones, 0..1.

    `probabilities` is (N, K), `truth` (N,) indices of labels. Of equally probable labels the first
    of the table ranks first, as in numpy.argmax. Russakovsky et al., IJCV 2015 (its complement, the
    top-5 error).
    """
    table, true = probability_table(probabilities, truth)
    labels = table.shape[1]
    if not 1 <= k <= labels:
        raise UserError(f"top-k accuracy with k = {k} of {labels} labels: use 1 to {labels}")
    of_truth = table[np.arange(len(true)), true][:, None]
    earlier = np.arange(labels) < true[:, None]
    rank = ((table > of_truth) | ((table == of_truth) & earlier)).sum(1)
    return float((rank < k).mean())


def negative_log_likelihood(probabilities: ArrayLike, truth: ArrayLike) -> float:
    """Mean of -ln p(true label) in nats, 0..36.04; 0 is best.

    `probabilities` is (N, K), `truth` (N,) indices of labels. A probability below NLL_FLOOR counts
    as NLL_FLOOR: a single row that had ruled out the truth would make the mean infinite otherwise.
    Good, J. R. Stat. Soc. B 1952.
    """
    table, true = probability_table(probabilities, truth)
    of_truth = table[np.arange(len(true)), true]
    return float(-np.log(np.clip(of_truth, NLL_FLOOR, 1)).mean())


def brier_score(probabilities: ArrayLike, truth: ArrayLike) -> float:
    """Mean over rows of the squared error summed over all labels, 0..2; 0 is best.

    `probabilities` is (N, K), `truth` (N,) indices of labels. This is the original form (Brier,
    Monthly Weather Review 1950); of two labels it is twice the form that looks at one of them.
    """
    table, true = probability_table(probabilities, truth)
    error = table.copy()
    error[np.arange(len(true)), true] -= 1
    return float(np.square(error).sum(1).mean())


def top_label(probabilities: ArrayLike, truth: ArrayLike) -> tuple[Array, Flags]:
    """(confidence, right) of each row, (N,) both: the highest probability, and whether its label,
    the first one of equal ones, is the true one. Calibration is measured on these."""
    table, true = probability_table(probabilities, truth)
    best = table.argmax(1)
    return table[np.arange(len(true)), best], best == true


def reliability(confidence: ArrayLike, right: ArrayLike) -> dict[str, Array]:
    """The table behind a reliability diagram: `count`, mean `confidence` and `accuracy` of the rows
    in each of ECE_BINS bins of equal width, (ECE_BINS,) each; nan in a bin without rows.

    `confidence` (N,) is the probability of the answer, 0..1, and `right` (N,) whether it is true.
    Bin m of M holds the confidences in ((m - 1) / M, m / M]; 0 is in the first. Guo et al., ICML
    2017.
    """
    sure, hit = vector("confidence", confidence), flags_of("right", right)
    check_same_length(confidence=sure, right=hit)
    check_range("confidence", sure)
    bins = np.clip(np.ceil(sure * ECE_BINS) - 1, 0, ECE_BINS - 1).astype(int)
    count = np.bincount(bins, minlength=ECE_BINS).astype(float)
    return {
        "count": count,
        "confidence": ratio(np.bincount(bins, weights=sure, minlength=ECE_BINS), count),
        "accuracy": ratio(np.bincount(bins, weights=hit, minlength=ECE_BINS), count),
    }


def expected_calibration_error(confidence: ArrayLike, right: ArrayLike) -> float:
    """Mean gap between accuracy and confidence over the bins of `reliability`, weighted by their
    counts, 0..1; 0 is best. Guo et al., ICML 2017, after Naeini et al., AAAI 2015."""
    table = reliability(confidence, right)
    gaps = np.abs(table["accuracy"] - table["confidence"])
    return float(np.nansum(table["count"] * gaps) / table["count"].sum())


# --- intensities, valence and arousal, age --------------------------------------------------------


def mean_absolute_error(predicted: ArrayLike, true: ArrayLike) -> float:
    """MAE, mean of |predicted - true| of two (N,), in their unit; 0 is best."""
    x, y = pair(predicted, true)
    return float(np.abs(x - y).mean())


def mean_squared_error(predicted: ArrayLike, true: ArrayLike) -> float:
    """MSE, mean of (predicted - true)² of two (N,), in their unit squared; 0 is best."""
    x, y = pair(predicted, true)
    return float(np.square(x - y).mean())


def root_mean_squared_error(predicted: ArrayLike, true: ArrayLike) -> float:
    """RMSE, root of the mean squared error of two (N,), in their unit; 0 is best."""
    return float(np.sqrt(mean_squared_error(predicted, true)))


def pearson_correlation(predicted: ArrayLike, true: ArrayLike) -> float:
    """PCC of two (N,), -1..1; nan if one of them is constant. Pearson, 1895."""
    x, y = (_centred(values) for values in pair(predicted, true))
    spread = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(np.clip((x * y).sum() / spread, -1, 1)) if spread > 0 else float("nan")


def concordance_correlation(predicted: ArrayLike, true: ArrayLike) -> float:
    """CCC of two (N,), -1..1: 2 cov(x, y) / (var x + var y + (mean x - mean y)²), variances divided
    by N. nan if both are the same constant, 0 if one of them is constant. Lin, Biometrics 1989.

    Other than the PCC it is 1 only if the values are the same, not if they are proportional.
    """
    x, y = pair(predicted, true)
    dx, dy = _centred(x), _centred(y)
    below = float((dx**2).mean() + (dy**2).mean() + (x.mean() - y.mean()) ** 2)
    return float(np.clip(2 * (dx * dy).mean() / below, -1, 1)) if below > 0 else float("nan")


def sign_agreement(predicted: ArrayLike, true: ArrayLike) -> float:
    """SAGR, share of the rows in which both have the same sign, 0..1; 0 has a sign of its own.
    Nicolaou, Gunes & Pantic, IEEE Trans. Affective Computing 2011."""
    x, y = pair(predicted, true)
    return float((np.sign(x) == np.sign(y)).mean())


def intraclass_correlation(ratings: ArrayLike) -> float:
    """ICC(3,1) of `ratings` (subjects, judges), -1 / (judges - 1)..1.

    The consistency of single ratings by the same judges for all subjects, from a two-way analysis
    of variance: (BMS - EMS) / (BMS + (judges - 1) EMS), with the mean squares between subjects and
    of the error. A constant difference between judges does not lower it. nan if each judge gives
    everybody the same. Shrout & Fleiss, Psychological Bulletin 1979.

    AU intensities, 0..5: of a model and a coder, numpy.stack([predicted, true], 1).
    """
    table = table_of("ratings", ratings)
    subjects, judges = table.shape
    if subjects < 2 or judges < 2:
        raise UserError(
            f"ratings are of {subjects} subjects by {judges} judges: ICC needs two of each at least"
        )
    if not np.ptp(table, axis=0).any():
        return float("nan")
    of_subject = table.mean(1, keepdims=True) - table.mean()
    of_judge = table.mean(0, keepdims=True) - table.mean()
    error = table - table.mean() - of_subject - of_judge
    between = judges * np.square(of_subject).sum() / (subjects - 1)
    within = np.square(error).sum() / ((subjects - 1) * (judges - 1))
    return float((between - within) / (between + (judges - 1) * within))


def group_accuracy(predicted: ArrayLike, true: ArrayLike, edges: Sequence[float]) -> float:
    """Share of the ages (N,), in years, that are in the same age group as the true ones, 0..1.

    `edges` are the ages at which a new group begins: (3, 10, 20) makes the groups below 3, 3 to
    below 10, 10 to below 20, and 20 and older. Groups such as those of FairFace, Kärkkäinen & Joo,
    WACV 2021.
    """
    x, y = pair(predicted, true)
    starts = vector("edges", edges)
    if (np.diff(starts) <= 0).any():
        raise UserError(f"edges of age groups are {list(edges)}: give them ascending, each once")
    groups = [np.searchsorted(starts, ages, side="right") for ages in (x, y)]
    return float((groups[0] == groups[1]).mean())


# --- several labels at once -----------------------------------------------------------------------


def multilabel_f1(predicted: ArrayLike, present: ArrayLike) -> dict[str, float]:
    """{"f1_macro", "f1_micro"} of (N, C) flags, 0..1: `multilabel_scores` of their tally."""
    predictions, true = flags_of("predicted", predicted, 2), flags_of("present", present, 2)
    check_same_shape(predicted=predictions, present=true)
    tally = np.stack(
        [(predictions & true).sum(0), (predictions & ~true).sum(0), (~predictions & true).sum(0)],
        -1,
    )
    return {name: float(value) for name, value in multilabel_scores(tally.astype(float)).items()}


def jaccard(predicted: Collection[str], true: Collection[str]) -> float:
    """Labels that are in both by labels that are in either, 0..1: 1 if and only if they are the
    same, 0 if nothing is right. Two empty sets are the same. Jaccard, 1912."""
    either = set(predicted) | set(true)
    return len(set(predicted) & set(true)) / len(either) if either else 1.0


def multilabel_scores(tally: Array) -> dict[str, Array]:
    """f1_macro, f1_micro of tallies (..., C, 3) of hits, false alarms and misses.

    Macro: mean binary F1 of the classes that are present at least once in the truth. Micro: F1 of
    the hits, false alarms and misses pooled over all classes. nan where no class is present.
    """
    parts = binary_scores(tally)
    hit, alarm, miss = np.moveaxis(tally.sum(-2), -1, 0)
    return {
        "f1_macro": mean_where(parts["f1"], parts["support"] > 0),
        "f1_micro": ratio(2 * hit, np.where(hit + miss > 0, 2 * hit + alarm + miss, 0)),
    }


def shift_tally(tally: Array, share: float) -> Array:
    """Tallies (C, 3) with `share` of the misses made hits and of the false alarms left out or,
    below 0, of the hits made misses; see `statistics.Shift`."""
    hit, alarm, miss = np.moveaxis(tally, -1, 0)
    moved = share * (miss if share >= 0 else hit)
    return np.stack([hit + moved, alarm * (1 - max(share, 0.0)), miss - moved], -1)


def binary_scores(tally: Array) -> dict[str, Array]:
    """f1, precision, recall, support of each class of tallies (..., C, 3); nan where undefined."""
    hit, alarm, miss = np.moveaxis(tally, -1, 0)
    support = hit + miss
    return {
        "f1": ratio(2 * hit, np.where(support > 0, 2 * hit + alarm + miss, 0)),
        "precision": ratio(hit, hit + alarm),
        "recall": ratio(hit, support),
        "support": support,
    }


def average_precision(scores: ArrayLike, present: ArrayLike) -> float:
    """AP of one class, 0..1: the sum over thresholds of precision times gain in recall, without
    interpolation. `scores` (N,) rank the rows, `present` (N,) flags the true ones; equal scores are
    one threshold. nan if the class is never present. Zhu, University of Waterloo 2004.
    """
    values, true = vector("scores", scores), flags_of("present", present)
    check_same_length(scores=values, present=true)
    if not true.any():
        return float("nan")
    order = np.argsort(-values, kind="stable")
    hits = np.cumsum(true[order])
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    gains = np.diff(hits[ends], prepend=0) / hits[-1]
    return float((gains * hits[ends] / (ends + 1)).sum())


def weighted_average_precision(scores: ArrayLike, present: ArrayLike, weights: Array) -> Array:
    """`average_precision` with the rows occurring as often as each line of `weights` (R, N) says:
    (R,); nan where no true row occurs. It is what a bootstrap draws."""
    values, true = vector("scores", scores), flags_of("present", present)
    check_same_length(scores=values, present=true)
    if not true.any():
        return np.full(len(weights), np.nan)
    order = np.argsort(-values, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    # Recall only grows at thresholds with true rows: sums between these are all that is needed.
    right = np.flatnonzero(true[order])
    threshold, first = np.unique(np.searchsorted(ends, right), return_index=True)
    begin = np.append(0, ends[threshold][:-1] + 1)
    upto = order[: ends[threshold[-1]] + 1]
    gains = np.add.reduceat(weights[:, order[right]], first, axis=1)
    below = np.add.reduceat(weights[:, upto], begin, axis=1).cumsum(1)
    precisions = np.nansum(gains * ratio(gains.cumsum(1), below), 1)
    return ratio(precisions, gains.sum(1))


def mean_average_precision(
    scores: ArrayLike, present: ArrayLike, names: Sequence[str]
) -> dict[str, Any]:
    """mAP, 0..1, of (N, C) scores and flags: {"map", "per_class": {name: AP}, "skipped": [name]}.

    The mean over those of the C classes `names` that are present in a row at least; the others are
    left out, as their AP is not defined. Everingham et al., IJCV 2010.
    """
    values, true = table_of("scores", scores), flags_of("present", present, 2)
    check_same_shape(scores=values, present=true)
    if len(names) != values.shape[1]:
        raise UserError(f"scores are of {values.shape[1]} classes, but {len(names)} are named")
    has_positive = np.any(true, axis=0)
    if not has_positive.any():
        raise UserError(f"none of {', '.join(names)} is present in a row: there is no mAP of them")
    per_class = {
        name: average_precision(values[:, i], true[:, i])
        for i, name in enumerate(names)
        if has_positive[i]
    }
    return {
        "map": float(np.mean(list(per_class.values()))),
        "per_class": per_class,
        "skipped": [name for i, name in enumerate(names) if not has_positive[i]],
    }


# --- two runs -------------------------------------------------------------------------------------


def mcnemar_exact(first: ArrayLike, second: ArrayLike) -> dict[str, Any]:
    """McNemar's exact test of two runs on the same rows: {"only_first", "only_second", "p"}.

    `first` and `second` (N,) flag what each run has right. The counts are of the rows that one run
    alone has right; p, 0..1, is the two-sided binomial probability of a split at least as uneven if
    each such row were a toss of a fair coin, and 1 if there is none. McNemar, Psychometrika 1947.
    """
    first_right, second_right = flags_of("first", first), flags_of("second", second)
    check_same_length(first=first_right, second=second_right)
    only_first, only_second = (
        int((first_right & ~second_right).sum()),
        int((~first_right & second_right).sum()),
    )
    n = only_first + only_second
    p = float(binomtest(only_first, n).pvalue) if n else 1.0
    return {"only_first": only_first, "only_second": only_second, "p": p}


def holm(p_values: ArrayLike) -> Array:
    """Adjusted p values (M,) of M tests made at once, in their order. Rejecting those up to alpha
    keeps the chance of any false rejection below alpha. Holm, Scand. J. Statistics 1979.

    The i-th smallest p is multiplied by M - i + 1; no adjusted p is below that of a smaller p, nor
    above 1.
    """
    p = vector("p_values", p_values)
    if p.min() < 0 or p.max() > 1:
        raise UserError(f"p values are {p.min():g} to {p.max():g}, expected 0 to 1")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


# --- means and ratios that may be undefined -------------------------------------------------------


def ratio(above: NDArray[Any], below: NDArray[Any]) -> Array:
    """above / below, nan where below is 0."""
    below = np.asarray(below, dtype=float)
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)


def mean_where(values: Array, where: Flags) -> Array:
    """Mean over the last axis of the values that count, nan if none does."""
    return ratio(np.where(where, values, 0).sum(-1), where.sum(-1))


def _centred(values: Array) -> Array:
    """Differences to the mean, exactly 0 for a constant, whose mean may be off by rounding."""
    return values - (values.mean() if np.ptp(values) else values[0])
