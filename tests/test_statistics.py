from __future__ import annotations

import time

import numpy as np
import pytest
from fake_run import ABOUT, AUS, SPACE, random_rows, row
from scipy import stats

from vlmface.errors import UserError
from vlmface.evaluate import metrics, statistics
from vlmface.evaluate.statistics import Array, align, bootstrap, mean, paired_bootstrap


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


def named(rows: list, people: int) -> list:
    """The rows as those of so many people, each in several of them."""
    return [r | {"subject": f"p{i % people}"} for i, r in enumerate(rows)]


def test_clusters_of_one_row_are_rows() -> None:
    rows = random_rows(60, 0)
    before, after = (metrics.count_labels(random_rows(60, s), SPACE) for s in (0, 1))
    alone = [f"{i:02}" for i in range(len(rows))]
    score = metrics.label_scores
    assert bootstrap(before, score, clusters=alone) == bootstrap(before, score)
    expected = paired_bootstrap(before, after, score)
    assert paired_bootstrap(before, after, score, clusters=alone) == expected


def test_a_cluster_is_drawn_whole() -> None:
    # Three copies of each row, apart from each other: as many rows as before, for the interval.
    rows = metrics.count_labels(random_rows(60, 0), SPACE)
    other = metrics.count_labels(random_rows(60, 1), SPACE)
    names = [f"{i:02}" for i in range(60)] * 3
    score = metrics.label_scores
    copies, others = np.concatenate([rows] * 3), np.concatenate([other] * 3)
    whole = bootstrap(copies, score, clusters=names)
    for name, interval in bootstrap(rows, score).items():
        assert whole[name] == pytest.approx(interval)
    paired = paired_bootstrap(copies, others, score, clusters=names)
    for name, change in paired_bootstrap(rows, other, score).items():
        assert paired[name]["difference"] == pytest.approx(change["difference"])
        assert paired[name]["ci95"] == pytest.approx(change["ci95"])


def test_only_clusters_cover_the_truth_where_rows_of_a_person_are_alike() -> None:
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(40), 10)
    covered = {"rows": 0, "clusters": 0}
    for seed in range(100):
        skill = rng.beta(1.4, 0.6, size=40)  # of each person, 0.7 in the mean
        hits = (rng.random(400) < skill[people]).astype(float)
        counts = np.stack([hits, 1 - hits], -1)[:, None]
        for name, clusters in (("rows", None), ("clusters", [str(one) for one in people])):
            low, high = bootstrap(counts, share, clusters=clusters, resamples=400, seed=seed)[
                "share"
            ]
            covered[name] += low <= 0.7 <= high
    assert covered["clusters"] >= 88
    assert covered["rows"] <= 75


def test_a_score_is_not_changed_by_clusters_and_uneven_ones_may_be_drawn() -> None:
    counts = right(random_rows(50, 0))
    names = ["a"] * 45 + ["b"] * 5
    low, high = bootstrap(counts, share, clusters=names)["share"]
    parts = [float(counts[:45, 0, 0].mean()), float(counts[45:, 0, 0].mean())]
    assert [low, high] == pytest.approx(sorted(parts))
    with pytest.raises(ValueError, match="clusters are named for 2 of 50 rows"):
        bootstrap(counts, share, clusters=names[-2:])


def test_intervals_are_of_subjects_if_every_row_names_one() -> None:
    rows = named(random_rows(120, 0), 12)
    got = metrics.summarise(rows, SPACE, AUS, **ABOUT)
    plain = metrics.summarise(random_rows(120, 0), SPACE, AUS, **ABOUT)
    for name, counts, score in (
        ("emotion", metrics.count_labels(rows, SPACE), metrics.label_scores),
        ("au", metrics.count_aus(rows, AUS), metrics.au_scores),
    ):
        assert got[name]["clusters"] == {"unit": "subject", "n": 12}
        subjects = [r["subject"] for r in rows]
        assert got[name]["ci95"] == bootstrap(counts, score, clusters=subjects)
        assert "clusters" not in plain[name]
        assert got[name]["f1_macro"] == plain[name]["f1_macro"]
        assert got[name]["ci95"] != plain[name]["ci95"]
    no_interval = metrics.summarise(rows, SPACE, AUS, ci=False, **ABOUT)
    assert "clusters" not in no_interval["emotion"]


def test_otherwise_rows_are_drawn() -> None:
    rows = random_rows(40, 0)
    expected = metrics.summarise(rows, SPACE, AUS, **ABOUT)
    one = [r | {"subject": "a"} for r in rows]
    some = [*named(rows[:-1], 5), rows[-1] | {"subject": None}]
    null = [r | {"subject": None} for r in rows]
    for others in (one, some, null):
        assert metrics.summarise(others, SPACE, AUS, **ABOUT) == expected


