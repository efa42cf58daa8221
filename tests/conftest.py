"""Small real things that tests share: a random LLaVA and one run of the recipe."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from samples import FACES, load_script

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
    from checkpoints import llava

    from vlmface import prompts
    from vlmface.rationale import rules

    corpus = [
        rules.write(aus, emotion, format=format, seed=seed)
        for aus, emotion in FACES
        for format in ("think_answer", "three_part")
        for seed in range(20)
    ]
    for name in ("face_cot", "expllm", "expllm_label"):
        corpus += [str(prompts.load(name).messages()), "USER: ASSISTANT:"] * 20
    folder = tmp_path_factory.mktemp("base")
    llava.build_tiny(folder, corpus)
    return folder


@pytest.fixture(scope="session")
def clip_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP of open_clip with two layers a tower: 32 x 32 pixels, 24 features."""
    import open_clip
    import torch

    from vlmface.clip import model

    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    shape = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    built = open_clip.CLIP(**shape)
    config = {"model_cfg": shape, "preprocess_cfg": {"size": 32, "resize_mode": "squash"}}
    folder = tmp_path_factory.mktemp("clip_base")
    model.save_clip(model.Clip(built, open_clip.SimpleTokenizer(), config, "small"), folder)
    return folder


@pytest.fixture(scope="session")
def processor(base: Path) -> Any:
    from checkpoints import llava

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
                "base_model": clip_base,
                "output_dir": folder,
                "n_train": 16,
                "n_eval": 8,
                "epochs": 1,
                "batch_size": 8,
                "warmup_steps": 0,
                "checkpoint_selection": "last",
            }
            argv = [word for name, value in fixed.items() for word in (f"--{name}", str(value))]
            assert load_script(f"recipes/{recipe}.py").main([*words, *argv]) == 0
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
        "--num_frames",
        "4",
        "--temporal",
        "mean",
        "--validation_split",
        "null",
    )


Recipe = Callable[..., int]


@pytest.fixture(scope="session")
def sft_cot(base: Path) -> Recipe:
    """recipes/sft_cot.py's main on 48 rendered faces and the random model; more words override."""
    main = load_script("recipes/sft_cot.py").main

    def run(output_dir: Path, *words: str) -> int:
        fixed = {
            "base_model": base,
            "output_dir": output_dir,
            "n_train": 48,
            "n_eval": 8,
            "epochs": 2,
            "batch_size": 8,
            "learning_rate": 3e-3,
            "warmup_steps": 0,
            "vision_tower": "lora",
            "lora_dropout": 0.1,
            "train_embeddings": True,
            "logging_steps": 1,
            "save_steps": 4,
            "max_new_tokens": 24,
        }
        if "full" in words and "lora" not in words:
            del fixed["lora_dropout"]  # it is refused where it has no effect
        argv = [word for name, value in fixed.items() for word in (f"--{name}", str(value))]
        return main([*argv, *words])

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
        "base_model": "vlmface-tiny",
        "n_train": 8,
        "n_eval": 4,
        "epochs": 100,
        "learning_rate": 4e-3,
        "save_steps": 100,
        "vision_tower": "frozen",
        "lora_rank": 32,
        "lora_alpha": 64,
        "lora_dropout": 0.0,
        "cache_features": "true",
        "max_new_tokens": 120,
    }
    assert sft_cot(folder, *(x for k, v in words.items() for x in (f"--{k}", str(v)))) == 0
    return folder
