"""The four trainers through their recipes' real main(), as small as they go: 4 steps, with a
checkpoint after the second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.scripts import load_script, to_argv

NAMES = ("sft", "grpo", "clip", "captions")
SHARED = {
    "n_train": 16,
    "batch_size": 8,
    "epochs": 2,
    "warmup_steps": 0,
    "logging_steps": 1,
    "save_steps": 2,
}
CLIP_RUN: dict[str, Any] = {
    "n_train": 16,
    "n_eval": 8,
    "epochs": 1,
    "batch_size": 8,
    "warmup_steps": 0,
    "checkpoint_selection": "last",
}
WORDS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": (
        "sft_cot",
        {
            **SHARED,
            "n_eval": 2,
            "lora_dropout": 0.1,
            "max_new_tokens": 4,
            "cache_features": "false",
            "learning_rate": 1e-3,
        },
    ),
    "grpo": (
        "grpo",
        {
            "prompt": "face_cot",
            "n_train": 8,
            "n_eval": 2,
            "num_generations": 2,
            "batch_size": 2,
            "max_steps": 4,
            "warmup_steps": 0,
            "save_steps": 2,
            "logging_steps": 1,
            "max_new_tokens": 4,
            "rewards": "{format: 1, length_penalty: {words: 2}}",
        },
    ),
    "clip": ("clip_finetune", {**SHARED, "n_eval": 8}),
    "captions": ("clip_captions", {**SHARED, "n_probe": 40, "dataset_options": "{}"}),
}


def trainer_class(name: str) -> Any:
    """The trainer behind a recipe."""
    from vlmface.train.clip.trainer import ClipTrainer
    from vlmface.train.group_trainer import GroupTrainer
    from vlmface.train.trainer import SupervisedTrainer

    return {"sft": SupervisedTrainer, "grpo": GroupTrainer}.get(name, ClipTrainer)


def starter(name: str, base: Path, clip_base: Path) -> Callable[..., int]:
    """main() of a trainer's recipe on the small random models; more settings override."""
    script, fixed = WORDS[name]
    main = load_script(f"recipes/{script}.py").main
    model = {"sft": {"base_model": base}, "grpo": {"init_from": base}}.get(
        name, {"base_model": clip_base}
    )

    def start(output_dir: Path, *words: str, **changes: Any) -> int:
        values = {**fixed, **model, "output_dir": output_dir, **changes}
        return main([*to_argv(values), *words])

    return start


@contextmanager
def interrupted(name: str, step: int) -> Iterator[None]:
    """What the block starts is interrupted in the middle of a training step, as by Ctrl-C."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_in(patch, name, step)
        yield


def stop_in(patch: pytest.MonkeyPatch, name: str, step: int) -> None:
    """Interrupt training in the middle of a step, as Ctrl-C would."""
    original = trainer_class(name).training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step - 1:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    patch.setattr(trainer_class(name), "training_step", training_step)
