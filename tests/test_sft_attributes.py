"""Several questions on one face: rows, balance, the recipe, its evaluation and its report."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import concatenate_datasets
from helpers.checkpoints import llava
from helpers.run_files import read_metrics
from helpers.samples import rows
from helpers.scripts import load_script

from vlmface import benchmarks, manifest, prompts
from vlmface.cli import main as vlmface
from vlmface.encode import GroupedSampler
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.infer.local import LocalModel
from vlmface.metrics import metrics
from vlmface.train import task_sampling
from vlmface.train.rows import encode_rows
from vlmface.train.trainer import all_tower_features

ASKED = ("facescan_gender", "facescan_age", "synth_ancestry", "facescan_emotion")


@pytest.fixture(scope="module")
def attributes(base: Path) -> Any:
    """recipes/sft_attributes.py's main on 40 rendered faces and the random model."""
    main = load_script("recipes/sft_attributes.py").main

    def run(output_dir: Path, *words: str) -> int:
        fixed = ["--base_model", str(base), "--output_dir", str(output_dir), "--n_train", "40"]
        fixed += ["--n_eval", "12", "--batch_size", "16", "--logging_steps", "1"]
        return main([*fixed, "--save_steps", "50", "--max_new_tokens", "8", *words])

    return run


@pytest.fixture(scope="module")
def run_dir(attributes: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attributes") / "run"
    assert attributes(folder) == 0
    return folder


# --- which rows -----------------------------------------------------------------------------------


def test_balance_by_tasks_and_labels() -> None:
    labels = [["a"] * 6 + ["b"] * 2 + [None] * 2, ["x", "y", None, None] + [None] * 6]
    everything = task_sampling.select_rows(labels, "none", 0)
    assert [len(index) for index in everything] == [10, 10]
    first, second = task_sampling.select_rows(labels, "tasks", 0)
    assert first.tolist() == list(range(8))
    assert Counter(second.tolist()) == {0: 4, 1: 4}
    first, second = task_sampling.select_rows(labels, "labels", 0)
    assert Counter(labels[0][i] for i in first) == {"a": 4, "b": 4}
    assert len(set(first)) == 6  # no "a" twice; each "b" twice
    again = task_sampling.select_rows(labels, "labels", 0)
    assert all((a == b).all() for a, b in zip(again, (first, second), strict=True))
    others = [task_sampling.select_rows(labels, "labels", seed)[0] for seed in range(1, 9)]
    assert any((other != first).any() for other in others)
    none = task_sampling.select_rows([[None, None], ["a", None]], "labels", 0)
    assert [len(index) for index in none] == [0, 1]


def test_rows_of_all_questions_share_the_features_of_a_face(processor: Any, base: Path) -> None:
    faces = rows(6)
    asked = [prompts.load("facescan_emotion"), prompts.load("expllm_label")]
    chosen = [np.array([5, 1, 1]), np.array([1, 5])]
    parts = [
        encode_rows(faces.select(index), processor, llava, prompt, max_length=300, seed=0)[0]
        for prompt, index in zip(asked, chosen, strict=True)
    ]
    numbered = [task_sampling.number(p, index) for p, index in zip(parts, chosen, strict=True)]
    joined = concatenate_datasets([task_sampling.round_lengths(part) for part in numbered])
    kept = [[5, 1, 1], [1]]  # face 5 shows contempt, which the second prompt does not know
    assert joined["row"] == [row for part in kept for row in part]
    assert all(length % 32 == 0 for length in joined["length"])
    # Questions of one length, more or less, meet in one batch.
    both = concatenate_datasets([task_sampling.round_lengths(numbered[0])] * 2)
    batches = list(GroupedSampler(both["length"], 3, seed=0))
    assert any({place < 3 for place in batches[i : i + 3]} == {True, False} for i in (0, 3))
    features = all_tower_features(llava.load_model(base), llava, joined, processor)
    assert set(features) == {1, 5}
    model = llava.load_model(base)
    for number in (1, 5):
        alone = llava.image_inputs(processor, [answering.open_row_image(faces[number]["image"])])
        (expected,) = llava.tower_features(model, alone)
        assert np.allclose(features[number][0].numpy(), expected.detach().numpy(), atol=1e-6)


# --- the recipe -----------------------------------------------------------------------------------


def test_a_run_answers_every_question_it_was_trained_on(run_dir: Path) -> None:
    found, asked = manifest.load(run_dir)
    assert found.recipe == "sft_attributes"
    assert [prompt.id for prompt in asked] == list(ASKED)
    assert [entry["label_space"] for entry in found.prompts] == [
        "gender",
        "age_group5",
        "race3",
        "emotion8",
    ]
    lines = answering.read_lines(run_dir / "predictions.jsonl")
    assert [line["prompt"] for line in lines] == list(ASKED) * 12
    scores = read_metrics(run_dir)
    assert scores["train"]["n_by_prompt"] == dict.fromkeys(ASKED, 40)
    after = scores["after"]
    assert set(after["attributes"]) == {"gender", "age_group", "race"} and "emotion" in after
    assert [entry["id"] for entry in after["prompts"]] == list(ASKED)
    assert after["n"] == after["emotion"]["n"] == 12 and "au" not in after
    assert sum(after["parse"].values()) == pytest.approx(1)
    gender = after["attributes"]["gender"]
    assert set(gender["groups"]) <= {"age_group", "race"} and "gender" not in gender["groups"]
    assert {"accuracy", "uar", "ci95", "calibration", "answered"} <= set(gender)
    assert set(scores["paired"]["attributes"]) == {"gender", "age_group", "race"}
    page = (run_dir / "report.html").read_text()
    assert "For whom it works" in page and "facescan_age" in page
    assert "not who somebody is" in page  # the manifest's limits


def test_a_later_evaluation_and_another_question(
    run_dir: Path, tmp_path: Path, capsys: Any
) -> None:
    evaluate = load_script("eval/run.py").main
    words = ["--benchmark", "synth_attributes", "--model", str(run_dir), "--n", "12"]
    assert evaluate([*words, "--output_dir", str(tmp_path / "again")]) == 0
    again = read_metrics(tmp_path / "again")
    trained = read_metrics(run_dir)["after"]
    for name in ("emotion", "attributes"):
        assert again[name] == trained[name]
    predictor = LocalModel.load(run_dir, prompt="synth_ancestry")
    assert predictor.prompt.space.id == "race3"
    with pytest.raises(UserError, match=r"trained with prompt facescan_gender .*not with face_cot"):
        LocalModel.load(run_dir, prompt="face_cot")
    assert vlmface(["predict", "docs/images", "--model", str(run_dir), "--json"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[:1] == "{"]
    assert all([a["prompt"] for a in line["answers"].values()] == list(ASKED) for line in said)


def test_what_cannot_be_scored_is_refused(attributes: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="synth_attributes does not score facescan_race"):
        attributes(tmp_path / "a", "--prompt", "facescan_race,facescan_gender")
    benchmark = tmp_path / "two.yaml"
    benchmark.write_text(
        "id: two\ndataset: synth\nsplit: test\nsource: x\nlabel_space: [race3, race7]\n"
    )
    with pytest.raises(UserError, match=r"no two speak of the same \(race, race\)"):
        benchmarks.load_benchmark(str(benchmark))


def test_one_question_gives_the_shape_of_one(attributes: Any, tmp_path: Path) -> None:
    words = ("--prompt", "facescan_gender", "--balance_by", "labels")
    assert attributes(tmp_path / "run", *words) == 0
    scores = read_metrics(tmp_path / "run")
    assert scores["after"]["prompt"]["id"] == "facescan_gender"
    assert list(scores["after"]["attributes"]) == ["gender"] and "emotion" not in scores["after"]


# --- what is measured -----------------------------------------------------------------------------


def line(number: int, label: str | None, status: str = "strict", **attributes: str) -> Any:
    return {
        "id": str(number),
        "prompt": "p",
        "truth": {"attributes": attributes},
        "label": label,
        "status": status,
        "aus": [],
        "probabilities": None,
    }


def test_groups_gaps_and_abstention() -> None:
    space = prompts.load("facescan_gender").space
    lines = [
        line(0, "female", gender="female", race="asian"),
        line(1, "male", gender="female", race="asian"),
        line(2, "male", gender="male", race="african"),
        line(3, None, "refused", gender="male", race="african"),
        line(4, "male", gender="male", race="african"),
        line(5, "male", gender="male"),
    ]
    about = {
        "benchmark": "b",
        "model": "m",
        "prompt": {"id": "p", "sha": "0"},
        "scoring": "generated",
        "wall_s": 0.0,
        "peak_rss_gib": 0.0,
    }
    block = metrics.summarise(lines, space, (), about=about)["attributes"]["gender"]
    assert block["groups"]["race"]["asian"]["n"] == 2
    assert block["groups"]["race"]["african"]["accuracy"] == pytest.approx(2 / 3)
    assert block["gaps"] == {"race": pytest.approx(2 / 3 - 1 / 2)}
    low, high = block["groups"]["race"]["african"]["ci95"]
    assert low <= 2 / 3 <= high
    assert block["answered"] == {"share": pytest.approx(5 / 6), "accuracy": pytest.approx(4 / 5)}
    assert prompts.load("face_gender_or_pass").parse("cannot tell").status == "refused"
