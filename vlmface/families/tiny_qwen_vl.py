"""Small, complete Qwen2.5-VL and Qwen3-VL checkpoints built in code: no download, the real
processor classes, random weights. They are what the tests of the family run on.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from vlmface.families import qwen_vl, tiny

SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)

# ChatML as both models speak it, images and videos between <|vision_start|> and <|vision_end|>.
# Qwen2.5-VL's conversation begins with a system message of its own if it brings none.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
  {%- if loop.first and message['role'] != 'system' and SYSTEM -%}
    {{- '<|im_start|>system\\n' + SYSTEM + '<|im_end|>\\n' -}}
  {%- endif -%}
  {{- '<|im_start|>' + message['role'] + '\\n' -}}
  {%- if message['content'] is string -%}{{- message['content'] -}}
  {%- else -%}
    {%- for block in message['content'] -%}
      {%- if block['type'] in ('image', 'image_url') -%}
        {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
      {%- elif block['type'] == 'video' -%}
        {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
      {%- elif block['type'] == 'text' -%}{{- block['text'] -}}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
SYSTEM = {"qwen2_5_vl": "You are a helpful assistant.", "qwen3_vl": ""}


def build_tokenizer(corpus: Iterable[str], *, vocab_size: int, max_length: int) -> Any:
    """`tiny.build_tokenizer` with Qwen's special tokens behind the others; nothing is a BOS."""
    from transformers import PreTrainedTokenizerFast

    backend = tiny.build_tokenizer(corpus, vocab_size=vocab_size).backend_tokenizer
    backend.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens={
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
        },
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def build_qwen_vl(
    out_dir: str | Path,
    corpus: Iterable[str],
    *,
    model_type: Literal["qwen2_5_vl", "qwen3_vl"] = "qwen2_5_vl",
    patch_size: int = 4,
    min_pixels: int = 1024,
    max_pixels: int = 1024,
    vision_width: int = 32,
    vision_layers: int = 3,
    hidden: int = 64,
    layers: int = 2,
    head: int = 16,
    mlp: int = 64,
    vocab_size: int = 700,
    max_length: int = 4096,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Build a randomly initialised model, save it in `out_dir` and return (model, processor).

    A token is 2 x 2 patches of `patch_size` pixels a side; an image has `min_pixels` to
    `max_pixels`. Qwen2.5-VL's tower attends within windows of 2 x 2 tokens except in its last
    layer; Qwen3-VL's gives the output of its first layer to the language model, too. `hidden` and
    `vision_width` must be multiples of `head`, the size of an attention head (vLLM has kernels from
    32 on). Embeddings and output layer are tied. The folder is a complete checkpoint that
    AutoProcessor and AutoModelForImageTextToText load.
    """
    import torch
    import transformers as hf

    tokenizer = build_tokenizer(corpus, vocab_size=vocab_size, max_length=max_length)
    # The 0.02 of wide layers would leave attention in layers as narrow as these so even that a
    # wrong position moved a label's probability by less than a thousandth.
    scale = {"initializer_range": 0.15}
    vision: dict[str, Any] = scale | {
        "depth": vision_layers,
        "hidden_size": vision_width,
        "intermediate_size": mlp,
        "num_heads": vision_width // head,
        "patch_size": patch_size,
        "out_hidden_size": hidden,
    }
    rope = {"rope_type": "default", "rope_theta": 1e4}
    text: dict[str, Any] = scale | {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // head,
        "num_key_value_heads": hidden // (2 * head) or 1,
        "max_position_embeddings": max_length,
        "rope_parameters": rope | {"mrope_section": [head // 4, head // 8, head // 8]},
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    top = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}{end}|>")
        for name, end in (("image", "_pad"), ("video", "_pad"), ("vision_start", ""),
                          ("vision_end", ""))
    }  # fmt: skip
    top["tie_word_embeddings"] = True
    config: Any
    if model_type == "qwen2_5_vl":
        vision |= {"window_size": 4 * patch_size, "fullatt_block_indexes": [vision_layers - 1]}
        config = hf.Qwen2_5_VLConfig(vision_config=vision, text_config=text, **top)
        model_class: Any = hf.Qwen2_5_VLForConditionalGeneration
        processor_class: Any = hf.Qwen2_5_VLProcessor
        video_class: Any = hf.Qwen2VLVideoProcessor
        normal: dict[str, Any] = {}
    else:
        vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
        text |= {"head_dim": head}
        text["rope_parameters"] |= {"mrope_interleaved": True}
        config = hf.Qwen3VLConfig(vision_config=vision, text_config=text, **top)
        model_class, processor_class = hf.Qwen3VLForConditionalGeneration, hf.Qwen3VLProcessor
        video_class = hf.Qwen3VLVideoProcessor
        normal = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    system = f"{{%- set SYSTEM = {SYSTEM[model_type]!r} -%}}\n"
    processor = processor_class(
        image_processor=hf.Qwen2VLImageProcessor(
            patch_size=patch_size,
            size={"shortest_edge": min_pixels, "longest_edge": max_pixels},
            **normal,
        ),
        tokenizer=tokenizer,
        video_processor=video_class(patch_size=patch_size),
        chat_template=system + CHAT_TEMPLATE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    model.eval()
    qwen_vl.save_checkpoint(model, processor, out_dir)
    return model, processor
