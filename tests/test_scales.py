"""Scales of numbers: their definition, their prompts, the numbers in texts, and the metrics."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vlmface import answers, data, label_spaces, label_texts, prompts, scales
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.infer.face_report import FaceReport
from vlmface.infer.prediction import Prediction
from vlmface.infer.report_text import as_text
from vlmface.metrics import metrics, ratings
from vlmface.metrics.metric import METRICS
from vlmface.schema import FaceSample
from vlmface.train import rewards

ABOUT: metrics.About = {
    "benchmark": "x",
    "model": "m",
    "prompt": {"id": "p", "sha": "s"},
    "scoring": "generated",
    "wall_s": 0.0,
    "peak_rss_gib": 0.0,
}


def space(**content: Any) -> label_spaces.LabelSpace:
    mapping = {"id": "x", "field": "context", "source": "s", "scale": content}
    return label_spaces.from_mapping(mapping, "file.yaml")


TEN = space(min=0, max=10, name="engagement")
SIGNED = space(min=-3, max=3, step=0.5)


# --- the definition -------------------------------------------------------------------------------


def test_labels_are_the_numbers_at_each_step() -> None:
    assert TEN.labels == tuple(map(str, range(11)))
    assert space(min=0, max=1, step=0.1).labels[3:5] == ("0.3", "0.4")  # without float rounding
    assert SIGNED.labels[:3] == ("-3", "-2.5", "-2") and "0" in SIGNED.labels
    assert len(space(min=0, max=100).labels) == scales.MOST_STEPS


@pytest.mark.parametrize("built", [TEN, SIGNED, space(min=1, max=7, anchors={1: "low", 7: "high"})])
def test_a_scale_survives_yaml(built: label_spaces.LabelSpace) -> None:
    content = yaml.safe_load(yaml.safe_dump(built.to_mapping()))
    assert label_spaces.from_mapping(content, "f") == built
    assert label_spaces.from_mapping(json.loads(json.dumps(content)), "f").sha == built.sha


def test_the_sha_depends_on_all_that_a_prompt_says() -> None:
    others = [space(min=0, max=10), space(min=0, max=10, name="engagement", anchors={0: "none"})]
    assert len({TEN.sha, *(other.sha for other in others)}) == 3


HOSTILE = """
{min: .nan, max: 10}
{min: 0, max: .inf}
{min: 0, max: 1.0e+308}
{min: 0, max: 1e308}
{min: 0, max: '10'}
{min: false, max: true}
{min: 0}
{min: 10, max: 0}
{min: 5, max: 5}
{min: 0, max: 10, step: 0}
{min: 0, max: 10, step: -1}
{min: 0, max: 10, step: .nan}
{min: 0, max: 10, step: 1.0e-300}
{min: 0, max: 1.0e-300, step: 1.0e-300}
{min: 0, max: 1000000}
{min: 0, max: 10, step: 3}
{min: 0, max: 10, unit: cm}
{min: 0, max: 10, name: [x]}
{min: 0, max: 10, name: "<answer>"}
{min: 0, max: 10, name: "a\\nb"}
{min: 0, max: 10, anchors: [a, b]}
{min: 0, max: 10, anchors: {11: high}}
{min: 0, max: 10, anchors: {0.5: low}}
{min: 0, max: 10, anchors: {1: low, 1.0: high}}
{min: 0, max: 10, anchors: {true: low}}
{min: 0, max: 10, anchors: {0: 5}}
[0, 10]
0 to 10
null
"""


@pytest.mark.parametrize("text", HOSTILE.strip().splitlines())
def test_hostile_scales_are_refused_in_one_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "scale.yaml"
    path.write_text(f"id: x\nfield: context\nsource: s\nscale: {text}\n")
    with pytest.raises(UserError) as error:
        label_spaces.space(path)
    assert "scale" in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "more", [{"labels": ["a", "b"]}, {"ordered": True}, {"field": "emotion"}, {"aliases": {}}]
)
def test_a_scale_has_no_words(more: dict[str, Any]) -> None:
    content = {"id": "x", "field": "context", "source": "s", "scale": {"min": 0, "max": 1}} | more
    with pytest.raises(UserError):
        label_spaces.from_mapping(content, "f")


@given(st.floats(-3, 3), st.sampled_from([0.5, 1.0, 0.1, 0.25]))
def test_the_nearest_step_is_at_most_half_a_step_away(value: float, step: float) -> None:
    scale = space(min=-3, max=3, step=step).scale
    assert scale is not None
    assert abs(float(scale.nearest(value) or "nan") - value) <= step / 2 + 1e-9


def test_halves_have_no_direction() -> None:
    scale = TEN.scale
    assert scale is not None
    assert [scale.nearest(i + 0.5) for i in range(4)] == ["0", "2", "2", "4"]
    assert scale.nearest(10.01) is None and scale.nearest(-0.01) is None


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_numbers_are_read_as_they_are_written(value: float) -> None:
    value = round(value, 6)
    if abs(value) < 1e14:
        assert scales.read_number(scales.number_text(value)) == value


# --- prompts --------------------------------------------------------------------------------------


def test_prompts_ask_for_a_number() -> None:
    text = str(prompts.generate("label", TEN).messages())
    assert "engagement" in text and "a number from 0 to 10" in text
    many = space(min=0, max=100, anchors={0: "no pain", 100: "worst pain"})
    text = str(prompts.generate("label", many).messages())
    assert "0 (no pain) to 100 (worst pain)" in text and "57" not in text
    assert "in steps of 0.5" in str(prompts.generate("label", SIGNED).messages())


def rated(value: str | None, **more: Any) -> FaceSample:
    return FaceSample("a", "d", context=None if value is None else [value], **more)


@pytest.mark.parametrize("name", prompts.GENERATED)
def test_the_target_is_the_nearest_step(name: str) -> None:
    prompt = prompts.generate(name, TEN)
    sample = rated("6.37", rationale="AU12 is there, 3 of them.", rationale_source="human")
    assert prompt.parse(prompt.target(sample)).label == "6"
    assert sample.value(TEN) == 6.37 and sample.label(TEN) == "6"
    with pytest.raises(UserError, match="a number from 0 to 10"):
        prompt.target(rated("11"))


def test_a_prompt_for_words_cannot_ask_for_numbers() -> None:
    words = label_spaces.from_mapping(
        {"id": "y", "field": "context", "source": "s", "labels": ["a", "b"]}, "f"
    )
    with pytest.raises(UserError, match="use another prompt"):
        prompts.generate("label", words).with_label_space(TEN)
    assert "-3" in str(prompts.generate("label", TEN).with_label_space(SIGNED).messages())
    with pytest.raises(UserError, match="no other order"):
        prompts.generate("label", TEN).with_label_order(TEN.labels[::-1])


def test_a_clip_is_refused() -> None:
    with pytest.raises(UserError, match="sft_labels"):
        label_texts.generate(TEN)


# --- numbers in texts -----------------------------------------------------------------------------

READ = [
    ("7", "7"),
    ("0", "0"),
    ("10", "10"),
    ("7.0", "7"),
    (" 7.\n", "7"),
    ("+7", "7"),
    ("7/10", "7"),
    ("7 / 10", "7"),
    ("7 out of 10", "7"),
    ("10/10", "10"),
    ("7,4", "7"),
    ("6.51", "7"),
    ("**7**", "7"),
    ("\uff17", "7"),
    ("Rating: 7", "7"),
    ("I would rate the person's engagement as 7.", "7"),
    ("On a scale from 0 to 10, I'd give it a 7.", "7"),
    ("7, because the eyes are wide open", "7"),
    ("The score is 7. It is 7/10.", "7"),
    ("<answer>7</answer>", "7"),
    ("<think>AU12, 3 of 5 signs</think><answer>4</answer>", "4"),
]
NOT_READ = [
    ("11", "none"),
    ("-1", "none"),
    ("10.5", "none"),
    ("70", "none"),
    ("", "none"),
    ("seven", "none"),
    ("very engaged", "none"),
    ("7 or 8", "ambiguous"),
    ("3 to 4", "ambiguous"),
    ("3-4", "ambiguous"),
    ("3\u20134", "ambiguous"),
    ("between 3 and 4", "ambiguous"),
    ("7/100", "ambiguous"),
    ("not 7", "ambiguous"),
    ("more than 7", "ambiguous"),
    ("at least 7", "ambiguous"),
    ("<7", "ambiguous"),
    ("7?", "ambiguous"),
    ("7%", "ambiguous"),
    ("7. That is wrong.", "ambiguous"),
    ("1,000", "ambiguous"),
    ("1.2.3", "ambiguous"),
    (".5", "ambiguous"),
    ("5e5", "ambiguous"),
    ("AU7", "ambiguous"),
    ("The person is 8 years old", "ambiguous"),
    ("I cannot determine it", "refused"),
]


@pytest.mark.parametrize(("text", "label"), READ)
def test_numbers_that_are_read(text: str, label: str) -> None:
    answer = answers.parse(text, TEN, "label")
    assert (answer.label, answer.value) == (label, float(label))
    assert answer.status == ("strict" if text in TEN.labels else "lenient")


@pytest.mark.parametrize(("text", "status"), NOT_READ)
def test_numbers_that_are_not_read(text: str, status: str) -> None:
    answer = answers.parse(text, TEN, "label")
    assert (answer.label, answer.value, answer.status) == (None, None, status)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("-2", "-2"),
        ("\u22122", "-2"),
        ("\u20132", "-2"),
        ("-2/3", "-2"),
        ("-2,5", "-2.5"),
        ("- 2", None),  # a sign, or a mark of a list
        ("\u20142", None),
        ("minus 2", None),
    ],
)
def test_signs(text: str, label: str | None) -> None:
    assert answers.parse(text, SIGNED, "label").label == label


def test_percent_of_a_hundred() -> None:
    assert answers.parse("70%", space(min=0, max=100), "label").label == "70"
    assert answers.parse("70%", space(min=0, max=200, step=2), "label").label is None


@given(st.sampled_from(SIGNED.labels), st.sampled_from(["{}", "{}.", " {} ", "Rating: {}", "{}/3"]))
def test_each_step_is_read_in_each_notation(label: str, notation: str) -> None:
    assert answers.parse(notation.format(label), SIGNED, "label").label == label


@given(st.floats(-20, 20).map(lambda x: round(x, 3)))
def test_a_number_is_its_nearest_step_or_none(value: float) -> None:
    answer = answers.parse(scales.number_text(value), TEN, "label")
    if 0 <= value <= 10:
        assert answer.value is not None and abs(answer.value - value) <= 0.5
    else:
        assert answer.label is None


@given(st.integers(0, 10), st.integers(0, 10), st.sampled_from([" or ", "-", ", ", " to ", "\n"]))
def test_two_different_numbers_are_never_read(a: int, b: int, between: str) -> None:
    text = f"{a}{between}{b}"
    if a != b and not (between == "," and b):
        assert answers.parse(text, TEN, "label").label is None


@given(st.text(max_size=80))
def test_any_text_is_read_without_an_error(text: str) -> None:
    for format in ("label", "think_answer"):
        answer = answers.parse(text, TEN, format)
        assert answer.label is None or answer.label in TEN.labels
        assert (answer.label is None) == (answer.status not in ("strict", "lenient"))


@pytest.mark.parametrize("text", ["7" * 50_000, "7 " * 50_000, "1." * 50_000, "/10" * 30_000])
def test_long_texts_end(text: str) -> None:
    answers.parse(text, TEN, "label")


# --- metrics --------------------------------------------------------------------------------------


def row(i: int, true: float | None, label: str | None, **more: Any) -> dict[str, Any]:
    attributes = {"context": None if true is None else TEN.match(str(round(true, 4)))}
    return {
        "id": str(i),
        "subject": f"P{i % 15}",
        "truth": {"emotion": None, "aus": None, "attributes": attributes, "value": true},
        "label": label,
        "status": "none" if label is None else "strict",
        "aus": [],
        "text": label or "",
        "probabilities": None,
        **more,
    }


def random_rows(n: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    true = generator.uniform(0, 10, n)
    answered = np.clip(np.round(true + generator.normal(0, 1.5, n)), 0, 10).astype(int)
    return [row(i, float(t), str(s)) for i, (t, s) in enumerate(zip(true, answered, strict=True))]


def test_metrics_agree_with_their_formulas() -> None:
    rows = random_rows()
    block = metrics.summarise(rows, TEN, (), ABOUT)["scale"]["context"]
    true = np.array([one["truth"]["value"] for one in rows])
    answered = np.array([float(row["label"]) for row in rows])
    shared = np.mean((true - true.mean()) * (answered - answered.mean()))
    ccc = 2 * shared / (true.var() + answered.var() + (true.mean() - answered.mean()) ** 2)
    assert block["mae"] == pytest.approx(np.abs(true - answered).mean())
    assert block["rmse"] == pytest.approx(np.sqrt(np.mean((true - answered) ** 2)))
    assert block["pearson"] == pytest.approx(stats.pearsonr(true, answered).statistic)
    assert block["ccc"] == pytest.approx(ccc)
    assert block["n"] == 60 and block["clusters"] == {"unit": "subject", "n": 15}
    assert block["constant"]["mae"] == pytest.approx(np.abs(true - np.median(true)).mean())
    for key in ("mae", "rmse", "pearson", "ccc"):
        low, high = block["ci95"][key]
        assert low < block[key] < high


@given(st.floats(-1e5, 1e5), st.floats(0.01, 1e4), st.integers(0, 99))
def test_metrics_do_not_depend_on_where_a_scale_begins(
    shift: float, size: float, seed: int
) -> None:
    shift, size = round(shift, 2), round(size, 2)
    wide = space(min=shift, max=round(shift + size, 2), step=round(size, 2))
    generator = np.random.default_rng(seed)
    low, high = wide.scale.limits if wide.scale else (0.0, 0.0)
    rows = [row(i, None, wide.labels[int(generator.integers(2))]) for i in range(30)]
    for one in rows:
        one["truth"]["value"] = float(generator.uniform(low, high))
    total = ratings.sums(rows, wide).sum(0)
    true = np.array([one["truth"]["value"] for one in rows]) - low
    answered = np.array([float(row["label"]) for row in rows]) - low
    assert METRICS.get("mae")(total) == pytest.approx(np.abs(true - answered).mean(), rel=1e-6)
    if answered.std() > 0:
        expected = np.corrcoef(true, answered)[0, 1]
        assert METRICS.get("pearson")(total) == pytest.approx(expected, abs=1e-6)


def test_no_valid_answer_counts_as_the_farthest_end() -> None:
    rows = [row(0, 2.0, None), row(1, 7.0, None), row(2, 5.0, "5")]
    block = metrics.summarise(rows, TEN, (), ABOUT)["scale"]["context"]
    assert block["mae"] == pytest.approx((8 + 7 + 0) / 3)
    assert block["answered"] == {"share": pytest.approx(1 / 3), "mae": 0.0}
    outside = row(2, 5.0, "5") | {"label": "99"}  # a file may come from a stranger
    assert ratings.predicted_value(outside, TEN) is None


def test_rows_without_a_rating_do_not_count() -> None:
    rows = [*random_rows(20), row(99, None, "3")]
    with_one = metrics.summarise(rows, TEN, (), ABOUT)["scale"]["context"]
    assert with_one == metrics.summarise(rows[:-1], TEN, (), ABOUT)["scale"]["context"]


@pytest.mark.parametrize("value", [11.0, -1, math.nan, "7", True])
def test_a_true_value_outside_the_scale_is_refused(value: Any) -> None:
    bad = row(0, 5.0, "5")
    bad["truth"]["value"] = value
    with pytest.raises(UserError, match="0 to 10"):
        metrics.summarise([bad], TEN, (), ABOUT)


def test_constant_answers_have_no_correlation() -> None:
    rows = [row(i, float(i % 10), "5") for i in range(30)]
    block = metrics.summarise(rows, TEN, (), ABOUT)["scale"]["context"]
    assert "pearson" not in block and block["ccc"] == pytest.approx(0)


def test_the_expected_number_is_scored_beside_the_answer() -> None:
    rows = random_rows(30)
    for one in rows:
        one["probabilities"] = {"4": 0.5, "6": 0.5}
    scores = metrics.summarise(rows, TEN, (), ABOUT)
    true = np.array([one["truth"]["value"] for one in rows])
    assert scores["scale"]["context_expected"]["mae"] == pytest.approx(np.abs(true - 5).mean())
    assert "attributes" not in scores and "calibration" not in scores
    block = metrics.label_block(rows, TEN)
    assert block["expected"]["mae"] == scores["scale"]["context_expected"]["mae"]
    assert block["mae"] == scores["scale"]["context"]["mae"]


def test_two_runs_are_compared_on_the_same_faces() -> None:
    before, after = random_rows(seed=0), random_rows(seed=0)
    for one in after:
        one["label"] = TEN.match(str(round(one["truth"]["value"], 3)))
    change = metrics.compare(before, after, TEN, ())["scale"]["context"]
    assert change["mae"]["difference"] < 0 and change["mae"]["ci95"][1] < 0
    assert change["ccc"]["difference"] > 0


# --- rewards, records, reports --------------------------------------------------------------------


def test_a_reward_falls_with_the_distance() -> None:
    reward = rewards.load("rating")
    sample = rated("6.5")
    values = [
        reward(answers.parse(text, TEN, "label"), sample, TEN) for text in ("7", "6", "0", "")
    ]
    assert values == [pytest.approx(0.95), pytest.approx(0.95), pytest.approx(0.35), 0.0]
    assert reward(answers.parse("7", TEN, "label"), rated(None), TEN) is None
    emotion = label_spaces.space("emotion8")
    assert reward(answers.parse("fear", emotion, "label"), rated("3"), emotion) is None


def test_a_record_keeps_the_answer_the_expectation_and_the_exact_truth() -> None:
    from vlmface.benchmarks import Benchmark

    prompt = prompts.generate("label", TEN)
    benchmark = Benchmark(id="b", dataset="d", split="test", source="s", label_space="emotion8")
    benchmark.__dict__["spaces"] = [TEN]
    answer = prompt.parse("7/10")
    prediction = Prediction("7/10", answer, {"6": 0.5, "7": 0.5}, 0.1, True)
    line = answering.prediction_record(rated("6.37").to_row(), benchmark, prompt, prediction)
    assert (line["label"], line["value"], line["expected"]) == ("7", 7.0, 6.5)
    assert line["truth"]["value"] == 6.37 and line["truth"]["attributes"]["context"] == "6"
    report = FaceReport({"context": prediction}, {"context": prompt.id})
    about = report.as_dict()["answers"]["context"]
    assert (about["value"], about["range"], about["expected"]) == (7.0, [0.0, 10.0], 6.5)
    assert report.is_confident
    assert "7 (0 to 10)" in as_text("x", report) and "expected value 6.50" in as_text("x", report)


def test_the_demo_shows_the_number_with_its_range() -> None:
    from PIL import Image

    from vlmface.demo import views

    answer = answers.parse("7", TEN, "label")
    prediction = Prediction("7", answer, dict.fromkeys(TEN.labels, 1 / 11), 0.1, True)
    report = FaceReport({"context": prediction}, {"context": "p"}, face_found=True)
    page = views.answer(report, "A face")
    assert "7 (0 to 10)" in page and "5.00" in page and "Label probabilities" not in page
    table = views.timeline([Image.new("RGB", (9, 9))] * 2, [None, None], [report, report])
    assert "7" in table and ">10<" not in table


# --- data -----------------------------------------------------------------------------------------


def study(
    folder: Path, cells: list[str], scale: str, header: str = "score", **options: Any
) -> Path:
    from PIL import Image

    lines = []
    for i, cell in enumerate(cells):
        Image.new("RGB", (8, 8), (i * 9 % 255, 0, 0)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,P{i},{cell}")
    (folder / "t.csv").write_text(f"image,subject,{header}\n" + "\n".join(lines) + "\n")
    columns = {} if "," in header else {"columns": {"label": header}}
    content = {
        "dataset": "table",
        "root": "t.csv",
        "options": columns | options,
        "label_space": {"scale": yaml.safe_load(scale)},
    }
    path = folder / "t.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_rows_keep_the_exact_number(tmp_path: Path) -> None:
    path = study(
        tmp_path, ["6.37", "0", "", "10", "nan", "99"], "{min: 0, max: 10}", labels={99: None}
    )
    rows = data.load(str(path), split="train")
    assert rows["context"][:] == [["6.37"], ["0"], None, ["10"], None, None]
    path = study(tmp_path, ['"6,37"', "3"], "{min: 0, max: 10}", decimal=",")
    assert data.load(str(path), split="train")["context"][:] == [["6.37"], ["3"]]


@pytest.mark.parametrize("cell", ["11", "-0.5", "inf", "seven", "1e308", "true", "7;8"])
def test_a_cell_outside_the_scale_names_row_value_and_range(tmp_path: Path, cell: str) -> None:
    path = study(tmp_path, ["5", "3", cell], "{min: 0, max: 10}")
    with pytest.raises(UserError) as error:
        data.load(str(path), split="train")
    text = str(error.value)
    assert cell in text and ":4" in text.replace("line ", ":").replace(" 4", "4"), text
    assert "\n" not in text


def test_raters_are_averaged(tmp_path: Path) -> None:
    cells = ["3,4,5", "10,,9", ",,"]
    path = study(tmp_path, cells, "{min: 0, max: 10}", "a,b,c", raters=["a", "b", "c"])
    rows = data.load(str(path), split="train")
    assert rows["context"][:] == [["4"], ["9.5"], None]
    assert rows["label_votes"][:] == [None] * 3


def test_rows_of_one_picture_are_averaged(tmp_path: Path) -> None:
    path = study(tmp_path, ["3", "4"], "{min: 0, max: 10}", votes_in_rows=True)
    table = tmp_path / "t.csv"
    table.write_text("image,subject,score\n0.png,A,3\n0.png,A,4\n0.png,A,4\n1.png,B,9\n")
    assert data.load(str(path), split="train")["context"][:] == [["3.666666667"], ["9"]]


def test_votes_are_refused(tmp_path: Path) -> None:
    path = study(tmp_path, ["3,4", "5,6"], "{min: 0, max: 10}", "a,b", votes=["a", "b"])
    with pytest.raises(UserError, match="raters="):
        data.load(str(path), split="train")


def test_low_and_high_numbers_are_in_each_split() -> None:
    from vlmface.data import splits

    values = [float(i % 100) / 10 for i in range(300)]
    groups = [f"P{i // 4}" for i in range(300)]
    parts = splits.assign(groups, splits.thirds(values), {"train": 0.8, "test": 0.2})
    test = [value for value, part in zip(values, parts, strict=True) if part == "test"]
    assert min(test) < 2 and max(test) > 8
    assert splits.thirds([None, 1.0]) == [(), ("0",)]


# --- sweeps and robustness ------------------------------------------------------------------------


def test_a_sweep_is_decided_by_the_error_and_has_no_orders() -> None:
    from vlmface.benchmarks import Benchmark
    from vlmface.evaluate.sweep import deciding_metric

    benchmark = Benchmark(id="b", dataset="d", split="test", source="s", label_space="emotion8")
    benchmark.__dict__["spaces"] = [TEN]
    assert deciding_metric(benchmark).name == "mae"
    assert deciding_metric(benchmark, "ccc").name == "ccc"
    with pytest.raises(UserError, match="does not score"):
        deciding_metric(benchmark, "uar")
