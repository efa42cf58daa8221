"""A metric is one definition: a user's own appears everywhere, and nothing else is imported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fake_run import ABOUT, AUS, SPACE, random_rows, write_lines
from helpers.run_files import read_metrics
from helpers.scripts import load_script

from vlmface import prompts
from vlmface.benchmarks import Benchmark, load_benchmark
from vlmface.cli import main
from vlmface.errors import UserError
from vlmface.evaluate import compare, report, robustness, sweep, tables
from vlmface.evaluate import run as evaluation
from vlmface.metrics import METRICS, Metric, Scope, labels, metric, metrics, statistics
from vlmface.metrics.metric import KINDS, load_metric, with_built_in
from vlmface.metrics.shares import share_interval

MY_METRICS = """
from vlmface.metrics import metric


@metric("wrong answers", applies_to="emotion", higher_is_better=False, published="wrong",
        short_title="wrong")
def wrong_answers(row, scope):
    return None if row["truth"]["emotion"] == "sadness" else row["label"] != row["truth"]["emotion"]


@metric("action units named", applies_to="rationale", unit="", scale=1, digits=2)
def units_named(row, scope):
    return len(row["aus"]) if scope.au_set else None


@metric("worst recall", applies_to="emotion", takes="sums")
def worst_recall(confusion):
    import numpy as np
    from vlmface.metrics.labels import class_scores

    parts = class_scores(confusion)
    return np.where(parts["support"] > 0, parts["recall"], 1).min(-1)


def plain(row, scope):
    return 1
