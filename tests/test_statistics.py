from __future__ import annotations

import time

import numpy as np
import pytest
from helpers.fake_run import ABOUT, AUS, SPACE, random_rows, row
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vlmface.errors import UserError
from vlmface.metrics import metrics, statistics
from vlmface.metrics.measures import mcnemar_exact
from vlmface.metrics.shares import paired_share, share_interval
from vlmface.metrics.statistics import Array, align, bootstrap, mean, paired_bootstrap


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
    monkeypatch.setattr("vlmface.metrics.statistics._CHUNK", 700)
    assert bootstrap(counts, metrics.label_scores, seed=3) == first


def test_scores_of_resamples_are_scores_of_resampled_rows() -> None:
    rows = random_rows(40, 2)
    rng = np.random.default_rng(0)
    labels, aus = metrics.count_labels(rows, SPACE), metrics.count_aus(rows, AUS)
    picks = rng.integers(40, size=(5, 40))
    stacked = metrics.label_scores(labels[picks].sum(1)), metrics.au_scores(aus[picks].sum(1))
    for i, pick in enumerate(picks):
        drawn = [rows[j] for j in pick]
        one = metrics.summarise(drawn, SPACE, AUS, ci=False, about=ABOUT)
        for name, values in stacked[0].items():
            assert values[i] == pytest.approx(one["emotion"][name])
        for name, values in stacked[1].items():
            assert values[i] == pytest.approx(one["au"][name])


@pytest.mark.parametrize("people", [None, 20])
def test_all_right_and_all_wrong_are_not_certain(people: int | None) -> None:
    """0 of 60 does not rule out 1 %: the bounds are those of the exact binomial interval."""
    faces = []
    for i in range(60):
        truth = {"emotion": SPACE.labels[i % 4], "aus": {"4": 1.0, "12": 2.0}}
        faces.append(row(i, None, None, truth=truth))
    faces = named(faces, people) if people else faces
    answered = {"status": "strict", "aus": [4, 12]}
    right = [face | answered | {"label": face["truth"]["emotion"]} for face in faces]
    none, every = (metrics.summarise(rows, SPACE, (4, 12), about=ABOUT) for rows in (faces, right))
    units = people or 60
    rare = stats.binomtest(0, units).proportion_ci().high
    assert none["emotion"]["ci95"]["accuracy"] == [0, pytest.approx(rare)]
    assert every["emotion"]["ci95"]["accuracy"] == [pytest.approx(1 - rare), 1]
    for block in ("emotion", "au"):
        for score, (low, high) in none[block]["ci95"].items():
            assert low == 0 and 0.5 * rare < high < 3 * rare, (block, score)
        for score, (low, high) in every[block]["ci95"].items():
            assert high == 1 and 1 - 3 * rare < low < 1 - 0.4 * rare, (block, score)
    # With equally many faces of each label, UAR is as uncertain as accuracy.
    assert none["emotion"]["ci95"]["uar"] == pytest.approx([0, rare])
    change = metrics.compare(faces, right, SPACE, (4, 12))
    for block in ("emotion", "au"):
        for score, one in change[block].items():
            assert one["difference"] == 1 and one["ci95"][0] < 1 == one["ci95"][1], (block, score)


def test_people_who_are_all_alike_have_an_interval_with_width() -> None:
    """12 people, each right on 3 of 4 faces: every resample gives 0.75."""
    rows = [
        row(
            i,
            SPACE.labels[i % 4],
            "contempt" if i % 4 == 0 else SPACE.labels[i % 4],
            subject=f"p{i // 4}",
        )
        for i in range(48)
    ]
    block = metrics.summarise(rows, SPACE, (), about=ABOUT)["emotion"]
    assert block["accuracy"] == 0.75
    for score, (low, high) in block["ci95"].items():
        assert low < block[score] - 0.05 and high > block[score] + 0.05
    four = [r for r in rows if int(r["subject"][1:]) < 4]
    block = metrics.summarise(four, SPACE, (), about=ABOUT)["emotion"]
    assert block["ci95"] == {}
    assert block["no_ci95"] == "4 people: too few for an interval, which needs 10"
    assert block["clusters"] == {"unit": "subject", "n": 4}


