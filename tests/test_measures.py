"""Each measure against the worked example of its source, an independent implementation, or both."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from vlmface.errors import UserError
from vlmface.metrics import measures, text_measures

SEEDS = pytest.mark.parametrize("seed", range(4))


def near(value: float, **kind: Any) -> Any:
    return pytest.approx(value, rel=1e-9, abs=1e-12, **kind)


def tables(seed: int, rows: int = 400, labels: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (rows, labels) that know something of the truth (rows,)."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(labels, size=rows)
    logits = rng.normal(size=(rows, labels)) * 2
    logits[np.arange(rows), truth] += 1.5
    weights = np.exp(logits)
    return weights / weights.sum(1, keepdims=True), truth


VALUES = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3))
PAIRS = st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=20)


@st.composite
def small_tables(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """As `tables`, with equal and with certain probabilities."""
    rows, labels = draw(st.integers(1, 8)), draw(st.integers(2, 5))
    cells = st.lists(st.integers(0, 4), min_size=labels, max_size=labels).filter(any)
    weights = np.array(draw(st.lists(cells, min_size=rows, max_size=rows)), dtype=float)
    truth = draw(st.lists(st.integers(0, labels - 1), min_size=rows, max_size=rows))
    return weights / weights.sum(1, keepdims=True), np.array(truth)


# --- label probabilities --------------------------------------------------------------------------


@SEEDS
def test_scores_of_probabilities_equal_scikit_learn(seed: int) -> None:
    p, truth = tables(seed)
    labels = np.arange(p.shape[1])
    for k in (1, 2, 5):
        expected = sk.top_k_accuracy_score(truth, p, k=k, labels=labels)
        assert measures.top_k_accuracy(p, truth, k) == near(expected)
    assert measures.negative_log_likelihood(p, truth) == near(sk.log_loss(truth, p, labels=labels))
    expected = sk.brier_score_loss(truth, p, labels=labels, scale_by_half=False)
    assert measures.brier_score(p, truth) == near(expected)
    confidence, right = measures.top_label(p, truth)
    assert confidence == near(p.max(1))
    assert right.tolist() == (p.argmax(1) == truth).tolist()


def test_brier_score_of_briers_own_table() -> None:
    # Ten forecasts of rain and whether it rained: P = .19 (Brier 1950, table 1).
    rain = np.array([0.7, 0.9, 0.8, 0.4, 0.2, 0, 0, 0, 0, 0.1])
    truth = [1, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert measures.brier_score(np.stack([rain, 1 - rain], 1), truth) == near(0.19)


def test_worst_and_best_probabilities() -> None:
    certain = np.eye(3)[[0, 1, 2]]
    assert measures.brier_score(certain, [0, 1, 2]) == 0
    assert measures.brier_score(certain, [1, 2, 0]) == 2
    assert measures.negative_log_likelihood(certain, [0, 1, 2]) == 0
    worst = measures.negative_log_likelihood(certain, [1, 2, 0])
    assert worst == near(-math.log(measures.NLL_FLOOR)) == pytest.approx(36.04, abs=0.01)


def test_of_equal_probabilities_the_first_label_ranks_first() -> None:
    even = np.full((3, 3), 1 / 3)
    assert [measures.top_k_accuracy(even, [0, 1, 2], k) for k in (1, 2, 3)] == near(
        [1 / 3, 2 / 3, 1]
    )
    assert measures.top_label(even, [0, 1, 2])[1].tolist() == [True, False, False]


@settings(max_examples=100, deadline=None)
@given(small_tables())
def test_scores_of_probabilities_keep_to_their_ranges(table: tuple[np.ndarray, np.ndarray]) -> None:
    p, truth = table
    accuracies = [measures.top_k_accuracy(p, truth, k) for k in range(1, p.shape[1] + 1)]
    assert accuracies == sorted(accuracies)
    assert accuracies[0] == near((p.argmax(1) == truth).mean())
    assert accuracies[-1] == 1
    assert 0 <= measures.brier_score(p, truth) <= 2
    assert 0 <= measures.negative_log_likelihood(p, truth) <= 36.05
    confidence, right = measures.top_label(p, truth)
    assert 0 <= measures.expected_calibration_error(confidence, right) <= 1
    assert measures.reliability(confidence, right)["count"].sum() == len(p)
    # The order of labels and of rows means nothing.
    columns, rows = np.arange(p.shape[1])[::-1], np.arange(len(p))[::-1]
    assert measures.brier_score(p[:, columns], columns[truth]) == near(
        measures.brier_score(p, truth)
    )
    assert measures.negative_log_likelihood(p[rows], truth[rows]) == near(
        measures.negative_log_likelihood(p, truth)
    )


@SEEDS
def test_calibration_equals_a_loop_over_bins(seed: int) -> None:
    confidence, right = measures.top_label(*tables(seed))
    table = measures.reliability(confidence, right)
    expected = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        assert table["count"][i] == inside.sum()
        if not inside.any():
            assert np.isnan(table["confidence"][i]) and np.isnan(table["accuracy"][i])
            continue
        assert table["confidence"][i] == near(confidence[inside].mean())
        assert table["accuracy"][i] == near(right[inside].mean())
        expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert measures.expected_calibration_error(confidence, right) == near(expected)


def test_calibration_by_hand() -> None:
    # Two bins: 4 rows at 0.9 of which 2 are right, 6 at 0.5 of which 3 are.
    confidence, right = [0.9] * 4 + [0.5] * 6, [1, 1, 0, 0, 1, 1, 1, 0, 0, 0]
    assert measures.expected_calibration_error(confidence, right) == near(0.4 * 0.4)
    table = measures.reliability(confidence, right)
    assert np.flatnonzero(table["count"]).tolist() == [7, 13]
    assert table["accuracy"][[7, 13]].tolist() == [0.5, 0.5]


def test_edges_of_bins_belong_to_the_bin_below() -> None:
    table = measures.reliability([0, 1 / 15, 0.2, 1], [0, 0, 1, 1])
    assert np.flatnonzero(table["count"]).tolist() == [0, 2, 14]
    assert table["count"][[0, 2, 14]].tolist() == [2, 1, 1]


# --- intensities, valence and arousal, age --------------------------------------------------------

SHROUT_FLEISS = [
    [9, 2, 5, 8],
    [6, 1, 3, 2],
    [8, 4, 6, 8],
    [7, 1, 2, 6],
    [10, 5, 6, 9],
    [6, 2, 4, 7],
]


def test_icc_of_shrout_and_fleiss() -> None:
    # Six subjects, four judges, ICC(3,1) = .71, from BMS 11.24 and EMS 1.02 (1979, tables 2 to 4).
    got = measures.intraclass_correlation(SHROUT_FLEISS)
    assert round(got, 2) == 0.71
    assert got == pytest.approx((11.24 - 1.02) / (11.24 + 3 * 1.02), abs=0.001)


@SEEDS
def test_icc_of_two_judges_by_their_covariance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 6, size=60)
    predicted = np.clip(true + rng.normal(size=60), 0, 5)
    (xx, xy), (_, yy) = np.cov(predicted, true)
    got = measures.intraclass_correlation(np.stack([predicted, true], 1))
    assert got == near(2 * xy / (xx + yy))


def test_icc_of_opposites_and_of_nothing() -> None:
    assert measures.intraclass_correlation([[0, 2], [1, 1], [2, 0]]) == near(-1)
    assert measures.intraclass_correlation([[1, 3], [2, 4], [5, 7]]) == near(1)
    assert np.isnan(measures.intraclass_correlation([[0.1, 0.3]] * 3))
    assert measures.intraclass_correlation([[0.1, 1], [0.1, 2], [0.1, 4]]) == near(0)


@SEEDS
def test_errors_and_correlation_equal_scikit_learn_and_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = rng.uniform(-1, 1, 200)
    predicted = 0.6 * true + 0.2 + rng.normal(size=200) / 4
    assert measures.mean_absolute_error(predicted, true) == near(
        sk.mean_absolute_error(true, predicted)
    )
    squared = sk.mean_squared_error(true, predicted)
    assert measures.mean_squared_error(predicted, true) == near(squared)
    assert measures.root_mean_squared_error(predicted, true) == near(math.sqrt(squared))
    r = stats.pearsonr(predicted, true).statistic
    assert measures.pearson_correlation(predicted, true) == near(r)
    # Lin's own decomposition: precision times accuracy, from the ratio of scales and the shift.
    scale = predicted.std() / true.std()
    shift = (predicted.mean() - true.mean()) / math.sqrt(predicted.std() * true.std())
    expected = r * 2 / (scale + 1 / scale + shift**2)
    assert measures.concordance_correlation(predicted, true) == near(expected)


def test_concordance_by_hand() -> None:
    # Both variances and the covariance are 2/3, the means differ by 1.
    assert measures.concordance_correlation([1, 2, 3], [2, 3, 4]) == near(4 / 7)
    assert measures.pearson_correlation([1, 2, 3], [2, 3, 4]) == near(1)


def test_correlation_with_a_constant() -> None:
    # The mean of these three is not 0.1 in floating point.
    constant, other = [0.1, 0.1, 0.1], [0.3, 0.7, 0.2]
    assert np.isnan(measures.pearson_correlation(constant, other))
    assert measures.concordance_correlation(constant, other) == 0
    assert np.isnan(measures.concordance_correlation(constant, constant))
    assert measures.concordance_correlation(constant, [0.2, 0.2, 0.2]) == 0


@settings(max_examples=100, deadline=None)
@given(PAIRS, st.sampled_from([0.5, 2.0, 64.0]), st.integers(-50, 50))
def test_what_agreement_does_not_depend_on(
    pairs: list[tuple[float, float]], scale: float, shift: int
) -> None:
    x, y = np.array(pairs).T
    pcc, ccc = measures.pearson_correlation(x, y), measures.concordance_correlation(x, y)
    icc = measures.intraclass_correlation(np.stack([x, y], 1))
    same = {"abs": 1e-6, "nan_ok": True}
    assert measures.concordance_correlation(y, x) == pytest.approx(ccc, **same)
    assert measures.pearson_correlation(scale * x + shift, y) == pytest.approx(pcc, **same)
    moved = measures.intraclass_correlation(np.stack([x + shift, y], 1))
    assert moved == pytest.approx(icc, **same)
    both = measures.concordance_correlation(scale * x + shift, scale * y + shift)
    assert both == pytest.approx(ccc, **same)
    for value in (pcc, ccc, icc):
        assert np.isnan(value) or -1 - 1e-9 <= value <= 1 + 1e-9
    if not np.isnan(pcc):
        assert abs(ccc) <= abs(icc) + 1e-9 and abs(icc) <= abs(pcc) + 1e-9
    rmse, mae = measures.root_mean_squared_error(x, y), measures.mean_absolute_error(x, y)
    assert 0 <= mae <= rmse + 1e-9
    assert 0 <= measures.sign_agreement(x, y) <= 1
    if np.ptp(x):
        assert measures.concordance_correlation(x, x) == near(1)


def test_sign_agreement_gives_zero_a_sign_of_its_own() -> None:
    assert measures.sign_agreement([0.2, -0.1, 0, 0, 0.5], [0.9, -1, 0, 0.1, -0.5]) == near(3 / 5)


def test_age_groups_begin_at_their_edges() -> None:
    fairface = (3, 10, 20, 30, 40, 50, 60, 70)
    true = [2, 3, 9, 10, 29, 30, 70, 90]
    predicted = [0, 2.9, 3, 19.9, 30, 39, 95, 69]
    assert measures.group_accuracy(predicted, true, fairface) == 5 / 8
    assert measures.group_accuracy(predicted, true, (1000,)) == 1


# --- several labels at once -----------------------------------------------------------------------


def labels_at_once(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores in steps of 0.1, so that many are equal, and flags, of 5 classes, the last absent."""
    rng = np.random.default_rng(seed)
    present = rng.random((150, 5)) < [0.5, 0.3, 0.1, 0.05, 0]
    present[0, :4] = True
    return np.round(np.clip(rng.normal(size=(150, 5)) / 3 + present / 3, 0, 1), 1), present


