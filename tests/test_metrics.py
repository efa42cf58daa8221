from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from helpers.fake_run import ABOUT, AUS, SPACE, random_rows, row
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from vlmface.errors import UserError
from vlmface.evaluate import scoring_modes
from vlmface.label_spaces import SPACES
from vlmface.metrics import metrics


def summarise(rows: list[dict[str, Any]], space: Any = SPACE, au_set: Any = AUS) -> dict[str, Any]:
    return metrics.summarise(rows, space, au_set, ci=False, about=ABOUT)


@pytest.mark.parametrize("seed", range(5))
def test_label_scores_equal_scikit_learn(seed: int) -> None:
    rows = random_rows(300, seed)
    true = [r["truth"]["emotion"] for r in rows]
    said = [r["label"] or "unparsed" for r in rows]
    present = sorted(set(true))
    got = summarise(rows)["emotion"]
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(true, said))
    kind: dict[str, Any] = {"labels": present, "zero_division": 0}
    assert got["uar"] == pytest.approx(sk.recall_score(true, said, average="macro", **kind))
    assert got["f1_macro"] == pytest.approx(sk.f1_score(true, said, average="macro", **kind))
    columns = sk.precision_recall_fscore_support(true, said, **kind)
    for i, label in enumerate(present):
        per_class = got["per_class"][label]
        for name, column in zip(("precision", "recall", "f1", "support"), columns, strict=True):
            assert per_class[name] == pytest.approx(column[i])
    matrix = sk.confusion_matrix(true, said, labels=[*SPACE.labels, "unparsed"])
    assert got["confusion"] == matrix[:-1].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_au_scores_equal_scikit_learn(seed: int) -> None:
    rows = random_rows(200, seed)
    true = np.array([[str(au) in r["truth"]["aus"] for au in AUS] for r in rows])
    said = np.array([[au in r["aus"] for au in AUS] for r in rows])
    got = summarise(rows)["au"]
    kind: dict[str, Any] = {"zero_division": 0}
    with_positives = slice(0, -1)
    macro = sk.f1_score(true[:, with_positives], said[:, with_positives], average="macro", **kind)
    assert got["f1_macro"] == pytest.approx(macro)
    assert got["f1_micro"] == pytest.approx(sk.f1_score(true, said, average="micro", **kind))
    for i, au in enumerate(AUS[:-1]):
        per_au = got["per_au"][f"AU{au}"]
        assert per_au["f1"] == pytest.approx(sk.f1_score(true[:, i], said[:, i], **kind))
        assert per_au["recall"] == pytest.approx(sk.recall_score(true[:, i], said[:, i], **kind))
        precision = sk.precision_score(true[:, i], said[:, i], **kind)
        assert per_au["precision"] == pytest.approx(precision)
        assert per_au["support"] == true[:, i].sum()
    assert got["per_au"]["AU26"] == {"f1": None, "precision": 0.0, "recall": None, "support": 0}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(SPACE.labels),
            st.one_of(st.none(), st.sampled_from(SPACE.labels)),
            st.sets(st.sampled_from(AUS)),
            st.sets(st.sampled_from(AUS)),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_losing_an_answer_never_helps(cells: list[Any]) -> None:
    rows = [
        row(i, true, label, aus=sorted(said))
        | {"truth": {"emotion": true, "aus": {str(au): None for au in present}}}
        for i, (true, label, present, said) in enumerate(cells)
    ]
    whole = summarise(rows)
    right = next((i for i, r in enumerate(rows) if r["label"] == r["truth"]["emotion"]), None)
    for score in whole["emotion"]["accuracy"], whole["emotion"]["uar"]:
        assert 0 <= score <= 1
    if right is not None:
        lost = [
            r | {"label": None, "status": "none"} if i == right else r for i, r in enumerate(rows)
        ]
        for name in ("accuracy", "uar", "f1_macro"):
            assert summarise(lost)["emotion"][name] < whole["emotion"][name]


def test_unparsed_rows_are_misses_and_not_predictions() -> None:
    rows = [row(0, "anger", "anger"), row(1, "anger", None), row(2, "fear", "fear")]
    got = summarise(rows)["emotion"]
    assert got["accuracy"] == pytest.approx(2 / 3)
    assert got["uar"] == pytest.approx(0.75)
    anger = got["per_class"]["anger"]
    assert (anger["precision"], anger["recall"], anger["support"]) == (1.0, 0.5, 2)
    assert got["confusion"][SPACE.labels.index("anger")][-1] == 1


@pytest.mark.parametrize("status", ["ambiguous", "refused", "none"])
def test_a_label_without_a_valid_status_does_not_count(status: str) -> None:
    rows = [row(0, "anger", "anger"), row(1, "fear", "fear", status=status)]
    got = summarise(rows)
    assert got["emotion"]["accuracy"] == 0.5
    assert got["parse"][status] == 0.5
    assert sum(got["parse"].values()) == 1


def test_an_answer_outside_the_space_is_wrong() -> None:
    got = summarise([row(0, "anger", "contempt")], SPACES["emotion7"])
    assert got["emotion"]["accuracy"] == 0
    assert sum(map(sum, got["emotion"]["confusion"])) == 1


def test_truth_outside_the_space_is_an_error() -> None:
    with pytest.raises(UserError, match=r"row '7' has the true emotion 'contempt'.*emotion7"):
        summarise([row(7, "contempt", "anger")], SPACES["emotion7"])


def test_unknown_status_and_no_rows_are_errors() -> None:
    with pytest.raises(UserError, match="row '3' has status 'fine'"):
        summarise([row(3, "anger", "anger", status="fine")])
    with pytest.raises(UserError, match="no predictions"):
        summarise([])


