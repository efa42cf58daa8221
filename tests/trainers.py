"""The four trainers through their recipes' real main(), as small as they go: 4 steps, with a
checkpoint after the second."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from samples import load_script

NAMES = ("sft", "grpo", "clip", "captions")
SHARED = {
    "n_train": 16,
    "batch_size": 8,
    "epochs": 2,
    "warmup_steps": 0,
    "logging_steps": 1,
    "save_steps": 2,
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
        return main([*(w for k, v in values.items() for w in (f"--{k}", str(v))), *words])

    return start


def stop_in(patch: pytest.MonkeyPatch, name: str, step: int) -> None:
    """Interrupt training in the middle of a step, as Ctrl-C would."""
    original = trainer_class(name).training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step - 1:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    patch.setattr(trainer_class(name), "training_step", training_step)


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file in and below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in sorted(folder.rglob("*"))
    }