@SEEDS
def test_average_precision_equals_scikit_learn(seed: int) -> None:
    scores, present = labels_at_once(seed)
    names = ["a", "b", "c", "d", "e"]
    got = measures.mean_average_precision(scores, present, names)
    expected = [sk.average_precision_score(present[:, i], scores[:, i]) for i in range(4)]
    assert got["per_class"] == near(dict(zip(names, expected, strict=False)))
    assert got["map"] == near(np.mean(expected))
    assert got["skipped"] == ["e"]
    assert np.isnan(measures.average_precision(scores[:, 4], present[:, 4]))


def test_average_precision_by_hand() -> None:
    # Hits at ranks 1, 3 and 5.
    got = measures.average_precision([0.9, 0.8, 0.7, 0.6, 0.5], [1, 0, 1, 0, 1])
    assert got == near((1 + 2 / 3 + 3 / 5) / 3)
    assert measures.average_precision([0.5] * 4, [1, 0, 0, 0]) == near(1 / 4)


@SEEDS
def test_f1_equals_scikit_learn(seed: int) -> None:
    scores, present = labels_at_once(seed)
    predicted = scores > 0.3
    got = measures.multilabel_f1(predicted, present)
    assert got["f1_micro"] == near(sk.f1_score(present, predicted, average="micro"))
    macro = sk.f1_score(present[:, :4], predicted[:, :4], average="macro")
    assert got["f1_macro"] == near(macro)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=20))
