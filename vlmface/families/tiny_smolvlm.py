"""Small, complete SmolVLM and Idefics3 checkpoints built in code: the real processor classes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from vlmface.families import smolvlm, tiny

FAKE, GLOBAL, END = "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"
TILE_SIDES = 6  # markers of rows and columns that published tokenizers know: 1..6 of each

# The published conversation ("<|im_start|>User:<image>...<end_of_utterance>\nAssistant:"), except
# that it also reads plain strings as content. `tiny.BOS` takes the place of <|im_start|>.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
  {{- message['role'] | capitalize + ':' -}}
  {%- if message['content'] is string -%}{{- ' ' + message['content'] -}}
  {%- else -%}
    {%- if message['content'][0]['type'] != 'image' -%}{{- ' ' -}}{%- endif -%}
    {%- for block in message['content'] -%}
      {%- if block['type'] == 'text' -%}{{- block['text'] -}}
      {%- elif block['type'] == 'image' -%}{{- '<image>' -}}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{- '<end_of_utterance>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}
"""


def build_tokenizer(
    corpus: Iterable[str], *, vocab_size: int = 1024, max_length: int = 1024
) -> Any:
    """`tiny.build_tokenizer` with the markers of tiles and turns; an answer's end is the EOS."""
    tokenizer = tiny.build_tokenizer(corpus, vocab_size=vocab_size, max_length=max_length)
    sides = range(1, TILE_SIDES + 1)
    marks = [FAKE, GLOBAL, *(f"<row_{row}_col_{column}>" for row in sides for column in sides)]
    tokenizer.add_special_tokens({"eos_token": END})
    tokenizer.add_tokens(marks, special_tokens=True)
    return tokenizer


def build_processor(
    tokenizer: Any,
    *,
    model_type: Literal["smolvlm", "idefics3"] = "smolvlm",
    tile_size: int = 32,
    longest_edge: int = 64,
    patch_size: int = 8,
    scale_factor: int = 2,
    splitting: bool = True,
) -> Any:
    """The SmolVLMProcessor, or Idefics3Processor: images are enlarged to `longest_edge` pixels and
    cut into tiles of `tile_size` squared, values -1..1."""
    import transformers

    images: dict[str, Any] = {
        "size": {"longest_edge": longest_edge},
        "max_image_size": {"longest_edge": tile_size},
        "do_image_splitting": splitting,
    }
    common: dict[str, Any] = {
        "tokenizer": tokenizer,
        "image_seq_len": (tile_size // patch_size // scale_factor) ** 2,
        "chat_template": CHAT_TEMPLATE,
    }
    if model_type == "idefics3":
        return transformers.Idefics3Processor(
            transformers.Idefics3ImageProcessor(**images), **common
        )
    size = {"longest_edge": tile_size}
    return transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(**images),
        video_processor=transformers.SmolVLMVideoProcessor(size=size, max_image_size=size),
        **common,
    )


def build_smolvlm(
    out_dir: str | Path,
    corpus: Iterable[str],
    *,
    model_type: Literal["smolvlm", "idefics3"] = "smolvlm",
    tile_size: int = 32,
    longest_edge: int = 64,
    patch_size: int = 8,
    scale_factor: int = 2,
    splitting: bool = True,
    vision_width: int = 32,
    vision_layers: int = 2,
    hidden: int = 64,
    layers: int = 2,
    mlp: int = 64,
    vocab_size: int = 700,
    max_length: int = 1024,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Build a randomly initialised SmolVLM (or Idefics3), save it and return (model, processor).

    A tile takes (tile_size / patch_size / scale_factor)^2 image tokens; a square image has
    (longest_edge / tile_size)^2 tiles and one of the whole. `vision_width` and `hidden` must be
    multiples of 16, the size of an attention head in both. As in published checkpoints, the head
    is a matrix of its own.
    """
    import torch
    import transformers

    tokenizer = build_tokenizer(corpus, vocab_size=vocab_size, max_length=max_length)
    processor = build_processor(
        tokenizer,
        model_type=model_type,
        tile_size=tile_size,
        longest_edge=longest_edge,
        patch_size=patch_size,
        scale_factor=scale_factor,
        splitting=splitting,
    )
    classes: dict[str, tuple[Any, Any]] = {
        "smolvlm": (transformers.SmolVLMConfig, transformers.SmolVLMForConditionalGeneration),
        "idefics3": (transformers.Idefics3Config, transformers.Idefics3ForConditionalGeneration),
    }
    config_class, model_class = classes[model_type]
    config = config_class(
        vision_config={
            "hidden_size": vision_width,
            "intermediate_size": mlp,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": vision_width // 16,
            "image_size": tile_size,
            "patch_size": patch_size,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden // 16,
            "num_key_value_heads": hidden // 32,
            "head_dim": 16,
            "max_position_embeddings": max_length,
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        scale_factor=scale_factor,
        image_token_id=processor.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        # Adapters have to do with this head as it is: were its numbers as small as a fresh one's,
        # they could not make any answer likely.
        torch.nn.init.normal_(model.lm_head.weight, std=0.25)
    model.eval()
    smolvlm.save_checkpoint(model, processor, out_dir)
    return model, processor
