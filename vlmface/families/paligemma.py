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
from typing import TYPE_CHECKING, Any

from vlmface.errors import UserError
from vlmface.families import llava, parts
from vlmface.families.generation import clear_generation_config
from vlmface.families.quantize import Quantize
from vlmface.families.quantize import options as quantize_options

if TYPE_CHECKING:
    import torch
    from PIL import Image

NAME = "paligemma"
MODEL_TYPES = ("paligemma",)
NEEDS_SIZE = False
WRITES_BOS = True  # behind the image

PARTS = {"tower": "vision_tower", "projector": "multi_modal_projector", "llm": "language_model"}
LINEAR = {
    "tower": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "projector": ("linear",),
    "llm": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}


# --- loading and saving -------------------------------------------------------------------------


def load_processor(path: str | Path) -> Any:
    """The PaliGemmaProcessor of a checkpoint, after comparing it with the checkpoint's model.

    The folder of an adapter has no model configuration; its base was compared when it was trained.
    Raises UserError if tokenizer or image size are another model's.
    """
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    if not Path(path).is_dir() or (Path(path) / "config.json").is_file():
        _check_vocabulary(path, processor)
        _check_image(path, processor)
    return processor


def _check_vocabulary(path: str | Path, processor: Any) -> None:
    """Raises UserError unless the model knows the processor's tokens under the same ids."""
    from transformers import AutoConfig, AutoTokenizer
    from transformers.models.paligemma.processing_paligemma import EXTRA_TOKENS

    # Read again: the processor adds what the tokenizer lacks, under ids that mean nothing yet.
    known = AutoTokenizer.from_pretrained(path, trust_remote_code=False).get_vocab()
    fix = "take the tokenizer files of the checkpoint that the weights come from"
    if lacking := [token for token in EXTRA_TOKENS if token not in known]:
        raise UserError(
            f"the tokenizer of {path} lacks {len(lacking)} of PaliGemma's {len(EXTRA_TOKENS)} "
            f"<loc> and <seg> tokens, {lacking[0]} first: it belongs to another model; {fix}"
        )
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if processor.image_token_id != config.image_token_id:
        raise UserError(
            f"the tokenizer of {path} has {processor.image_token!r} as id "
            f"{processor.image_token_id}, but the model looks for images at id "
            f"{config.image_token_id}: {fix}"
        )
    size = config.text_config.vocab_size
    token, largest = max(known.items(), key=lambda item: item[1])
    if largest >= size and token != processor.image_token:
        raise UserError(
            f"the tokenizer of {path} goes up to id {largest} ({token!r}), but the model has "
            f"embeddings for {size} ids: {fix}"
        )


