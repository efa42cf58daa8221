"""The settings that an adapter was made with, which training that starts from it must keep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmface import adapter, families, manifest
from vlmface.errors import UserError
from vlmface.families import modules
from vlmface.families.base import Family
from vlmface.utils import config
from vlmface.utils.ranges import kinds


def read(folder: str | Path, base: Path) -> dict[str, Any]:
    """The shape of an adapter: {field of SFTSettings: its value}.

    Dropout is not part of it: it has no weights, and may differ from one training to the next.

    Args:
        folder: Of the adapter.
        base: Folder of its base model.

    Raises:
        UserError: The folder does not hold a LoRA adapter.
    """
    folder = Path(folder)
    stored = adapter.read_config(folder)
    family = families.get(families.family_of(base))
    names = _weight_names(folder)
    trainable = _trainable(names, family)
    variants = {"rslora": stored.get("use_rslora"), "dora": stored.get("use_dora")}
    return {
        **trainable,
        "lora_rank": stored["r"],
        "lora_alpha": stored["lora_alpha"],
        "lora_variant": next((name for name, is_used in variants.items() if is_used), None),
        "lora_target_modules": _target_modules(names, stored, trainable, family),
        "train_embeddings": bool(stored.get("trainable_token_indices")),
    }


def refuse_others(folder: str | Path, values: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
    """Refuse settings that an adapter does not have.

    Args:
        folder: Of the adapter.
        values: Of `read`.
        chosen: {field: value} that somebody chose.

    Raises:
        UserError: One of them is not the adapter's.
    """
    for name, value in chosen.items():
        if name in values and value != values[name]:
            raise UserError(
                f"{name} is {value!r}, but the adapter in {folder} has {values[name]!r} and is "
                f"trained further as it is: leave {name} out, or set it to {values[name]!r}"
            )


def implied(cls: Any, stored: Mapping[str, Any], overrides: Mapping[str, str]) -> dict[str, Any]:
    """What `init_from` says in place of a settings file: the adapter's shape.

    Args:
        cls: The settings.
        stored: Values of the settings file.
        overrides: {field: text} of the command line.

    Returns:
        Nothing without an adapter; the run refuses a folder that does not hold one.

    Raises:
        UserError: The command line names another value, or the adapter or its base is damaged.
    """
    types = kinds(cls)
    names = ("init_from", "base_model")
    folder, base = (overrides.get(name, stored.get(name)) for name in names)
    is_none = config.convert("init_from", types["init_from"], folder) is None
    if is_none or not isinstance(base, str) or not (Path(str(folder)) / adapter.CONFIG).is_file():
        return {}
    values = read(str(folder), manifest.resolve(base))
    chosen = {
        name: config.convert(name, types[name], text)
        for name, text in overrides.items()
        if name in values
    }
    refuse_others(str(folder), values, chosen)
    return values


def _weight_names(folder: Path) -> list[str]:
    from safetensors import safe_open

    try:
        with safe_open(folder / adapter.WEIGHTS, "pt") as file:
            return list(file.keys())
    except Exception as error:  # safetensors' own exception derives from Exception alone
        raise UserError(f"cannot read {folder / adapter.WEIGHTS} ({error}): restore it") from error


def _trainable(names: list[str], family: Family) -> dict[str, str]:
    """{part: frozen | lora | full}, from the names of the adapter's weights."""
    trainable = dict.fromkeys(modules.NAMES, "frozen")
    for name in names:
        part = modules.part_of(name, family.MODULE_PATHS)
        if "lora_" in name:
            trainable[part] = "lora"
        elif trainable[part] == "frozen" and "embed_tokens" not in name:
            trainable[part] = "full"
    return trainable


def _target_modules(
    names: list[str], stored: Mapping[str, Any], trainable: Mapping[str, str], family: Family
) -> list[str]:
    """["all"], or the names of the layers that have an adapter."""
    if stored.get("target_modules") == family.lora_targets(trainable, ["all"]):
        return ["all"]
    layers = {name.partition(".lora_")[0].rpartition(".")[2] for name in names if ".lora_" in name}
    layer_names = [layer for part in family.LINEAR_LAYERS.values() for layer in part]
    return list(dict.fromkeys(layer for layer in layer_names if layer in layers)) or ["all"]
