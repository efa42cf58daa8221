"""A small PaliGemma."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlmface.families.tiny import TinyCheckpoint, special_ids


@dataclass(frozen=True, kw_only=True)
class TinyPaliGemma(TinyCheckpoint):
    """A PaliGemma. `vision_width` and `hidden` must be multiples of 32, the size of a head.

    Attributes:
        version: 1 (Gemma) or 2 (Gemma 2: soft-capped logits, and a layer with a sliding window for
            each without).
        image_size: Pixels on each side of every image.
    """

    model_type: str = "paligemma"
    version: int = 2
    image_size: int = 32

    def processor(self, tokenizer: Any) -> Any:
        """A PaliGemmaProcessor: values -1..1. It adds the 1152 <loc> and <seg> tokens to the
        tokenizer."""
        from transformers import PaliGemmaProcessor, SiglipImageProcessor

        image_processor: Any = SiglipImageProcessor(
            size={"height": self.image_size, "width": self.image_size},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )
        image_processor.image_seq_length = (self.image_size // self.patch_size) ** 2
        return PaliGemmaProcessor(image_processor=image_processor, tokenizer=tokenizer)

    def config(self, processor: Any) -> Any:
        """A PaliGemmaConfig."""
        from transformers import Gemma2Config, GemmaConfig, PaliGemmaConfig, SiglipVisionConfig

        vision = SiglipVisionConfig(
            image_size=self.image_size, vision_use_head=False, **self.vision_sizes(head=32)
        )
        gemma: dict[str, Any] = {
            "num_key_value_heads": 1,
            "head_dim": 32,
            **self.text_sizes(processor.tokenizer, head=32),
        }
        if self.version == 2:
            gemma |= {"query_pre_attn_scalar": 32, "sliding_window": self.max_length}
        return PaliGemmaConfig(
            vision_config=vision,
            text_config=Gemma2Config(**gemma) if self.version == 2 else GemmaConfig(**gemma),
            image_token_index=processor.image_token_id,
            vocab_size=len(processor.tokenizer),
            projection_dim=self.hidden,
            hidden_size=self.hidden,
            **special_ids(processor.tokenizer),
        )
