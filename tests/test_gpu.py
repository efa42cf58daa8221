"""What other tests show on a CPU, on a GPU: bfloat16, 4 bits, kernels and memory are others there.

pytest tests/test_gpu.py
"""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import training
from helpers.checkpoints import llava
from helpers.run_files import adapter, losses, read_metrics, training_log
from helpers.samples import rows
from helpers.scripts import ROOT, load_script, to_argv

from vlmface import manifest, prompts
from vlmface.evaluate import answering
from vlmface.infer.local import LocalModel
from vlmface.synth import dataset
from vlmface.tools import estimate_memory, longest_rows, meta_model
from vlmface.tools.recipe_setup import settings_from
from vlmface.train import sft
from vlmface.train.rows import encode_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU and --gpu"),
]


def words(**settings: Any) -> list[str]:
    return to_argv(settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default recipe, shortened."""
    folder = tmp_path_factory.mktemp("gpu") / "sft"
    recipe = load_script("recipes/sft_cot.py")
    assert recipe.main(words(output_dir=folder, n_train=1000, n_eval=200)) == 0
    return folder


def test_the_recipe_learns_in_bfloat16(trained: Path) -> None:
    assert losses(trained)[-1] < losses(trained)[0] / 3
    assert read_metrics(trained)["after"]["emotion"]["accuracy"] > 0.5
    assert {weight.dtype for weight in adapter(trained).values()} == {torch.float32}


def test_a_gpu_answers_as_a_cpu_does(trained: Path) -> None:
    images = answering.images_of(dataset.load("test", n=32))
    gpu, cpu = (LocalModel.load(trained, device=d, dtype=torch.float32) for d in ("cuda", "cpu"))
    ours, theirs = gpu.predict(images, batch_size=16), cpu.predict(images)
    assert [one.text for one in ours] == [one.text for one in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-4)
    for a, b in zip(gpu.score(images), cpu.score(images), strict=True):
        assert a.log_likelihood == pytest.approx(b.log_likelihood, abs=1e-3)


def test_bfloat16_answers_hardly_differ(trained: Path) -> None:
    images = answering.images_of(dataset.load("test", n=100))
    exact = LocalModel.load(trained, dtype=torch.float32).predict(images)
    rounded = LocalModel.load(trained).predict(images)
    same = [a.answer.label == b.answer.label for a, b in zip(exact, rounded, strict=True)]
    assert sum(same) >= 90


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("nf4", {"quantization": "nf4"}),
        ("compile", {"compile": True}),
        ("liger", {"liger": True}),
        ("checkpointing", {"gradient_checkpointing": True}),
        ("pixels", {"cache_features": False}),
    ],
)
def test_ways_to_train(name: str, changes: dict[str, Any], base: Path, tmp_path: Path) -> None:
    """All take the same course, 4 bits nearly so."""
    needed = {"nf4": "bitsandbytes", "liger": "liger_kernel"}.get(name)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    found = {}
    for kind, more in (("plain", {}), (name, changes)):
        folder = tmp_path / kind
        fixed = {"batch_size": 8, "epochs": 3, "learning_rate": 5e-3, "lora_dropout": 0.0}
        fixed |= {"save_steps": 6, "warmup_steps": 0}
        training.train(base, folder, rows(32), **fixed | more)
        found[kind] = losses(folder)
    assert found[name][-1] < found[name][0] - 0.1
    assert found[name] == pytest.approx(found["plain"], rel=0.02)


def test_grpo_trains_the_policy_that_answers(trained: Path, tmp_path: Path) -> None:
    recipe = load_script("recipes/grpo.py")
    settings = words(
        init_from=trained,
        output_dir=tmp_path,
        n_train=64,
        n_eval=16,
        max_steps=4,
        learning_rate=1e-4,
        save_steps=2,
    )
    assert recipe.main(settings) == 0
    lines = training_log(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["rollout_drift"] < 0.02 for line in lines)


@pytest.mark.parametrize("strategy", ["zero2", "zero3", "fsdp2"])
def test_sharded_training_starts_on_a_gpu(strategy: str, base: Path, tmp_path: Path) -> None:
    if strategy.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / f"recipes/accelerate/{strategy}.yaml"),
        "--num_processes",
        "1",
        str(ROOT / "recipes/sft_cot.py"),
        *words(
            base_model=base,
            output_dir=tmp_path,
            n_train=64,
            n_eval=8,
            epochs=1,
            max_new_tokens=24,
            logging_steps=1,
            save_steps=4,
        ),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]


def test_a_gpu_run_takes_what_was_planned(tmp_path: Path) -> None:
    """Of a batch so large that what CUDA's libraries hold themselves does not matter."""
    settings = settings_from(
        "sft_cot_tiny",
        words(n_train=256, batch_size=128, epochs=1, output_dir=tmp_path, cache_features="false"),
    )
    base = meta_model.base_config(settings.base_model)
    processor = meta_model.processor_of(settings)
    seen = longest_rows.rows_of(settings, llava, base, processor)
    (planned,) = estimate_memory.estimate(
        settings, llava, base, seen, gpu=True, processes=1
    ).training.values()
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    encoded, _ = encode_rows(
        dataset.load("train", n=256),
        processor,
        llava,
        prompts.load("face_cot"),
        max_length=512,
        seed=0,
    )
    sft.train(manifest.resolve(settings.base_model), processor, llava, encoded, settings)
    taken = torch.cuda.max_memory_allocated() - before
    print(f"planned {planned.total / 2**20:.0f} MiB, taken {taken / 2**20:.0f}")
    assert planned.total == pytest.approx(taken, rel=0.2)


def test_one_face_or_many(trained: Path) -> None:
    images = answering.images_of(dataset.load("test", n=12))
    predictor = LocalModel.load(trained, dtype=torch.float32)
    texts = [one.text for one in predictor.predict(images)]
    assert texts == [predictor.predict([image])[0].text for image in images]