"""
BENCHMARK = """
id: {id}
dataset: synth
split: test
protocol: {{n: 40, seed: 0}}
label_space: emotion8
au_set: [1, 4, 12]
source: a test
metrics: [{metrics}]
"""


def benchmark_file(folder: Path, names: str, id: str = "rafdb") -> Path:
    """A benchmark with metrics of a file beside it, by default an id with published results."""
    (folder / "my_metrics.py").write_text(MY_METRICS, encoding="utf-8")
    path = folder / "mine.yaml"
    path.write_text(BENCHMARK.format(id=id, metrics=names), encoding="utf-8")
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return benchmark_file(
        tmp_path,
        "my_metrics.py:wrong_answers, my_metrics.py:units_named, my_metrics.py:worst_recall",
    )


@pytest.fixture
def benchmark(own: Path) -> Benchmark:
    return load_benchmark(str(own))


def run_folder(folder: Path, benchmark: Benchmark, seed: int, skill: float) -> Path:
    """A finished evaluation on the benchmark."""
    folder.mkdir()
    rows = random_rows(150, seed, skill=skill)
    scores = metrics.summarise(rows, SPACE, AUS, ABOUT, extra=benchmark.extra_metrics)
    (folder / "metrics.json").write_text(json.dumps(scores), encoding="utf-8")
    write_lines(folder / "predictions.jsonl", rows)
    return folder


# --- figures --------------------------------------------------------------------------------------


def test_a_mean_over_rows_has_the_interval_of_its_kind(benchmark: Benchmark) -> None:
    rows = [row | {"subject": str(i // 4)} for i, row in enumerate(random_rows(160, 0))]
    scores = metrics.summarise(rows, SPACE, AUS, ABOUT, extra=benchmark.extra_metrics)
    plain = metrics.summarise(rows, SPACE, AUS, ABOUT)
    people = [row["subject"] for row in rows]
    counted = [row["truth"]["emotion"] != "sadness" for row in rows]
    wrong = [
        row["label"] != row["truth"]["emotion"] and use
        for row, use in zip(rows, counted, strict=True)
    ]
    assert scores["emotion"]["wrong_answers"] == pytest.approx(sum(wrong) / sum(counted))
    expected = share_interval(wrong, counted, clusters=people)
    assert scores["emotion"]["ci95"]["wrong_answers"] == expected
    named = statistics.mean([len(row["aus"]) for row in rows], people)
    assert scores["rationale"]["units_named"] == pytest.approx(named["value"])
    assert scores["rationale"]["ci95"]["units_named"] == pytest.approx(named["ci95"])
    assert scores["rationale"]["n"] == len(rows)
    worst = min(
        entry["recall"] for entry in scores["emotion"]["per_class"].values() if entry["support"]
    )
    assert scores["emotion"]["worst_recall"] == pytest.approx(worst)
    # The other figures are what they are without it.
    for key in plain["emotion"].keys() - {"ci95"}:
        assert scores["emotion"][key] == plain["emotion"][key]
    for key, interval in plain["emotion"]["ci95"].items():
        assert scores["emotion"]["ci95"][key] == interval
    assert scores["au"] == plain["au"]


def test_differences_have_intervals_and_of_shares_a_p_value(benchmark: Benchmark) -> None:
    before, after = random_rows(150, 0, skill=0.3), random_rows(150, 1, skill=0.9)
    change = metrics.compare(before, after, SPACE, AUS, benchmark.extra_metrics)
    share, mean = change["emotion"]["wrong_answers"], change["rationale"]["units_named"]
    assert share["difference"] < 0 and share["ci95"][1] < 0 and share["p"] < 0.05
    assert mean["ci95"][0] <= mean["difference"] <= mean["ci95"][1] and "p" not in mean
    merged = metrics.merge(
        [metrics.summarise(before, SPACE, AUS, ABOUT, extra=benchmark.extra_metrics)]
    )
    assert "units_named" in merged["rationale"]


def test_shares_of_other_rows_in_each_run_are_not_paired() -> None:
    @metric("right among the answered", applies_to="emotion")
    def selective(row: Any, scope: Scope) -> bool | None:
        label = labels.answer(row)
        return None if label is None else label == row["truth"]["emotion"]

    before, after = random_rows(150, 0, unparsed=0.5), random_rows(150, 1, unparsed=0.1)
    one, two = (
        metrics.summarise(rows, SPACE, (), ABOUT, extra=[selective])["emotion"]["selective"]
        for rows in (before, after)
    )
    change = metrics.compare(before, after, SPACE, (), [selective])["emotion"]["selective"]
    assert change["difference"] == pytest.approx(two - one)
    assert "p" not in change and change["ci95"][0] <= change["difference"] <= change["ci95"][1]


def test_weights_and_probabilities() -> None:
    @metric("weighted accuracy", applies_to="emotion", takes="weights")
    def weighted(rows: Any, scope: Scope) -> Any:
        right = np.array([labels.answer(row) == row["truth"]["emotion"] for row in rows], float)
        return lambda weights: weights @ right / weights.sum(1)

    @metric("true label among the first three", applies_to="calibration", takes="probabilities")
    def top3(table: Any, truth: Any) -> float:
        ranks = (-np.asarray(table)).argsort(1)
        return float((ranks[:, :3] == np.asarray(truth)[:, None]).any(1).mean())

    rows = random_rows(80, 0)
    chance = np.random.default_rng(0)
    for row in rows:
        shares = chance.dirichlet(np.ones(len(SPACE.labels))).tolist()
        row["probabilities"] = dict(zip(SPACE.labels, shares, strict=True))
    scores = metrics.summarise(rows, SPACE, (), ABOUT, extra=[weighted, top3])
    assert scores["emotion"]["weighted"] == pytest.approx(scores["emotion"]["accuracy"])
    low, high = scores["emotion"]["ci95"]["weighted"]
    assert low < scores["emotion"]["weighted"] < high
    assert scores["calibration"]["top2"] <= scores["calibration"]["top3"] <= 1


# --- everywhere -----------------------------------------------------------------------------------


def test_the_evaluation_door_reports_it(
    own: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = ["--benchmark", str(own), "--model", str(run_dir), "--output_dir", str(out)]
    assert evaluation.main(argv) == 0
    scores = read_metrics(out)
    value = scores["emotion"]["wrong_answers"]
    assert scores["emotion"]["ci95"]["wrong_answers"][0] <= value
    assert f"emotion wrong answers {value:.3f} [" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert "wrong answers, lower is better" in page and "worst recall" in page
    mean = scores["rationale"]["units_named"]
    assert re.search(rf"action units named</th>\s*<td[^>]*>\s*<b>{mean:.2f}</b>", page)
    table = (out / "published.md").read_text().splitlines()
    assert "wrong" in table[0] and f"{100 * value:.1f} [" in table[2]
    assert "wrong" in (out / "published.tex").read_text() and "wrong" in page


def test_comparisons_know_its_direction(
    own: Path, benchmark: Benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = run_folder(tmp_path / "worse", benchmark, 0, 0.2)
    better = run_folder(tmp_path / "better", benchmark, 1, 0.95)
    out = tmp_path / "out"
    words = ["compare", str(worse), str(better), "--output_dir", str(out)]
    assert main([*words, "--benchmark", str(own)]) == 0
    assert "not compared" not in capsys.readouterr().out
    result = json.loads((out / "compare.json").read_text())
    change = result["pairs"][0]["emotion"]["wrong_answers"]
    assert change["ci95"][1] < 0 and change["p_holm"] == change["p"]
    row = next(
        row
        for row in compare.rows(result, benchmark.extra_metrics)
        if row["key"] == "wrong_answers"
    )
    assert compare.verdict(change, row["metric"]) == "better"
    assert compare.verdict(change) == "worse"  # were higher better
    page = (out / "compare.html").read_text()
    line = page[page.index("wrong answers, lower is better") :]
    assert re.search(r'<b class="(\w+)"', line)[1] == "better"  # type: ignore[index]
    assert "emotion: wrong answers, lower is better" in (out / "compare.md").read_text()


def test_a_sweep_can_be_decided_by_it(own: Path, run_dir: Path, tmp_path: Path) -> None:
    argv = [
        "--models",
        str(run_dir),
        "--prompts",
        "face_cot,r1_omni",
        "--benchmarks",
        str(own),
        "--by",
        "wrong_answers",
        "--n_validation",
        "8",
        "--n_test",
        "12",
        "--orders",
        "0",
        "--max_new_tokens",
        "24",
        "--output_dir",
        str(tmp_path / "sweep"),
    ]
    assert sweep.main(argv) == 0
    (result,) = json.loads((tmp_path / "sweep/sweep.json").read_text())["sweeps"]
    assert result["by"] == "wrong_answers" and len(result["finalists"]) == 2
    last = [result["arms"][name]["rungs"][-1]["value"] for name in result["finalists"]]
    assert last == sorted(last)  # the fewest wrong answers first
    assert "By wrong answers, lower is better" in (tmp_path / "sweep/sweep.html").read_text()


def test_the_winner_of_a_sweep_is_the_better_one(benchmark: Benchmark) -> None:
    by = sweep.deciding_metric(benchmark, "wrong_answers")
    pair = {"first": "few", "second": "many", "difference": -0.2, "differ": True}
    assert sweep.judge(["few", "many"], [pair], by)[0] == "few"
    winner, text = sweep.judge(["many", "few"], [pair], by)
    assert winner is None and "few is better by wrong_answers" in text
    assert sweep.deciding_metric(benchmark).name == "accuracy"
    assert sweep.deciding_metric(load_benchmark("disfa8")).name == "au_f1"
    assert sweep.deciding_metric(load_benchmark("emotic")).name == "jaccard"
    with pytest.raises(
        UserError, match=r"by is 'wrong_answer', which.*did you mean 'wrong_answers'"
    ):
        sweep.deciding_metric(benchmark, "wrong_answer")
    with pytest.raises(UserError, match="by is 'accuracy', which benchmark disfa8 does not score"):
        sweep.deciding_metric(load_benchmark("disfa8"), "accuracy")


def test_robustness_draws_it(own: Path, run_dir: Path, tmp_path: Path) -> None:
    argv = [
        "--model",
        str(run_dir),
        "--benchmark",
        str(own),
        "--n",
        "4",
        "--corruptions",
        "blur",
        "--max_new_tokens",
        "24",
        "--output_dir",
        str(tmp_path / "robust"),
    ]
    assert robustness.main(argv) == 0
    result = json.loads((tmp_path / "robust/robustness.json").read_text())
    assert {"accuracy", "au_f1", "wrong_answers", "units_named", "valid"} <= result["mean"].keys()
    page = (tmp_path / "robust/robustness.html").read_text()
    shares = [key for key in result["clean"] if key != "units_named"]
    assert page.count("<polyline") == len(shares)  # a count has no place on an axis of shares
    assert page.count("<td>action units named</td>") == 1
    assert f"{result['mean']['units_named']:.2f}</b> in the mean" in page


def test_lmms_eval_tasks_have_it(
    own: Path, benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    from helpers.scripts import ROOT

    monkeypatch.syspath_prepend(str(ROOT / "eval/lmms_eval"))
    tasks = load_script("eval/lmms_eval/vlmface_tasks.py")
    figures = tasks.figures(benchmark, prompts.load("face_cot"))
    own = {"wrong_answers", "worst_recall", "rationale_units_named"}
    built_in = {"accuracy", "uar", "f1_macro", "au_f1_macro", "au_f1_micro", "valid"}
    assert figures.keys() == own | built_in
    assert [name for name, one in figures.items() if not one.higher_is_better] == ["wrong_answers"]


def test_naming_a_built_in_metric_puts_it_among_the_main_ones(tmp_path: Path) -> None:
    benchmark = load_benchmark(str(benchmark_file(tmp_path, "f1_macro, au_f1_micro")))
    runs = [run_folder(tmp_path / name, benchmark, seed, 0.5) for seed, name in enumerate("ab")]
    result = compare.compare([compare.read(folder) for folder in runs])
    extra = benchmark.extra_metrics
    main_scores = {(row["block"], row["key"]) for row in compare.rows(result, extra) if row["main"]}
    default = {(row["block"], row["key"]) for row in compare.rows(result) if row["main"]}
    assert main_scores - default == {("emotion", "f1_macro"), ("action units", "f1_micro")}
    scores = result["runs"][0]["scores"]
    assert "emotion macro F1 0." in evaluation.one_line_summary(scores, extra)
    assert "macro F1" not in evaluation.one_line_summary(scores)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("uarr", r"mine\.yaml: metrics: there is no metric 'uarr'.*did you mean 'uar'"),
        ("accuracy and UAR of the emotion", "there is no metric 'accuracy and UAR of the emotion'"),
        ("my_metrics.py:nothing", r"my_metrics\.py has no 'nothing'"),
        ("my_metrics.py:plain", "is not a metric but function: decorate the function"),
        ("none.py:x", r"none\.py does not exist"),
        ("map", "map is of labels, which benchmark rafdb does not score"),
    ],
)
def test_what_a_benchmark_cannot_name(names: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_benchmark(str(benchmark_file(tmp_path, names)))


def test_of_several_prompts_no_metric_is_of_all_rationales(tmp_path: Path) -> None:
    path = benchmark_file(tmp_path, "my_metrics.py:units_named")
    path.write_text(path.read_text().replace("emotion8", "[gender, emotion8]"), encoding="utf-8")
    with pytest.raises(UserError, match="units_named is of rationale, but benchmark rafdb has sev"):
        load_benchmark(str(path))


def test_definitions_are_checked() -> None:
    def score(row: Any, scope: Any) -> float:
        return 1.0

    for fields, message in (
        ({"name": "n"}, "cannot be named 'n'"),
        ({"name": "A b"}, "cannot be named 'A b'"),
        ({"applies_to": "emotions"}, "applies to 'emotions'.*did you mean 'emotion'"),
        ({"takes": "probabilities"}, "of that kind takes row or sums or weights"),
        ({"applies_to": "calibration"}, "applies to calibration and takes row: a metric of that"),
        ({"applies_to": "affect"}, "applies to affect and takes row: a metric of that kind takes"),
        ({"applies_to": "rationale", "takes": "sums"}, "that kind takes row or weights"),
        ({"takes": "rows"}, r"takes 'rows'.*did you mean 'row'"),
    ):
        with pytest.raises(UserError, match=message):
            metric("x", **{"applies_to": "emotion"} | fields)(score)  # type: ignore[arg-type]
    twin = Metric("accuracy", "mine", score, ("emotion",))
    with pytest.raises(UserError, match="two metrics named 'accuracy'"):
        with_built_in([twin])
    same_key = Metric("other", "mine", score, ("au",), key="f1_macro")
    with pytest.raises(UserError, match=r"two metrics named 'other' \(key 'f1_macro'"):
        with_built_in([same_key])
    text = Metric("words", "mine", lambda row, scope: "many", ("emotion",))
    with pytest.raises(UserError, match="metric words gives 'many' for row '0'"):
        metrics.summarise(random_rows(3, 0), SPACE, (), ABOUT, extra=[text])


def test_the_built_in_definitions_are_whole() -> None:
    for name, definition in METRICS.built_in.items():
        assert load_metric(name) is definition and definition.name == name
        assert definition.title and set(definition.applies_to) <= set(KINDS)
        assert set(definition.summary) <= set(definition.applies_to)
        assert (definition.function.__doc__ or "").strip(), name
    with_built_in([])


def test_an_installed_package_can_bring_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import EntryPoint

    (tmp_path / "installed_metrics.py").write_text(MY_METRICS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("units", "installed_metrics:units_named", "vlmface.metrics")
    monkeypatch.setattr(METRICS, "entry_points", {"units": point})
    for names in ("units", "installed_metrics:units_named"):
        benchmark = load_benchmark(str(benchmark_file(tmp_path, names)))
        assert [one.name for one in benchmark.extra_metrics] == ["units_named"]


# --- a run folder from a stranger -----------------------------------------------------------------


def test_a_run_folder_imports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\nevil = 1\n", encoding="utf-8")
    reference = f"{trap}:evil"
    benchmark = load_benchmark("synth")
    folders = []
    for seed, name in enumerate("ab"):
        folder = run_folder(tmp_path / name, benchmark, seed, 0.5)
        protocol = folder / "benchmark.yaml"
        protocol.write_text(BENCHMARK.format(id="x", metrics=reference), encoding="utf-8")
        scores = read_metrics(folder)
        for key in ("metrics", reference):
            scores[key] = [reference]
            scores["emotion"] |= {reference: 0.5, key: 0.5}
            scores["emotion"]["ci95"] |= {reference: [0, 1]}
        scores["rationale"] = {"evil": 0.5, "ci95": {"evil": [0, 1]}}
        (folder / "metrics.json").write_text(json.dumps(scores), encoding="utf-8")
        settings = {"benchmark": str(protocol), "metrics": [reference]}
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        (folder / "vlmface.json").write_text(json.dumps({"metrics": [reference]}))
        folders.append(str(folder))
    monkeypatch.chdir(folders[0])
    assert main(["compare", *folders, "--output_dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"not compared: {reference}, evil" in printed and "--benchmark" in printed
    report.write_report(folders[0], images={})
    assert tables.own_scores(benchmark, json.loads(Path("metrics.json").read_text()))
    assert not (tmp_path / "sprung").exists()
