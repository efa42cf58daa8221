"""Measures of affective computing beside accuracy, UAR and F1 of labels: from arrays to numbers.

    label probabilities   top-k accuracy, negative log-likelihood, Brier score, calibration
    AU intensities        ICC(3,1), PCC, MSE, MAE
    valence and arousal   CCC, PCC, RMSE, SAGR
    several labels        F1, Jaccard, average precision of classes that may occur together
    age                   MAE, accuracy of the age group
    words and texts       hit rate, ROUGE-L, REGE
    two runs              McNemar's exact test, Holm's correction

A row is one prediction; rows that are not annotated must be left out before. A measure that is not
defined on its rows, such as the correlation with a constant, is nan. What cannot be measured at all
(no rows, other lengths, values that are not finite or out of range) is a UserError.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from vlmface.errors import UserError
from vlmface.metrics.statistics import Array

Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]

ECE_BINS = 15
NLL_FLOOR = float(np.finfo(float).eps)  # 2.2e-16, as in scikit-learn's log_loss
_SLACK = 1e-3  # how far rounding may take a probability, or the sum of a row, out of its range


# --- label probabilities --------------------------------------------------------------------------


def top_k_accuracy(probabilities: ArrayLike, truth: ArrayLike, k: int) -> float:
    """Share of the rows whose true label is among the `k` most probable ones, 0..1.

    `probabilities` is (N, K), `truth` (N,) indices of labels. Of equally probable labels the first
    of the table ranks first, as in numpy.argmax. Russakovsky et al., IJCV 2015 (its complement, the
    top-5 error).
    """
    table, true = _probabilities(probabilities, truth)
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
    table, true = _probabilities(probabilities, truth)
    of_truth = table[np.arange(len(true)), true]
    return float(-np.log(np.clip(of_truth, NLL_FLOOR, 1)).mean())


def brier_score(probabilities: ArrayLike, truth: ArrayLike) -> float:
    """Mean over rows of the squared error summed over all labels, 0..2; 0 is best.

    `probabilities` is (N, K), `truth` (N,) indices of labels. This is the original form (Brier,
    Monthly Weather Review 1950); of two labels it is twice the form that looks at one of them.
    """
    table, true = _probabilities(probabilities, truth)
    error = table.copy()
    error[np.arange(len(true)), true] -= 1
    return float(np.square(error).sum(1).mean())


def top_label(probabilities: ArrayLike, truth: ArrayLike) -> tuple[Array, Flags]:
    """(confidence, right) of each row, (N,) both: the highest probability, and whether its label,
    the first one of equal ones, is the true one. Calibration is measured on these."""
    table, true = _probabilities(probabilities, truth)
    best = table.argmax(1)
    return table[np.arange(len(true)), best], best == true


def reliability(confidence: ArrayLike, right: ArrayLike) -> dict[str, Array]:
    """The table behind a reliability diagram: `count`, mean `confidence` and `accuracy` of the rows
    in each of ECE_BINS bins of equal width, (ECE_BINS,) each; nan in a bin without rows.

    `confidence` (N,) is the probability of the answer, 0..1, and `right` (N,) whether it is true.
    Bin m of M holds the confidences in ((m - 1) / M, m / M]; 0 is in the first. Guo et al., ICML
    2017.
    """
    sure, hit = _vector("confidence", confidence), _flags("right", right)
    _same_length(confidence=sure, right=hit)
    _check_range("confidence", sure)
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
    x, y = _pair(predicted, true)
    return float(np.abs(x - y).mean())


def mean_squared_error(predicted: ArrayLike, true: ArrayLike) -> float:
    """MSE, mean of (predicted - true)² of two (N,), in their unit squared; 0 is best."""
    x, y = _pair(predicted, true)
    return float(np.square(x - y).mean())


def root_mean_squared_error(predicted: ArrayLike, true: ArrayLike) -> float:
    """RMSE, root of the mean squared error of two (N,), in their unit; 0 is best."""
    return float(np.sqrt(mean_squared_error(predicted, true)))


def pearson_correlation(predicted: ArrayLike, true: ArrayLike) -> float:
    """PCC of two (N,), -1..1; nan if one of them is constant. Pearson, 1895."""
    x, y = (_centred(values) for values in _pair(predicted, true))
    spread = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(np.clip((x * y).sum() / spread, -1, 1)) if spread > 0 else float("nan")


def concordance_correlation(predicted: ArrayLike, true: ArrayLike) -> float:
    """CCC of two (N,), -1..1: 2 cov(x, y) / (var x + var y + (mean x - mean y)²), variances divided
    by N. nan if both are the same constant, 0 if one of them is constant. Lin, Biometrics 1989.

    Other than the PCC it is 1 only if the values are the same, not if they are proportional.
    """
    x, y = _pair(predicted, true)
    dx, dy = _centred(x), _centred(y)
    below = float((dx**2).mean() + (dy**2).mean() + (x.mean() - y.mean()) ** 2)
    return float(np.clip(2 * (dx * dy).mean() / below, -1, 1)) if below > 0 else float("nan")


def sign_agreement(predicted: ArrayLike, true: ArrayLike) -> float:
    """SAGR, share of the rows in which both have the same sign, 0..1; 0 has a sign of its own.
    Nicolaou, Gunes & Pantic, IEEE Trans. Affective Computing 2011."""
    x, y = _pair(predicted, true)
    return float((np.sign(x) == np.sign(y)).mean())


def intraclass_correlation(ratings: ArrayLike) -> float:
    """ICC(3,1) of `ratings` (subjects, judges), -1 / (judges - 1)..1.

    The consistency of single ratings by the same judges for all subjects, from a two-way analysis
    of variance: (BMS - EMS) / (BMS + (judges - 1) EMS), with the mean squares between subjects and
    of the error. A constant difference between judges does not lower it. nan if each judge gives
    everybody the same. Shrout & Fleiss, Psychological Bulletin 1979.

    AU intensities, 0..5: of a model and a coder, numpy.stack([predicted, true], 1).
    """
    table = _table("ratings", ratings)
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
    x, y = _pair(predicted, true)
    starts = _vector("edges", edges)
    if (np.diff(starts) <= 0).any():
        raise UserError(f"edges of age groups are {list(edges)}: give them ascending, each once")
    groups = [np.searchsorted(starts, ages, side="right") for ages in (x, y)]
    return float((groups[0] == groups[1]).mean())


# --- several labels at once -----------------------------------------------------------------------


def multilabel_f1(predicted: ArrayLike, present: ArrayLike) -> dict[str, float]:
    """{"f1_macro", "f1_micro"} of (N, C) flags, 0..1: `multilabel_scores` of their tally."""
    predictions, true = _flags("predicted", predicted, 2), _flags("present", present, 2)
    _same_shape(predicted=predictions, present=true)
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
    values, true = _vector("scores", scores), _flags("present", present)
    _same_length(scores=values, present=true)
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
    values, true = _vector("scores", scores), _flags("present", present)
    _same_length(scores=values, present=true)
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
    values, true = _table("scores", scores), _flags("present", present, 2)
    _same_shape(scores=values, present=true)
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


# --- words and texts ------------------------------------------------------------------------------


def hit_rate(
    answers: Sequence[Collection[str]],
    truth: Sequence[str],
    groupings: Sequence[Mapping[str, str]] = ({},),
) -> float:
    """Share of the rows whose true word is among the words of the answer, 0..1.

    `answers` holds the words of each row, none for an answer without any, and `truth` one word for
    each. A grouping {word: group} makes words of one group the same; a word that is not in it is
    its own group. The rate is the mean over the groupings. Capitals and outer white space do not
    count.

    This is the hit rate of MER-UniBench (Lian et al., ICML 2025, section 4). Its groupings are
    those of several emotion wheels after inflected forms and synonyms are merged, and a language
    model takes the words from the text; neither is part of this function. More words never harm.
    """
    if len(answers) != len(truth):
        raise UserError(f"answers has {len(answers)} rows and truth {len(truth)}: give one of each")
    if not truth:
        raise UserError("answers has no rows: there is nothing to measure")
    if not groupings:
        raise UserError("groupings is empty: give one at least, {} if every word is its own group")
    for words in answers:
        if isinstance(words, str):
            raise UserError(f"an answer is the text {words!r}: give a list of its words")
    answer_words = [{_plain(word) for word in words} for words in answers]
    true = [_plain(word) for word in truth]
    rates = []
    for grouping in groupings:
        group = {_plain(word): _plain(name) for word, name in grouping.items()}
        hits = sum(
            group.get(word, word) in {group.get(synonym, synonym) for synonym in words}
            for words, word in zip(answer_words, true, strict=True)
        )
        rates.append(hits / len(true))
    return sum(rates) / len(rates)


def rouge_l(candidate: str, reference: str, beta: float = 1.0) -> dict[str, float]:
    """ROUGE-L of a text, {"precision", "recall", "f"}, 0..1: the longest common subsequence of
    words as a share of the candidate's words, of the reference's words, and their F measure,
    (1 + beta²) P R / (R + beta² P). Lin, ACL workshop 2004, sentence level.

    Words are runs of letters and digits in lower case, without stemming. A candidate without words
    scores 0.
    """
    candidate_words, reference_words = _words(candidate), _words(reference)
    if not reference_words:
        raise UserError(f"the reference {reference!r} has no words: leave its row out")
    if not beta > 0:
        raise UserError(f"beta of ROUGE-L is {beta}: use 1, or more to weigh recall more")
    common = longest_common_subsequence(candidate_words, reference_words)
    precision = common / len(candidate_words) if candidate_words else 0.0
    recall = common / len(reference_words)
    below = recall + beta**2 * precision
    f = (1 + beta**2) * precision * recall / below if below else 0.0
    return {"precision": precision, "recall": recall, "f": f}


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """How many words the two have in the same order, gaps allowed."""
    codes = {word: i for i, word in enumerate(dict.fromkeys(second))}
    columns = np.array([codes[word] for word in second], dtype=int)
    # length[j]: of the words of `first` so far and the first j of `second`.
    length = np.zeros(len(second) + 1, dtype=int)
    for word in first:
        extended = length[:-1] + (columns == codes.get(word, -1))
        length[1:] = np.maximum.accumulate(np.maximum(length[1:], extended))
    return int(length[-1])


def rege(recognition: float, texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """{"recognition", "generation", "rege"}: REGE, the sum of what a model recognises and of how it
    says so, 0..2. Li et al., ECCV 2024, "Facial Affective Behavior Analysis with Instruction
    Tuning"; they give per cent, 0..200.

    `recognition` is the accuracy of the emotion or the mean F1 of the AUs, 0..1. The generation
    score is the mean ROUGE-L F1 of the `texts`. The authors' script takes it from the `rouge`
    package, which counts each word of a text once, joins the matches of single sentences and keeps
    capitals, and it skips the texts that the package refuses: their figures are near this one, not
    the same.
    """
    if not 0 <= recognition <= 1:
        raise UserError(f"the recognition score is {recognition}: give an accuracy or F1 in 0..1")
    if len(texts) != len(references):
        raise UserError(
            f"there are {len(texts)} texts and {len(references)} references: give one of each"
        )
    if not texts:
        raise UserError("texts is empty: there is nothing to measure")
    pairs = zip(texts, references, strict=True)
    generation = float(np.mean([rouge_l(text, reference)["f"] for text, reference in pairs]))
    return {
        "recognition": float(recognition),
        "generation": generation,
        "rege": float(recognition) + generation,
    }


# --- two runs -------------------------------------------------------------------------------------


def mcnemar_exact(first: ArrayLike, second: ArrayLike) -> dict[str, Any]:
    """McNemar's exact test of two runs on the same rows: {"only_first", "only_second", "p"}.

    `first` and `second` (N,) flag what each run has right. The counts are of the rows that one run
    alone has right; p, 0..1, is the two-sided binomial probability of a split at least as uneven if
    each such row were a toss of a fair coin, and 1 if there is none. McNemar, Psychometrika 1947.
    """
    first_right, second_right = _flags("first", first), _flags("second", second)
    _same_length(first=first_right, second=second_right)
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
    p = _vector("p_values", p_values)
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


# --- input ----------------------------------------------------------------------------------------


def _array(name: str, values: ArrayLike, dimensions: int) -> NDArray[Any]:
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of several lengths
        raise UserError(f"{name} is not an array ({error}): give rows of one length") from error
    if array.ndim != dimensions:
        axes = "one number for each row" if dimensions == 1 else "a table of rows and columns"
        raise UserError(f"{name} has the shape {array.shape}: give {axes}")
    if not array.size:
        raise UserError(f"{name} has no rows: there is nothing to measure")
    if array.dtype.kind not in "biuf":
        raise UserError(f"{name} has values such as {array.flat[:1].tolist()[0]!r}: give numbers")
    if not np.isfinite(array).all():
        bad = array[~np.isfinite(array)]
        raise UserError(
            f"{name} has {len(bad)} values that are not finite, such as {bad[0]}: "
            "leave out the rows that have no value"
        )
    return array


def _vector(name: str, values: ArrayLike) -> Array:
    return _array(name, values, 1).astype(float)


def _table(name: str, values: ArrayLike) -> Array:
    return _array(name, values, 2).astype(float)


def _flags(name: str, values: ArrayLike, dimensions: int = 1) -> Flags:
    flags = _array(name, values, dimensions)
    if flags.dtype != bool and not ((flags == 0) | (flags == 1)).all():
        bad = flags[(flags != 0) & (flags != 1)]
        raise UserError(f"{name} has the value {bad[0]}: give true or false")
    return flags.astype(bool)


def _pair(predicted: ArrayLike, true: ArrayLike) -> tuple[Array, Array]:
    x, y = _vector("predicted", predicted), _vector("true", true)
    _same_length(predicted=x, true=y)
    return x, y


def _probabilities(probabilities: ArrayLike, truth: ArrayLike) -> tuple[Array, Indices]:
    """A checked table (N, K) and the indices (N,) of its true columns."""
    table, true = _table("probabilities", probabilities), _array("truth", truth, 1)
    _same_length(probabilities=table, truth=true)
    _check_range("probabilities", table)
    sums = table.sum(1)
    if (off := np.abs(sums - 1) > _SLACK).any():
        raise UserError(
            f"row {off.argmax()} of the probabilities sums to {sums[off.argmax()]:g}, expected 1: "
            "give the softmax over all labels"
        )
    if true.dtype.kind not in "iu" or true.min() < 0 or true.max() >= table.shape[1]:
        raise UserError(
            f"truth is {true.min()} to {true.max()} ({true.dtype}): give the index of the true "
            f"label of each row, a whole number from 0 to {table.shape[1] - 1}"
        )
    return table, true.astype(np.int64)


def _check_range(name: str, values: Array) -> None:
    if values.min() < -_SLACK or values.max() > 1 + _SLACK:
        raise UserError(
            f"{name} is from {values.min():g} to {values.max():g}, expected 0 to 1: give shares, "
            "neither per cent nor logits"
        )


def _same_length(**arrays: NDArray[Any]) -> None:
    (name, first), (other, second) = arrays.items()
    if len(first) != len(second):
        raise UserError(
            f"{name} has {len(first)} rows and {other} {len(second)}: "
            "give one of each for every row"
        )


def _same_shape(**arrays: NDArray[Any]) -> None:
    (name, first), (other, second) = arrays.items()
    if first.shape != second.shape:
        raise UserError(
            f"{name} has the shape {first.shape} and {other} {second.shape}: "
            "give one of each for every row and class"
        )


def _centred(values: Array) -> Array:
    """Differences to the mean, exactly 0 for a constant, whose mean may be off by rounding."""
    return values - (values.mean() if np.ptp(values) else values[0])


def _plain(word: str) -> str:
    return word.strip().lower()


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())
