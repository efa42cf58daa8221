"""PaliGemma 1 and 2 (Beyer et al. 2024, arXiv:2407.07726; Steiner et al. 2024, arXiv:2412.03555):
SigLIP tower, one linear layer, Gemma or Gemma 2.

It is a prefix-LM: image and question attend to each other both ways, the answer causally. What
says so is `token_type_ids`, 0 for the prefix and 1 for the answer. Without them transformers 5.24
lets every token see every other, the answer its own end (Gemma), or the question only its past
(Gemma 2), and with zeros alone the answer leaks in both. TRL 1.16's vision collator therefore
cannot be used: it calls the processor for a completion without an image, which PaliGemma's refuses,
and a whole text gets zeros and labels everywhere. `vlmface.encode` writes the rows instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlmface.errors import UserError
from vlmface.families import modules
from vlmface.families.base import Family, check_image_tokens, check_token_ids
from vlmface.families.tiny.paligemma import TinyPaliGemma

if TYPE_CHECKING:
    import torch


class PaliGemma(Family):
    """PaliGemma 1 and 2: a prefix-LM with one image size and no chat template."""

    NAME = "paligemma"
    MODEL_TYPES = ("paligemma",)
    PROMPT_HAS_BOS = True  # after the image
    MODULE_PATHS = modules.LLAVA_PATHS
    LINEAR_LAYERS: ClassVar[modules.LinearLayers] = {
        "vision_tower": modules.CLIP_LAYERS,
        "projector": ("linear",),
        "language_model": modules.LLAMA_LAYERS,
    }
    PUBLISHED_NAMES = modules.PUBLISHED_TOWER_NAMES
    TINY = TinyPaliGemma

    def check_processor(self, processor: Any, config: Any, path: str | Path) -> None:
        """Compare vocabulary and test image with the model. The image token alone may have an id
        beyond the embeddings."""
        _check_extra_tokens(path)
        check_token_ids(processor, config, path, image_token_has_embedding=False)
        self._check_image(processor, config.vision_config, path)

    def check_template(self, processor: Any, path: str | Path) -> None:
        """There is no chat template."""

    def _check_image(self, processor: Any, vision: Any, path: str | Path) -> None:
        from PIL import Image

        side = vision.image_size
        tokens = (side // vision.patch_size) ** 2
        if not tokens:
            raise UserError(
                f"{path}: an image of {side} pixels holds no patch of {vision.patch_size}, so it "
                "yields no token: set image_size and patch_size in config.json as the tower has "
                "them"
            )
        size = self.image_size(processor)
        if size != (side, side) or processor.image_seq_length != tokens:
            raise UserError(
                f"{path}: the processor makes images of {size[0]} x {size[1]} pixels and "
                f"{processor.image_seq_length} tokens, but the tower takes {side} x {side} and "
                f"gives {tokens}: correct size and image_seq_length of the image processor"
            )
        pixels = self.image_inputs(processor, [Image.new("RGB", (300, 200))])["pixel_values"]
        computed = (pixels.shape[2] // vision.patch_size) * (pixels.shape[3] // vision.patch_size)
        check_image_tokens(path, self.image_tokens(processor), computed)

    def image_tokens(self, processor: Any, size: tuple[int, int] | None = None) -> int:
        """The number of patches: the same for every image."""
        if not processor.image_seq_length:
            raise UserError(
                f"the image processor's image_seq_length is {processor.image_seq_length}, so an "
                "image would yield no token: set it to (image_size / patch_size) squared"
            )
        return int(processor.image_seq_length)

    def prompt_text(self, processor: Any, messages: Sequence[Mapping[str, Any]]) -> str:
        """`<image><bos>question` and a newline, as PaliGemmaProcessor writes it; a system text
        precedes the question, on lines of its own.

        Raises:
            UserError: There is an earlier answer: the models know one question only.
        """
        images, texts = 0, []
        for message in messages:
            if message["role"] == "assistant":
                raise UserError(
                    "PaliGemma has no form for a conversation with an earlier answer "
                    f"({message['content']!r}): ask one question"
                )
            content = message["content"]
            if isinstance(content, str):
                content = [{"type": "text", "text": content}]
            images += sum(block["type"] == "image" for block in content)
            texts += [block["text"] for block in content if block["type"] == "text"]
        bos = processor.tokenizer.bos_token
        return processor.image_token * images + bos + "\n".join([*texts, ""])

    def completion_text(
        self, processor: Any, messages: Sequence[Mapping[str, Any]], target: str
    ) -> str:
        """The target and the EOS."""
        return target + processor.tokenizer.eos_token

    def per_token_inputs(
        self, processor: Any, ids: Sequence[int], answer_start: int | None
    ) -> dict[str, list[int]]:
        """`token_type_ids`: 0 for image and question, which see each other, 1 for the answer."""
        prefix = len(ids) if answer_start is None else answer_start
        return {"token_type_ids": [0] * prefix + [1] * (len(ids) - prefix)}

    def decode_step_inputs(self, model: Any, positions: torch.Tensor) -> dict[str, Any]:
        """Positions, which PaliGemma counts from 1. No `token_type_ids`: after a cache the model is
        causal by itself.

        Raises:
            UserError: Gemma 2's sliding window has dropped the beginning: a cache that lost keys
                cannot be rolled back from one label to the next.
        """
        window = getattr(model.config.text_config, "sliding_window", None)
        if window is not None and int(positions.max()) + 1 >= window:
            raise UserError(
                "label probabilities need the whole conversation in the cache: "
                f"{int(positions.max())} tokens do not fit the model's sliding window of "
                f"{window}; ask without probabilities, or take a checkpoint with smaller images"
            )
        return {"position_ids": positions + 1}

    def tower_features(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """(tokens, width) of each image."""
        return list(model.model.vision_tower(inputs["pixel_values"]).last_hidden_state)

    def inputs_from_features(self, model: Any, features: Sequence[torch.Tensor]) -> dict[str, Any]:
        """`mm_encoder_outputs` with the projected features."""
        import torch
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        projected = model.model.multi_modal_projector(torch.stack(list(features)))
        output = BaseModelOutputWithPooling(pooler_output=projected)
        return {"mm_encoder_outputs": {"image": output}}

    def vllm_flags(
        self, processor: Any, *, max_length: int, trainable: Mapping[str, str], images: int = 1
    ) -> dict[str, Any]:
        """Raise UserError: vLLM lets the tokens of an image see each other, but reads the question
        causally, so its answers would not be those of the model that was trained."""
        raise UserError(
            "vLLM reads PaliGemma's question causally, but the model was trained to read it both "
            "ways: its answers would differ; use `vlmface predict`, or train another family for "
            "serving"
        )


def _check_extra_tokens(path: str | Path) -> None:
    """Raise UserError if the tokenizer lacks <loc> and <seg> tokens: the processor would add them
    with ids that the model does not know."""
    from transformers import AutoTokenizer
    from transformers.models.paligemma.processing_paligemma import EXTRA_TOKENS

    vocabulary = AutoTokenizer.from_pretrained(path, trust_remote_code=False).get_vocab()
    if missing := [token for token in EXTRA_TOKENS if token not in vocabulary]:
        raise UserError(
            f"the tokenizer of {path} lacks {len(missing)} of PaliGemma's {len(EXTRA_TOKENS)} "
            f"<loc> and <seg> tokens, {missing[0]} first: it belongs to another model; take the "
            "tokenizer files of the checkpoint that the weights come from"
        )
