"""The model of a run before it is started: built from its configuration, without weights."""

from __future__ import annotations

from typing import Any

import torch

from vlmface import families, manifest
from vlmface.errors import UserError
from vlmface.families import modules
from vlmface.families.base import Family
from vlmface.train import sft
from vlmface.train.settings import SFTSettings


def base_config(base: str) -> Any:
    """The configuration of a base model.

    Args:
        base: A checkpoint, or a folder with config.json only.

    Raises:
        UserError: The file cannot be read.
    """
    from transformers import AutoConfig

    path = manifest.resolve(base)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path / 'config.json'}: {error}") from error


def build(config: Any, family: Family, settings: SFTSettings, dtype: Any) -> Any:
    """Build the model of a run as its trainer does, with adapters and frozen parts, on PyTorch's
    meta device.

    Args:
        config: From `base_config`.
        family: Its family.
        settings: Of the run.
        dtype: Of the weights.
    """
    from peft import get_peft_model
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, trust_remote_code=False
        )
    if settings.uses_lora:
        # The processor's tokens, or those of the model without a processor.
        tokens = _tokens(settings) or config.get_text_config().vocab_size
        lora = sft.lora_config(settings.lora, family, model, tokens)
        model = get_peft_model(model, lora, low_cpu_mem_usage=True)
    else:
        modules.freeze(family.MODULE_PATHS, model, settings.trainable)
    return model.train()


def _tokens(settings: SFTSettings) -> int | None:
    processor = processor_of(settings)
    return None if processor is None else len(processor.tokenizer)


def processor_of(settings: SFTSettings) -> Any | None:
    """The base's processor, None if its folder has no processor."""
    path = manifest.resolve(settings.base_model)
    if not (path / "tokenizer_config.json").is_file():
        return None
    family = families.get(families.family_of(path))
    processor = family.load_processor(path)
    families.set_max_pixels(family, processor, settings.max_pixels)
    return processor


def parameters(model: Any, family: Family) -> dict[str, dict[str, list[int]]]:
    """Count weights. A tied weight counts once.

    Args:
        model: The model.
        family: Its family.

    Returns:
        {part: {type of module: [trained weights, all weights]}}; parts are
        vision_tower, projector, language_model and embeddings (with the head).
    """
    counts: dict[str, dict[str, list[int]]] = {}
    for name, parameter in model.named_parameters():
        words = [
            word
            for word in name.split(".")
            if word
            not in (
                "weight",
                "bias",
                "default",
                "base_layer",
                "original_module",
                "modules_to_save",
                "token_adapter",
            )
        ]
        adapter = next((word for word in words if word.startswith(("lora_", "trainable_"))), None)
        kind = [word for word in words if word != adapter and not word.isdigit()][-1]
        part = modules.part_of(name, family.MODULE_PATHS)
        if kind in ("embed_tokens", "lm_head"):
            part = "embeddings"
        if adapter is not None:
            kind += " (LoRA)" if adapter.startswith("lora_") else " (rows)"
        elif ".modules_to_save." in name:
            kind += " (copy)"
        entry = counts.setdefault(part, {}).setdefault(kind, [0, 0])
        entry[0] += parameter.numel() * parameter.requires_grad
        entry[1] += parameter.numel()
    return counts


def weight_bytes(model: Any, *, train: bool | None = None) -> int:
    """Bytes of all weights, or of those that are trained or frozen."""
    return sum(
        p.numel() * p.element_size()
        for p in model.parameters()
        if train is None or p.requires_grad == train
    )
