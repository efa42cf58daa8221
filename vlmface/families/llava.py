"""LLaVA-1.5 (Liu et al. 2023, arXiv:2310.03744): CLIP tower, two-layer projector, Llama.

Everything the rest of vlmface must know about the architecture: how many tokens an image takes, how
messages become text, which modules can be adapted or frozen, what to tell a vLLM server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import manifest
from vlmface.errors import UserError
from vlmface.families import parts, templates
from vlmface.families.generation import clear_generation_config
from vlmface.families.quantize import Quantize
from vlmface.families.quantize import options as quantize_options

if TYPE_CHECKING:
    import torch
    from PIL import Image

NAME = "llava"
MODEL_TYPES = ("llava",)
NEEDS_SIZE = False  # do an image's own width and height decide how many tokens it takes?
WRITES_BOS = False  # does `prompt_text` write a BOS elsewhere than at its start?

# The three parts a freeze policy speaks of: where they hang in the model, and the linear layers in
# each. The tower has q_proj too: without the part's path a LoRA pattern would adapt both.
PARTS = {"tower": "vision_tower", "projector": "multi_modal_projector", "llm": "language_model"}
LINEAR = {
    "tower": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "projector": ("linear_1", "linear_2"),
    "llm": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}


# --- loading and saving -------------------------------------------------------------------------


def load_processor(path: str | Path) -> Any:
    """The LlavaProcessor of a checkpoint or of a run.

    Published LLaVA-1.5 checkpoints differ in what they state of image tokens; where there is a
    model's config.json, the numbers follow from that. A base whose image processor would cut the
    middle square out of a picture pads it to a square instead, as LLaVA-1.5 was trained
    (`image_aspect_ratio: pad`); a run keeps what it was trained with. Raises UserError for files
    that do not belong together, and for a chat template that cannot be used.
    """
    from transformers import AutoConfig, AutoProcessor

    processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    if not Path(path).is_dir() or (Path(path) / "config.json").is_file():  # no adapter alone
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        processor.patch_size = config.vision_config.patch_size
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
        processor.num_additional_image_tokens = _additional_tokens(config.vision_config)
        if not manifest.is_run(path):
            _pad_to_square(processor)
        _check_image(processor, config, path)
    templates.check(processor, path)
    return processor


def _additional_tokens(vision: Any) -> int:
    """Tokens of a tower beside its patches: 1 of CLIP (the class), 0 of SigLIP."""
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
    """Let the image processor pad, where it would keep a picture's shape and cut its middle out."""
    from transformers import LlavaImageProcessor

    settings = processor.image_processor
    if settings.do_center_crop and "shortest_edge" in (settings.size or {}):
        content = {k: v for k, v in settings.to_dict().items() if k != "image_processor_type"}
        processor.image_processor = LlavaImageProcessor(**(content | {"do_pad": True}))