def test_average_precision_depends_on_the_order_only(rows: list[tuple[int, bool]]) -> None:
    scores, present = np.array([r[0] for r in rows], dtype=float), np.array([r[1] for r in rows])
    got = measures.average_precision(scores, present)
    assert measures.average_precision(np.exp(scores), present) == near(got, nan_ok=True)
    back = measures.average_precision(scores[::-1], present[::-1])
    assert back == near(got, nan_ok=True)
    if present.any():
        assert present.mean() / len(rows) <= got <= 1
        assert measures.average_precision(present.astype(float), present) == near(1)


# --- words and texts ------------------------------------------------------------------------------


def test_hit_rate_is_the_mean_over_the_groupings() -> None:
    answers = [["Joyful", "calm"], ["worried"], [], ["angry", "sad"]]
    truth = ["happy", "fear", "neutral", " Angry "]
    assert text_measures.hit_rate(answers, truth) == 1 / 4
    wheel = {"joyful": "happy", "worried": "sad"}
    other = {"joyful": "happy", "worried": "fear"}
    assert text_measures.hit_rate(answers, truth, [wheel]) == 2 / 4
    assert text_measures.hit_rate(answers, truth, [other]) == 3 / 4
    assert text_measures.hit_rate(answers, truth, [wheel, other]) == 5 / 8
    # The truth is grouped as well.
    assert text_measures.hit_rate([["glad"]], ["Merry"], [{"merry": "joy", "Glad": "Joy"}]) == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sets(st.sampled_from("abcd")), st.sampled_from("abcd")), min_size=1))
