"""Ratings on a scale from the table to the answer: each command on a small random model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import own_labels
import pytest
from helpers.gateway import ANALYZE, gateway
from helpers.run_files import read_metrics

from vlmface import manifest
from vlmface.cli import main
from vlmface.infer.predictor import Predictor

SCALE = {"name": "engagement", "min": 0, "max": 10, "step": 1}
KEYS = {"mae", "rmse", "ccc", "pearson"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """study/ratings.csv with 30 rows of 11 people, and the YAML file of `data init`."""
    folder = tmp_path_factory.mktemp("ratings")
    table = own_labels.write(
        folder / "study",
        30,
        header=own_labels.RATED,
        label=own_labels.rating,
        people=11,
        name="ratings.csv",
    )
    assert main(["data", "init", str(table), "--scale", "engagement=0:10"]) == 0
    return folder


@pytest.fixture(scope="module")
def run(study: Path, base: Path) -> Path:
    """A run of three epochs in which the checkpoint with the lowest error is kept."""
    out = study / "run"
    words = ["--base_model", str(base), "--epochs", "3", "--cache_features", "false"]
    words += ["--eval_generate_steps", "2", "--logging_steps", "1", "--n_generate", "6"]
    words += ["--metric_for_best_model", "mae", "--early_stopping_patience", "5"]
    words += ["--balance_by", "labels"]
    command = ["train", "sft_labels", "--dataset", yaml_of(study), "--output_dir", str(out)]
    assert main([*command, *words]) == 0
    return out


def yaml_of(study: Path) -> str:
    return str(study / "study/ratings.yaml")


def picture_of(study: Path, number: int = 3) -> Path:
    return study / f"study/pictures/{number:04d}.png"


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_training_keeps_the_checkpoint_with_the_lowest_error(run: Path) -> None:
    log = lines_of(run / "log.jsonl")
    errors = {line["step"]: line["eval_mae"] for line in log if "eval_mae" in line}
    assert len(errors) > 1 and all("eval_valid_answers" in x for x in log if "eval_mae" in x)
    scores = read_metrics(run)
    assert scores["train"]["best"]["value"] == min(errors.values())
    block = scores["after"]["scale"]["context"]
    assert block.keys() >= KEYS - {"ccc", "pearson"} and "attributes" not in scores["after"]
    assert scores["after"]["scale"]["context_expected"]["n"] == block["n"]
    _, (prompt,) = manifest.load(run)
    assert prompt.space.to_mapping()["scale"] == SCALE
    truths = {line["truth"]["value"] for line in lines_of(run / "predictions.jsonl")}
    assert any(not truth.is_integer() for truth in map(float, truths))
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Answered and annotated" in page and "confused" not in page


def test_evaluation_in_all_readings(study: Path, run: Path) -> None:
    command = ["eval", "run", "--benchmark", yaml_of(study), "--model", str(run)]
    assert main([*command, "--scoring", "both"]) == 0
    (folder,) = (run / "eval").iterdir()
    readings = read_metrics(folder)["scale"]["context"]["readings"]
    assert readings["likelihood"]["mae"] >= 0 and readings["likelihood"]["expected"]["mae"] >= 0
    assert "How the model is read" in (folder / "report.html").read_text(encoding="utf-8")
    assert main(["compare", str(run), str(folder), "--output-dir", str(study / "compared")]) == 0
    assert "mean absolute error" in (study / "compared/compare.html").read_text(encoding="utf-8")


def test_a_base_model_is_asked_for_a_number(study: Path, base: Path) -> None:
    out = study / "asked"
    command = ["eval", "run", "--benchmark", yaml_of(study), "--model", str(base)]
    command += ["--scoring", "likelihood", "--output_dir", str(out)]
    assert main(command) == 0
    first = lines_of(out / "predictions.jsonl")[0]
    assert first["label"] in map(str, range(11)) and first["value"] == float(first["label"])
    assert 0 <= first["expected"] <= 10
    assert read_metrics(out)["scale"]["context"].keys() >= {"mae", "rmse"}


def test_predict_as_text_json_and_csv(
    study: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(picture_of(study)), "--model", str(run), "--faces", "none"]
    assert main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["answers"]["context"]
    assert answer["range"] == [0, 10] and 0 <= answer["expected"] <= 10
    assert answer["value"] == (None if answer["label"] is None else float(answer["label"]))
    table = study / "answers.csv"
    assert main([*command, "--csv", str(table)]) == 0
    (row,) = csv.DictReader(table.read_text(encoding="utf-8-sig").splitlines())
    assert float(row["context_expected"]) == pytest.approx(answer["expected"], abs=1e-3)
    assert not any(name.startswith("p_context") for name in row)
    capsys.readouterr()
    assert main(command) == 0
    assert "expected value" in capsys.readouterr().out


def test_the_gateway_answers_with_the_range(study: Path, run: Path) -> None:
    predictor = Predictor.load(str(run))
    with gateway(predictor) as client:
        reply = client.post(
            ANALYZE,
            files={"image": picture_of(study).read_bytes()},
            data={"faces": "none"},
        )
    assert reply.status_code == 200, reply.text
    answer = reply.json()["faces"][0]["answers"]["context"]
    assert answer["range"] == [0, 10] and 0 <= answer["expected"] <= 10


def test_answers_of_another_system(study: Path) -> None:
    path = study / "theirs.jsonl"
    texts = ["7/10", "I would rate it 3.", "no idea", "11"]
    records = [
        {"id": str(i), "text": text, "truth": truth}
        for i, (text, truth) in enumerate(
            zip(texts, [6.5, "2.75", 4, {"value": 9.25}], strict=True)
        )
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    out = study / "scored"
    command = ["score", str(path), "--format", "jsonl", "--label_space", yaml_of(study)]
    assert main([*command, "--output_dir", str(out)]) == 0
    block = read_metrics(out)["scale"]["context"]
    assert block["mae"] == pytest.approx((0.5 + 0.25 + 6 + 9.25) / 4)
    records[0]["truth"] = 11
    path.write_text("\n".join(map(json.dumps, records)))
    assert main([*command, "--output_dir", str(out)]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sft_labels", "--soft_labels", "true"], "one label in words"),
        (["sft_labels", "--metric_for_best_model", "accuracy"], "measures loss, "),
        (["clip_finetune"], "is a scale of numbers"),
    ],
)
def test_what_a_scale_does_not_have(
    study: Path, base: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, *more = words
    command = ["train", recipe, "--dataset", yaml_of(study), "--output_dir", str(study / "no")]
    more += ["--eval_generate_steps", "10"] if "accuracy" in more else []
    if recipe != "clip_finetune":
        more += ["--base_model", str(base)]
    assert main([*command, *more]) == 2
    assert message in capsys.readouterr().err


def test_grpo_pays_for_closeness(study: Path, run: Path) -> None:
    out = study / "grpo"
    command = ["train", "grpo", "--init_from", str(run), "--dataset", yaml_of(study)]
    words = ["--rewards", "{format: 1, rating: 1}", "--n_train", "4", "--num_generations", "2"]
    words += ["--batch_size", "4", "--max_steps", "1", "--logging_steps", "1", "--save_steps", "1"]
    words += ["--max_new_tokens", "4", "--cache_features", "false", "--completions_every", "1"]
    words += ["--temperature", "1", "--max_logprob_drift", "1", "--warmup_steps", "0"]
    assert main([*command, *words, "--output_dir", str(out)]) == 0
    logged = [line for line in lines_of(out / "log.jsonl") if "reward" in line]
    (mean,) = [line["rewards/rating/mean"] for line in logged]
    assert 0 <= mean <= 1
    assert "mae" in read_metrics(out)["after"]["scale"]["context"]
