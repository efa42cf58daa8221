"""LLaVA-1.5 (Liu et al. 2023, arXiv:2310.03744): CLIP tower, two-layer projector, Llama."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlmface import manifest
from vlmface.errors import UserError
from vlmface.families import modules
from vlmface.families.base import Family, check_image_tokens
from vlmface.families.tiny.llava import TinyLlava

if TYPE_CHECKING:
    import torch


class Llava(Family):
    """LLaVA-1.5: one image size, images as one run of tokens."""

    NAME = "llava"
    MODEL_TYPES = ("llava",)
    MODULE_PATHS = modules.LLAVA_PATHS
    LINEAR_LAYERS: ClassVar[modules.LinearLayers] = {
        "vision_tower": modules.CLIP_LAYERS,
        "projector": ("linear_1", "linear_2"),
        "language_model": modules.LLAMA_LAYERS,
    }
    PUBLISHED_NAMES = modules.PUBLISHED_TOWER_NAMES
    TINY = TinyLlava

    def check_processor(self, processor: Any, config: Any, path: str | Path) -> None:
        """Take the numbers of image tokens from the model's configuration, and compare a test
        image with what the tower takes.

        Published LLaVA-1.5 checkpoints differ in what they state of image tokens. A base whose
        image processor would cut the middle square out of an image pads it to a square instead, as
        LLaVA-1.5 was trained (`image_aspect_ratio: pad`); a run keeps what it was trained with.
        """
        processor.patch_size = config.vision_config.patch_size
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
        processor.num_additional_image_tokens = _additional_tokens(config.vision_config)
        if not manifest.is_run(path):
            _pad_to_square(processor)
        self._check_image(processor, config, path)

    def _check_image(self, processor: Any, config: Any, path: str | Path) -> None:
        from PIL import Image

        vision = config.vision_config
        pixels = self.image_inputs(processor, [Image.new("RGB", (300, 200))])["pixel_values"]
        height, width = (int(side) for side in pixels.shape[2:])
        if (height, width) != (vision.image_size, vision.image_size):
            raise UserError(
                f"{path}: the image processor makes pictures of {height} x {width} pixels, but "
                f"the vision tower takes {vision.image_size} x {vision.image_size}: take "
                "the processor files of the weights' own checkpoint"
            )
        patches = (height // vision.patch_size) * (width // vision.patch_size)
        dropped = config.vision_feature_select_strategy == "default"
        computed = patches + processor.num_additional_image_tokens - dropped
        check_image_tokens(path, self.image_tokens(processor), computed)

    def image_size(self, processor: Any) -> tuple[int, int]:
        """(height, width) in pixels that every image has after preprocessing."""
        settings = processor.image_processor
        if settings.do_center_crop and settings.crop_size:
            return int(settings.crop_size["height"]), int(settings.crop_size["width"])
        return super().image_size(processor)

    def describe_image(self, processor: Any) -> dict[str, int]:
        """Size and tokens of an image, and `pad_to_square` if it is padded before it is resized."""
        padded = {"pad_to_square": 1} if self.padding(processor) else {}
        return super().describe_image(processor) | padded

    def padding(self, processor: Any) -> tuple[int, ...] | None:
        """The color (RGB, 0..255) that images are padded to a square with, None if they are not."""
        settings = processor.image_processor
        if not getattr(settings, "do_pad", False):
            return None
        return tuple(int(value * 255) for value in settings.image_mean)

    def image_tokens(self, processor: Any, size: tuple[int, int] | None = None) -> int:
        """The patches of the one image size, and the class token if the model keeps it."""
        height, width = self.image_size(processor)
        tokens = (height // processor.patch_size) * (width // processor.patch_size)
        tokens += processor.num_additional_image_tokens
        return tokens - (processor.vision_feature_select_strategy == "default")

    def tower_features(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """(tokens, width) of each image."""
        import torch

        config = model.config
        hidden = model.model.vision_tower(
            inputs["pixel_values"], output_hidden_states=True
        ).hidden_states
        layers = config.vision_feature_layer
        skip = 1 if config.vision_feature_select_strategy == "default" else 0
        layers = [layers] if isinstance(layers, int) else layers
        return list(torch.cat([hidden[layer][:, skip:] for layer in layers], dim=-1))

    def inputs_from_features(self, model: Any, features: Sequence[torch.Tensor]) -> dict[str, Any]:
        """`mm_encoder_outputs` with the projected features."""
        import torch
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        projected = model.model.multi_modal_projector(torch.stack(list(features)))
        output = BaseModelOutputWithPooling(pooler_output=list(projected))  # type: ignore[arg-type]
        return {"mm_encoder_outputs": {"image": output}}


def _additional_tokens(vision: Any) -> int:
    """Tokens of a tower in addition to its patches: 1 of CLIP (the class), 0 of SigLIP."""
    import copy

    import torch
    from transformers import AutoModel

    small = copy.deepcopy(vision)
    small.num_hidden_layers = 1
    with torch.device("meta"):  # shapes alone
        tower = AutoModel.from_config(small, trust_remote_code=False)
        pixels = torch.zeros(1, small.num_channels, small.image_size, small.image_size)
        tokens = tower(pixel_values=pixels).last_hidden_state.shape[1]
    return tokens - (small.image_size // small.patch_size) ** 2


def _pad_to_square(processor: Any) -> None:
    """Let the image processor pad if it would keep an image's shape and cut its middle out."""
    from transformers import LlavaImageProcessor

    settings = processor.image_processor
    if settings.do_center_crop and "shortest_edge" in (settings.size or {}):
        content = {k: v for k, v in settings.to_dict().items() if k != "image_processor_type"}
        processor.image_processor = LlavaImageProcessor(**(content | {"do_pad": True}))
