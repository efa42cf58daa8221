"""Rare labels and disagreeing annotators: weights, balanced rows and soft labels of the recipes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.run_files import adapter, losses, read_metrics
from helpers.samples import picture, rows
from helpers.scripts import load_script, to_argv
from helpers.trainers import CLIP_RUN
from torch import allclose, equal

from vlmface import data, prompts
from vlmface.errors import UserError
from vlmface.schema import FaceSample
from vlmface.train import task_sampling
from vlmface.train.evidence_changes import token_weights

EMOTION = prompts.load("facescan_emotion")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures: anger six times, fear and neutral once."""
    return write_table(tmp_path_factory.mktemp("table"), ["anger"] * 6 + ["fear", "neutral"])


def write_table(folder: Path, emotions: list[str]) -> Path:
    lines = ["image,emotion"]
    for k, emotion in enumerate(emotions):
        picture(k, (32, 32)).save(folder / f"{k}.png")
        lines.append(f"{k}.png,{emotion}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder / "table.csv"


def sft(base: Path, output_dir: Path, **settings: Any) -> Path:
    """recipes/sft_attributes.py in three steps of four rows, without evaluation to speak of."""
    fixed = {
        "base_model": base,
        "output_dir": output_dir,
        "prompt": "facescan_emotion",
        "benchmark": "synth",
        "n_train": 8,
        "n_eval": 1,
        "epochs": 2,
        "batch_size": 4,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_steps": 50,
        "max_new_tokens": 2,
        "learning_rate": 1e-3,
    }
    assert load_script("recipes/sft_attributes.py").main(to_argv(fixed | settings)) == 0
    return output_dir


def same_weights(one: Path, other: Path, atol: float = 0.0) -> bool:
    first, second = adapter(one), adapter(other)
    close = allclose if atol else equal
    options = {"atol": atol} if atol else {}
    return all(close(tensor, second[name], **options) for name, tensor in first.items())


# --- supervised fine-tuning -----------------------------------------------------------------------


def test_equal_labels_have_weight_one_bit_for_bit(base: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path, ["anger", "fear", "neutral", "sadness"] * 2)
    of_table = {"dataset": "table", "dataset_root": path}
    plain = sft(base, tmp_path / "plain", **of_table)
    weighted = sft(base, tmp_path / "weighted", **of_table, label_weight_power=1)
    assert same_weights(plain, weighted) and losses(plain) == losses(weighted)


def test_weights_are_exact_under_accumulation(base: Path, table: Path, tmp_path: Path) -> None:
    settings = {
        "dataset": "table",
        "dataset_root": table,
        "label_weight_power": 1,
        "lora_dropout": 0,
    }
    single = sft(base, tmp_path / "single", **settings, batch_size=8)
    parts = sft(base, tmp_path / "parts", **settings, batch_size=2, gradient_accumulation=4)
    assert losses(single) == pytest.approx(losses(parts), rel=1e-5)
    assert same_weights(single, parts, atol=1e-5)
    plain = sft(base, tmp_path / "plain", **settings | {"label_weight_power": 0}, batch_size=8)
    assert not same_weights(single, plain, atol=1e-5)


def test_one_vote_is_the_hard_label(base: Path, tmp_path: Path) -> None:
    settings = {"dataset_options": "{annotators: 1}"}
    hard = sft(base, tmp_path / "hard", **settings)
    soft = sft(base, tmp_path / "soft", **settings, soft_labels=True)
    assert same_weights(hard, soft) and losses(hard) == losses(soft)


def test_every_label_with_a_vote_is_trained_on(base: Path, tmp_path: Path) -> None:
    run = sft(base, tmp_path / "run", dataset_options="{annotators: 10}", soft_labels=True)
    faces = data.load("synth", n=8, annotators=10)
    expected = sum(len(json.loads(votes)) for votes in faces["label_votes"])
    trained = read_metrics(run)["train"]
    assert trained["n"] == trained["n_by_prompt"]["facescan_emotion"] == expected > 8


def test_the_weights_of_votes_are_their_shares() -> None:
    faces = data.load("synth", n=12, annotators=10).remove_columns("emotion")
    (targets,) = task_sampling.row_targets(faces, [EMOTION], soft=True)
    assert all(sum(target.values()) == pytest.approx(1) for target in targets)
    chosen, index = task_sampling.training_rows(faces, np.arange(12), EMOTION, targets, 0)
    weights = np.array(chosen[task_sampling.LABEL_WEIGHT])
    assert weights.mean() == pytest.approx(1)
    for face, target in enumerate(targets):
        shares = weights[index == face] / weights[index == face].sum()
        assert shares == pytest.approx(list(target.values()))
    weighted, _ = task_sampling.training_rows(faces, np.arange(12), EMOTION, targets, 1)
    totals = Counter[str]()
    for label, weight in zip(
        weighted[task_sampling.TARGET_LABEL], weighted[task_sampling.LABEL_WEIGHT], strict=True
    ):
        totals[label] += weight
    assert len(totals) > 3 and list(totals.values()) == pytest.approx(
        [totals["fear"]] * len(totals)
    )


def test_rows_without_votes_keep_their_label() -> None:
    sample = FaceSample(id="x", dataset="test", emotion="fear", label_votes={"unknown": 3})
    assert task_sampling.vote_shares(sample, EMOTION) == {}
    sample.label_votes = {"Happy": 1, "anger": 3, "unknown": 6}
    assert task_sampling.vote_shares(sample, EMOTION) == {"anger": 0.75, "happiness": 0.25}
    assert task_sampling.vote_shares(sample, prompts.load("face_cot")) == {}
    with pytest.raises(UserError, match="none of the 4 rows has label_votes"):
        task_sampling.row_targets(rows(4), [EMOTION], soft=True)


def test_the_label_alone_is_weighted_behind_a_rationale() -> None:
    labels, without = [-100, -100, 5, 6, 7, 8, 9], [1, 1, 5, 6, 9]
    assert token_weights(labels, 3.0, without) == [1, 1, 1, 1, 3, 3, 3]
    assert token_weights(labels, 3.0, None) == [1, 1, 3, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"soft_labels": True}, "none of the 8 rows has label_votes"),
        ({"soft_labels": True, "prompt": "face_cot"}, "no prompt asks for one label in words"),
        (
            {"balance_by": "labels", "label_weight_power": 1},
            "label_weight_power is 1.0, but has no",
        ),
        ({"prompt": "emotic", "label_weight_power": 1}, "emotic asks for several labels"),
    ],
)
def test_what_has_no_effect_is_refused(
    settings: dict[str, Any], message: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        sft(base, tmp_path / "run", **settings)


# --- other recipes --------------------------------------------------------------------------------


def clip(clip_base: Path, output_dir: Path, **settings: Any) -> dict[str, Any]:
    fixed = CLIP_RUN | {"base_model": clip_base, "output_dir": output_dir, "label_smoothing": 0}
    assert load_script("recipes/clip_finetune.py").main(to_argv(fixed | settings)) == 0
    return read_metrics(output_dir)


def test_a_clip_learns_votes_and_rare_labels(clip_base: Path, table: Path, tmp_path: Path) -> None:
    hard = clip(clip_base, tmp_path / "hard", dataset_options="{annotators: 1}")
    settings = {"dataset_options": "{annotators: 1}", "soft_labels": True}
    soft = clip(clip_base, tmp_path / "soft", **settings)
    assert hard["train"]["loss_first"] == pytest.approx(soft["train"]["loss_first"], rel=1e-5)
    assert hard["train"]["labels"] == soft["train"]["labels"]
    many = clip(clip_base, tmp_path / "many", dataset_options="{annotators: 10}", soft_labels=True)
    assert many["train"]["loss_first"] != pytest.approx(soft["train"]["loss_first"], rel=1e-3)
    assert sum(many["train"]["labels"].values()) == pytest.approx(16, abs=0.01)
    assert any(n != int(n) for n in many["train"]["labels"].values())
    of_table = {"dataset": "table", "dataset_root": table, "n_train": 8}
    rare = clip(clip_base, tmp_path / "rows", **of_table, balance_by="labels")
    assert {k: n for k, n in rare["train"]["labels"].items() if n} == {
        "anger": 3,
        "fear": 3,
        "neutral": 2,
    }


def test_grpo_weighs_advantages_and_balances_rows(
    base: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlmface.train.group_trainer import GroupTrainer

    advantages: list[Any] = []
    record = GroupTrainer._record

    def recorded(self: Any, indices: Any, *rest: Any) -> None:
        labels = [self.scorer.samples[i].emotion for i in indices]
        advantages.append((labels, rest[-2]))
        record(self, indices, *rest)

    monkeypatch.setattr(GroupTrainer, "_record", recorded)
    fixed = {
        "init_from": base,
        "prompt": "facescan_emotion",
        "dataset": "table",
        "dataset_root": table,
        "benchmark": "synth",
        "n_train": 8,
        "n_eval": 1,
        "num_generations": 2,
        "batch_size": 8,
        "max_steps": 1,
        "warmup_steps": 0,
        "max_new_tokens": 3,
        "rewards": "{length_penalty: {words: 1}, repetition: {n: 1}}",
    }

    def run(name: str, **settings: Any) -> Any:
        words = to_argv(fixed | {"output_dir": tmp_path / name} | settings)
        assert load_script("recipes/grpo.py").main(words) == 0
        return advantages.pop()

    labels, plain = run("plain")
    _, weighted = run("weighted", label_weight_power=1)
    factors = {"anger": 8 / 18, "fear": 8 / 3, "neutral": 8 / 3}
    expected = [a * factors[label] for a, label in zip(plain.tolist(), labels, strict=True)]
    assert weighted.tolist() == pytest.approx(expected)
    balanced, _ = run("balanced", balance_by="labels")
    assert Counter(balanced) == {"anger": 6, "fear": 6, "neutral": 4}
