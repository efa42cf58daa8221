"""Small real things that tests share: a random LLaVA and one run of the recipe."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.scripts import Recipe, load_script, to_argv
from hypothesis import settings as hypothesis_settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are slower on contended threads


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu", action="store_true", help="use the GPU: for tests/test_gpu.py")


def pytest_configure(config: pytest.Config) -> None:
    # Equalities hold to 1e-5 in float32 on a CPU, not in a GPU's bfloat16.
    if not config.getoption("--gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


# Machines differ: a slow example is no failure.
hypothesis_settings.register_profile("vlmface", deadline=None)
hypothesis_settings.load_profile("vlmface")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaVA of one layer a tower: 32 x 32 pixels, 16 image tokens."""
    from helpers.checkpoints import corpus, llava

    folder = tmp_path_factory.mktemp("base")
    llava.build_tiny(folder, corpus("USER: ASSISTANT:"))
    return folder


@pytest.fixture(scope="session")
def clip_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP of open_clip with two layers a tower: 32 x 32 pixels, 24 features."""
    from helpers.checkpoints import build_clip

    return build_clip(tmp_path_factory.mktemp("clip_base"))


@pytest.fixture(scope="session")
def processor(base: Path) -> Any:
    from helpers.checkpoints import llava

    return llava.load_processor(base)


@pytest.fixture(scope="session")
def clip_run(clip_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A finished run of a CLIP recipe on 16 rendered rows and the small random CLIP; more words
    override."""
    made: dict[tuple[str, ...], Path] = {}

    def run(recipe: str, *words: str) -> Path:
        if (recipe, *words) not in made:
            folder = tmp_path_factory.mktemp("clip_run") / "run"
            fixed = {
                "base": clip_base,
                "output_dir": folder,
                "n_train": 16,
                "n_eval": 8,
                "epochs": 1,
                "batch_size": 8,
                "warmup_steps": 0,
                "select": "last",
            }
            assert load_script(f"recipes/{recipe}.py").main([*words, *to_argv(fixed)]) == 0
            made[recipe, *words] = folder
        return made[recipe, *words]

    return run


@pytest.fixture(scope="session")
def clip_faces(clip_run: Callable[..., Path]) -> Path:
    """A run of recipes/clip_finetune.py: one picture of a face, one of eight emotions."""
    return clip_run("clip_finetune")


@pytest.fixture(scope="session")
def clip_views(clip_run: Callable[..., Path]) -> Path:
    """A run of recipes/context_emotion.py with a CLIP: a face, and what is around it."""
    return clip_run("context_emotion", "--model", "clip-caer")


@pytest.fixture(scope="session")
def clip_frames(clip_run: Callable[..., Path]) -> Path:
    """A run of recipes/clip_finetune.py that is shown four frames of a clip."""
    return clip_run(
        "clip_finetune",
        "--config",
        "clip_temporal_tiny",
        "--frames",
        "4",
        "--time",
        "mean",
        "--validation_split",
        "null",
    )


@pytest.fixture(scope="session")
def sft_cot(base: Path) -> Recipe:
    """recipes/sft_cot.py's main on 48 rendered faces and the random model; more words override."""
    main = load_script("recipes/sft_cot.py").main

    def run(output_dir: Path, *words: str) -> int:
        fixed = {
            "base": base,
            "output_dir": output_dir,
            "n_train": 48,
            "n_eval": 8,
            "epochs": 2,
            "batch_size": 8,
            "learning_rate": 3e-3,
            "warmup_steps": 0,
            "tower": "lora",
            "lora_dropout": 0.1,
            "train_embeddings": True,
            "logging_steps": 1,
            "save_steps": 4,
            "max_new_tokens": 24,
        }
        if "full" in words and "lora" not in words:
            del fixed["lora_dropout"]  # it is refused where it has no effect
        return main([*to_argv(fixed), *words])

    return run


@pytest.fixture(scope="session")
def run_dir(sft_cot: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the recipe."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert sft_cot(folder) == 0
    return folder


@pytest.fixture(scope="session")
def memorised(sft_cot: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of vlmface-tiny that knows the first 8 faces of synth by heart."""
    folder = tmp_path_factory.mktemp("runs") / "memorised"
    words = {
        "base": "vlmface-tiny",
        "n_train": 8,
        "n_eval": 4,
        "epochs": 100,
        "learning_rate": 4e-3,
        "save_steps": 100,
        "tower": "frozen",
        "lora_rank": 32,
        "lora_alpha": 64,
        "lora_dropout": 0.0,
        "cache_features": "true",
        "max_new_tokens": 120,
    }
    assert sft_cot(folder, *to_argv(words)) == 0
    return folder
