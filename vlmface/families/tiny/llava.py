"""A small LLaVA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlmface.families.tiny import TinyCheckpoint, special_ids

# LLaVA-1.5's conversation ("USER: <image>\n... ASSISTANT: ..."). Unlike the published template it
# writes <s> itself, so that servers which never add special tokens agree with the processor, closes
# the assistant's turn with </s>, and accepts plain strings as content besides lists of blocks.
LLAVA_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}{{- 'USER: ' -}}
  {%- elif message['role'] == 'assistant' -%}{{- 'ASSISTANT: ' -}}{%- endif -%}
  {%- if message['content'] is string -%}{%- set text = message['content'] -%}
  {%- else -%}
    {%- for block in message['content'] if block['type'] in ('image', 'image_url') -%}
      {{- '<image>\\n' -}}
    {%- endfor -%}
    {%- set text = message['content'] | selectattr('type', 'equalto', 'text')
        | map(attribute='text') | join(' ') -%}
  {%- endif -%}
  {{- text -}}
  {%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- else -%}{{- ' ' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""


@dataclass(frozen=True, kw_only=True)
class TinyLlava(TinyCheckpoint):
    """A LLaVA: `(image_size / patch_size)^2` image tokens.

    The CLIP tower's last layer feeds the projector (all layers are used, the class token is
    dropped). `vision_width` and `hidden` must be multiples of 32, the size of an attention head.
    The language model's embeddings and head are tied.

    Attributes:
        image_size: Pixels on each side of every image. There is no center crop: a crop of a face
            image may cut the brow or the chin off.
    """

    model_type: str = "llava"
    max_length: int = 512
    image_size: int = 32

    def processor(self, tokenizer: Any) -> Any:
        """A LlavaProcessor: bicubic resizing, values -1..1."""
        from transformers import CLIPImageProcessor, LlavaProcessor

        square = {"height": self.image_size, "width": self.image_size}
        image_processor = CLIPImageProcessor(
            size=square,
            crop_size=square,
            do_center_crop=False,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )
        return LlavaProcessor(
            image_processor=image_processor,
            tokenizer=tokenizer,
            patch_size=self.patch_size,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=LLAVA_TEMPLATE,
        )

    def config(self, processor: Any) -> Any:
        """A LlavaConfig."""
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

        vision = CLIPVisionConfig(
            image_size=self.image_size,
            projection_dim=self.vision_width,
            **self.vision_sizes(head=32),
        )
        text = LlamaConfig(
            num_key_value_heads=self.hidden // 32,
            head_dim=32,
            tie_word_embeddings=True,
            **self.text_sizes(processor.tokenizer, head=32),
        )
        return LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=processor.image_token_id,
            image_seq_length=(self.image_size // self.patch_size) ** 2,
            vision_feature_select_strategy="default",
            vision_feature_layer=-1,
            tie_word_embeddings=True,
            **special_ids(processor.tokenizer),
        )
