"""Fine-tuning without a recipe, and the manifest of what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmface import families, prompts
from vlmface.train import sft
from vlmface.train.rows import encode_rows
from vlmface.train.settings import SFTSettings

# Settings of recipes/sft_cot.py for eight short steps.
EIGHT_STEPS: dict[str, Any] = {
    "n_train": 24,
    "n_eval": 2,
    "epochs": 2,
    "batch_size": 6,
    "vision_tower": "frozen",
    "cache_features": "false",
    "train_embeddings": "false",
    "max_new_tokens": 4,
    "lr_scheduler": "constant",
    "save_steps": 3,
}


def sft_settings(base: Path, folder: Path, **changes: Any) -> SFTSettings:
    """Settings that log each step; what a test depends on it sets itself."""
    fixed: dict[str, Any] = {
        "base_model": str(base),
        "dataset": "synth",
        "benchmark": "synth",
        "prompt": "face_cot",
        "limitations": "none",
        "output_dir": str(folder),
        "logging_steps": 1,
    }
    return SFTSettings(**fixed | changes)


def encode_all(processor: Any, family: Any, data: Any) -> Any:
    """A dataset with the answers that `face_cot` asks for, none of whose rows is skipped."""
    prompt = prompts.load("face_cot")
    encoded, skipped = encode_rows(data, processor, family, prompt, max_length=4096, seed=0)
    assert skipped == {}
    return encoded


def train(base: Path, folder: Path, data: Any, **changes: Any) -> dict[str, Any]:
    """Train on a dataset; `changes` are settings. Returns what the trainer reports."""
    family = families.get(families.family_of(base))
    processor = family.load_processor(base)
    settings = sft_settings(base, folder, **changes)
    return sft.train(base, processor, family, encode_all(processor, family, data), settings)


def save_manifest(folder: Path, settings: SFTSettings) -> None:
    """The processor and the manifest of a run that trained `settings.base_model`."""
    base = Path(settings.base_model)
    family = families.get(families.family_of(base))
    processor = family.load_processor(base)
    processor.save_pretrained(folder)
    data = {"name": "synth", "split": "train", "n": 1, "options": {}, "fingerprint": "0"}
    model = sft.TrainedModel(
        base=base,
        base_id=str(base),
        family=family,
        processor=processor,
        prompts=[prompts.load(name) for name in settings.prompts],
        trainable=settings.trainable,
        views=None,
        num_frames=1,
        max_length=settings.max_length,
    )
    sft.write_manifest("test", settings, model, [12], data)
