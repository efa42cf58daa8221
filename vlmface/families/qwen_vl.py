"""Qwen2.5-VL (Bai et al. 2025, arXiv:2502.13923) and Qwen3-VL (arXiv:2511.21631).

An image keeps its shape: it takes one token for each 28 x 28 pixels (Qwen3-VL: 32 x 32) after
resizing to whole tokens within the processor's pixel budget, so its width and height decide how
many there are. Positions are three-dimensional (m-rope), and an image advances them by its longer
side in tokens rather than by their number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlmface.errors import SkippedSampleError, UserError
from vlmface.families import modules
from vlmface.families.base import Family, check_image_tokens
from vlmface.families.tiny.qwen_vl import TinyQwenVL

if TYPE_CHECKING:
    import torch

STOPS = ("<|im_end|>", "<|endoftext|>")


class QwenVL(Family):
    """Qwen2.5-VL and Qwen3-VL: images of any shape, three-dimensional positions."""

    NAME = "qwen_vl"
    MODEL_TYPES = ("qwen2_5_vl", "qwen3_vl")
    NEEDS_SIZE = True
    # The merger, which makes one token of 2 x 2 patches, is the projector. Qwen3-VL has one more
    # for each inner layer of the tower whose output it adds to the first layers of the language
    # model.
    MODULE_PATHS: ClassVar[modules.ModulePaths] = {
        "vision_tower": "visual",
        "projector": ("visual.merger", "visual.deepstack_merger_list"),
        "language_model": "language_model",
    }
    # Those of both models. attn.proj: patch_embed.proj is a convolution.
    LINEAR_LAYERS: ClassVar[modules.LinearLayers] = {
        "vision_tower": (
            *("qkv", "attn.proj"),
            *("gate_proj", "up_proj", "down_proj"),  # Qwen2.5-VL
            *("linear_fc1", "linear_fc2"),  # Qwen3-VL
        ),
        "projector": ("mlp.0", "mlp.2", "linear_fc1", "linear_fc2"),
        "language_model": modules.LLAMA_LAYERS,
    }
    TINY = TinyQwenVL

    # --- loading ----------------------------------------------------------------------------------

    def required_tokens(self, processor: Any) -> list[str]:
        """The image token, and the end of a turn."""
        return [processor.image_token, STOPS[0]]

    def check_processor(self, processor: Any, config: Any, path: str | Path) -> None:
        """Compare the token ids with the model's, and a test image with what the tower takes."""
        super().check_processor(processor, config, path)
        self._check_image(processor, config.vision_config, path)

    def _check_image(self, processor: Any, vision: Any, path: str | Path) -> None:
        from PIL import Image

        size = (300, 200)
        inputs = self.image_inputs(processor, [Image.new("RGB", size)])
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        if inputs["pixel_values"].shape[1] != values:
            raise UserError(
                f"{path}: the processor cuts pictures into patches of "
                f"{inputs['pixel_values'].shape[1]} values, but the vision tower takes {values}: "
                "take the processor files of the weights' own checkpoint"
            )
        computed = int(inputs["image_grid_thw"].prod()) // vision.spatial_merge_size**2
        check_image_tokens(path, self.image_tokens(processor, size), computed)

    # --- images -----------------------------------------------------------------------------------

    def token_side(self, processor: Any) -> int:
        """Pixels on each side of the square that becomes one token."""
        settings = processor.image_processor
        return int(settings.patch_size * settings.merge_size)

    def set_max_pixels(self, processor: Any, max_pixels: int) -> None:
        """Let no image have more than `max_pixels` after resizing; larger ones are made smaller.

        The checkpoint's minimum stays (64 tokens in Qwen3-VL: 224 x 224 pixels are enlarged to
        256 x 256), unless it is above the budget. Two kinds of images take more: those that are
        enlarged to a minimum just below the budget, since each side is rounded up to whole tokens,
        and those whose sides differ more than the budget has tokens (1:64 at 64 tokens), since
        each side remains one token at least.

        Args:
            processor: The processor; the budget is saved with it.
            max_pixels: The budget.

        Raises:
            UserError: The budget is below one token.
        """
        token = self.token_side(processor) ** 2
        if max_pixels < token:
            side = self.token_side(processor)
            raise UserError(
                f"max_pixels is {max_pixels}, but one token of this model is {side} x {side} = "
                f"{token} pixels: allow that at least"
            )
        settings = processor.image_processor
        min_pixels = settings.size["shortest_edge"]
        if max_pixels < min_pixels:
            # Images below the minimum are enlarged and then rounded up to whole tokens: far enough
            # below the maximum, they cannot jump over it.
            min_pixels = max_pixels // 4
        settings.size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}

    def pixel_range(self, processor: Any) -> tuple[int, int]:
        """64 tokens (224 x 224 pixels in Qwen2.5-VL, where a face is still read well), and what is
        allowed now."""
        max_pixels = int(processor.image_processor.size["longest_edge"])
        return min(64 * self.token_side(processor) ** 2, max_pixels), max_pixels

    def describe_image(self, processor: Any) -> dict[str, int]:
        """The least and the most pixels that images have after resizing, and those of a token."""
        size = processor.image_processor.size
        return {
            "min_pixels": int(size["shortest_edge"]),
            "max_pixels": int(size["longest_edge"]),
            "pixels_per_token": self.token_side(processor) ** 2,
        }

    def image_tokens(self, processor: Any, size: tuple[int, int] | None = None) -> int:
        """A token for each 2 x 2 patches of an image of `size` (width, height) pixels."""
        if size is None:
            raise ValueError("the tokens of an image depend on its size: give (width, height)")
        width, height = size
        settings = processor.image_processor
        try:
            patches = settings.get_number_of_image_patches(height, width)
        except (ValueError, ZeroDivisionError):
            patches = 0
        if patches == 0:
            raise SkippedSampleError(
                "image_shape",
                f"an image of {width} x {height} pixels yields no token: its sides must be 1 "
                "pixel or more, and the longer one 200 times the shorter one at most; crop it, or "
                "leave it out",
            )
        return patches // settings.merge_size**2

    # --- text -------------------------------------------------------------------------------------

    def end_tokens(self, processor: Any) -> list[str | None]:
        """<|im_end|>, whatever the EOS of the tokenizer."""
        return [*STOPS, processor.tokenizer.eos_token]

    def stop_token_ids(self, processor: Any) -> list[int]:
        """Those of <|im_end|> and <|endoftext|>, as in the published generation settings."""
        vocabulary = processor.tokenizer.get_vocab()
        return [vocabulary[token] for token in STOPS if token in vocabulary]

    # --- the model's forward ----------------------------------------------------------------------

    def per_token_inputs(
        self, processor: Any, ids: Sequence[int], answer_start: int | None
    ) -> dict[str, list[int]]:
        """`mm_token_type_ids`: 1 for an image token, else 0. Without it the model would number an
        image's tokens like a text's, in one dimension."""
        return {"mm_token_type_ids": [int(token == processor.image_token_id) for token in ids]}

    def decode_step_inputs(self, model: Any, positions: torch.Tensor) -> dict[str, Any]:
        """Positions in which an image counts by its longer side: the model has kept each row's
        difference since `generate`."""
        core = model.get_base_model() if hasattr(model, "get_base_model") else model
        return {"position_ids": positions + core.model.rope_deltas.to(positions.device)}

    def tower_features(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """The input of the mergers for each image: (mergers, height, width, tower width), height
        and width in patches. The patches are in the processor's order, 2 x 2 at a time, not row by
        row."""
        import torch
        from transformers.vision_utils import get_vision_window_index

        tower, grid = model.model.visual, inputs["image_grid_thw"]
        layers = [*getattr(tower, "deepstack_visual_indexes", ()), tower.config.depth - 1]
        hidden = tower(
            inputs["pixel_values"],
            grid_thw=grid,
            output_hidden_states=[layer + 1 for layer in layers],  # 0 is the embedding
        ).hidden_states
        levels = torch.stack([hidden[layer + 1] for layer in layers])
        if hasattr(tower, "window_size"):
            # Qwen2.5-VL sorts the tokens by attention window, and undoes it after the merger.
            order, _ = get_vision_window_index(
                grid, tower.spatial_merge_size, tower.window_size, tower.patch_size
            )
            blocks = levels.unflatten(1, (-1, tower.spatial_merge_unit))
            levels = blocks[:, order.argsort()].flatten(1, 2)
        images = levels.split(grid.prod(-1).tolist(), 1)
        return [
            image.unflatten(1, (height, width))
            for image, (_, height, width) in zip(images, grid.tolist(), strict=True)
        ]

    def inputs_from_features(self, model: Any, features: Sequence[torch.Tensor]) -> dict[str, Any]:
        """`mm_encoder_outputs` with the mergers' outputs, and `image_grid_thw`."""
        import torch
        from transformers.models.qwen3_vl import modeling_qwen3_vl

        tower = model.model.visual
        sizes = [[1, *image.shape[1:3]] for image in features]
        grid = torch.tensor(sizes, device=features[0].device)
        tokens = (grid.prod(-1) // tower.spatial_merge_unit).tolist()
        levels = torch.cat([image.flatten(1, 2) for image in features], 1)
        mergers = [*getattr(tower, "deepstack_merger_list", ()), tower.merger]
        *inner, last = (
            merger(level).split(tokens) for merger, level in zip(mergers, levels, strict=True)
        )
        output = modeling_qwen3_vl.BaseModelOutputWithDeepstackFeatures(
            pooler_output=last, deepstack_features=inner
        )
        return {"mm_encoder_outputs": {"image": output}, "image_grid_thw": grid}

    # --- serving ----------------------------------------------------------------------------------

    def vllm_flags(
        self, processor: Any, *, max_length: int, trainable: Mapping[str, str], images: int = 1
    ) -> dict[str, Any]:
        """The flags of all families, and the pixel budget: vLLM reads the processor of the base if
        it loads an adapter."""
        flags = super().vllm_flags(
            processor, max_length=max_length, trainable=trainable, images=images
        )
        size = processor.image_processor.size
        budget = {name: int(size[name]) for name in ("shortest_edge", "longest_edge")}
        flags["serve"] |= {
            "limit-mm-per-prompt": json.dumps({"image": images, "video": 0}),
            "mm-processor-kwargs": json.dumps({"size": budget}),
        }
        return flags | {"extra_body": {}}  # there is no BOS
