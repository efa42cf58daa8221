"""Training that starts from the LoRA adapter of an earlier run (`init_from`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmface import adapter, families, manifest
from vlmface.errors import UserError
from vlmface.families import modules
from vlmface.families.base import Family
from vlmface.train import sft
from vlmface.train.settings import SFTSettings
from vlmface.utils import distributed


def with_adapter(settings: SFTSettings) -> SFTSettings:
    """The settings with those of the adapter in `settings.init_from`, which is trained further as
    it is; the same settings without `init_from`.

    Args:
        settings: Of a run.

    Raises:
        UserError: The folder does not hold a LoRA adapter of the base, or a setting has another
            value than the adapter.
    """
    if settings.init_from is None:
        return settings
    folder = Path(settings.init_from)
    if folder.resolve() == Path(settings.output_dir).resolve():
        raise UserError(
            f"init_from and output_dir are both {folder}: write the new run into another folder"
        )
    base = manifest.resolve(settings.base_model)
    if manifest.is_run(folder):
        _check_run(folder, base, settings.base_model)
    config = adapter.read_config(folder)
    values = _settings_of(folder, config, families.get(families.family_of(base)))
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    for name, value in values.items():
        current = getattr(settings, name)
        if current not in (defaults[name], value):
            raise UserError(
                f"{name} is {current!r}, but the adapter in {folder} has {value!r} and is trained "
                f"further as it is: leave {name} out, or set it to {value!r}"
            )
    if distributed.is_main():
        described = ", ".join(f"{name} {value}" for name, value in values.items())
        print(f"starting from the adapter in {folder}: {described}")
    return dataclasses.replace(settings, **values)


def identity(settings: SFTSettings) -> dict[str, Any]:
    """What must be the same when a run is resumed (`run_dir.start_run`): the adapter's weights."""
    start = sft.describe_start(settings.init_from)
    return {} if start is None else {"init_weights": start["sha"]}


def _check_run(folder: Path, base: Path, base_id: str) -> None:
    """Raise UserError if the run has changed, or was trained over another base."""
    run, _ = manifest.load(folder)
    if not run.adapter:
        raise UserError(
            f"init_from is {folder}, which holds complete weights and not an adapter: set "
            "base_model to it, and init_from: null"
        )
    manifest.check_weights(run, folder)
    sha = manifest.weights_sha(base)
    if sha != run.base_model["sha"]:
        raise UserError(
            f"the adapter in {folder} belongs to the base model {run.base_model['id']} "
            f"({run.base_model['sha']}), but base_model is {base_id} ({sha}): set base_model to "
            "the former"
        )


def _settings_of(folder: Path, config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """{field of PolicySettings or SFTSettings: value} that an adapter was made with."""
    variants = {"rslora": config.get("use_rslora"), "dora": config.get("use_dora")}
    return {
        **_trainable(folder, family),
        "lora_rank": config["r"],
        "lora_alpha": config["lora_alpha"],
        "lora_dropout": config["lora_dropout"],
        "lora_variant": next((name for name, is_used in variants.items() if is_used), None),
        "train_embeddings": bool(config.get("trainable_token_indices")),
    }


def _trainable(folder: Path, family: Family) -> dict[str, str]:
    """{part: frozen | lora | full}, from the names of the adapter's weights."""
    from safetensors import safe_open

    try:
        with safe_open(folder / adapter.WEIGHTS, "pt") as file:
            names = list(file.keys())
    except Exception as error:  # safetensors' own exception derives from Exception alone
        raise UserError(f"cannot read {folder / adapter.WEIGHTS} ({error}): restore it") from error
    trainable = dict.fromkeys(modules.NAMES, "frozen")
    for name in names:
        part = modules.part_of(name, family.MODULE_PATHS)
        if "lora_" in name:
            trainable[part] = "lora"
        elif trainable[part] == "frozen" and "embed_tokens" not in name:
            trainable[part] = "full"
    return trainable
