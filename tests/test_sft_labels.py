"""Several labels a person, end to end: recipes/sft_attributes.py and eval/run.py on a miniature of
EMOTIC."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.run_files import read_metrics
from helpers.scripts import load_script, to_argv
from miniatures import emotic

from vlmface import manifest
from vlmface.errors import UserError
from vlmface.evaluate import answering


@pytest.fixture(scope="module")
def run_dir(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt the three people of the training split by heart, scored on them."""
    folder = tmp_path_factory.mktemp("labels")
    emotic.write(folder / "data")
    (folder / "seen.yaml").write_text(
        "{id: seen, dataset: emotic, split: train, label_space: emotic26, source: test}"
    )
    assert train(base, folder, "--epochs", "120", "--learning_rate", "5e-3") == 0
    return folder / "run"


def train(base: Path, folder: Path, *words: str) -> int:
    fixed = {
        "base_model": base,
        "output_dir": folder / "run",
        "dataset": "emotic",
        "dataset_root": folder / "data",
        "benchmark": folder / "seen.yaml",
        "prompt": "emotic",
        "batch_size": 3,
        "warmup_steps": 0,
        "save_steps": 500,
        "max_new_tokens": 40,
        "vision_tower": "frozen",
        "lora_rank": 32,
        "lora_alpha": 64,
        "lora_dropout": 0.0,
        "train_embeddings": True,
        "max_length": 1024,
    }
    argv = to_argv(fixed)
    return load_script("recipes/sft_attributes.py").main([*argv, *words])


def test_rows_with_several_labels_are_learnt(run_dir: Path) -> None:
    scores = read_metrics(run_dir)
    assert scores["train"]["n_by_prompt"] == {"emotic": 3} and scores["train"]["skipped"] == {}
    lines = answering.read_lines(run_dir / "predictions.jsonl")
    true = [person[3] for person in emotic.PEOPLE["train"]]
    assert [line["truth"]["labels"] for line in lines] == true
    # The second and the third person are in one picture, and nothing shows which of them is meant.
    alone, one, other = (line["labels"] for line in lines)
    assert alone == true[0] and one == other and one in true[1:]
    after = scores["after"]["labels"]
    assert after["exact_match"] == after["jaccard"] == pytest.approx(2 / 3)
    assert after["n"] == 3 and "map" not in after
    assert scores["before"]["labels"]["exact_match"] == 0
    assert scores["paired"]["labels"]["jaccard"]["difference"] > 0
    assert manifest.load(run_dir)[0].prompts[0]["label_space"] == "emotic26"
    assert "Label by label" in (run_dir / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("scoring", ["likelihood", "both"])
def test_the_benchmark_ranks_people_by_likelihoods(
    run_dir: Path, tmp_path: Path, scoring: str, capsys: Any
) -> None:
    evaluate = load_script("eval/run.py").main
    words = [
        "--benchmark",
        "emotic",
        "--dataset_root",
        str(run_dir.parent / "data"),
        "--model",
        str(run_dir),
        "--scoring",
        scoring,
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert evaluate(words) == 0
    assert "mAP" in capsys.readouterr().out
    scores = read_metrics(tmp_path / "out")
    block = scores["labels"]
    assert block["n"] == 2 and 0 < block["map"] <= 1
    assert {k for k, one in block["per_label"].items() if one["ap"] is not None} == {
        "Pain",
        "Sadness",
        "Peace",
    }
    assert ("jaccard" in block) == (scoring == "both")
    table = (tmp_path / "out" / "published.md").read_text(encoding="utf-8").splitlines()
    assert table[0].startswith(
        "| model | macro F1 | mAP |" if scoring == "both" else "| model | mAP |"
    )
    assert f"| {100 * block['map']:.1f} |" in table[2]  # ours stands first
    assert block["no_ci95"].startswith("2 annotated faces: too few")


def test_what_was_learnt_can_be_rewarded(run_dir: Path, tmp_path: Path) -> None:
    words = {
        "init_from": run_dir,
        "output_dir": tmp_path / "run",
        "dataset": "emotic",
        "dataset_root": run_dir.parent / "data",
        "benchmark": run_dir.parent / "seen.yaml",
        "rewards": "{format: 1, jaccard: 2}",
        "num_generations": 3,
        "batch_size": 2,
        "logging_steps": 1,
        "max_steps": 2,
        "warmup_steps": 0,
        "max_new_tokens": 40,
    }
    argv = to_argv(words)
    assert load_script("recipes/grpo.py").main(argv) == 0
    log = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    lines = [json.loads(line) for line in log]
    earned = [line["rewards/jaccard/mean"] for line in lines if "rewards/jaccard/mean" in line]
    assert len(earned) == 2 and all(0 < value <= 1 for value in earned)
    assert any(key.startswith("reward_of/") for line in lines for key in line)
    page = (tmp_path / "run" / "samples.html").read_text(encoding="utf-8")
    assert "Disconnection, Doubt/Confusion" in page or "Happiness, Pleasure" in page


def test_labels_that_occur_together_cannot_be_balanced(base: Path, tmp_path: Path) -> None:
    (tmp_path / "seen.yaml").write_text(
        "{id: seen, dataset: emotic, split: train, label_space: emotic26, source: test}"
    )
    with pytest.raises(UserError, match="balance_by is 'labels', but emotic asks for several"):
        train(base, tmp_path, "--balance_by", "labels")
