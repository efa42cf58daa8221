"""Several runs in one table: the numbers are those of the metrics, and nothing else is compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_run import ABOUT, AUS, SPACE, random_rows, write_lines
from helpers.run_files import read_metrics
from scipy.stats import binomtest

from vlmface.cli import main
from vlmface.errors import UserError
from vlmface.evaluate import compare
from vlmface.metrics import metrics


def run_folder(folder: Path, skill: float, seed: int, n: int = 120, **settings: Any) -> Path:
    folder.mkdir(parents=True)
    rows = random_rows(n, seed, skill=skill)
    scores = metrics.summarise(rows, SPACE, AUS, about=ABOUT)
    (folder / "metrics.json").write_text(json.dumps({"after": scores, "train": {"steps": 5}}))
    write_lines(folder / "predictions.jsonl", rows)
    (folder / "settings.json").write_text(json.dumps({"seed": 0, "output_dir": "x"} | settings))
    (folder / "vlmface.json").write_text(json.dumps({"recipe": "grpo"}))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [
        run_folder(tmp_path / "plain", 0.4, 1, learning_rate=1),
        run_folder(tmp_path / "same", 0.4, 2, learning_rate=1),
        run_folder(tmp_path / "better", 0.9, 3, learning_rate=2),
    ]


def test_pairs_are_what_the_metrics_say(folders: list[Path]) -> None:
    runs = [compare.read(folder) for folder in folders]
    result = compare.compare(runs)
    assert [run["name"] for run in result["runs"]] == ["plain", "same", "better"]
    named = {(pair["first"], pair["second"]): pair for pair in result["pairs"]}
    assert len(named) == 3
    expected = metrics.compare(runs[0].lines, runs[2].lines, SPACE, AUS)
    ours = named["plain", "better"]["emotion"]
    p = {pair: one["emotion"]["accuracy"]["p"] for pair, one in named.items()}
    corrected = {pair: one["emotion"]["accuracy"].pop("p_holm") for pair, one in named.items()}
    assert ours == expected["emotion"]
    right = [[line["label"] == line["truth"]["emotion"] for line in run.lines] for run in runs]
    lone = [
        sum(a > b for a, b in zip(*(right[i], right[j]), strict=True)) for i, j in ((0, 2), (2, 0))
    ]
    exact = binomtest(lone[0], sum(lone)).pvalue
    assert p["plain", "better"] == pytest.approx(exact, abs=0.001)
    smallest, middle, largest = sorted(p, key=p.__getitem__)
    assert corrected[smallest] == pytest.approx(min(1, 3 * p[smallest]))
    assert corrected[middle] == pytest.approx(max(corrected[smallest], min(1, 2 * p[middle])))
    assert corrected[largest] == pytest.approx(max(corrected[middle], p[largest]))
    assert named["plain", "better"]["au"] == expected["au"]
    change = expected["emotion"]["accuracy"]
    assert compare.verdict(change) == "better"
    assert compare.verdict(change | {"ci95": [-0.2, -0.1]}) == "worse"
    even = named["plain", "same"]["emotion"]["accuracy"]
    assert compare.verdict(even) == "no difference that this test set can show"
    # Only what differs, and not where a run lies.
    assert [run["settings"] for run in result["runs"]] == [
        {"learning_rate": 1},
        {"learning_rate": 1},
        {"learning_rate": 2},
    ]


def test_the_command_writes_page_table_and_json(folders: list[Path], tmp_path, capsys) -> None:
    out = tmp_path / "out"
    words = [str(folders[0]), f"tuned <b>={folders[2]}", str(folders[1])]
    assert main(["compare", *words, "--output_dir", str(out)]) == 0
    printed = capsys.readouterr().out
    assert (out / "compare.md").read_text() in printed
    result = json.loads((out / "compare.json").read_text())
    page = (out / "compare.html").read_text()
    assert "tuned &lt;b&gt;" in page and "<b>=" not in page
    assert "http" not in page.replace("http-equiv", "")  # loads nothing
    score = result["runs"][1]["scores"]["emotion"]["accuracy"]
    assert f"| tuned \\<b> | {100 * score:.1f} (+" in printed
    # A pair is shown both ways.
    table = compare.rows(result)
    matrix = compare._matrix(result, next(row for row in table if row["key"] == "accuracy"))
    there, back = matrix["lines"][0]["cells"][1], matrix["lines"][1]["cells"][0]
    assert there["difference"] == -back["difference"]
    assert there["ci95"] == [-back["ci95"][1], -back["ci95"][0]]


def test_what_cannot_be_compared(folders: list[Path], tmp_path: Path) -> None:
    runs = [compare.read(folder) for folder in folders]
    with pytest.raises(UserError, match="two folders at least"):
        compare.compare(runs[:1])
    with pytest.raises(UserError, match="two runs have one name"):
        compare.compare([runs[0], runs[0]])
    with pytest.raises(UserError, match=r"holds no metrics\.json"):
        compare.read(tmp_path)
    fewer = compare.read(run_folder(tmp_path / "fewer", 0.5, 1, n=100))
    with pytest.raises(UserError, match="did not answer the same images"):
        compare.compare([runs[0], fewer])
    (folders[1] / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json' is damaged"):
        compare.read(folders[1])
    other = run_folder(tmp_path / "other", 0.5, 1)
    scores = read_metrics(other)
    scores["after"]["benchmark"] = "rafdb"
    (other / "metrics.json").write_text(json.dumps(scores))
    with pytest.raises(UserError, match="scored with benchmark 'synth', other with 'rafdb'"):
        compare.compare([runs[0], compare.read(other)])


def test_two_runs_show_their_p_value(folders: list[Path], tmp_path: Path) -> None:
    result = compare.compare([compare.read(folder) for folder in folders[::2]])
    change = result["pairs"][0]["emotion"]["accuracy"]
    assert change["p"] == change["p_holm"] < 0.05 and compare.verdict(change) == "better"
    page = compare.write(result, tmp_path).read_text()
    assert "<small>p &lt; 0.001</small>" in page and "sign-flip test" in page


def test_the_corrected_p_value_decides() -> None:
    change = {"difference": 0.1, "ci95": [0.01, 0.2], "p": 0.03, "p_holm": 0.09}
    assert compare.verdict(change) == compare.SAME
    assert compare.verdict(change | {"p_holm": 0.03}) == "better"
    assert compare.verdict({"difference": 0.1, "no_ci95": "4 people"}) == compare.SAME


def test_runs_of_few_people_are_compared_without_intervals(tmp_path: Path) -> None:
    runs = []
    for name, seed in (("a", 1), ("b", 2)):
        folder = run_folder(tmp_path / name, 0.5, seed, n=40)
        rows = [row | {"subject": f"p{i % 4}"} for i, row in enumerate(random_rows(40, seed))]
        write_lines(folder / "predictions.jsonl", rows)
        scores = metrics.summarise(rows, SPACE, AUS, about=ABOUT)
        (folder / "metrics.json").write_text(json.dumps({"after": scores}))
        runs.append(compare.read(folder))
    result = compare.compare(runs)
    change = result["pairs"][0]["emotion"]["accuracy"]
    assert "ci95" not in change and "p" not in change
    page = compare.write(result, tmp_path).read_text()
    assert "4 people: too few for an interval, which needs 10" in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "number of faces is 120 in metrics.json, but 119 from"),
        (lambda rows: [rows[0] | {"label": "fear"}, *rows[1:]], "emotion f1_macro is 0.* but 0"),
        (lambda rows: [rows[0] | {"aus": [1, 2, 4, 6, 12, 15]}, *rows[1:]], "au f1_macro is 0"),
    ],
)
def test_predictions_that_are_not_those_of_the_metrics(
    folders: list[Path], change: Any, message: str
) -> None:
    rows = [json.loads(line) for line in (folders[0] / "predictions.jsonl").open()]
    rows[0] |= {"label": rows[0]["truth"]["emotion"], "status": "strict", "aus": []}
    rows[0]["truth"]["emotion"] = "anger"
    write_lines(folders[0] / "predictions.jsonl", rows)
    scores = metrics.summarise(rows, SPACE, AUS, about=ABOUT)
    (folders[0] / "metrics.json").write_text(json.dumps({"after": scores}))
    compare.read(folders[0])
    write_lines(folders[0] / "predictions.jsonl", change(rows))
    with pytest.raises(UserError, match=message):
        compare.read(folders[0])


def test_a_damaged_line_of_predictions(folders: list[Path]) -> None:
    with (folders[0] / "predictions.jsonl").open("a") as file:
        file.write('{"id": "12\n')
    with pytest.raises(UserError, match=r"predictions\.jsonl' is damaged in line 121"):
        compare.read(folders[0])
