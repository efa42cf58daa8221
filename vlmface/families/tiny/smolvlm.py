"""A small SmolVLM or Idefics3."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vlmface.families.tiny import TinyCheckpoint

SMOLVLM_END = "<end_of_utterance>"
_TILE_SIDES = range(1, 7)  # markers of rows and columns that published tokenizers know
SMOLVLM_TOKENS = (
    *("<fake_token_around_image>", "<global-img>"),
    *(f"<row_{row}_col_{column}>" for row in _TILE_SIDES for column in _TILE_SIDES),
)

# The published conversation ("<|im_start|>User:<image>...<end_of_utterance>\nAssistant:"), except
# that it also reads plain strings as content. `BOS` takes the place of <|im_start|>.
SMOLVLM_TEMPLATE = """\
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


@dataclass(frozen=True, kw_only=True)
class TinySmolVLM(TinyCheckpoint):
    """A SmolVLM, or Idefics3 ("idefics3").

    A tile takes (tile_size / patch_size / scale_factor)^2 image tokens; a square image has
    (longest_edge / tile_size)^2 tiles and one of the whole. `vision_width` and `hidden` must be
    multiples of 16, the size of an attention head in both. As in published checkpoints, the head
    is a matrix of its own.

    Attributes:
        tile_size: Pixels on each side of a tile.
        longest_edge: Pixels on the longer side of every image.
        scale_factor: Patches on each side of the square that becomes one token.
        splitting: Whether images are cut into tiles.
    """

    model_type: str = "smolvlm"
    tile_size: int = 32
    longest_edge: int = 64
    scale_factor: int = 2
    splitting: bool = True

    def tokenizer(self, corpus: Iterable[str]) -> Any:
        """`build_tokenizer` with the markers of tiles and turns; an answer's end is the EOS."""
        tokenizer = super().tokenizer(corpus)
        tokenizer.add_special_tokens({"eos_token": SMOLVLM_END})
        tokenizer.add_tokens(list(SMOLVLM_TOKENS), special_tokens=True)
        return tokenizer

    def processor(self, tokenizer: Any) -> Any:
        """A SmolVLMProcessor or Idefics3Processor: values -1..1."""
        import transformers

        images: dict[str, Any] = {
            "size": {"longest_edge": self.longest_edge},
            "max_image_size": {"longest_edge": self.tile_size},
            "do_image_splitting": self.splitting,
        }
        common: dict[str, Any] = {
            "tokenizer": tokenizer,
            "image_seq_len": (self.tile_size // self.patch_size // self.scale_factor) ** 2,
            "chat_template": SMOLVLM_TEMPLATE,
        }
        if self.model_type == "idefics3":
            return transformers.Idefics3Processor(
                transformers.Idefics3ImageProcessor(**images), **common
            )
        size = {"longest_edge": self.tile_size}
        return transformers.SmolVLMProcessor(
            transformers.SmolVLMImageProcessor(**images),
            video_processor=transformers.SmolVLMVideoProcessor(size=size, max_image_size=size),
            **common,
        )

    def config(self, processor: Any) -> Any:
        """A SmolVLMConfig or Idefics3Config."""
        import transformers

        config_class: Any = {
            "smolvlm": transformers.SmolVLMConfig,
            "idefics3": transformers.Idefics3Config,
        }[self.model_type]
        return config_class(
            vision_config={
                "image_size": self.tile_size,
                **self.vision_sizes(head=16),
            },
            text_config={
                "model_type": "llama",
                "num_key_value_heads": self.hidden // 32,
                "head_dim": 16,
                **self.text_sizes(processor.tokenizer, head=16),
            },
            scale_factor=self.scale_factor,
            image_token_id=processor.image_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
            tie_word_embeddings=False,
        )

    def init_weights(self, model: Any) -> None:
        """A head with larger weights: adapters cannot change it, and with weights as small as a
        fresh head's they could not make any answer likely."""
        import torch

        torch.nn.init.normal_(model.lm_head.weight, std=0.25)
