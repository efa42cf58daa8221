"""A small Qwen2.5-VL or Qwen3-VL."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vlmface.families.tiny import TinyCheckpoint, build_tokenizer

QWEN_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)

# ChatML as both models use it, images and videos between <|vision_start|> and <|vision_end|>.
# Qwen2.5-VL's conversation begins with a default system message if there is none.
QWEN_TEMPLATE = """\
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
QWEN_SYSTEM = {"qwen2_5_vl": "You are a helpful assistant.", "qwen3_vl": ""}


@dataclass(frozen=True, kw_only=True)
class TinyQwenVL(TinyCheckpoint):
    """A Qwen2.5-VL or Qwen3-VL ("qwen3_vl"): a token is 2 x 2 patches.

    Qwen2.5-VL's tower attends within windows of 2 x 2 tokens except in its last layer; Qwen3-VL's
    gives the output of its first layer to the language model, too. Embeddings and output layer are
    tied.

    Attributes:
        min_pixels: The least pixels that an image has after resizing.
        max_pixels: The most.
        head: The size of an attention head, of which `hidden` and `vision_width` must be multiples
            (vLLM has kernels from 32 on).
    """

    model_type: str = "qwen2_5_vl"
    patch_size: int = 4
    vision_layers: int = 3
    max_length: int = 4096
    min_pixels: int = 1024
    max_pixels: int = 1024
    head: int = 16

    def tokenizer(self, corpus: Iterable[str]) -> Any:
        """`build_tokenizer` with Qwen's special tokens after the others; there is no BOS."""
        from transformers import PreTrainedTokenizerFast

        backend = build_tokenizer(corpus, vocab_size=self.vocab_size).backend_tokenizer
        backend.add_special_tokens(list(QWEN_TOKENS))
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
            model_max_length=self.max_length,
            clean_up_tokenization_spaces=False,
        )

    def processor(self, tokenizer: Any) -> Any:
        """A Qwen2_5_VLProcessor or Qwen3VLProcessor."""
        import transformers

        if self.model_type == "qwen2_5_vl":
            processor_class: Any = transformers.Qwen2_5_VLProcessor
            video_class: Any = transformers.Qwen2VLVideoProcessor
            normalisation: dict[str, Any] = {}
        else:
            processor_class = transformers.Qwen3VLProcessor
            video_class = transformers.Qwen3VLVideoProcessor
            normalisation = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        system = f"{{%- set SYSTEM = {QWEN_SYSTEM[self.model_type]!r} -%}}\n"
        return processor_class(
            image_processor=transformers.Qwen2VLImageProcessor(
                patch_size=self.patch_size,
                size={"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
                **normalisation,
            ),
            tokenizer=tokenizer,
            video_processor=video_class(patch_size=self.patch_size),
            chat_template=system + QWEN_TEMPLATE,
        )

    def config(self, processor: Any) -> Any:
        """A Qwen2_5_VLConfig or Qwen3VLConfig."""
        import transformers

        tokenizer = processor.tokenizer
        # The 0.02 of wide layers would leave attention in layers as narrow as these so even that a
        # wrong position moved a label's probability by less than a thousandth.
        scale = {"initializer_range": 0.15}
        vision: dict[str, Any] = scale | {
            "depth": self.vision_layers,
            "hidden_size": self.vision_width,
            "intermediate_size": self.mlp,
            "num_heads": self.vision_width // self.head,
            "patch_size": self.patch_size,
            "out_hidden_size": self.hidden,
        }
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4}
        text: dict[str, Any] = scale | {
            "num_key_value_heads": self.hidden // (2 * self.head) or 1,
            "rope_parameters": rope
            | {"mrope_section": [self.head // 4, self.head // 8, self.head // 8]},
            "tie_word_embeddings": True,
            **self.text_sizes(tokenizer, self.head),
        }
        tokens = {
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        }
        top: dict[str, Any] = {
            name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()
        }
        top["tie_word_embeddings"] = True
        if self.model_type == "qwen2_5_vl":
            vision |= {
                "window_size": 4 * self.patch_size,
                "fullatt_block_indexes": [self.vision_layers - 1],
            }
            return transformers.Qwen2_5_VLConfig(vision_config=vision, text_config=text, **top)
        vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
        text |= {"head_dim": self.head}
        text["rope_parameters"] |= {"mrope_interleaved": True}
        return transformers.Qwen3VLConfig(vision_config=vision, text_config=text, **top)