def test_600_rows_of_all_scores_take_less_than_2_seconds() -> None:
    rows = random_rows(600, 0)
    start = time.process_time()
    got = metrics.summarise(rows, SPACE, range(1, 25), about=ABOUT)
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
    alone = metrics.summarise(before, SPACE, AUS, about=ABOUT)["emotion"]["ci95"]["accuracy"]
    assert high - low < 0.6 * (alone[1] - alone[0])
    low, high = got["au"]["f1_macro"]["ci95"]
    assert got["au"]["f1_macro"]["difference"] == 0 and -0.03 < low < 0 < high < 0.03


def test_paired_difference_of_a_run_with_itself_is_zero_but_not_certain() -> None:
    rows = random_rows(60, 1)
    scores = metrics.compare(rows, rows, SPACE, ())["emotion"]
    for score in scores.values():
        assert score["difference"] == 0 and -0.07 < score["ci95"][0] < 0 < score["ci95"][1] < 0.07
    rare = stats.binomtest(0, 60).proportion_ci().high
    assert scores["accuracy"] == {"difference": 0, "ci95": pytest.approx([-rare, rare]), "p": 1}


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
    got = metrics.summarise(rows, SPACE, AUS, about=ABOUT)
    plain = metrics.summarise(random_rows(120, 0), SPACE, AUS, about=ABOUT)
    for name, counts, score in (
        ("emotion", metrics.count_labels(rows, SPACE), metrics.label_scores),
        ("au", metrics.count_aus(rows, AUS), metrics.au_scores),
    ):
        assert got[name]["clusters"] == {"unit": "subject", "n": 12}
        subjects = [r["subject"] for r in rows]
        expected = bootstrap(counts, score, clusters=subjects)
        if name == "emotion":
            parts = metrics.right_and_known(counts)
            expected["accuracy"] = share_interval(*parts, clusters=subjects)
        assert got[name]["ci95"] == expected
        assert "clusters" not in plain[name]
        assert got[name]["f1_macro"] == plain[name]["f1_macro"]
        assert got[name]["ci95"] != plain[name]["ci95"]
    no_interval = metrics.summarise(rows, SPACE, AUS, ci=False, about=ABOUT)
    assert "clusters" not in no_interval["emotion"]


def test_otherwise_rows_are_drawn() -> None:
    rows = random_rows(40, 0)
    expected = metrics.summarise(rows, SPACE, AUS, about=ABOUT)
    some = [*named(rows[:-1], 5), rows[-1] | {"subject": None}]
    null = [r | {"subject": None} for r in rows]
    for others in (some, null):
        assert metrics.summarise(others, SPACE, AUS, about=ABOUT) == expected
    alone = metrics.summarise([r | {"subject": "a"} for r in rows], SPACE, AUS, about=ABOUT)
    assert alone["emotion"]["ci95"] == alone["au"]["ci95"] == {}
    assert alone["emotion"]["no_ci95"].startswith("1 person: too few for an interval")


def test_a_few_faces_of_unknown_people_have_intervals_of_shares_alone() -> None:
    block = metrics.summarise(random_rows(8, 0), SPACE, (), about=ABOUT)["emotion"]
    right = round(block["accuracy"] * 8)
    exact = stats.binomtest(right, 8).proportion_ci()
    assert block["ci95"] == {"accuracy": pytest.approx([exact.low, exact.high])}
    assert block["no_ci95"] == "8 annotated faces: too few for an interval, which needs 10"


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
    hits, totals = metrics.right_and_known(metrics.count_labels(before, SPACE))
    others, _ = metrics.right_and_known(metrics.count_labels(after, SPACE))
    expected["accuracy"] = paired_share(
        hits, others, totals, clusters=[r["subject"] for r in before]
    )
    assert got["emotion"] == {name: change | clusters for name, change in expected.items()}
    # It does not matter which run says who is in the pictures.
    swapped = metrics.compare(after, before, SPACE, AUS)["emotion"]["accuracy"]
    low, high = got["emotion"]["accuracy"]["ci95"]
    assert swapped["ci95"] == pytest.approx([-high, -low])
    assert swapped | clusters == swapped


def test_a_verdict_by_people_and_its_interval_agree() -> None:
    """Two people gained on all of their many faces, 18 changed by chance: by face that is
    significant, by person it is not."""
    before = np.zeros(200)
    after = before.copy()
    after[:20] = 1
    people = [f"p{i // 10}" for i in range(200)]
    ones = np.ones(200)
    by_face = paired_share(before, after, ones)
    by_person = paired_share(before, after, ones, clusters=people)
    assert by_face["difference"] == by_person["difference"] == pytest.approx(0.1)
    assert by_face["p"] < 0.001 and by_face["ci95"][0] > 0
    assert by_person["p"] > 0.05 and by_person["ci95"][0] <= 0
    few = paired_share(before[:90], after[:90], ones[:90], clusters=people[:90])
    assert few == {"difference": pytest.approx(20 / 90)}