def _check_image(path: str | Path, processor: Any) -> None:
    """Raises UserError unless the processor makes the images and tokens that the tower expects."""
    from PIL import Image
    from transformers import AutoConfig

    vision = AutoConfig.from_pretrained(path, trust_remote_code=False).vision_config
    side = vision.image_size
    tokens = (side // vision.patch_size) ** 2
    if not tokens:
        raise UserError(
            f"{path}: an image of {side} pixels holds no patch of {vision.patch_size}, so it "
            "yields no token: set image_size and patch_size in config.json as the tower has them"
        )
    found = image_size(processor)
    if found != (side, side) or processor.image_seq_length != tokens:
        raise UserError(
            f"{path}: the processor makes images of {found[0]} x {found[1]} pixels and "
            f"{processor.image_seq_length} tokens, but the tower takes {side} x {side} and gives "
            f"{tokens}: correct size and image_seq_length of the image processor"
        )
    pixels = image_inputs(processor, [Image.new("RGB", (300, 200))])["pixel_values"]
    made = (pixels.shape[2] // vision.patch_size) * (pixels.shape[3] // vision.patch_size)
    parts.check_image_tokens(path, image_tokens(processor), made)


def load_model(
    path: str | Path,
    *,
    dtype: Any = None,
    device: Any = None,
    quantize: Quantize | None = None,
) -> Any:
    """The PaliGemmaForConditionalGeneration of a checkpoint, in eval mode; its language model in 4
    bits if `quantize` says so."""
    from transformers import PaliGemmaForConditionalGeneration

    model: Any = PaliGemmaForConditionalGeneration.from_pretrained(
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
    """Save a complete checkpoint. The tower's tensors get the names of the published checkpoints,
    as LLaVA's do: SigLIP lost the same `vision_model.` in transformers 5."""
    llava.save_checkpoint(model, processor, out_dir, state_dict)


# --- text and image tokens ----------------------------------------------------------------------


def image_size(processor: Any) -> tuple[int, int]:
    """(height, width) in pixels that every image has after preprocessing."""
    size = processor.image_processor.size
    if size is None or "height" not in size:
        raise UserError(
            f"the image processor resizes to {dict(size or {})}, but PaliGemma needs one fixed "
            "height and width: set its size to those of the vision tower"
        )
    return int(size["height"]), int(size["width"])


def describe_image(processor: Any) -> dict[str, int]:
    """What a manifest says of images: their size in pixels and the tokens that one takes."""
    height, width = image_size(processor)
    return {"height": height, "width": width, "tokens": image_tokens(processor)}


def image_tokens(processor: Any, size: tuple[int, int] | None = None) -> int:
    """How many tokens an image takes: the same for every image, whatever its `size`."""
    if not processor.image_seq_length:
        raise UserError(
            f"the image processor's image_seq_length is {processor.image_seq_length}, so an image "
            "would yield no token: set it to (image_size / patch_size) squared"
        )
    return int(processor.image_seq_length)


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
    """`token_type_ids`: 0 for image and question, which see each other, 1 for the answer."""
    prefix = len(ids) if answer is None else answer
    return {"token_type_ids": [0] * prefix + [1] * (len(ids) - prefix)}


def prompt_text(processor: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """`<image><bos>question` and a newline, as PaliGemmaProcessor writes it; there is no chat
    template, and a system text stands before the question, on lines of its own.

    Raises UserError for an earlier answer: the models know one question only.
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
    return processor.image_token * images + processor.tokenizer.bos_token + "\n".join([*texts, ""])


def completion_text(processor: Any, messages: Sequence[Mapping[str, Any]], target: str) -> str:
    """What follows `prompt_text` when `target` is the answer: the target and the EOS."""
    return target + processor.tokenizer.eos_token


def stop_token_ids(processor: Any) -> list[int]:
    """The ids that end an answer."""
    return [processor.tokenizer.eos_token_id]


def later_inputs(model: Any, positions: torch.Tensor) -> dict[str, Any]:
    """What the model's forward takes for tokens (rows, n) that follow cached ones, beside their ids
    and mask. `positions` counts from 0, PaliGemma from 1. No `token_type_ids`: after a cache the
    model is causal by itself.

    Raises UserError where Gemma 2's sliding window has let go of the beginning: a cache that lost
    keys cannot be rolled back from one label to the next.
    """
    window = getattr(model.config.text_config, "sliding_window", None)
    if window is not None and int(positions.max()) + 1 >= window:
        raise UserError(
            f"label probabilities need the whole conversation in the cache: {int(positions.max())} "
            f"tokens do not fit the model's sliding window of {window}; ask without probabilities, "
            "or take a checkpoint with smaller images"
        )
    return {"position_ids": positions + 1}


# --- training -----------------------------------------------------------------------------------


def lora_targets(policy: Mapping[str, str], modules: Sequence[str]) -> str:
    """A regular expression for peft's `target_modules`; see `parts.lora_targets`."""
    return parts.lora_targets(PARTS, LINEAR, policy, modules)


# --- image features -----------------------------------------------------------------------------


def tower_features(model: Any, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Tower output before the projector for each image of `image_inputs`: (tokens, width). Constant
    while the tower is frozen."""
    return list(model.model.vision_tower(inputs["pixel_values"]).last_hidden_state)


def features_input(model: Any, features: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Keyword arguments that replace those of `image_inputs` in the model's forward."""
    import torch
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    projected = model.model.multi_modal_projector(torch.stack(list(features)))
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=projected)}}


# --- serving ------------------------------------------------------------------------------------


def vllm_flags(
    processor: Any, *, max_length: int, policy: Mapping[str, str], images: int = 1
) -> dict[str, Any]:
    """Raises UserError: vLLM lets the tokens of an image see each other, but reads the question
    causally, so its answers would not be those of the model that was trained."""
    raise UserError(
        "vLLM reads PaliGemma's question causally, but the model was trained to read it both ways: "
        "its answers would differ; use `vlmface predict`, or train another family for serving"
    )