def test_another_word_never_lowers_the_hit_rate(rows: list[tuple[set[str], str]]) -> None:
    answers, truth = [r[0] for r in rows], [r[1] for r in rows]
    rate = text_measures.hit_rate(answers, truth)
    assert rate == near(np.mean([true in words for words, true in rows]))
    assert rate <= text_measures.hit_rate([words | {"a"} for words in answers], truth) <= 1


def test_rouge_l_of_lins_examples() -> None:
    # Lin 2004, section 3.1: with beta = 1 the second sentence scores 3/4, the third and fourth 1/2.
    reference = "police killed the gunman"
    for text, expected in [
        ("police kill the gunman", 3 / 4),
        ("the gunman kill police", 2 / 4),
        ("the gunman police killed", 2 / 4),
    ]:
        assert text_measures.rouge_l(text, reference)["f"] == near(expected)


def test_rouge_l_by_hand() -> None:
    got = text_measures.rouge_l("The brow is LOWERED.", "the brow, of the man, is lowered: anger")
    assert got == near({"precision": 4 / 4, "recall": 4 / 8, "f": 2 * 0.5 / 1.5})
    weighted = text_measures.rouge_l(
        "The brow is LOWERED.", "the brow of the man is lowered; anger", 2
    )
    assert weighted["f"] == near(5 * 1 * 0.5 / (0.5 + 4 * 1))
    assert text_measures.rouge_l("...", "anger") == {"precision": 0, "recall": 0, "f": 0}
    assert text_measures.rouge_l("fear", "anger") == {"precision": 0, "recall": 0, "f": 0}
    assert text_measures.rouge_l("Ärger_AU4", "ärger au4")["f"] == 1


