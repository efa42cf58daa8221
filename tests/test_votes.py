"""Metrics of votes, and the simulated annotators of the rendered faces."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from vlmface import benchmarks, data, label_spaces
from vlmface.evaluate import answering
from vlmface.metrics import metrics, votes
from vlmface.metrics.metric import Scope
from vlmface.schema import FaceSample
from vlmface.synth import annotation

SPACE = label_spaces.space("emotion8")
SCOPE = Scope(SPACE)


def row(id: int, shares: dict[str, float] | None, probabilities: dict[str, float]) -> Any:
    truth: dict[str, Any] = {"emotion": "fear", "aus": None, "attributes": {}}
    if shares is not None:
        truth["votes"] = {"emotion": shares}
    label = max(probabilities, key=probabilities.__getitem__)
    return {
        "id": str(id),
        "truth": truth,
        "label": label,
        "status": "strict",
        "aus": [],
        "probabilities": probabilities,
    }


def random_rows(n: int, seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    drawn = [rng.dirichlet(np.full(8, 0.4), 2) for _ in range(n)]
    return [
        row(i, *(dict(zip(SPACE.labels, part.tolist(), strict=True)) for part in pair))
        for i, pair in enumerate(drawn)
    ]


def test_values_are_those_of_scipy_and_numpy() -> None:
    rows = random_rows(40, 0)
    pairs = [votes.distributions(one, SCOPE) for one in rows]
    for pair in pairs:
        assert pair is not None
        assert votes.nll(*pair) == pytest.approx(-(pair[0] * np.log(pair[1])).sum())
        assert votes.jsd(*pair) == pytest.approx(jensenshannon(*pair, base=2) ** 2, abs=1e-9)
    mean = votes.votes_nll(rows, SCOPE)
    assert mean is not None
    once, twice = mean(np.array([np.eye(40)[3], np.eye(40)[3] + 2 * np.eye(40)[5]]))
    values = [votes.nll(*pair) for pair in pairs if pair]
    assert once == pytest.approx(values[3])
    assert twice == pytest.approx((values[3] + 2 * values[5]) / 3)
    entropies = np.array([[votes.entropy(part) for part in pair] for pair in pairs if pair])
    function = votes.votes_entropy(rows, SCOPE)
    assert function is not None
    weights = np.stack([np.ones(40), np.arange(40) % 3]).astype(float)
    repeated = np.repeat(entropies, np.arange(40) % 3, axis=0)
    expected = [np.corrcoef(table.T)[0, 1] for table in (entropies, repeated)]
    assert function(weights) == pytest.approx(expected)


def test_equal_distributions_do_not_diverge_and_missing_votes_do_not_count() -> None:
    half, fear, anger = np.eye(8)[:2].mean(0), *np.eye(8)[:2]
    assert votes.jsd(half, half) == 0 and votes.jsd(fear, anger) == 1
    assert votes.nll(fear, anger) == pytest.approx(36.04, 1e-3)
    unknown = row(1, None, {"fear": 1.0})
    assert votes.distributions(unknown, SCOPE) is None
    for metric in (votes.votes_nll, votes.votes_jsd, votes.votes_entropy):
        assert metric([unknown], SCOPE) is None


def test_metrics_json_has_them_with_intervals() -> None:
    rows = [*random_rows(40, 1), row(40, None, {"fear": 1.0})]
    about: Any = dict.fromkeys(("benchmark", "model", "scoring"), "x")
    about |= {"prompt": {"id": "p", "sha": "0"}, "wall_s": 0, "peak_rss_gib": 0}
    block = metrics.summarise(rows, SPACE, [], about)["emotion"]
    for key in ("votes_nll", "votes_jsd", "votes_entropy"):
        low, high = block["ci95"][key]
        assert low < block[key] < high
    assert "votes_nll" not in metrics.summarise(rows[-1:], SPACE, [], about)["emotion"]
    other = [*random_rows(40, 2), rows[-1]]
    for one, two in zip(rows, other, strict=True):
        two["truth"] = one["truth"]
    change = metrics.compare(rows, other, SPACE, [])["emotion"]["votes_nll"]
    assert change["ci95"][0] < change["difference"] < change["ci95"][1]


# --- simulated annotators -------------------------------------------------------------------------


def test_faint_expressions_are_disputed_and_near_emotions_confused() -> None:
    strong = annotation.vote_probabilities("fear", {1: 5.0, 2: 5.0, 4: 5.0, 5: 5.0, 20: 5.0})
    faint = annotation.vote_probabilities("fear", {1: 1.0, 4: 1.0})
    for shares in (strong, faint):
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["fear"] > shares["anger"] > shares["happiness"]
    assert strong["fear"] == pytest.approx(annotation.SUREST) and faint["fear"] < 0.5


def test_votes_replace_the_label_and_reach_the_truth() -> None:
    faces = data.load("synth", split="test", n=40, annotators=10)
    plain = data.load("synth", split="test", n=40)
    assert faces.column_names == plain.column_names and faces["id"][:] == plain["id"][:]
    assert data.load("synth", split="test", n=8, annotators=10)["label_votes"] == list(
        faces["label_votes"][:8]
    )
    benchmark = benchmarks.load_benchmark("synth_votes")
    for face in faces.remove_columns(["image", "frames"]):
        counts = json.loads(face["label_votes"])
        assert sum(counts.values()) == 10
        most = [word for word, n in counts.items() if n == max(counts.values())]
        assert face["emotion"] == (most[0] if len(most) == 1 else None)
        shares = answering.ground_truth(FaceSample.from_row(face), benchmark)["votes"]["emotion"]
        assert shares == {label: counts.get(label, 0) / 10 for label in SPACE.labels}
    agreement = np.mean([a == b for a, b in zip(faces["emotion"], plain["emotion"], strict=True)])
    assert 0.8 < agreement < 1


def test_unbalanced_faces_fall_by_a_constant_factor() -> None:
    emotions = [word for word in annotation.BY_FREQUENCY for _ in range(100)]
    counts = Counter(emotions[i] for i in annotation.unbalanced(emotions, 20))
    assert counts["happiness"] == 100 and counts["contempt"] == 5
    assert [counts[word] for word in annotation.BY_FREQUENCY] == sorted(counts.values())[::-1]
    faces = data.load("synth", n=64, label_ratio=4.0)
    assert len(faces) < 64 and max(Counter(faces["emotion"]).values()) <= 8