def test_paired_differences_are_of_subjects_too() -> None:
    before, after = named(random_rows(120, 0), 12), random_rows(120, 1, skill=0.9)
    got = metrics.compare(before, after[::-1], SPACE, AUS)
    expected = paired_bootstrap(
        metrics.count_labels(before, SPACE),
        metrics.count_labels(after, SPACE),
        metrics.label_scores,
        clusters=[r["subject"] for r in before],
    )
    clusters = {"clusters": {"unit": "subject", "n": 12}}
    assert got["emotion"] == {name: change | clusters for name, change in expected.items()}
    # It does not matter which run says who is in the pictures.
    swapped = metrics.compare(after, before, SPACE, AUS)["emotion"]["accuracy"]
    low, high = got["emotion"]["accuracy"]["ci95"]
    assert swapped["ci95"] == pytest.approx([-high, -low])
    assert swapped | clusters == swapped


def test_groups_draw_their_own_subjects() -> None:
    rows = named(random_rows(60, 0), 10)
    for i, r in enumerate(rows):
        word = "female" if i % 10 < 4 else "male"
        r["truth"] = r["truth"] | {"attributes": {"gender": word}}
    groups = metrics.summarise(rows, SPACE, AUS, **ABOUT)["emotion"]["groups"]["gender"]
    assert groups["female"]["clusters"] == {"unit": "subject", "n": 4}
    assert groups["male"]["clusters"] == {"unit": "subject", "n": 6}
    part = [r for i, r in enumerate(rows) if i % 10 < 4]
    expected = bootstrap(
        metrics.count_labels(part, SPACE),
        metrics.label_scores,
        clusters=[r["subject"] for r in part],
    )
    assert groups["female"]["ci95"] == expected["accuracy"]


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


def test_many_rows_are_drawn_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same intervals, up to the noise of 2,000 resamples, as from drawing row by row."""
    draw = np.random.default_rng(0)
    true, said = draw.integers(4, size=(2, 3000))
    counts = np.zeros((3000, 4, 5))
    counts[np.arange(3000), true, np.where(draw.random(3000) < 0.6, true, said)] = 1
    other = counts[draw.permutation(3000)]
    by_row = statistics.bootstrap(counts, metrics.label_scores)
    change = statistics.paired_bootstrap(counts, other, metrics.label_scores)
    monkeypatch.setattr(statistics, "MANY", 100)
    by_kind = statistics.bootstrap(counts, metrics.label_scores)
    for name, interval in by_row.items():
        assert by_kind[name] == pytest.approx(interval, abs=0.002)
    again = statistics.paired_bootstrap(counts, other, metrics.label_scores)
    for name, one in change.items():
        assert again[name]["difference"] == one["difference"]
        assert again[name]["ci95"] == pytest.approx(one["ci95"], abs=0.003)


def test_a_mean_and_its_interval() -> None:
    values = np.random.default_rng(0).normal(2, 1, 400)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=5000, method="percentile", rng=1
    ).confidence_interval
    found = mean(values)
    assert found["value"] == pytest.approx(values.mean())
    assert found["ci95"] == pytest.approx(list(expected), abs=0.01)
    wider = mean(values, level=0.999)["ci95"]
    assert wider[0] < found["ci95"][0] and found["ci95"][1] < wider[1]
    # Four equal rows a person say no more than one.
    copies, people = np.repeat(values, 4), [str(i // 4) for i in range(1600)]
    apart, together = mean(copies)["ci95"], mean(copies, people)["ci95"]
    assert together == pytest.approx(found["ci95"], abs=0.02)
    assert apart[1] - apart[0] == pytest.approx((together[1] - together[0]) / 2, rel=0.2)


def test_a_share_that_was_never_seen_is_not_ruled_out() -> None:
    never = mean([0] * 50)
    exact = stats.binomtest(0, 50).proportion_ci()
    assert never == {"value": 0, "ci95": [0, pytest.approx(exact.high)]}
    assert mean([1] * 50)["ci95"] == [pytest.approx(1 - exact.high), 1]
    assert mean([0] * 50, signed=True)["ci95"] == [pytest.approx(-exact.high), exact.high]
    few = mean([0] * 50, [str(i // 10) for i in range(50)])["ci95"]
    assert few[1] == pytest.approx(stats.binomtest(0, 5).proportion_ci().high)
    balanced = mean([-1, 1] * 25)["ci95"]  # a mean of 0, but not of zeros
    assert balanced[0] < -0.1 and balanced[1] > 0.1
    with pytest.raises(ValueError, match="a mean of nothing"):
        mean([])


@pytest.mark.slow
def test_a_million_predictions_are_scored_in_seconds() -> None:
    rows = random_rows(1000, 0) * 1000
    began = time.process_time()
    found = metrics.label_block(rows, SPACE)
    assert time.process_time() - began < 15
    once = metrics.label_block(rows[:1000], SPACE)
    assert found["accuracy"] == pytest.approx(once["accuracy"])
    assert found["ci95"]["accuracy"][1] - found["ci95"]["accuracy"][0] < 0.003