def longest(first: str, second: str) -> int:
    """By trying all subsequences of the first, the longest ones first."""

    def is_in_second(words: tuple[str, ...]) -> bool:
        rest = iter(second)
        return all(word in rest for word in words)

    sizes = range(len(first), -1, -1)
    return next(n for n in sizes if any(map(is_in_second, itertools.combinations(first, n))))


@settings(max_examples=150, deadline=None)
@given(st.text("abcd", max_size=8), st.text("abcd", max_size=8))
def test_longest_common_subsequence_equals_brute_force(first: str, second: str) -> None:
    expected = longest(first, second)
    assert text_measures.longest_common_subsequence(first, second) == expected
    if second:
        got = text_measures.rouge_l(" ".join(first), " ".join(second))
        assert got["recall"] == expected / len(second)
        if first:
            back = text_measures.rouge_l(" ".join(second), " ".join(first))
            assert (back["recall"], back["precision"]) == (got["precision"], got["recall"])
            assert back["f"] == near(got["f"])


def test_rege_is_the_sum_of_both_scores() -> None:
    texts = ["police kill the gunman", "the gunman kill police"]
    got = text_measures.rege(0.6, texts, ["police killed the gunman"] * 2)
    assert got == near({"recognition": 0.6, "generation": 0.625, "rege": 1.225})
    assert text_measures.rege(1, texts, texts)["rege"] == 2


# --- two runs -------------------------------------------------------------------------------------


def two_runs(only_first: int, only_second: int, both: int = 3, none: int = 2) -> Any:
    """Flags of what each of two runs has right."""
    first = [True] * only_first + [False] * only_second + [True] * both + [False] * none
    second = [False] * only_first + [True] * only_second + [True] * both + [False] * none
    return first, second


def test_mcnemar_by_hand() -> None:
    got = measures.mcnemar_exact(*two_runs(1, 5))
    assert got == {"only_first": 1, "only_second": 5, "p": near(2 * (1 + 6) / 2**6)}
    assert measures.mcnemar_exact(*two_runs(0, 0))["p"] == 1
    assert measures.mcnemar_exact(*two_runs(4, 4))["p"] == 1


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 120), st.integers(0, 120), st.integers(0, 5))
def test_mcnemar_equals_the_binomial_test_of_scipy(first: int, second: int, both: int) -> None:
    got = measures.mcnemar_exact(*two_runs(first, second, both, 1))
    assert (got["only_first"], got["only_second"]) == (first, second)
    if first + second:
        assert got["p"] == pytest.approx(stats.binomtest(first, first + second).pvalue, rel=1e-8)


def test_mcnemar_of_many_rows() -> None:
    got = measures.mcnemar_exact(*two_runs(250_600, 250_000))
    assert got["p"] == pytest.approx(stats.binomtest(250_600, 500_600).pvalue, rel=1e-6)
    assert measures.mcnemar_exact(*two_runs(100_000, 0))["p"] == 0


def test_holm_by_hand() -> None:
    assert measures.holm([0.01, 0.04, 0.03, 0.005]) == near([0.03, 0.06, 0.06, 0.02])
    assert measures.holm([0.7, 0.6]).tolist() == [1, 1]
    assert measures.holm([0.2]).tolist() == [0.2]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_steps_reject(p: list[float], alpha: float) -> None:
    rejected, order = set(), sorted(range(len(p)), key=p.__getitem__)
    for step, i in enumerate(order):
        if p[i] * (len(p) - step) > alpha:
            break
        rejected.add(i)
    adjusted = measures.holm(p)
    assert {i for i, value in enumerate(adjusted) if value <= alpha} == rejected
    assert (adjusted >= p).all() and (adjusted <= 1).all()


