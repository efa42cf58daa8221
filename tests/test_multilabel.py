"""Several labels a face, and valence and arousal: against scikit-learn and formulas written here,
through lines of predictions.jsonl, metrics.json, the report and the comparison of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.fake_run import ABOUT, faces, write_lines
from helpers.run_files import read_metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from vlmface import benchmarks, prompts
from vlmface.errors import UserError
from vlmface.evaluate import answering, compare, report
from vlmface.evaluate import run as evaluation
from vlmface.infer.prediction import LabelScores, Prediction
from vlmface.label_spaces import SPACES, LabelSpace
from vlmface.metrics import measures, metrics, multilabel, parts, statistics
from vlmface.schema import AFFECT, FaceSample

SPACE = LabelSpace("five", "context", ("A", "B", "C", "D", "E"), {}, "test", multi_label=True)
EMOTIC = SPACES["emotic26"]
PROMPT = prompts.load("emotic")


def row(i: int, true: Any, said: Any, **fields: Any) -> dict[str, Any]:
    """A prediction of several labels; those said are None where nothing was written."""
    return {
        "id": str(i),
        "image": str(i),
        "truth": {"emotion": None, "aus": None, "attributes": {}, "labels": true},
        "text": "" if said is None else ", ".join(said),
        "label": None,
        "labels": said,
        "status": "strict" if said else "none",
        "aus": [],
        "probabilities": None,
        "latency_s": 0.0,
        **fields,
    }


def random_rows(n: int, seed: int, space: LabelSpace = SPACE) -> list[dict[str, Any]]:
    """Rows whose last label never occurs in the truth; of coarse probabilities, many are equal.
    The truth depends on the row's number only."""
    rows = []
    for i in range(n):
        world, model = np.random.default_rng([1, i]), np.random.default_rng([2, seed, i])
        flags = world.random(len(space.labels) - 1) < 0.3
        flags[world.integers(len(flags))] = True  # at least one
        true = [label for label, has in zip(space.labels, flags, strict=False) if has]
        said = [label for label in space.labels if model.random() < (0.6 if label in true else 0.2)]
        rough = {
            label: round(float(model.random() / 2 + 0.3 * (label in true)), 1)
            for label in space.labels
        }
        rows.append(row(i, true, said, probabilities=rough))
    return rows


def summarise(rows: list[dict[str, Any]], space: LabelSpace = SPACE, ci: bool = False) -> Any:
    return metrics.summarise(rows, space, (), ci=ci, about=ABOUT)


def flags(rows: list[dict[str, Any]], of: Any, space: LabelSpace = SPACE) -> np.ndarray:
    return np.array([[label in (of(r) or ()) for label in space.labels] for r in rows])


# --- what was said --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_scikit_learn(seed: int) -> None:
    rows = random_rows(120, seed)
    true, said = flags(rows, multilabel.true_labels), flags(rows, multilabel.predicted_labels)
    got = summarise(rows)["labels"]
    assert got["n"] == 120
    kind: dict[str, Any] = {"zero_division": 0}
    occur = true.any(0)
    assert not occur[-1] and said[:, -1].any()
    macro = sk.f1_score(true[:, occur], said[:, occur], average="macro", **kind)
    assert got["f1_macro"] == pytest.approx(macro)
    assert got["f1_micro"] == pytest.approx(sk.f1_score(true, said, average="micro", **kind))
    assert got["jaccard"] == pytest.approx(sk.jaccard_score(true, said, average="samples", **kind))
    assert got["exact_match"] == pytest.approx(sk.accuracy_score(true, said))
    for i, label in enumerate(SPACE.labels[:-1]):
        one = got["per_label"][label]
        assert one["support"] == true[:, i].sum()
        for name, score in (
            ("precision", sk.precision_score),
            ("recall", sk.recall_score),
            ("f1", sk.f1_score),
        ):
            assert one[name] == pytest.approx(score(true[:, i], said[:, i], **kind))
    assert got["per_label"]["E"]["f1"] is None and got["per_label"]["E"]["ap"] is None


def test_a_row_without_a_valid_answer_says_nothing_and_counts() -> None:
    rows = [row(0, ["A"], ["A"]), row(1, ["A", "B"], ["A", "B"], status="ambiguous")]
    got = summarise(rows)["labels"]
    assert (got["jaccard"], got["exact_match"], got["n"]) == (0.5, 0.5, 2)
    assert got["per_label"]["A"]["recall"] == 0.5
    unannotated = [*rows, row(2, None, ["C"])]
    assert summarise(unannotated)["labels"] == got
    assert "labels" not in summarise([row(0, None, ["A"])])
    with pytest.raises(UserError, match=r"row '0' has the true label 'Z', which label space five"):
        summarise([row(0, ["Z"], ["A"])])


