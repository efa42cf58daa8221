"""Small, complete PaliGemma checkpoints built in code: no download, the real processor class."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface.families import paligemma, tiny

if TYPE_CHECKING:
    from transformers import PaliGemmaForConditionalGeneration, PaliGemmaProcessor


def build_processor(tokenizer: Any, *, image_size: int, patch_size: int) -> PaliGemmaProcessor:
    """PaliGemma's processor: every image becomes `image_size` squared, values -1..1. It adds the
    1152 <loc> and <seg> tokens to the tokenizer."""
    from transformers import PaliGemmaProcessor, SiglipImageProcessor

    image_processor: Any = SiglipImageProcessor(
        size={"height": image_size, "width": image_size},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    image_processor.image_seq_length = (image_size // patch_size) ** 2
    return PaliGemmaProcessor(image_processor=image_processor, tokenizer=tokenizer)


def build(
    out_dir: str | Path,
    corpus: Iterable[str],
    *,
    version: int = 2,
    image_size: int = 32,
    patch_size: int = 8,
    vision_width: int = 32,
    vision_layers: int = 2,
    hidden: int = 64,
    layers: int = 2,
    mlp: int = 64,
    vocab_size: int = 700,
    max_length: int = 1024,
    seed: int = 0,
) -> tuple[PaliGemmaForConditionalGeneration, PaliGemmaProcessor]:
    """Build a random PaliGemma 1 or 2, save it in `out_dir` and return (model, processor).

    `vocab_size` is that of the tokenizer before <loc> and <seg>. `vision_width` and `hidden` must
    be multiples of 32, the size of an attention head. Version 2 has Gemma 2's soft-capped logits
    and a layer with a sliding window for each without.
    """
    import torch
    from transformers import (
        Gemma2Config,
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        SiglipVisionConfig,
    )

    tokenizer = tiny.build_tokenizer(corpus, vocab_size=vocab_size, max_length=max_length)
    processor = build_processor(tokenizer, image_size=image_size, patch_size=patch_size)
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = SiglipVisionConfig(
        hidden_size=vision_width,
        intermediate_size=mlp,
        num_hidden_layers=vision_layers,
        num_attention_heads=vision_width // 32,
        image_size=image_size,
        patch_size=patch_size,
        vision_use_head=False,
    )
    gemma: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": max_length,
        "vocab_size": len(tokenizer),
        **special,
    }
    if version == 2:
        gemma |= {"query_pre_attn_scalar": 32, "sliding_window": max_length}
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config=Gemma2Config(**gemma) if version == 2 else GemmaConfig(**gemma),
        image_token_index=processor.image_token_id,
        vocab_size=len(tokenizer),
        projection_dim=hidden,
        hidden_size=hidden,
        **special,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PaliGemmaForConditionalGeneration(config)
    model.eval()
    paligemma.save_checkpoint(model, processor, out_dir)
    return model, processor