# --- what cannot be measured ----------------------------------------------------------------------

FINE = ([[0.8, 0.2], [0.4, 0.6]], [0, 1])
OF_TABLES: list[Callable[..., Any]] = [
    measures.negative_log_likelihood,
    measures.brier_score,
    measures.top_label,
    lambda p, truth: measures.top_k_accuracy(p, truth, 1),
]
OF_PAIRS: list[Callable[..., Any]] = [
    measures.mean_absolute_error,
    measures.mean_squared_error,
    measures.root_mean_squared_error,
    measures.pearson_correlation,
    measures.concordance_correlation,
    measures.sign_agreement,
    lambda x, y: measures.group_accuracy(x, y, (3,)),
]
OF_FLAGS: list[Callable[..., Any]] = [
    measures.mcnemar_exact,
    measures.reliability,
    measures.expected_calibration_error,
    measures.average_precision,
]


@pytest.mark.parametrize("measure", OF_TABLES)
def test_unusable_probabilities_are_errors(measure: Callable[..., Any]) -> None:
    p, truth = FINE
    measure(p, truth)
    with pytest.raises(UserError, match="probabilities has 2 rows and truth 1"):
        measure(p, truth[:1])
    with pytest.raises(UserError, match="probabilities has no rows"):
        measure(np.zeros((0, 2)), [])
    with pytest.raises(UserError, match="1 values that are not finite, such as nan"):
        measure([[np.nan, 1], [0.4, 0.6]], truth)
    with pytest.raises(UserError, match="from -1 to 2, expected 0 to 1"):
        measure([[2, -1], [0.4, 0.6]], truth)
    with pytest.raises(UserError, match=r"row 1 of the probabilities sums to 0.9, expected 1"):
        measure([[0.8, 0.2], [0.3, 0.6]], truth)
    with pytest.raises(UserError, match="truth is 0 to 2"):
        measure(p, [0, 2])
    with pytest.raises(UserError, match="truth is -1 to 1"):
        measure(p, [-1, 1])
    with pytest.raises(UserError, match=r"truth is 0.0 to 1.0"):
        measure(p, [0.0, 1.0])
    with pytest.raises(UserError, match=r"probabilities has the shape \(2,\): give a table"):
        measure([0.4, 0.6], truth)
    with pytest.raises(UserError, match="rows of one length"):
        measure([[0.4, 0.6], [1.0]], truth)
    measure([[0.8004, 0.2], [0.4, 0.6]], truth)  # rounded


@pytest.mark.parametrize("measure", OF_PAIRS)
def test_unusable_values_are_errors(measure: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="predicted has 3 rows and true 2"):
        measure([1, 2, 3], [1, 2])
    with pytest.raises(UserError, match="predicted has no rows"):
        measure([], [])
    with pytest.raises(UserError, match="true has 2 values that are not finite, such as inf"):
        measure([1, 2, 3], [np.inf, 2, np.nan])
    with pytest.raises(UserError, match="predicted has values such as 'happy': give numbers"):
        measure(["happy", "sad"], [1, 2])
    with pytest.raises(UserError, match="predicted has values such as None"):
        measure([None, 1], [1, 2])
    with pytest.raises(UserError, match=r"true has the shape \(2, 1\)"):
        measure([1, 2], [[1], [2]])


@pytest.mark.parametrize("measure", OF_FLAGS)
def test_unusable_flags_are_errors(measure: Callable[..., Any]) -> None:
    measure([1, 0], [True, False])
    with pytest.raises(UserError, match=r"has 2 rows and .* 1"):
        measure([1, 0], [True])
    with pytest.raises(UserError, match="no rows"):
        measure([], [])
    with pytest.raises(UserError, match="has the value 2: give true or false"):
        measure([1, 0], [2, 1])
    with pytest.raises(UserError, match="not finite"):
        measure([1, 0], [np.nan, 1])


