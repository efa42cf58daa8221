"""Training as on a GPU, in bfloat16 with float32 copies of what is trained, on a CPU: that parts of
different types meet without an error, and that the policy that answers is the one that is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import training
from helpers.checkpoints import BUILDERS
from helpers.run_files import adapter, losses, training_log
from helpers.samples import rows
from helpers.scripts import load_script, to_argv

from vlmface import prompts
from vlmface.utils import distributed

CORPUS = [str(prompts.load("face_cot").messages()), "USER: ASSISTANT:"] * 20


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "mixed_precision", lambda: True)


@pytest.fixture(scope="module", params=BUILDERS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    BUILDERS[request.param](folder, CORPUS)
    return folder


def train(base: Path, folder: Path, **changes: Any) -> list[float]:
    fixed: dict[str, Any] = {"batch_size": 4, "epochs": 2, "learning_rate": 1e-3, "save_steps": 10}
    fixed |= {"lora_dropout": 0.0, "warmup_steps": 0}
    training.train(base, folder, rows(8), **fixed | changes)
    return losses(folder)


@pytest.mark.parametrize("embeddings", [False, True])
def test_every_family_trains_with_and_without_kept_features(
    checkpoint: Path, tmp_path: Path, embeddings: bool
) -> None:
    policy = {
        "vision_tower": "frozen",
        "projector": "full",
        "language_model": "lora",
        "train_embeddings": embeddings,
    }
    kept = train(checkpoint, tmp_path / "kept", cache_features=True, **policy)
    pixels = train(checkpoint, tmp_path / "pixels", cache_features=False, **policy)
    assert kept == pytest.approx(pixels, rel=2e-3)
    assert kept[-1] < kept[0]
    weights = adapter(tmp_path / "kept").values()
    assert {weight.dtype for weight in weights} == {torch.float32}


def test_every_family_trains_a_tower(checkpoint: Path, tmp_path: Path) -> None:
    found = train(
        checkpoint, tmp_path, vision_tower="lora", projector="lora", language_model="lora"
    )
    assert found[-1] < found[0]


def test_rollouts_are_rounded_as_the_loss_is(memorised: Path, tmp_path: Path) -> None:
    recipe = load_script("recipes/grpo.py")
    words = {
        "init_from": memorised,
        "output_dir": tmp_path,
        "dataset_options": "{seed: 1}",
        "n_train": 8,
        "n_eval": 4,
        "num_generations": 3,
        "batch_size": 2,
        "max_steps": 2,
        "max_new_tokens": 60,
        "learning_rate": 1e-4,
        "save_steps": 2,
    }
    assert recipe.main(to_argv(words)) == 0
    assert all(0 < line["rollout_drift"] < 0.02 for line in training_log(tmp_path))