@given(st.integers(0, 2**32 - 1), st.integers(10, 40), st.floats(-0.4, 0.4))
def test_an_interval_excludes_zero_if_and_only_if_p_is_below_5_percent(
    seed: int, units: int, gain: float
) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, units)
    people = [str(i) for i, size in enumerate(sizes) for _ in range(size)]
    first = rng.random(len(people)) < 0.5
    second = rng.random(len(people)) < 0.5 + gain
    change = paired_share(first, second, np.ones(len(people)), clusters=people)
    low, high = change["ci95"]
    assert low <= change["difference"] <= high and low < high
    assert (change["p"] < 0.05) == (not low <= 0 <= high)


def test_the_sign_flip_test_of_independent_rows_is_mcnemars() -> None:
    for only_first, only_second in ((5, 0), (6, 0), (1, 7), (8, 1), (10, 3), (20, 8), (0, 0)):
        first, second = np.zeros(100), np.zeros(100)
        first[:only_first] = 1
        second[only_first : only_first + only_second] = 1
        exact = mcnemar_exact(first > 0, second > 0)["p"]
        assert paired_share(first, second, np.ones(100))["p"] == pytest.approx(exact, abs=0.006)


@pytest.mark.parametrize("people", [10, 40])
def test_intervals_of_shares_cover_the_truth(people: int) -> None:
    rng = np.random.default_rng(0)
    names = [str(i) for i in np.repeat(np.arange(people), 5)]
    covered = {"share": 0, "change": 0}
    for _ in range(100):
        skill = np.repeat(rng.beta(2.1, 0.9, size=people), 5)  # 0.7 in the mean
        first, second = (rng.random(5 * people) < skill for _ in range(2))
        low, high = share_interval(first, np.ones(5 * people), clusters=names) or (1, 0)
        covered["share"] += low <= 0.7 <= high
        low, high = paired_share(first, second, np.ones(5 * people), clusters=names)["ci95"]
        covered["change"] += low <= 0 <= high
    assert all(91 <= count <= 100 for count in covered.values()), covered


def test_a_share_of_independent_rows_has_the_exact_interval() -> None:
    for hits, n in ((0, 7), (3, 7), (7, 7), (299, 300)):
        exact = stats.binomtest(hits, n).proportion_ci()
        values = [1] * hits + [0] * (n - hits)
        assert share_interval(values, [1] * n) == pytest.approx([exact.low, exact.high])
    assert share_interval([], []) is None
    assert share_interval([0, 0], [0, 0]) is None


def test_groups_draw_their_own_subjects() -> None:
    rows = named(random_rows(96, 0), 16)
    for i, r in enumerate(rows):
        word = "female" if i % 16 < 4 else "male"
        r["truth"] = r["truth"] | {"attributes": {"gender": word}}
    groups = metrics.summarise(rows, SPACE, AUS, about=ABOUT)["emotion"]["groups"]["gender"]
    assert groups["female"]["clusters"] == {"unit": "subject", "n": 4}
    assert "ci95" not in groups["female"]
    assert groups["female"]["no_ci95"] == "4 people: too few for an interval, which needs 10"
    assert groups["male"]["clusters"] == {"unit": "subject", "n": 12}
    part = [r for i, r in enumerate(rows) if i % 16 >= 4]
    expected = share_interval(
        *metrics.right_and_known(metrics.count_labels(part, SPACE)),
        clusters=[r["subject"] for r in part],
    )
    assert groups["male"]["ci95"] == expected


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
    assert mean([0] * 50, signed=True)["ci95"] == pytest.approx([-exact.high, exact.high])
    people = mean([0] * 50, [str(i // 5) for i in range(50)])["ci95"]
    assert people[1] == pytest.approx(stats.binomtest(0, 10).proportion_ci().high)
    assert mean([0] * 50, [str(i // 10) for i in range(50)]) == {"value": 0, "ci95": None}
    always = mean([-1] * 50, signed=True)["ci95"]
    assert always[0] < -1 < always[1]
    balanced = mean([-1, 1] * 25)["ci95"]  # a mean of 0, but not of zeros
    assert balanced[0] < -0.1 and balanced[1] > 0.1
    with pytest.raises(ValueError, match="a mean needs one value"):
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