def test_further_unusable_input() -> None:
    for k in (0, 3):
        with pytest.raises(UserError, match=f"k = {k} of 2 labels: use 1 to 2"):
            measures.top_k_accuracy(*FINE, k)
    with pytest.raises(
        UserError, match=r"confidence is from 0.2 to 80, .* neither per cent nor logits"
    ):
        measures.reliability([80, 0.2], [1, 0])
    for ratings, shape in (([[1, 2]], "1 subjects by 2"), ([[1], [2]], "2 subjects by 1")):
        with pytest.raises(UserError, match=f"{shape} judges"):
            measures.intraclass_correlation(ratings)
    for edges in ([20, 10], [10, 10]):
        with pytest.raises(UserError, match="give them ascending"):
            measures.group_accuracy([1], [2], edges)
    with pytest.raises(UserError, match=r"shape \(1, 2\) and present \(1, 3\)"):
        measures.multilabel_f1([[1, 0]], [[1, 0, 0]])
    with pytest.raises(UserError, match=r"shape \(1, 2\) and present \(2, 2\)"):
        measures.mean_average_precision([[1, 0]], [[1, 0], [1, 1]], ["a", "b"])
    with pytest.raises(UserError, match="2 classes, but 1 are named"):
        measures.mean_average_precision([[1, 0]], [[1, 0]], ["a"])
    with pytest.raises(UserError, match="none of a, b is present"):
        measures.mean_average_precision([[1, 0]], [[0, 0]], ["a", "b"])
    with pytest.raises(UserError, match="answers has 1 rows and truth 2"):
        text_measures.hit_rate([["a"]], ["a", "b"])
    with pytest.raises(UserError, match="no rows"):
        text_measures.hit_rate([], [])
    with pytest.raises(UserError, match="groupings is empty"):
        text_measures.hit_rate([["a"]], ["a"], [])
    with pytest.raises(UserError, match="an answer is the text 'joy': give a list"):
        text_measures.hit_rate(["joy"], ["joy"])
    with pytest.raises(UserError, match=r"reference '\.\.' has no words"):
        text_measures.rouge_l("joy", "..")
    with pytest.raises(UserError, match="beta of ROUGE-L is 0"):
        text_measures.rouge_l("joy", "joy", 0)
    with pytest.raises(UserError, match=r"recognition score is 64.5"):
        text_measures.rege(64.5, ["joy"], ["joy"])
    with pytest.raises(UserError, match="1 texts and 2 references"):
        text_measures.rege(0.5, ["joy"], ["joy", "fear"])
    with pytest.raises(UserError, match="texts is empty"):
        text_measures.rege(0.5, [], [])
    with pytest.raises(UserError, match=r"p values are 0.2 to 1.5"):
        measures.holm([0.2, 1.5])
    with pytest.raises(UserError, match="p_values has no rows"):
        measures.holm([])


# --- size -----------------------------------------------------------------------------------------


def test_a_million_predictions_take_less_than_10_seconds() -> None:
    n = 1_000_000
    p, truth = tables(0, rows=n, labels=8)
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, n))
    present = rng.random((n, 8)) < 0.2
    words = ["joy", "anger", "fear", "sadness"]
    said = [[words[i]] for i in truth % 4]
    true = [words[i] for i in rng.integers(4, size=n)]
    start = time.process_time()
    measures.top_k_accuracy(p, truth, 3)
    measures.negative_log_likelihood(p, truth)
    measures.brier_score(p, truth)
    confidence, right = measures.top_label(p, truth)
    measures.expected_calibration_error(confidence, right)
    for measure in OF_PAIRS:
        measure(x, y)
    measures.intraclass_correlation(np.stack([x, y], 1))
    measures.multilabel_f1(p > 0.5, present)
    measures.mean_average_precision(p, present, list("abcdefgh"))
    text_measures.hit_rate(said, true)
    measures.mcnemar_exact(right, rng.random(n) < 0.5)
    measures.holm(rng.random(n))
    assert time.process_time() - start < 10
