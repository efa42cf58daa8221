"""SmolVLM and SmolVLM2 (Marafioti et al. 2025, arXiv:2504.05299), and Idefics3 (Laurençon et al.
2024, arXiv:2408.12637), which they descend from: SigLIP tower, pixel shuffle and a matrix, Llama.

An image is enlarged or shrunk, cut into square tiles, and shown again as a whole; each tile takes
the same number of image tokens, framed by text that says which tile it is. Published checkpoints
enlarge every image to four tiles a side: a face crop of 224 x 224 pixels, too, becomes 17 tiles
(1,088 image tokens in SmolVLM-256M, 1,377 in SmolVLM2-2.2B). `set_max_pixels` limits that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlmface.errors import SkippedSampleError, UserError
from vlmface.families import modules
from vlmface.families.base import Family, check_image_tokens
from vlmface.families.tiny.smolvlm import TinySmolVLM

if TYPE_CHECKING:
    import torch
    from PIL import Image

LARGEST_EDGE = 4096  # the image processors shrink whatever is larger


class SmolVLM(Family):
    """SmolVLM, SmolVLM2 and Idefics3: images as tiles, with text between them."""

    NAME = "smolvlm"
    MODEL_TYPES = ("smolvlm", "idefics3")
    NEEDS_SIZE = True
    MODULE_PATHS: ClassVar[modules.ModulePaths] = {
        "vision_tower": "vision_model",
        "projector": "connector",
        "language_model": "text_model",
    }
    LINEAR_LAYERS: ClassVar[modules.LinearLayers] = {
        "vision_tower": modules.CLIP_LAYERS,
        "projector": ("proj",),
        "language_model": modules.LLAMA_LAYERS,
    }
    TINY = TinySmolVLM

    # --- loading ----------------------------------------------------------------------------------

    def load_processor(self, path: str | Path) -> Any:
        """As of all families.

        Raises:
            UserError: Also if num2words is missing, without which SmolVLM's processor does not
                start.
        """
        try:
            return super().load_processor(path)
        except ImportError as error:
            if "num2words" not in str(error):
                raise
            raise UserError(
                f"the processor in {path} needs the package num2words, which is not installed: "
                "pip install 'vlmface[smolvlm]'"
            ) from error

    def required_tokens(self, processor: Any) -> list[str]:
        """The image token, and the end of a turn."""
        return [processor.image_token, processor.end_of_utterance_token]

    def check_processor(self, processor: Any, config: Any, path: str | Path) -> None:
        """Compare token ids, tokens of a tile and of a test image with the model's."""
        from PIL import Image

        super().check_processor(processor, config, path)
        tile = self.tile_size(processor)
        tokens = (tile // config.vision_config.patch_size) ** 2 // config.scale_factor**2
        if not tokens or processor.image_seq_len != tokens:
            raise UserError(
                f"{path}: the processor reserves {processor.image_seq_len} tokens for a tile, but "
                f"the model makes {tokens} of one ({tile} pixels wide, patches of "
                f"{config.vision_config.patch_size}, scale_factor {config.scale_factor}): take "
                "tokenizer and processor from the checkpoint that the weights come from"
            )
        size = (300, 200)
        pixels = self.image_inputs(processor, [Image.new("RGB", size)])["pixel_values"]
        check_image_tokens(path, self.image_tokens(processor, size), pixels.shape[1] * tokens)

    # --- images -----------------------------------------------------------------------------------

    def tile_size(self, processor: Any) -> int:
        """Width and height of a tile in pixels."""
        return int(processor.image_processor.max_image_size["longest_edge"])

    def tile_grid(self, processor: Any, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of tiles that an image is cut into, followed by a tile of the whole.

        This is what the image processors do: both sides are brought to whole tiles after the longer
        one, one after the other. transformers 5.24's own count (`get_number_of_image_patches`)
        brings the shorter one to whole tiles by itself, and gives 0 tiles for an image that is
        shown in one.

        Args:
            processor: The processor.
            size: (width, height) of the image in pixels.

        Returns:
            (rows, columns); (0, 0) if the tile of the whole is the only one.

        Raises:
            SkippedSampleError: "image_shape": a side is below 1 pixel.
        """
        settings = processor.image_processor
        if min(size) < 1:
            raise SkippedSampleError(
                "image_shape",
                f"an image of {size[0]} x {size[1]} pixels yields no token: its sides must be 1 "
                "pixel or more; crop it, or leave it out",
            )
        if not settings.do_image_splitting:
            return 0, 0
        width, height = _resized(settings, size)
        tile = self.tile_size(processor)
        aspect = width / height
        if width >= height:
            width = math.ceil(width / tile) * tile
            height = math.ceil(int(width / aspect) / tile) * tile
        else:
            height = math.ceil(height / tile) * tile
            width = math.ceil(int(height * aspect) / tile) * tile
        return (height // tile, width // tile) if max(width, height) > tile else (0, 0)

    def _max_tiles(self, processor: Any) -> int:
        """Tiles that a square image is shown in: none takes more, if all are resized."""
        tile = self.tile_size(processor)
        rows, columns = self.tile_grid(processor, (tile, tile))
        return rows * columns + 1

    def set_max_pixels(self, processor: Any, max_pixels: int) -> None:
        """Limit what the tower sees of one image, all its tiles and that of the whole together.

        Images are then resized to as many whole tiles a side as a square image may have; never to
        more than before.

        Args:
            processor: The processor; the limit is saved with it.
            max_pixels: The limit.

        Raises:
            UserError: Not even one tile fits.
        """
        from transformers.image_utils import SizeDict

        settings, tile = processor.image_processor, self.tile_size(processor)
        if max_pixels < tile**2:
            raise UserError(
                f"max_pixels is {max_pixels}, but the smallest image that this model sees is a "
                f"tile of {tile} x {tile} = {tile**2} pixels: allow that many"
            )
        if not settings.do_image_splitting:
            return
        sides = LARGEST_EDGE // tile
        if settings.do_resize:
            if self._max_tiles(processor) * tile**2 <= max_pixels:
                return
            sides = (
                settings.size.longest_edge or max(settings.size.height, settings.size.width)
            ) // tile
        while sides > 1 and (sides**2 + 1) * tile**2 > max_pixels:
            sides -= 1
        settings.do_resize, settings.size = True, SizeDict(longest_edge=sides * tile)

    def pixel_range(self, processor: Any) -> tuple[int, int]:
        """One tile, and what is allowed now."""
        settings, tile = processor.image_processor, self.tile_size(processor)
        if not settings.do_image_splitting:
            return tile**2, tile**2
        if settings.do_resize:
            return tile**2, self._max_tiles(processor) * tile**2
        return tile**2, ((LARGEST_EDGE // tile) ** 2 + 1) * tile**2

    def describe_image(self, processor: Any) -> dict[str, int]:
        """The size of a tile in pixels; the most tiles that an image takes and their tokens, unless
        its own size alone decides that."""
        tile, settings = self.tile_size(processor), processor.image_processor
        description = {"height": tile, "width": tile}
        if settings.do_resize or not settings.do_image_splitting:
            tiles = self._max_tiles(processor)
            description |= {"tiles": tiles, "tokens": tiles * processor.image_seq_len}
        return description

    def _grid_of(self, processor: Any, size: tuple[int, int] | None) -> tuple[int, int]:
        if size is None:
            raise ValueError(
                "how many tokens an image takes depends on its size: give (width, height)"
            )
        return self.tile_grid(processor, size)

    def image_tokens(self, processor: Any, size: tuple[int, int] | None = None) -> int:
        """The tokens of all tiles, without the text between them."""
        rows, columns = self._grid_of(processor, size)
        return (rows * columns + 1) * processor.image_seq_len

    def image_text(self, processor: Any, size: tuple[int, int] | None = None) -> str:
        """The image tokens of all tiles, each with its row and column, and those of the whole."""
        rows, columns = self._grid_of(processor, size)
        return processor.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0)

    def image_inputs(
        self, processor: Any, images: Sequence[Image.Image]
    ) -> dict[str, torch.Tensor]:
        """`pixel_values` (images, most tiles, 3, height, width) and `pixel_attention_mask` (images,
        most tiles, height, width), both 0 where an image has fewer tiles than another."""
        tiles = processor.image_processor(
            [[image] for image in images], do_pad=True, return_tensors="pt"
        )
        return {name: tiles[name] for name in ("pixel_values", "pixel_attention_mask")}

    # --- text -------------------------------------------------------------------------------------

    def end_tokens(self, processor: Any) -> list[str | None]:
        """<end_of_utterance>, whatever the EOS of the tokenizer."""
        return [processor.end_of_utterance_token, processor.tokenizer.eos_token]

    def stop_token_ids(self, processor: Any) -> list[int]:
        """Those of <end_of_utterance>, and of the EOS if that is another token."""
        tokenizer = processor.tokenizer
        end = tokenizer.convert_tokens_to_ids(processor.end_of_utterance_token)
        return list(dict.fromkeys([end, tokenizer.eos_token_id]))

    # --- the model's forward ----------------------------------------------------------------------

    def tower_features(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """(its tiles, patches, width) of each image. Large: 27 MB in bfloat16 for 17 tiles of
        1,024."""
        real = inputs["pixel_attention_mask"].flatten(2).any(-1)
        pixels = inputs["pixel_values"][real]
        hidden = model.model.vision_model(pixel_values=pixels).last_hidden_state
        return list(hidden.split(real.sum(1).tolist()))

    def inputs_from_features(self, model: Any, features: Sequence[torch.Tensor]) -> dict[str, Any]:
        """`mm_encoder_outputs` with the projected features."""
        import torch
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        projected = model.model.connector(torch.cat(list(features))).flatten(0, 1)
        output = BaseModelOutputWithPooling(pooler_output=[projected])  # type: ignore[arg-type]
        return {"mm_encoder_outputs": {"image": output}}

    # --- serving ----------------------------------------------------------------------------------

    def vllm_flags(
        self, processor: Any, *, max_length: int, trainable: Mapping[str, str], images: int = 1
    ) -> dict[str, Any]:
        """The flags of all families, and how images are cut, which vLLM would read from the
        processor of the base. Images of one tile need the correction of vllm-project/vllm#48667.
        """
        flags = super().vllm_flags(
            processor, max_length=max_length, trainable=trainable, images=images
        )
        settings = processor.image_processor
        rules = {
            "size": {name: value for name, value in dict(settings.size).items() if value},
            "max_image_size": {"longest_edge": self.tile_size(processor)},
            "do_image_splitting": settings.do_image_splitting,
            "do_resize": settings.do_resize,
        }
        flags["serve"]["mm-processor-kwargs"] = json.dumps(rules)
        stops = {"stop_token_ids": self.stop_token_ids(processor)}
        return flags | {"extra_body": stops | flags["extra_body"]}


def _resized(settings: Any, size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) after the first of the image processor's steps: the longer side becomes
    `longest_edge`, the other follows and is made even."""
    width, height = size
    if not settings.do_resize:
        return width, height
    if not settings.size.longest_edge:
        return int(settings.size.width), int(settings.size.height)
    aspect, longest = width / height, settings.size.longest_edge
    if width >= height:
        width, height = longest, int(longest / aspect)
        height += height % 2
    else:
        width, height = int(longest * aspect), longest
        width += width % 2
    width, height = max(width, 1), max(height, 1)
    aspect = width / height
    if max(width, height) > LARGEST_EDGE:
        if width >= height:
            width, height = LARGEST_EDGE, int(LARGEST_EDGE / aspect)
        else:
            width, height = int(LARGEST_EDGE * aspect), LARGEST_EDGE
    return max(width, 1), max(height, 1)