def _check_image(processor: Any, config: Any, path: str | Path) -> None:
    """Raises UserError unless a test picture becomes what the tower takes, and its tokens as many
    as the model makes of it."""
    from PIL import Image

    vision, fix = config.vision_config, "take the processor files of the weights' own checkpoint"
    pixels = image_inputs(processor, [Image.new("RGB", (300, 200))])["pixel_values"]
    height, width = (int(side) for side in pixels.shape[2:])
    if (height, width) != (vision.image_size, vision.image_size):
        raise UserError(
            f"{path}: the image processor makes pictures of {height} x {width} pixels, but the "
            f"vision tower takes {vision.image_size} x {vision.image_size}: {fix}"
        )
    patches = (height // vision.patch_size) * (width // vision.patch_size)
    dropped = config.vision_feature_select_strategy == "default"
    made = patches + processor.num_additional_image_tokens - dropped
    parts.check_image_tokens(path, image_tokens(processor), made)


def load_model(
    path: str | Path,
    *,
    dtype: Any = None,
    device: Any = None,
    quantize: Quantize | None = None,
) -> Any:
    """The LlavaForConditionalGeneration of a checkpoint, in eval mode; its language model in 4 bits
    if `quantize` says so."""
    from transformers import LlavaForConditionalGeneration

    model: Any = LlavaForConditionalGeneration.from_pretrained(
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

    transformers 5 drops CLIP's `vision_model.` from the tower's names and reads both spellings;
    vLLM reads only the original one, so the tower's tensors are given their original names.
    """
    from safetensors.torch import load_file, save_file

    model.save_pretrained(out_dir, state_dict=state_dict)
    processor.save_pretrained(out_dir)
    old = re.compile(r"^((?:model\.)?vision_tower\.)(?!vision_model\.)")
    for shard in Path(out_dir).glob("*.safetensors"):
        tensors = {old.sub(r"\1vision_model.", k): v for k, v in load_file(shard).items()}
        save_file(tensors, shard, metadata={"format": "pt"})
    index = Path(out_dir) / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        content["weight_map"] = {
            old.sub(r"\1vision_model.", k): v for k, v in content["weight_map"].items()
        }
        index.write_text(json.dumps(content, indent=2))


# --- text and image tokens ----------------------------------------------------------------------


def image_size(processor: Any) -> tuple[int, int]:
    """(height, width) in pixels that every image has after preprocessing."""
    settings = processor.image_processor
    size = settings.crop_size if settings.do_center_crop else settings.size
    if size is None or "height" not in size:
        raise UserError(
            f"the image processor resizes to {dict(settings.size)} without a crop, so images would "
            "differ in shape; LLaVA needs one fixed height and width"
        )
    return int(size["height"]), int(size["width"])


def describe_image(processor: Any) -> dict[str, int]:
    """What a manifest says of images: their size in pixels, the tokens that one takes, and whether
    they are padded to a square before they are resized."""
    height, width = image_size(processor)
    found = {"height": height, "width": width, "tokens": image_tokens(processor)}
    return found | ({"pad_to_square": 1} if padding(processor) else {})


def padding(processor: Any) -> tuple[int, ...] | None:
    """The colour (RGB, 0..255) that pictures are padded to a square with, None if they are not."""
    settings = processor.image_processor
    if not getattr(settings, "do_pad", False):
        return None
    return tuple(int(value * 255) for value in settings.image_mean)


def image_tokens(processor: Any, size: tuple[int, int] | None = None) -> int:
    """How many tokens of a model's input are filled from one image; known before it is decoded.

    `size` is the image's own (width, height) in pixels. LLaVA-1.5 brings every image to one shape,
    so it does not matter here (`NEEDS_SIZE`); families with free resolutions need it.
    """
    height, width = image_size(processor)
    tokens = (height // processor.patch_size) * (width // processor.patch_size)
    tokens += processor.num_additional_image_tokens
    return tokens - (processor.vision_feature_select_strategy == "default")


def image_text(processor: Any, size: tuple[int, int] | None = None) -> str:
    """What stands in the model's input for the image token of `prompt_text`."""
    return processor.image_token * image_tokens(processor, size)


def image_inputs(processor: Any, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
    """What the model's forward takes for a batch's images, in order: `pixel_values` (images, 3,
    height, width)."""
    return {
        "pixel_values": processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
    }


def token_inputs(processor: Any, ids: Sequence[int], answer: int | None) -> dict[str, list[int]]:
    """What the model's forward takes for each token beside its id and mask; `answer` is where the
    supervised answer begins, None if there is none. LLaVA takes nothing."""
    return {}


def prompt_text(processor: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """The conversation as text, open for the assistant's answer; one `<image>` per image."""
    return templates.prompt(processor, messages)


def completion_text(processor: Any, messages: Sequence[Mapping[str, Any]], target: str) -> str:
    """What follows `prompt_text` when the assistant answers `target`, up to and with the EOS.

    The published LLaVA-1.5 template ends the answer with a space and no EOS; the models were
    trained with one.
    """
    return templates.completion(processor, messages, target, [processor.tokenizer.eos_token])


def stop_token_ids(processor: Any) -> list[int]:
    """The ids that end an answer."""
    return [processor.tokenizer.eos_token_id]


def later_inputs(model: Any, positions: torch.Tensor) -> dict[str, Any]:
    """What the model's forward takes for tokens (rows, n) that follow cached ones, beside their ids
    and mask. `positions` counts all of a row's tokens from 0, those of the image too."""
    return {"position_ids": positions}


# --- training -----------------------------------------------------------------------------------


def lora_targets(policy: Mapping[str, str], modules: Sequence[str]) -> str:
    """A regular expression for peft's `target_modules`; see `parts.lora_targets`."""
    return parts.lora_targets(PARTS, LINEAR, policy, modules)


# --- image features -----------------------------------------------------------------------------


def tower_features(model: Any, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Tower output before the projector for each image of `image_inputs`: (tokens, width). Constant
    while the tower is frozen."""
    import torch

    config = model.config
    tower = model.model.vision_tower
    hidden = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    layers = config.vision_feature_layer
    skip = 1 if config.vision_feature_select_strategy == "default" else 0
    layers = [layers] if isinstance(layers, int) else layers
    return list(torch.cat([hidden[layer][:, skip:] for layer in layers], dim=-1))


def features_input(model: Any, features: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Keyword arguments that replace those of `image_inputs` in the model's forward."""
    import torch
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    projected = model.model.multi_modal_projector(torch.stack(list(features)))
    output = BaseModelOutputWithPooling(pooler_output=list(projected))  # type: ignore[arg-type]
    return {"mm_encoder_outputs": {"image": output}}


# --- serving ------------------------------------------------------------------------------------


def vllm_flags(
    processor: Any, *, max_length: int, policy: Mapping[str, str], images: int = 1
) -> dict[str, Any]:
    """What a vLLM server must be told: {"serve": flags, "extra_body": per request, "merge": bool}.
    A request has up to `images` pictures.

    vLLM applies LoRA to the language model only (an adapter on the tower or the projector would
    be ignored or wrong), so such adapters have to be merged first.
    """
    bos = processor.tokenizer.bos_token
    question = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    writes_bos = bool(bos) and prompt_text(processor, question).startswith(bos)
    return {
        "serve": {
            "max-model-len": max_length,
            "limit-mm-per-prompt": json.dumps({"image": images}),
        },
        "extra_body": {} if writes_bos else {"add_special_tokens": True},
        "merge": any(policy[part] != "frozen" for part in ("tower", "projector")),
    }
