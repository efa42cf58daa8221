"""A small CLIP: the image tower of vlmface-tiny, and a text tower that has learnt nothing yet."""

from __future__ import annotations

import json
from typing import Any

import torch

from vlmface import manifest
from vlmface.clip.model import Clip

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
WIDTH = 128  # of a feature


def build(seed: int = 0, *, tower: bool = True) -> Clip:
    """The model, float32. `vision_tower`: with vlmface-tiny's image tower, which knows faces but no
    words; else that is random too."""
    import open_clip

    folder = manifest.resolve(manifest.TINY_MODEL)
    vision = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vision_config"]
    processor = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    image_processor = processor["image_processor"]
    width = vision["hidden_size"]
    model_cfg = {
        "embed_dim": WIDTH,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "width": width,
            "layers": vision["num_hidden_layers"],
            "head_width": width // vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / width,
            "pool_type": "avg",  # vlmface-tiny was trained through its patches
            "final_ln_after_pool": True,
        },
        "text_cfg": dict(TEXT),
    }
    torch.manual_seed(seed)
    model = open_clip.CLIP(**model_cfg)
    if tower:
        model.visual.load_state_dict(_tower_state(folder, vision), strict=False)
    preprocess_cfg = {
        "size": vision["image_size"],
        "mode": "RGB",
        "mean": list(image_processor["image_mean"]),
        "std": list(image_processor["image_std"]),
        "interpolation": "bicubic",
        "resize_mode": "squash",
        "fill_color": 0,
    }
    tokenizer = open_clip.SimpleTokenizer(context_length=TEXT["context_length"])
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    return Clip(model.eval(), tokenizer, config, "vlmface-clip-tiny, untrained")


# Parts of a transformer block: transformers' name -> open_clip's.
_BLOCK_PARTS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def _tower_state(folder: Any, vision: dict[str, Any]) -> dict[str, torch.Tensor]:
    """vlmface-tiny's tower under open_clip's names: all but the last norm and the projection."""
    from safetensors.torch import load_file

    marker = "vision_tower."
    weights = {
        name.split(marker, 1)[1].removeprefix("vision_model."): tensor.float()
        for name, tensor in load_file(folder / "model.safetensors").items()
        if marker in name
    }
    state = {
        "conv1.weight": weights["embeddings.patch_embedding.weight"],
        "class_embedding": weights["embeddings.class_embedding"],
        "positional_embedding": weights["embeddings.position_embedding.weight"],
        "ln_pre.weight": weights["pre_layrnorm.weight"],
        "ln_pre.bias": weights["pre_layrnorm.bias"],
    }
    for layer in range(vision["num_hidden_layers"]):
        old, new = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            state[f"{new}attn.in_proj_{kind}"] = torch.cat(
                [weights[f"{old}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            )
            state[f"{new}attn.out_proj.{kind}"] = weights[f"{old}self_attn.out_proj.{kind}"]
            for theirs, ours in _BLOCK_PARTS.items():
                state[f"{new}{ours}.{kind}"] = weights[f"{old}{theirs}.{kind}"]
    return state