sets = st.sets(st.sampled_from(SPACE.labels))


@given(sets, sets)
def test_jaccard(said: set[str], true: set[str]) -> None:
    value = measures.jaccard(said, true)
    assert 0 <= value <= 1 and (value == 1) == (said == true)
    assert value == measures.jaccard(true, said)
    if true:
        assert (value == 0) == (not said & true)


# --- the ranking ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_map_equals_scikit_learn_with_ties(seed: int) -> None:
    rows = random_rows(80, seed)
    true = flags(rows, multilabel.true_labels)
    values = np.array([[r["probabilities"][label] for label in SPACE.labels] for r in rows])
    assert len(np.unique(values)) < 12  # many ties
    expected = [sk.average_precision_score(true[:, k], values[:, k]) for k in range(4)]
    got = summarise(rows)["labels"]
    assert got["map"] == pytest.approx(np.mean(expected))
    for label, ap in zip(SPACE.labels, expected, strict=False):
        assert got["per_label"][label]["ap"] == pytest.approx(ap)
    whole = measures.mean_average_precision(values, true, SPACE.labels)
    assert whole["map"] == pytest.approx(got["map"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 3)), min_size=1),
)
def test_weights_are_rows_that_occur_as_often(cells: list[tuple[int, bool, int]]) -> None:
    values, true, weights = (np.array(column) for column in zip(*cells, strict=True))
    (got,) = measures.weighted_average_precision(values, true, weights[None].astype(float))
    repeated = np.repeat(np.arange(len(cells)), weights)
    if not true[repeated].any():
        assert np.isnan(got)
        return
    assert got == pytest.approx(measures.average_precision(values[repeated], true[repeated]))
    assert got == pytest.approx(sk.average_precision_score(true, values, sample_weight=weights))


def test_intervals_are_those_of_rows_drawn_one_by_one() -> None:
    rows = random_rows(40, 3)
    true = flags(rows, multilabel.true_labels).astype(float)
    values = multilabel.ranking(rows, SPACE)
    assert values is not None
    rng, drawn = np.random.default_rng(0), []
    for _ in range(statistics.RESAMPLES):
        picks = rng.integers(40, size=40)
        occur = [k for k in range(5) if true[picks, k].any()]
        aps = [measures.average_precision(values[picks, k], true[picks, k] > 0) for k in occur]
        drawn.append(np.mean(aps))
    expected = np.percentile(drawn, [2.5, 97.5])
    got = summarise(rows, ci=True)["labels"]["ci95"]["map"]
    assert got == pytest.approx(expected.tolist())  # the same draws, as seed and order are


