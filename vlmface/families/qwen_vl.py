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
from typing import TYPE_CHECKING, Any

from vlmface.errors import RefusedError, UserError
from vlmface.families import parts, templates
from vlmface.families.generation import clear_generation_config
from vlmface.families.quantize import Quantize
from vlmface.families.quantize import options as quantize_options

if TYPE_CHECKING:
    import torch
    from PIL import Image

NAME = "qwen_vl"
MODEL_TYPES = ("qwen2_5_vl", "qwen3_vl")
NEEDS_SIZE = True
WRITES_BOS = False

# The merger, which makes one token of 2 x 2 patches, is the projector. Qwen3-VL has one more for
# each inner layer of the tower whose output it adds to the first layers of the language model.
PARTS: parts.Parts = {
    "tower": "visual",
    "projector": ("visual.merger", "visual.deepstack_merger_list"),
    "llm": "language_model",
}
# Those of both models. attn.proj: patch_embed.proj is a convolution.
LINEAR = {
    "tower": (
        *("qkv", "attn.proj"),
        *("gate_proj", "up_proj", "down_proj"),  # Qwen2.5-VL
        *("linear_fc1", "linear_fc2"),  # Qwen3-VL
    ),
    "projector": ("mlp.0", "mlp.2", "linear_fc1", "linear_fc2"),
    "llm": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
STOPS = ("<|im_end|>", "<|endoftext|>")


# --- loading and saving -------------------------------------------------------------------------


def load_processor(path: str | Path) -> Any:
    """The Qwen2_5_VLProcessor or Qwen3VLProcessor of a checkpoint or of a run.

    Raises UserError if there is no chat template, or if the tokenizer is not the model's own.
    """
    from transformers import AutoConfig, AutoProcessor

    processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    vocabulary = processor.tokenizer.get_vocab()
    for token in (processor.image_token, STOPS[0]):
        if token not in vocabulary:
            raise UserError(
                f"the tokenizer in {path} does not know {token}: restore the tokenizer files "
                "that the checkpoint was published with"
            )
    if (Path(path) / "config.json").is_file():  # a run with an adapter has none
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if config.image_token_id != processor.image_token_id:
            raise UserError(
                f"{path}: {processor.image_token} has the id {processor.image_token_id} in the "
                f"tokenizer, but {config.image_token_id} in config.json: restore the tokenizer "
                "files that the checkpoint was published with"
            )
        largest, rows = max(vocabulary.values()), config.get_text_config().vocab_size
        if largest >= rows:
            raise UserError(
                f"{path}: the tokenizer has ids up to {largest}, but the model has embeddings for "
                f"{rows}: restore the tokenizer files that the checkpoint was published with"
            )
        _check_image(processor, config, path)
    templates.check(processor, path)
    return processor


def _check_image(processor: Any, config: Any, path: str | Path) -> None:
    """Raises UserError unless the processor cuts a test picture into the patches that the tower
    takes, and counts its tokens as the model does."""
    from PIL import Image

    vision, size = config.vision_config, (300, 200)
    inputs = image_inputs(processor, [Image.new("RGB", size)])
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    if inputs["pixel_values"].shape[1] != values:
        raise UserError(
            f"{path}: the processor cuts pictures into patches of "
            f"{inputs['pixel_values'].shape[1]} values, but the vision tower takes {values}: take "
            "the processor files of the weights' own checkpoint"
        )
    made = int(inputs["image_grid_thw"].prod()) // vision.spatial_merge_size**2
    parts.check_image_tokens(path, image_tokens(processor, size), made)


def load_model(
    path: str | Path,
    *,
    dtype: Any = None,
    device: Any = None,
    quantize: Quantize | None = None,
) -> Any:
    """The model of a checkpoint, in eval mode; its language model in 4 bits if `quantize` says
    so."""
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
    """Save a complete checkpoint: weights (under the names of the published ones), config,
    tokenizer, processor, chat template. `state_dict` has the weights of a model that is sharded
    over processes."""
    model.save_pretrained(out_dir, state_dict=state_dict)
    processor.save_pretrained(out_dir)


# --- text and image tokens ----------------------------------------------------------------------


def token_side(processor: Any) -> int:
    """Pixels on each side of the square that becomes one token."""
    settings = processor.image_processor
    return int(settings.patch_size * settings.merge_size)


def set_max_pixels(processor: Any, max_pixels: int) -> None:
    """Let no image have more than `max_pixels` after resizing; larger ones are made smaller.

    The checkpoint's minimum stays (64 tokens in Qwen3-VL: 224 x 224 pixels are enlarged to 256 x
    256), unless it is above the budget. The budget is saved with the processor, so that all who
    load it from a run resize alike. Two kinds of images take more: those that are enlarged to a
    minimum just below the budget, since each side is rounded up to whole tokens, and those whose
    sides differ more than the budget has tokens (1:64 at 64 tokens), since each side remains one
    token at least. Raises UserError for a budget below one token.
    """
    token = token_side(processor) ** 2
    if max_pixels < token:
        side = token_side(processor)
        raise UserError(
            f"max_pixels is {max_pixels}, but one token of this model is {side} x {side} = {token} "
            "pixels: allow that at least"
        )
    settings = processor.image_processor
    least = settings.size["shortest_edge"]
    if max_pixels < least:
        # Images below the minimum are enlarged and then rounded up to whole tokens: far enough
        # below the maximum, they cannot jump over it.
        least = max_pixels // 4
    settings.size = {"shortest_edge": least, "longest_edge": max_pixels}


def pixel_range(processor: Any) -> tuple[int, int]:
    """The budgets between which a length budget may choose: 64 tokens (224 x 224 pixels in
    Qwen2.5-VL, where a face is still read well) and what is allowed now."""
    most = int(processor.image_processor.size["longest_edge"])
    return min(64 * token_side(processor) ** 2, most), most


def describe_image(processor: Any) -> dict[str, int]:
    """What a manifest says of images: the pixels that they have after resizing, at least and at
    most, and how many of them are one token."""
    size = processor.image_processor.size
    return {
        "min_pixels": int(size["shortest_edge"]),
        "max_pixels": int(size["longest_edge"]),
        "pixels_per_token": token_side(processor) ** 2,
    }


def image_tokens(processor: Any, size: tuple[int, int] | None = None) -> int:
    """How many tokens of a model's input are filled from an image of (width, height) pixels.

    Raises RefusedError("image_shape") for a size that the processor cannot resize.
    """
    if size is None:
        raise ValueError("the tokens of an image depend on its size: give (width, height)")
    width, height = size
    settings = processor.image_processor
    try:
        patches = settings.get_number_of_image_patches(height, width)
    except (ValueError, ZeroDivisionError):
        patches = 0
    if patches == 0:
        raise RefusedError(
            "image_shape",
            f"an image of {width} x {height} pixels yields no token: its sides must be 1 pixel or "
            "more, and the longer one 200 times the shorter one at most; crop it, or leave it out",
        )
    return patches // settings.merge_size**2


def image_text(processor: Any, size: tuple[int, int] | None = None) -> str:
    """What stands in the model's input for the <|image_pad|> of `prompt_text`."""
    return processor.image_token * image_tokens(processor, size)


def image_inputs(processor: Any, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
    """What the model's forward takes for a batch's images, in order: `pixel_values` (patches of
    all images, values of a patch) and `image_grid_thw` (images, 3), the patches in time, height and
    width."""
    return dict(processor.image_processor(list(images), return_tensors="pt"))


def token_inputs(processor: Any, ids: Sequence[int], answer: int | None) -> dict[str, list[int]]:
    """`mm_token_type_ids`: 1 for an image token, else 0. Without it the model would number an
    image's tokens like a text's, in one dimension."""
    return {"mm_token_type_ids": [int(token == processor.image_token_id) for token in ids]}


def prompt_text(processor: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """The conversation as text, open for the assistant's answer; an image is
    <|vision_start|><|image_pad|><|vision_end|>."""
    return templates.prompt(processor, messages)


def completion_text(processor: Any, messages: Sequence[Mapping[str, Any]], target: str) -> str:
    """What follows `prompt_text` when the assistant answers `target`, up to and with <|im_end|>.

    The newline that templates write behind it belongs to no answer: generation has stopped.
    """
    ends = [*STOPS, processor.tokenizer.eos_token]
    return templates.completion(processor, messages, target, ends)


def stop_token_ids(processor: Any) -> list[int]:
    """The ids that end an answer: of <|im_end|>, and of <|endoftext|>, as in the published
    generation settings."""
    vocabulary = processor.tokenizer.get_vocab()
    return [vocabulary[token] for token in STOPS if token in vocabulary]


def later_inputs(model: Any, positions: torch.Tensor) -> dict[str, Any]:
    """What the model's forward takes for tokens (rows, n) that follow cached ones, beside their ids
    and mask. `positions` counts all of a row's tokens from 0, those of the image too; the model
    counts an image by its longer side, and has kept each row's difference since `generate`."""
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {"position_ids": positions + core.model.rope_deltas.to(positions.device)}


# --- training -----------------------------------------------------------------------------------


def lora_targets(policy: Mapping[str, str], modules: Sequence[str]) -> str:
    """A regular expression for peft's `target_modules`; see `parts.lora_targets`."""
    return parts.lora_targets(PARTS, LINEAR, policy, modules)


# --- image features -----------------------------------------------------------------------------


def tower_features(model: Any, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """What the mergers are given for each image of `image_inputs`: (mergers, height, width, tower
    width), height and width in patches. Constant while the tower is frozen.

    The patches lie in the processor's order, 2 x 2 at a time, not row by row.
    """
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
        # Qwen2.5-VL sorts the tokens by attention window, and undoes it behind the merger.
        order, _ = get_vision_window_index(
            grid, tower.spatial_merge_size, tower.window_size, tower.patch_size
        )
        blocks = levels.unflatten(1, (-1, tower.spatial_merge_unit))
        levels = blocks[:, order.argsort()].flatten(1, 2)
    images = levels.split(grid.prod(-1).tolist(), 1)
    return [
        one.unflatten(1, (height, width))
        for one, (_, height, width) in zip(images, grid.tolist(), strict=True)
    ]


def features_input(model: Any, features: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Keyword arguments that replace those of `image_inputs` in the model's forward."""
    import torch
    from transformers.models.qwen3_vl import modeling_qwen3_vl

    tower = model.model.visual
    grid = torch.tensor([[1, *one.shape[1:3]] for one in features], device=features[0].device)
    tokens = (grid.prod(-1) // tower.spatial_merge_unit).tolist()
    levels = torch.cat([one.flatten(1, 2) for one in features], 1)
    mergers = [*getattr(tower, "deepstack_merger_list", ()), tower.merger]
    *inner, last = (
        merger(level).split(tokens) for merger, level in zip(mergers, levels, strict=True)
    )
    output = modeling_qwen3_vl.BaseModelOutputWithDeepstackFeatures(
        pooler_output=last, deepstack_features=inner
    )
    return {"mm_encoder_outputs": {"image": output}, "image_grid_thw": grid}


# --- serving ------------------------------------------------------------------------------------


def vllm_flags(
    processor: Any, *, max_length: int, policy: Mapping[str, str], images: int = 1
) -> dict[str, Any]:
    """What a vLLM server must be told: {"serve": flags, "extra_body": per request, "merge": bool}.
    A request has up to `images` pictures.

    The pixel budget is said aloud: beside an adapter, vLLM reads the processor of the base. It
    applies LoRA to the language model only, so adapters elsewhere have to be merged first.
    """
    size = processor.image_processor.size
    budget = {name: int(size[name]) for name in ("shortest_edge", "longest_edge")}
    return {
        "serve": {
            "max-model-len": max_length,
            "limit-mm-per-prompt": json.dumps({"image": images, "video": 0}),
            "mm-processor-kwargs": json.dumps({"size": budget}),
        },
        "extra_body": {},
        "merge": any(policy[part] != "frozen" for part in ("tower", "projector")),
    }
