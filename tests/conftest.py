"""Small real things that tests share: a random LLaVA and one run of the recipe."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.scripts import Recipe, load_script, to_argv
from helpers.shared import SharedFolders
from helpers.trainers import CLIP_RUN
from hypothesis import settings as hypothesis_settings

# The template that llava-hf/llava-1.5-7b-hf publishes: no BOS, no EOS, blocks only.
PUBLISHED_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are slower on contended threads


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu", action="store_true", help="use the GPU: for tests/test_gpu.py")


def pytest_configure(config: pytest.Config) -> None:
    # Equalities hold to 1e-5 in float32 on a CPU, not in a GPU's bfloat16.
    if not config.getoption("--gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


# What takes longest starts first: started last, it would leave the other workers idle.
LONGEST = (
    *("test_perf", "test_grpo", "test_synthesize", "test_family_contract", "test_clip_finetune"),
    *("test_extensions", "test_resume", "test_context_emotion", "test_doors", "test_sft_cot"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def pytest_collection_finish() -> None:
    """The imported libraries are a million objects that live to the end: the collections that
    trainers start need not look through them each time."""
    gc.collect()
    gc.freeze()


# Machines differ: a slow example is no failure.
hypothesis_settings.register_profile("vlmface", deadline=None)
hypothesis_settings.load_profile("vlmface")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> SharedFolders:
    """What all workers build once."""
    return SharedFolders(tmp_path_factory)


@pytest.fixture(scope="session")
def base(folders: SharedFolders) -> Path:
    """A random LLaVA of one layer a tower: 32 x 32 pixels, 16 image tokens."""
    from helpers.checkpoints import corpus, llava

    return folders.build("base", lambda to: llava.build_tiny(to, corpus("USER: ASSISTANT:")))


@pytest.fixture(scope="session")
def clip_base(folders: SharedFolders) -> Path:
    """A random CLIP of open_clip with two layers a tower: 32 x 32 pixels, 24 features."""
    from helpers.checkpoints import build_clip

    return folders.build("clip_base", build_clip)


@pytest.fixture(scope="session")
def processor(base: Path) -> Any:
    from helpers.checkpoints import llava

    return llava.load_processor(base)


@pytest.fixture
def published(base: Any) -> Any:
    """A processor whose tokenizer adds the BOS and whose template is the published one."""
    from helpers.checkpoints import llava
    from tokenizers.processors import TemplateProcessing

    processor = llava.load_processor(base)
    processor.chat_template = PUBLISHED_TEMPLATE
    processor.tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", processor.tokenizer.bos_token_id)]
    )
    return processor


# --- finished runs, a copy for each test file -----------------------------------------------------


def succeed(code: int) -> None:
    assert code == 0


@pytest.fixture(scope="session")
def clip_run(clip_base: Path) -> Recipe:
    """A CLIP recipe's main on 16 rendered rows and the small random CLIP; more words override."""

    def run(recipe: str, output_dir: Path, *words: str) -> int:
        fixed = CLIP_RUN | {"base_model": clip_base, "output_dir": output_dir}
        return load_script(f"recipes/{recipe}.py").main([*words, *to_argv(fixed)])

    return run


@pytest.fixture(scope="module")
def clip_faces(folders: SharedFolders, clip_run: Recipe) -> Path:
    """A run of recipes/clip_finetune.py: one picture of a face, one of eight emotions."""
    return folders.copy("clip_faces", lambda to: succeed(clip_run("clip_finetune", to)))


@pytest.fixture(scope="module")
def clip_views(folders: SharedFolders, clip_run: Recipe) -> Path:
    """A run of recipes/context_emotion.py with a CLIP: a face, and what is around it."""
    words = ("--model", "clip-caer")
    return folders.copy("clip_views", lambda to: succeed(clip_run("context_emotion", to, *words)))


@pytest.fixture(scope="module")
def clip_frames(folders: SharedFolders, clip_run: Recipe) -> Path:
    """A run of recipes/clip_finetune.py that is shown four frames of a clip."""
    words = ("--config", "clip_temporal_tiny", "--num_frames", "4", "--temporal", "mean")
    words += ("--validation_split", "null")
    return folders.copy("clip_frames", lambda to: succeed(clip_run("clip_finetune", to, *words)))


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
        return main([*to_argv(fixed), *words])

    return run


@pytest.fixture(scope="module")
def run_dir(folders: SharedFolders, sft_cot: Recipe) -> Path:
    """A finished run of the recipe."""
    return folders.copy("finished", lambda to: succeed(sft_cot(to)))


@pytest.fixture(scope="module")
def memorised(folders: SharedFolders, sft_cot: Recipe) -> Path:
    """A run of vlmface-tiny that knows the first 8 faces of synth by heart."""
    words = {
        "base_model": "vlmface-tiny",
        "n_train": 8,
        "n_eval": 4,
        "epochs": 70,
        "learning_rate": 4e-3,
        "save_steps": 100,
        "vision_tower": "frozen",
        "lora_rank": 32,
        "lora_alpha": 64,
        "lora_dropout": 0.0,
        "cache_features": "true",
        "max_new_tokens": 120,
    }
    return folders.copy("memorised", lambda to: succeed(sft_cot(to, *to_argv(words))))


@pytest.fixture(scope="module")
def predictor(run_dir: Path) -> Iterator[Any]:
    """The finished run, asked about pictures of no faces."""
    from vlmface.infer.face_views import ViewSettings
    from vlmface.infer.predictor import Predictor

    with Predictor.load(run_dir, max_new_tokens=8) as loaded:
        loaded.view_settings = ViewSettings()
        yield loaded


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for rendered faces and crops, of this test alone."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VLMFACE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def example_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rendered clip that the demo offers: a grimace, and at the end a smile."""
    pytest.importorskip("av")
    from vlmface.demo import example_media

    path, icon = example_media.write_clip(tmp_path_factory.mktemp("example"))
    assert path.stat().st_size < 200_000 and icon.is_file()
    return path
