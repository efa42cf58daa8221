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
from typing import TYPE_CHECKING, Any

from vlmface.errors import RefusedError, UserError
from vlmface.families import llava, parts, templates
from vlmface.families.generation import clear_generation_config
from vlmface.families.quantize import Quantize
from vlmface.families.quantize import options as quantize_options

if TYPE_CHECKING:
    import torch
    from PIL import Image

NAME = "smolvlm"
MODEL_TYPES = ("smolvlm", "idefics3")
NEEDS_SIZE = True
WRITES_BOS = False

PARTS = {"tower": "vision_model", "projector": "connector", "llm": "text_model"}
LINEAR = {
    "tower": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "projector": ("proj",),
    "llm": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
LARGEST_EDGE = 4096  # the image processors shrink whatever is larger


# --- loading and saving -------------------------------------------------------------------------


def load_processor(path: str | Path) -> Any:
    """The SmolVLMProcessor or Idefics3Processor of a checkpoint, or of a run folder.

    Raises UserError if there is no chat template, if the tokenizer or the number of image tokens
    is not the model's (where a model's config.json lies beside them), or if num2words is missing,
    which SmolVLM's processor does not start without.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    except ImportError as error:
        if "num2words" not in str(error):
            raise
        raise UserError(
            f"the processor in {path} needs the package num2words, which is not installed: "
            "pip install 'vlmface[smolvlm]'"
        ) from error
    if not Path(path).is_dir() or (Path(path) / "config.json").is_file():  # no adapter alone
        _check(processor, path)
    templates.check(processor, path)
    return processor


def _check(processor: Any, path: str | Path) -> None:
    """Refuse a processor that is not the model's: both would run, and nothing would be right."""
    from PIL import Image
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    vocabulary = processor.tokenizer.get_vocab()
    fix = "take tokenizer and processor from the checkpoint that the weights come from"
    end = processor.end_of_utterance_token
    if unknown := [token for token in (processor.image_token, end) if token not in vocabulary]:
        raise UserError(f"{path}: the tokenizer does not know {', '.join(unknown)}: {fix}")
    if (last := max(vocabulary.values())) >= config.text_config.vocab_size:
        raise UserError(
            f"{path}: the tokenizer has ids up to {last}, but the model has "
            f"{config.text_config.vocab_size} embeddings: {fix}"
        )
    if processor.image_token_id != config.image_token_id:
        raise UserError(
            f"{path}: {processor.image_token} is id {processor.image_token_id} to the tokenizer, "
            f"but {config.image_token_id} to the model: {fix}"
        )
    patches = tile_size(processor) // config.vision_config.patch_size
    tokens = patches**2 // config.scale_factor**2
    if not tokens or processor.image_seq_len != tokens:
        raise UserError(
            f"{path}: the processor reserves {processor.image_seq_len} tokens for a tile, but the "
            f"model makes {tokens} of one ({tile_size(processor)} pixels wide, patches of "
            f"{config.vision_config.patch_size}, scale_factor {config.scale_factor}): {fix}"
        )
    size = (300, 200)
    pixels = image_inputs(processor, [Image.new("RGB", size)])["pixel_values"]
    parts.check_image_tokens(path, image_tokens(processor, size), pixels.shape[1] * tokens)


def load_model(
    path: str | Path,
    *,
    dtype: Any = None,
    device: Any = None,
    quantize: Quantize | None = None,
) -> Any:
    """The SmolVLM- or Idefics3ForConditionalGeneration of a checkpoint, in eval mode; its language
    model in 4 bits if `quantize` says so."""
    from transformers import AutoModelForImageTextToText

    model: Any = AutoModelForImageTextToText.from_pretrained(
        path,
        dtype=dtype or "auto",
        trust_remote_code=False,
        use_safetensors=True,
        **quantize_options(quantize, PARTS, dtype=dtype, device=device),
    )
    return clear_generation_config(model.to(device or "cpu").eval())


def save_checkpoint(
    model: Any, processor: Any, out_dir: str | Path, state_dict: Mapping[str, Any] | None = None
) -> None:
    """Save a complete checkpoint: weights, config, tokenizer, processor, chat template.

    `state_dict` has the weights of a model that is sharded over processes.
    """
    model.save_pretrained(out_dir, state_dict=state_dict)
    processor.save_pretrained(out_dir)


# --- text and image tokens ----------------------------------------------------------------------


def tile_size(processor: Any) -> int:
    """Width and height of a tile in pixels."""
    return int(processor.image_processor.max_image_size["longest_edge"])


def tile_grid(processor: Any, size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of tiles that an image of `size` (width, height) is cut into, followed by a
    tile of the whole; (0, 0) if that is all of it.

    This is what the image processors do: both sides are brought to whole tiles after the longer
    one, one after the other. transformers 5.24's own count (`get_number_of_image_patches`) brings
    the shorter one to whole tiles by itself, and says 0 tiles for an image that is shown in one.
    Raises RefusedError("image_shape").
    """
    settings = processor.image_processor
    if min(size) < 1:
        raise RefusedError(
            "image_shape",
            f"an image of {size[0]} x {size[1]} pixels yields no token: its sides must be 1 pixel "
            "or more; crop it, or leave it out",
        )
    if not settings.do_image_splitting:
        return 0, 0
    width, height = _resized(settings, size)
    tile = tile_size(processor)
    aspect = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        height = math.ceil(int(width / aspect) / tile) * tile
    else:
        height = math.ceil(height / tile) * tile
        width = math.ceil(int(height * aspect) / tile) * tile
    return (height // tile, width // tile) if max(width, height) > tile else (0, 0)


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


def _most_tiles(processor: Any) -> int:
    """Tiles that a square image is shown in: none takes more, if all are resized."""
    rows, columns = tile_grid(processor, (tile_size(processor), tile_size(processor)))
    return rows * columns + 1


def set_max_pixels(processor: Any, max_pixels: int) -> None:
    """Limit what the tower sees of one image, all its tiles and that of the whole together.

    Images are then resized to as many whole tiles a side as a square image may have; never to more
    than before. The limit is part of the processor and saved with it. Raises UserError if not even
    one tile fits.
    """
    from transformers.image_utils import SizeDict

    settings, tile = processor.image_processor, tile_size(processor)
    if max_pixels < tile**2:
        raise UserError(
            f"max_pixels is {max_pixels}, but the smallest image that this model sees is a tile of "
            f"{tile} x {tile} = {tile**2} pixels: allow that many"
        )
    if not settings.do_image_splitting:
        return
    sides = LARGEST_EDGE // tile
    if settings.do_resize:
        if _most_tiles(processor) * tile**2 <= max_pixels:
            return
        sides = (
            settings.size.longest_edge or max(settings.size.height, settings.size.width)
        ) // tile
    while sides > 1 and (sides**2 + 1) * tile**2 > max_pixels:
        sides -= 1
    settings.do_resize, settings.size = True, SizeDict(longest_edge=sides * tile)


def pixel_range(processor: Any) -> tuple[int, int]:
    """The budgets between which a length budget may choose: one tile, and what is allowed now."""
    settings, tile = processor.image_processor, tile_size(processor)
    if not settings.do_image_splitting:
        return tile**2, tile**2
    most = _most_tiles(processor) if settings.do_resize else (LARGEST_EDGE // tile) ** 2 + 1
    return tile**2, most * tile**2


def describe_image(processor: Any) -> dict[str, int]:
    """What a manifest says of images: the size of a tile in pixels; how many tiles an image takes
    at most and their tokens, unless its own size alone decides that."""
    tile, settings = tile_size(processor), processor.image_processor
    found = {"height": tile, "width": tile}
    if settings.do_resize or not settings.do_image_splitting:
        tiles = _most_tiles(processor)
        found |= {"tiles": tiles, "tokens": tiles * processor.image_seq_len}
    return found


def _grid_of(processor: Any, size: tuple[int, int] | None) -> tuple[int, int]:
    if size is None:
        raise ValueError("how many tokens an image takes depends on its size: give (width, height)")
    return tile_grid(processor, size)


def image_tokens(processor: Any, size: tuple[int, int] | None = None) -> int:
    """How many tokens of a model's input are filled from one image of `size` (width, height in
    pixels); known before it is decoded. The text between its tiles is not counted."""
    rows, columns = _grid_of(processor, size)
    return (rows * columns + 1) * processor.image_seq_len


def image_text(processor: Any, size: tuple[int, int] | None = None) -> str:
    """What stands in the model's input for the image token of `prompt_text`: the image tokens of
    all tiles, each with its row and column, and those of the whole."""
    rows, columns = _grid_of(processor, size)
    return processor.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0)


def image_inputs(processor: Any, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
    """What the model's forward takes for a batch's images, in order: `pixel_values` (images, most
    tiles, 3, height, width) and `pixel_attention_mask` (images, most tiles, height, width), both 0
    where an image has fewer tiles than another."""
    rows = [[image] for image in images]
    found = processor.image_processor(rows, do_pad=True, return_tensors="pt")
    return {name: found[name] for name in ("pixel_values", "pixel_attention_mask")}


def token_inputs(processor: Any, ids: Sequence[int], answer: int | None) -> dict[str, list[int]]:
    """What the model's forward takes for each token beside its id and mask: nothing."""
    return {}


def prompt_text(processor: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """The conversation as text, open for the assistant's answer; one `<image>` per image."""
    return templates.prompt(processor, messages)


def completion_text(processor: Any, messages: Sequence[Mapping[str, Any]], target: str) -> str:
    """What follows `prompt_text` when the assistant answers `target`, up to and with the
    <end_of_utterance>; the line break that templates write behind it belongs to no answer."""
    ends = [processor.end_of_utterance_token, processor.tokenizer.eos_token]
    return templates.completion(processor, messages, target, ends)


def stop_token_ids(processor: Any) -> list[int]:
    """The ids that end an answer: <end_of_utterance>, and the EOS where that is another token."""
    tokenizer = processor.tokenizer
    ends = [tokenizer.convert_tokens_to_ids(processor.end_of_utterance_token)]
    return list(dict.fromkeys([*ends, tokenizer.eos_token_id]))


def later_inputs(model: Any, positions: torch.Tensor) -> dict[str, Any]:
    """What the model's forward takes for tokens (rows, n) that follow cached ones, beside their ids
    and mask. `positions` counts all of a row's tokens from 0, those of the image too."""
    return llava.later_inputs(model, positions)


# --- training -----------------------------------------------------------------------------------


def lora_targets(policy: Mapping[str, str], modules: Sequence[str]) -> str:
    """A regular expression for peft's `target_modules`; see `parts.lora_targets`."""
    return parts.lora_targets(PARTS, LINEAR, policy, modules)


# --- image features -----------------------------------------------------------------------------


def tower_features(model: Any, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Tower output before the projector for each image of `image_inputs`: (its tiles, patches,
    width). Constant while the tower is frozen. Large: 27 MB in bfloat16 for 17 tiles of 1,024."""
    real = inputs["pixel_attention_mask"].flatten(2).any(-1)
    hidden = model.model.vision_model(pixel_values=inputs["pixel_values"][real]).last_hidden_state
    return list(hidden.split(real.sum(1).tolist()))


def features_input(model: Any, features: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Keyword arguments that replace those of `image_inputs` in the model's forward."""
    import torch
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    projected = model.model.connector(torch.cat(list(features))).flatten(0, 1)
    output = BaseModelOutputWithPooling(pooler_output=[projected])  # type: ignore[arg-type]
    return {"mm_encoder_outputs": {"image": output}}


# --- serving ------------------------------------------------------------------------------------


def vllm_flags(
    processor: Any, *, max_length: int, policy: Mapping[str, str], images: int = 1
) -> dict[str, Any]:
    """What a vLLM server must be told: {"serve": flags, "extra_body": per request, "merge": bool}.
    A request has up to `images` pictures.

    vLLM applies LoRA to the language model only, so other adapters have to be merged first. It
    would cut images as the base's processor does, so this one's rules are handed over. Where an
    image is one tile only, it needs the correction of vllm-project/vllm#48667.
    """
    settings = processor.image_processor
    rules = {
        "size": {name: value for name, value in dict(settings.size).items() if value},
        "max_image_size": {"longest_edge": tile_size(processor)},
        "do_image_splitting": settings.do_image_splitting,
        "do_resize": settings.do_resize,
    }
    bos = processor.tokenizer.bos_token
    question = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    writes_bos = bool(bos) and prompt_text(processor, question).startswith(bos)
    stops = {"stop_token_ids": stop_token_ids(processor)}
    return {
        "serve": {
            "max-model-len": max_length,
            "limit-mm-per-prompt": json.dumps({"image": images}),
            "mm-processor-kwargs": json.dumps(rules),
        },
        "extra_body": stops if writes_bos else {**stops, "add_special_tokens": True},
        "merge": any(policy[part] != "frozen" for part in ("tower", "projector")),
    }
