from __future__ import annotations

import time

import numpy as np
import pytest
from fake_run import ABOUT, AUS, SPACE, random_rows, row
from scipy import stats

from vlmface.errors import UserError
from vlmface.evaluate import metrics
from vlmface.evaluate.statistics import Array, align, bootstrap, paired_bootstrap


def right(rows: list) -> Array:
    """Per-row counts (rows, 1, 2): right, wrong."""
    hits = np.array([r["label"] == r["truth"]["emotion"] for r in rows], dtype=float)
    return np.stack([hits, 1 - hits], -1)[:, None]


def share(totals: Array) -> dict[str, Array]:
    return {"share": totals[..., 0, 0] / totals[..., 0, :].sum(-1)}


def test_interval_agrees_with_scipy() -> None:
    counts = right(random_rows(200, 0))
    expected = stats.bootstrap(
        (counts[:, 0, 0],), np.mean, n_resamples=5000, method="percentile", rng=1
    ).confidence_interval
    assert bootstrap(counts, share)["share"] == pytest.approx(list(expected), abs=0.01)


def test_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        hits = (rng.random(150) < 0.7).astype(float)
        low, high = bootstrap(
            np.stack([hits, 1 - hits], -1)[:, None], share, resamples=400, seed=seed
        )["share"]
        covered += low <= 0.7 <= high
    assert 180 <= covered <= 198


def test_same_seed_same_interval_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = metrics.count_labels(random_rows(100, 0), SPACE)
    first = bootstrap(counts, metrics.label_scores, seed=3)
    assert bootstrap(counts, metrics.label_scores, seed=3) == first
    assert bootstrap(counts, metrics.label_scores, seed=4) != first
    monkeypatch.setattr("vlmface.evaluate.statistics._CHUNK", 700)
    assert bootstrap(counts, metrics.label_scores, seed=3) == first


def test_scores_of_resamples_are_scores_of_resampled_rows() -> None:
    rows = random_rows(40, 2)
    rng = np.random.default_rng(0)
    labels, aus = metrics.count_labels(rows, SPACE), metrics.count_aus(rows, AUS)
    picks = rng.integers(40, size=(5, 40))
    stacked = metrics.label_scores(labels[picks].sum(1)), metrics.au_scores(aus[picks].sum(1))
    for i, pick in enumerate(picks):
        drawn = [rows[j] for j in pick]
        one = metrics.summarise(drawn, SPACE, AUS, ci=False, **ABOUT)
        for name, values in stacked[0].items():
            assert values[i] == pytest.approx(one["emotion"][name])
        for name, values in stacked[1].items():
            assert values[i] == pytest.approx(one["au"][name])


def test_a_certain_score_has_no_width() -> None:
    rows = [row(i, "fear", "fear") for i in range(20)]
    got = metrics.summarise(rows, SPACE, (), **ABOUT)
    assert got["emotion"]["ci95"]["accuracy"] == [1, 1]


def test_600_rows_of_all_scores_take_less_than_2_seconds() -> None:
    rows = random_rows(600, 0)
    start = time.process_time()
    got = metrics.summarise(rows, SPACE, range(1, 25), **ABOUT)
    assert time.process_time() - start < 2
    assert got["au"]["ci95"]["f1_macro"][0] < got["au"]["f1_macro"]


def test_paired_difference_is_narrower_than_two_unpaired_intervals() -> None:
    before = random_rows(300, 0)
    after = [dict(r) for r in before]
    for r in after[:15]:
        r["label"], r["status"] = r["truth"]["emotion"], "strict"
    got = metrics.compare(before, list(reversed(after)), SPACE, AUS)
    gained = sum(r["label"] != r["truth"]["emotion"] for r in before[:15])
    accuracy = got["emotion"]["accuracy"]
    assert got["n"] == 300
    assert accuracy["difference"] == pytest.approx(gained / 300)
    low, high = accuracy["ci95"]
    assert 0 < low < accuracy["difference"] < high
    alone = metrics.summarise(before, SPACE, AUS, **ABOUT)["emotion"]["ci95"]["accuracy"]
    assert high - low < 0.6 * (alone[1] - alone[0])
    assert got["au"]["f1_macro"] == {"difference": 0, "ci95": [0, 0]}


def test_paired_difference_of_a_run_with_itself_is_zero() -> None:
    rows = random_rows(60, 1)
    for score in metrics.compare(rows, rows, SPACE, ())["emotion"].values():
        assert score == {"difference": 0, "ci95": [0, 0]}


def test_alignment_is_by_id() -> None:
    rows = random_rows(5, 0)
    assert align(rows, rows[::-1]) == rows


def test_runs_on_other_rows_are_refused() -> None:
    rows = random_rows(5, 0)
    with pytest.raises(UserError, match=r"1 of 5 ids are only in the first run, for example '4'"):
        align(rows, rows[:4])
    with pytest.raises(UserError, match=r"2 of 5 ids are only in the second run, for example '3'"):
        align(rows[:3], rows)
    with pytest.raises(UserError, match=r"second run has several predictions for id '0'"):
        align(rows, [*rows, rows[0]])
    other = [*rows[:4], rows[4] | {"truth": {"emotion": "neutral"}}]
    with pytest.raises(UserError, match="disagree about the truth of id '4'"):
        align(rows, other)
    with pytest.raises(ValueError, match="differ in shape"):
        paired_bootstrap(right(rows), right(rows[:2]), share)