def test_people_are_drawn_where_rows_name_them() -> None:
    rows = [r | {"subject": str(i // 4)} for i, r in enumerate(random_rows(40, 3))]
    block = summarise(rows, ci=True)["labels"]
    assert block["clusters"] == {"unit": "subject", "n": 10}
    values, true = multilabel.ranking(rows, SPACE), multilabel.present(rows, SPACE)
    assert values is not None
    names = [r["subject"] for r in rows]
    index = np.unique(names, return_inverse=True)[1]
    rng, drawn = np.random.default_rng(0), []
    for _ in range(statistics.RESAMPLES):
        people = np.bincount(rng.integers(10, size=10), minlength=10)
        drawn.append(float(multilabel.map_of(values, true)(people[index][None])[0]))
    assert block["ci95"]["map"] == pytest.approx(np.percentile(drawn, [2.5, 97.5]).tolist())


def test_likelihoods_are_ranked_less_what_a_grey_picture_gives() -> None:
    # Only what the picture adds ranks A's face first.
    likely = [({"A": -5.0}, {"A": -9.0}), ({"A": -2.0}, {"A": -2.5})]
    rows = [
        row(
            i,
            true,
            None,
            scores={
                "log_likelihood": dict.fromkeys("BCDE", -1.0) | ll,
                "tokens": {},
                "prior": dict.fromkeys("BCDE", -1.0) | prior,
            },
        )
        for i, ((ll, prior), true) in enumerate(zip(likely, [["A"], ["B"]], strict=True))
    ]
    got = summarise(rows)["labels"]
    assert got["per_label"]["A"]["ap"] == 1 and got["per_label"]["B"]["ap"] == 0.5
    assert got["map"] == 0.75
    assert not {"f1_macro", "jaccard"} & got.keys()  # nothing was written
    for one in rows:
        one["scores"]["prior"] = None
    assert summarise(rows)["labels"]["per_label"]["A"]["ap"] == 0.5


def test_without_likelihoods_there_is_no_map_and_some_are_not_enough() -> None:
    rows = [r | {"probabilities": None} for r in random_rows(5, 0)]
    assert "map" not in summarise(rows)["labels"] and "jaccard" in summarise(rows)["labels"]
    mixed = [*random_rows(5, 0)[:-1], rows[-1]]
    with pytest.raises(UserError, match="row '4' has no likelihoods of five, while others have"):
        summarise(mixed)
    mixed[-1] = mixed[-1] | {"probabilities": {"A": 0.5}}
    with pytest.raises(UserError, match="row '4' has likelihoods of some labels only"):
        summarise(mixed)


def test_differences_of_two_runs() -> None:
    before, after = random_rows(60, 1), random_rows(60, 2)
    one, two = summarise(before)["labels"], summarise(after)["labels"]
    change = metrics.compare(before, after, SPACE, ())["labels"]
    assert set(change) == {"f1_macro", "f1_micro", "jaccard", "exact_match", "map"}
    for name, entry in change.items():
        assert entry["difference"] == pytest.approx(two[name] - one[name])
        assert entry["ci95"][0] <= entry["difference"] <= entry["ci95"][1]
    same = metrics.compare(before, before, SPACE, ())["labels"]
    assert all(entry["difference"] == 0 for entry in same.values())
    assert same.pop("map") == {"difference": 0, "no_ci95": parts.EQUAL}
    assert all(entry["ci95"][0] < 0 < entry["ci95"][1] for entry in same.values())
    unranked = [r | {"probabilities": None} for r in after]
    assert "map" not in metrics.compare(before, unranked, SPACE, ())["labels"]


# --- lines, files, pages --------------------------------------------------------------------------


def sample(i: int, context: list[str] | None, **fields: Any) -> dict[str, Any]:
    return FaceSample(id=str(i), dataset="t", context=context, **fields).to_row() | {
        "image": {"path": f"{i}.png", "bytes": None}
    }


def test_lines_in_each_mode(tmp_path: Path) -> None:
    benchmark = benchmarks.load_benchmark("emotic")
    one = sample(1, ["happiness", "Engagement"], valence=0.5, arousal=-0.25, gender="female")
    text = "Happiness, Engagement"
    written = Prediction(
        text, PROMPT.parse(text), None, 0.1, True, affect={"valence": 0.25, "arousal": 0.5}
    )
    likely = LabelScores(
        dict.fromkeys(EMOTIC.labels, -1.0),
        dict.fromkeys(EMOTIC.labels, 1),
        0.1,
        dict.fromkeys(EMOTIC.labels, -2.0),
    )
    both = answering.prediction_record(one, benchmark, PROMPT, written, likely)
    assert both["labels"] == both["truth"]["labels"] == ["Engagement", "Happiness"]
    assert both["truth"]["attributes"]["gender"] == "female"
    assert both["truth"]["affect"] == {"valence": 0.5, "arousal": -0.25}
    assert both["label"] is None and both["status"] == "strict"
    scored = answering.prediction_record(one, benchmark, PROMPT, None, likely)
    assert scored["labels"] is None and scored["probabilities"] is None
    assert scored["scores"]["prior"] == dict.fromkeys(EMOTIC.labels, -2.0)
    free = answering.prediction_record(sample(2, None), benchmark, PROMPT, written)
    assert free["truth"]["labels"] is None and "affect" not in free["truth"]
    scores = evaluation.compute_metrics([both], benchmark, [PROMPT], model="m", scoring="both")
    assert scores["labels"]["exact_match"] == 1 and scores["labels"]["map"] == 1
    assert "mAP 1.000, label F1 1.000" in evaluation.one_line_summary(scores)
    assert scores["labels"]["no_ci95"].startswith("1 annotated face: too few")
    assert "valid answers 100.0%" in evaluation.one_line_summary(scores)
    scores = evaluation.compute_metrics(
        [scored], benchmark, [PROMPT], model="m", scoring="likelihood"
    )
    assert scores["scoring"] == "likelihood" and scores["labels"]["map"] == 1
    assert "exact_match" not in scores["labels"]
    assert "valid answers" not in evaluation.one_line_summary(scores)

    answering.write_table(tmp_path / "table.parquet", [both, scored])
    table = pq.read_table(tmp_path / "table.parquet").to_pylist()
    assert [line["labels"] for line in table] == [["Engagement", "Happiness"], None]
    assert table[1]["true_labels"] == ["Engagement", "Happiness"]
    assert [line["valence"] for line in table] == [0.25, None]
    assert table[0]["true_arousal"] == -0.25 and table[0]["ll_Peace"] == -1.0


def run_of(folder: Path, rows: list[dict[str, Any]], scoring: str = "generated") -> Path:
    folder.mkdir()
    scores = metrics.summarise(rows, EMOTIC, (), about=(ABOUT | {"scoring": scoring}))
    (folder / "metrics.json").write_text(json.dumps(scores), encoding="utf-8")
    write_lines(folder / "predictions.jsonl", rows)
    return folder


def told(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The rows with true valence and arousal, and a model that tells them."""
    chance = np.random.default_rng(seed)
    found = []
    for i, one in enumerate(rows):
        true = np.random.default_rng([3, i]).uniform(-1, 1, 2)
        said = np.clip(true + chance.normal(0, 0.3, 2), -1, 1)
        names = AFFECT
        truth = one["truth"] | {"affect": dict(zip(names, true.tolist(), strict=True))}
        found.append(one | {"truth": truth, "affect": dict(zip(names, said.tolist(), strict=True))})
    return found


def test_the_report_and_the_comparison_show_them(tmp_path: Path) -> None:
    first, second = (told(random_rows(30, seed, EMOTIC), seed) for seed in (1, 2))
    folders = [run_of(tmp_path / "one", first), run_of(tmp_path / "two", second)]
    page = report.write_report(folders[0], images=faces(first)).read_text(encoding="utf-8")
    assert "Label by label" in page and '<th scope="row">Happiness</th>' in page
    assert "mean average precision" in page and "Its valence has an RMSE of" in page
    assert "None" not in page.split("<style>")[0] + page.split("</style>")[1]
    shown = [r for r in first if ", ".join(multilabel.true_labels(r) or ()) in page]
    assert len(shown) == report.FACES  # all are wrong, and as many are shown
    assert all(r["text"] in page for r in shown)
    scored = [r | {"labels": None, "status": "none", "text": ""} for r in first]
    quiet = run_of(tmp_path / "scored", scored, "likelihood")
    page = report.write_report(quiet, images=faces(scored)).read_text(encoding="utf-8")
    assert "mean average precision" in page and "Jaccard index, mean" not in page
    assert "valid answers" not in page

    result = compare.compare([compare.read(folder) for folder in folders])
    (pair,) = result["pairs"]
    ours = [read_metrics(f) for f in folders]
    change = ours[1]["labels"]["map"] - ours[0]["labels"]["map"]
    assert pair["labels"]["map"]["difference"] == pytest.approx(change)
    assert {"ccc", "rmse", "sagr"} <= pair["affect"]["valence"].keys()
    text = compare.markdown(result)
    assert "labels that apply: mAP" in text and "valence: CCC" in text
    compare.write(result, tmp_path / "compared")


# --- valence and arousal --------------------------------------------------------------------------


def test_affect_equals_independent_formulas() -> None:
    rows = told(random_rows(90, 5), 5)
    rows[7] = rows[7] | {"affect": {"valence": None, "arousal": 0.0}}
    rows[8]["truth"]["affect"]["arousal"] = None
    got = summarise(rows, ci=True)["affect"]
    assert got["valence"]["n"] == got["arousal"]["n"] == 89
    for name, missing in (("valence", 7), ("arousal", 8)):
        kept = [r for i, r in enumerate(rows) if i != missing]
        x = np.array([r["affect"][name] for r in kept])
        y = np.array([r["truth"]["affect"][name] for r in kept])
        cov = np.cov(x, y, bias=True)
        ccc = 2 * cov[0, 1] / (cov[0, 0] + cov[1, 1] + (x.mean() - y.mean()) ** 2)
        block = got[name]
        assert block["ccc"] == pytest.approx(ccc)
        assert block["ccc"] == pytest.approx(measures.concordance_correlation(x, y))
        assert block["rmse"] == pytest.approx(sk.root_mean_squared_error(y, x))
        assert block["sagr"] == pytest.approx(np.mean(np.sign(x) == np.sign(y)))
        for score, (low, high) in block["ci95"].items():
            assert low < block[score] < high
    assert "affect" not in summarise(random_rows(5, 0))
    constant = [r | {"affect": {"valence": 0.5}} for r in rows]
    block = summarise(constant)["affect"]["valence"]
    assert block["ccc"] == pytest.approx(0, abs=1e-12)


def test_affect_of_equal_constants_has_no_ccc() -> None:
    rows = [row(i, ["A"], ["A"], affect={"valence": 0.1}) for i in range(3)]
    for one in rows:
        one["truth"]["affect"] = {"valence": 0.1, "arousal": None}
    block = summarise(rows, ci=True)["affect"]["valence"]
    assert "ccc" not in block and block["rmse"] == 0 and block["sagr"] == 1
    assert "ccc" not in block["ci95"]