def test_not_annotated_is_not_absent() -> None:
    truths = [
        {"emotion": None, "aus": {"1": 3.0}, "annotated_aus": [1, 4]},
        {"emotion": "anger", "aus": None, "annotated_aus": None},
        {"emotion": "anger", "aus": {"4": None, "2": 0.0}, "annotated_aus": None},
    ]
    rows = [row(i, None, "anger", aus=[1, 2, 4]) | {"truth": t} for i, t in enumerate(truths)]
    got = summarise(rows, au_set=(1, 2, 4))
    assert got["n"] == 3
    assert got["emotion"]["n"] == 2
    assert got["emotion"]["accuracy"] == 1
    tally = metrics.count_aus(rows, (1, 2, 4))
    assert tally[0].tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]  # AU2 is not annotated here
    assert tally[1].sum() == 0
    assert tally[2].tolist() == [[0, 1, 0], [0, 1, 0], [1, 0, 0]]  # AU2 is 0: absent


def test_blocks_that_do_not_apply_are_left_out() -> None:
    got = summarise([row(0, "anger", "anger")], au_set=())
    assert not {"au", "attributes", "consistency", "calibration"} & set(got)
    only_aus = row(0, None, "anger", aus=[4]) | {"truth": {"aus": {"4": 2.0}}}
    assert "emotion" not in summarise([only_aus])
    assert summarise([only_aus])["au"]["f1_macro"] == 1


def test_attributes_are_scored_under_their_own_name() -> None:
    rows = [
        row(i, None, said) | {"truth": {"attributes": {"gender": true}}}
        for i, (true, said) in enumerate([("female", "female"), ("female", "male"), ("male", None)])
    ]
    got = summarise(rows, SPACES["gender"], ())
    assert "emotion" not in got
    assert got["attributes"]["gender"]["accuracy"] == pytest.approx(1 / 3)
    assert got["attributes"]["gender"]["uar"] == pytest.approx(0.25)


def test_consistency_is_about_the_models_own_aus() -> None:
    rows = [
        row(0, "anger", "happiness", aus=[6, 12]),  # wrong, but its AUs support its label
        row(1, "anger", "sadness", aus=[6, 12]),
        row(2, "anger", None, aus=[6, 12]),
    ]
    assert summarise(rows)["consistency"] == 0.5


def test_calibration_error() -> None:
    sure = {"anger": 0.95, "fear": 0.05}
    rows = [row(i, "anger" if i < 6 else "fear", "anger", probabilities=sure) for i in range(10)]
    found = summarise(rows)["calibration"]
    bins = found.pop("reliability")
    assert found == {
        "ece": pytest.approx(0.35),
        "bins": 15,
        "n": 10,
        "nll": pytest.approx(-(6 * np.log(0.95) + 4 * np.log(0.05)) / 10),
        "brier": pytest.approx((6 * 2 * 0.05**2 + 4 * 2 * 0.95**2) / 10),
        "top2": 1.0,
    }
    assert len(bins) == 15 and sum(one["count"] for one in bins) == 10
    assert bins[14] == {"count": 10, "confidence": pytest.approx(0.95), "accuracy": 0.6}
    assert bins[0] == {"count": 0}


def test_readings_are_scored_apart() -> None:
    likely = {label: float(label == "fear") for label in SPACE.labels}
    scores = {"log_likelihood": likely, "tokens": dict.fromkeys(SPACE.labels, 1), "prior": likely}
    rows = [
        row(i, "anger", "anger", probabilities=likely) | {"text": "anger", "scores": scores}
        for i in range(4)
    ]
    found = scoring_modes.summarise(rows, SPACE)
    assert {name: block["accuracy"] for name, block in found.items()} == {
        "generated": 1,
        "after_rationale": 0,
        "likelihood": 0,
        "likelihood_per_token": 0,
        "likelihood_minus_prior": 1,  # all are equally likely then, and anger is the first
    }
    assert (
        "calibration" not in found["generated"] and found["likelihood"]["calibration"]["top2"] == 1
    )
    nothing_written = [one | {"text": ""} for one in rows]
    assert set(scoring_modes.summarise(nothing_written, SPACE)) == set(scoring_modes.NAMES[2:])
    without = [{**one, "probabilities": None, "scores": None} for one in rows]
    assert set(scoring_modes.summarise(without, SPACE)) == {"generated"}


def test_calibration_error_equals_a_loop_over_bins() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(500):
        p = dict(zip(SPACE.labels, rng.dirichlet(np.full(8, 0.3)), strict=True))
        rows.append(row(i, str(rng.choice(SPACE.labels)), "anger", probabilities=p))
    confidence = np.array([max(r["probabilities"].values()) for r in rows])
    right = np.array(
        [max(r["probabilities"], key=r["probabilities"].get) == r["truth"]["emotion"] for r in rows]
    )
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert summarise(rows)["calibration"]["ece"] == pytest.approx(expected)


def test_shape_of_the_file() -> None:
    got = metrics.summarise(random_rows(50, 0), SPACE, AUS, about=ABOUT)
    assert got["schema"] == 2
    assert {k: got[k] for k in ABOUT} == ABOUT
    assert got["n"] == 50
    assert set(got["emotion"]) >= {"accuracy", "uar", "f1_macro", "ci95"}
    assert set(got["emotion"]["ci95"]) == {"accuracy", "uar", "f1_macro"}
    assert set(got["au"]["ci95"]) == {"f1_macro", "f1_micro"}
    assert set(got["parse"]) == {"strict", "lenient", "ambiguous", "refused", "none"}
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    low, high = got["emotion"]["ci95"]["accuracy"]
    assert low < got["emotion"]["accuracy"] < high
