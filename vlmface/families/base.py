"""The interface of a model family, with the defaults that most families share.

A family knows everything that the rest of vlmface must know about an architecture: how messages
become text, how many tokens an image takes, which modules can be trained or frozen, and how a
vLLM server must be started. A subclass holds only what differs from the defaults.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlmface.errors import UserError
from vlmface.families import modules, templates
from vlmface.families.generation import clear_generation_config
from vlmface.families.quantization import Quantization
from vlmface.families.quantization import options as quantization_options
from vlmface.families.tiny import TinyCheckpoint

if TYPE_CHECKING:
    import torch
    from PIL import Image


class Family(ABC):
    """A model family. Instances have no state: `vlmface.families.get` returns one per family.

    Attributes:
        NAME: The name in the registry and in the manifest of a run.
        MODEL_TYPES: The `model_type`s of config.json that the family handles.
        NEEDS_SIZE: Whether an image's own width and height decide how many tokens it takes.
        PROMPT_HAS_BOS: Whether `prompt_text` writes a BOS elsewhere than at its start.
        MODULE_PATHS: {part: its path or paths in the model} for the parts of `modules.NAMES`.
            A vision tower has q_proj too: without the path a LoRA pattern would adapt both.
        LINEAR_LAYERS: {part: ends of the names of its linear layers}.
        PUBLISHED_NAMES: {pattern: replacement} for names of weights that transformers saves
            differently from published checkpoints.
        TINY: The small random checkpoints that tests build.
    """

    NAME: ClassVar[str]
    MODEL_TYPES: ClassVar[tuple[str, ...]]
    NEEDS_SIZE: ClassVar[bool] = False
    PROMPT_HAS_BOS: ClassVar[bool] = False
    MODULE_PATHS: ClassVar[modules.ModulePaths]
    LINEAR_LAYERS: ClassVar[modules.LinearLayers]
    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {}
    TINY: ClassVar[type[TinyCheckpoint]]

    def claims(self, model_type: str) -> bool:
        """Whether checkpoints with this `model_type` in config.json belong to the family."""
        return model_type in self.MODEL_TYPES

    # --- loading and saving -----------------------------------------------------------------------

    def load_processor(self, path: str | Path) -> Any:
        """Load and check the processor of a checkpoint or run.

        Args:
            path: A checkpoint, a run folder, or a model id. The folder of an adapter has no model
                configuration, so its processor cannot be compared with the model.

        Returns:
            The transformers processor.

        Raises:
            UserError: The processor is not that of the model, or its chat template is unusable.
        """
        from transformers import AutoConfig, AutoProcessor

        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
        self.check_tokens(processor, self.required_tokens(processor), path)
        if not Path(path).is_dir() or (Path(path) / "config.json").is_file():
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            self.check_processor(processor, config, path)
        self.check_template(processor, path)
        return processor

    def required_tokens(self, processor: Any) -> list[str]:
        """The special tokens without which the family's prompts cannot be written."""
        return [processor.image_token]

    def check_tokens(self, processor: Any, tokens: Iterable[str], path: str | Path) -> None:
        """Raise UserError if the tokenizer lacks one of the tokens."""
        vocabulary = processor.tokenizer.get_vocab()
        if missing := [token for token in tokens if token not in vocabulary]:
            raise UserError(
                f"the tokenizer of {path} does not know {', '.join(missing)}: take the tokenizer "
                "files of the checkpoint that the weights come from"
            )

    def check_processor(self, processor: Any, config: Any, path: str | Path) -> None:
        """Complete a processor from the model's configuration, and compare the two.

        Args:
            processor: The processor; it may be changed.
            config: The model's configuration.
            path: Where both come from, for messages.

        Raises:
            UserError: They do not belong together: both would run, and the results be wrong.
        """
        check_token_ids(processor, config, path)

    def check_template(self, processor: Any, path: str | Path) -> None:
        """Raise UserError if the chat template cannot be used; see `templates.check`."""
        templates.check(processor, path)

    def load_model(
        self,
        path: str | Path,
        *,
        dtype: Any = None,
        device: Any = None,
        quantization: Quantization | None = None,
    ) -> Any:
        """Load the model of a checkpoint, in eval mode and without its generation settings.

        Args:
            path: A checkpoint folder or a model id.
            dtype: The torch dtype; by default the one of the checkpoint.
            device: The device; by default the CPU.
            quantization: Keep the language model in 4 bits ("nf4").

        Returns:
            The transformers model.
        """
        from transformers import AutoModelForImageTextToText

        model: Any = AutoModelForImageTextToText.from_pretrained(
            path,
            dtype=dtype or "auto",
            trust_remote_code=False,
            use_safetensors=True,
            **quantization_options(quantization, self.MODULE_PATHS, dtype=dtype, device=device),
        )
        return clear_generation_config(model.to(device or "cpu").eval())

    def save_checkpoint(
        self,
        model: Any,
        processor: Any,
        out_dir: str | Path,
        state_dict: Mapping[str, Any] | None = None,
    ) -> None:
        """Save a complete checkpoint: weights, config, tokenizer, processor, chat template.

        Args:
            model: The model.
            processor: Its processor.
            out_dir: The folder.
            state_dict: The weights of a model that is sharded over processes.
        """
        model.save_pretrained(out_dir, state_dict=state_dict)
        processor.save_pretrained(out_dir)
        if self.PUBLISHED_NAMES:
            _rename_weights(Path(out_dir), self.PUBLISHED_NAMES)

    def build_tiny(self, out_dir: str | Path, corpus: Iterable[str], **sizes: Any) -> Any:
        """Build a small random checkpoint and save it.

        Args:
            out_dir: The folder.
            corpus: Texts that the tokenizer is trained on.
            **sizes: Fields of the family's `TINY`.

        Returns:
            (model, processor).
        """
        model, processor = self.TINY(**sizes).build(corpus)
        self.save_checkpoint(model, processor, out_dir)
        return model, processor

    # --- images -----------------------------------------------------------------------------------

    @abstractmethod
    def image_tokens(self, processor: Any, size: tuple[int, int] | None = None) -> int:
        """How many tokens of a model's input are filled from one image.

        Args:
            processor: The processor.
            size: The image's own (width, height) in pixels. Families that bring every image to one
                shape ignore it; those with `NEEDS_SIZE` need it.

        Raises:
            SkippedSampleError: "image_shape": the processor cannot resize such an image.
        """

    def image_text(self, processor: Any, size: tuple[int, int] | None = None) -> str:
        """The text that replaces the image token of `prompt_text` in the model's input."""
        return processor.image_token * self.image_tokens(processor, size)

    def image_inputs(
        self, processor: Any, images: Sequence[Image.Image]
    ) -> dict[str, torch.Tensor]:
        """The tensors of a batch's images, in order, that the model's forward takes."""
        return dict(processor.image_processor(list(images), return_tensors="pt"))

    def image_size(self, processor: Any) -> tuple[int, int]:
        """(height, width) in pixels that every image has after preprocessing.

        Raises:
            UserError: The processor does not bring every image to one shape.
        """
        size = processor.image_processor.size
        if size is None or "height" not in size:
            raise UserError(
                f"the image processor resizes to {dict(size or {})}, but {self.NAME} needs one "
                "fixed height and width: set its size to those of the vision tower"
            )
        return int(size["height"]), int(size["width"])

    def describe_image(self, processor: Any) -> dict[str, int]:
        """The `image` entry of a manifest: here the size in pixels and the tokens of an image."""
        height, width = self.image_size(processor)
        return {"height": height, "width": width, "tokens": self.image_tokens(processor)}

    def padding(self, processor: Any) -> tuple[int, ...] | None:
        """The color (RGB, 0..255) that the processor pads images to a square with, or None."""
        return None

    def set_max_pixels(self, processor: Any, max_pixels: int) -> None:
        """Limit the pixels that an image has after resizing; saved with the processor.

        Raises:
            UserError: The family has one image size, or the limit is too low.
        """
        raise UserError(
            f"max_pixels is {max_pixels}, but {self.NAME} brings every image to one size: leave "
            "it out (max_pixels: null)"
        )

    def pixel_range(self, processor: Any) -> tuple[int, int] | None:
        """(lowest, highest) `max_pixels` that a length budget may choose; None for one size."""
        return None

    # --- text -------------------------------------------------------------------------------------

    def prompt_text(self, processor: Any, messages: Sequence[Mapping[str, Any]]) -> str:
        """The conversation as text, open for the assistant's answer, one image token per image."""
        return templates.prompt(processor, messages)

    def completion_text(
        self, processor: Any, messages: Sequence[Mapping[str, Any]], target: str
    ) -> str:
        """The text after `prompt_text` if the assistant answers `target`, with its end token.

        Published templates may end an answer with a space instead of the end token, or write a
        line break after it: neither belongs to an answer.
        """
        return templates.completion(processor, messages, target, self.end_tokens(processor))

    def end_tokens(self, processor: Any) -> list[str | None]:
        """Tokens that end an answer. The first closes the answers that the model is trained on."""
        return [processor.tokenizer.eos_token]

    def stop_token_ids(self, processor: Any) -> list[int]:
        """The ids of the tokens that stop generation."""
        return [processor.tokenizer.eos_token_id]

    # --- the model's forward ----------------------------------------------------------------------

    def per_token_inputs(
        self, processor: Any, ids: Sequence[int], answer_start: int | None
    ) -> dict[str, list[int]]:
        """Further inputs of the model's forward that have a value for each token.

        Args:
            processor: The processor.
            ids: The token ids of a whole conversation.
            answer_start: Where the supervised answer begins, or None if there is none.
        """
        return {}

    def decode_step_inputs(self, model: Any, positions: torch.Tensor) -> dict[str, Any]:
        """Further inputs of the model's forward for tokens that follow cached ones.

        Args:
            model: The model, or the peft model around it.
            positions: (rows, tokens): the number of tokens before each one in its row, image
                tokens included.
        """
        return {"position_ids": positions}

    @abstractmethod
    def tower_features(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """The tower's output before the projector, for each image of `image_inputs`.

        It is constant while the tower is frozen, so that training can compute it once.
        """

    @abstractmethod
    def inputs_from_features(self, model: Any, features: Sequence[torch.Tensor]) -> dict[str, Any]:
        """Keyword arguments that replace those of `image_inputs` in the model's forward."""

    # --- training ---------------------------------------------------------------------------------

    def lora_targets(self, trainable: Mapping[str, str], target_modules: Sequence[str]) -> str:
        """A regular expression for peft's `target_modules`; see `modules.lora_targets`."""
        return modules.lora_targets(
            self.MODULE_PATHS, self.LINEAR_LAYERS, trainable, target_modules
        )

    # --- serving ----------------------------------------------------------------------------------

    def vllm_flags(
        self, processor: Any, *, max_length: int, trainable: Mapping[str, str], images: int = 1
    ) -> dict[str, Any]:
        """How vLLM must be started and queried.

        Args:
            processor: The processor.
            max_length: The longest conversation in tokens.
            trainable: {part: frozen, lora or full} of the run.
            images: The most images that a request has.

        Returns:
            {"serve": command-line flags, "extra_body": fields of each request, "merge": whether
            the adapter must be merged first, since vLLM applies LoRA to the language model only}.

        Raises:
            UserError: vLLM would not compute what the model was trained to compute.
        """
        bos = processor.tokenizer.bos_token
        question = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        writes_bos = bool(bos) and self.prompt_text(processor, question).startswith(bos)
        return {
            "serve": {
                "max-model-len": max_length,
                "limit-mm-per-prompt": json.dumps({"image": images}),
            },
            "extra_body": {} if writes_bos else {"add_special_tokens": True},
            "merge": any(trainable[part] != "frozen" for part in ("vision_tower", "projector")),
        }


def check_token_ids(
    processor: Any, config: Any, path: str | Path, *, image_token_has_embedding: bool = True
) -> None:
    """Compare the tokenizer's ids with the model's.

    Args:
        processor: The processor.
        config: The model's configuration.
        path: Where both come from, for messages.
        image_token_has_embedding: Whether the image token's id must be below the number of
            embeddings like the others.

    Raises:
        UserError: The image token has another id, or an id is beyond the embeddings.
    """
    fix = "take the tokenizer files of the checkpoint that the weights come from"
    if processor.image_token_id != config.image_token_id:
        raise UserError(
            f"{path}: {processor.image_token} has the id {processor.image_token_id} in the "
            f"tokenizer, but {config.image_token_id} in config.json: {fix}"
        )
    embeddings = config.get_text_config().vocab_size
    token, largest = max(
        (
            item
            for item in processor.tokenizer.get_vocab().items()
            if image_token_has_embedding or item[0] != processor.image_token
        ),
        key=lambda item: item[1],
    )
    if largest >= embeddings:
        raise UserError(
            f"{path}: the tokenizer has ids up to {largest} ({token!r}), but the model has "
            f"{embeddings} embeddings: {fix}"
        )


def check_image_tokens(path: str | Path, reserved: int, computed: int) -> None:
    """Raise UserError if the processor reserves another number of tokens for a test image than the
    model computes: it would train on shifted text, or stop at the first image."""
    if reserved != computed:
        raise UserError(
            f"{path}: the processor reserves {reserved} tokens for a picture, but the model makes "
            f"{computed} of it: take the processor files of the weights' own checkpoint"
        )


def _rename_weights(folder: Path, names: Mapping[str, str]) -> None:
    """Rename the weights of a checkpoint by {pattern: replacement}."""
    from safetensors.torch import load_file, save_file

    def published(name: str) -> str:
        for pattern, replacement in names.items():
            name = re.sub(pattern, replacement, name)
        return name

    for shard in folder.glob("*.safetensors"):
        tensors = {published(name): tensor for name, tensor in load_file(shard).items()}
        save_file(tensors, shard, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        weight_map = content["weight_map"]
        content["weight_map"] = {published(name): file for name, file in weight_map.items()}
        index.write_text(json.dumps(content, indent=2))
