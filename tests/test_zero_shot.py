"""Base models on a data set's YAML file, with the file's labels in the prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.samples import picture

from vlmface.cli import main
from vlmface.evaluate import answering
from vlmface.infer.local import LocalModel

LABELS = ("bored", "keen", "lost")


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A working folder with pictures/ of 30 pictures and study.yaml, which `data init` writes."""
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    lines = ["file,state,person"]
    for i in range(30):
        picture(i).save(f"pictures/{i}.png")
        lines.append(f"pictures/{i}.png,{LABELS[i % 3]},P{i % 10}")
    Path("study.csv").write_text("\n".join(lines) + "\n")
    assert main(["data", "init", "study.csv"]) == 0
    capsys.readouterr()
    return tmp_path


def test_one_command_scores_a_base_model_on_the_labels_of_a_file(
    study: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = []

    def record(model: LocalModel, *arguments, true=LocalModel.predict, **keywords):
        texts.append(str(model.prompt.messages()))
        return true(model, *arguments, **keywords)

    monkeypatch.setattr(LocalModel, "predict", record)
    words = ["eval", "run", "--benchmark", "study.yaml", "--model", str(base)]
    assert main([*words, "--max_new_tokens", "8"]) == 0
    out = study / f"runs/eval_study_{base.name}"
    scores = json.loads((out / "metrics.json").read_text())
    assert scores["prompt"]["id"] == "label_study_labels"
    assert set(scores["attributes"]) == {"context"} and scores["n"] == 6
    rows = answering.read_lines(out / "predictions.jsonl")
    assert {row["truth"]["attributes"]["context"] for row in rows} == set(LABELS)
    assert all(tuple(row["probabilities"]) == LABELS for row in rows)
    assert texts and all("Answer with one of: bored, keen, lost." in text for text in texts)


def test_a_prompt_of_the_command_asks_for_the_labels_of_the_file(study: Path, base: Path) -> None:
    words = ["eval", "run", "--benchmark", "study.yaml", "--model", str(base)]
    more = ["--prompt", "rationale", "--max_new_tokens", "8", "--output_dir", "out"]
    assert main([*words, *more]) == 0
    scores = json.loads(Path("out/metrics.json").read_text())
    assert scores["prompt"]["id"] == "rationale_study_labels"


@pytest.mark.parametrize("name", ["pictures", "study.csv"])
def test_data_in_place_of_a_benchmark_are_one_sentence(
    study: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "run", "--benchmark", name, "--model", "vlmface-tiny"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "`vlmface predict FOLDER --model MODEL" in error
    assert f"vlmface data init {name}" in error and not (study / "runs").exists()


def test_pictures_without_labels_are_for_predict(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "init", "pictures"]) == 2
    assert "`vlmface predict pictures --model MODEL`" in capsys.readouterr().err


def test_a_file_without_labels_is_one_sentence(
    study: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bare.yaml").write_text(
        "dataset: table\nroot: study.csv\noptions: {columns: {image: file, subject: person}}\n"
        "splits: {by: subject, test: 0.3}\n"
    )
    assert main(["eval", "run", "--benchmark", "bare.yaml", "--model", str(base)]) == 2
    error = capsys.readouterr().err
    assert "has no labels, so nothing can be scored" in error and "`vlmface predict FOLDER" in error
    assert not (study / "runs").exists()
