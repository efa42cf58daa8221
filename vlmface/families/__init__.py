"""Model families. Each is a module with the same functions; the dict below is the whole registry.

A new family is one file beside this one and one line here. What a family's module provides is
written out in `families/llava.py`, the first of them.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from vlmface import manifest
from vlmface.errors import UserError
from vlmface.families import llava, paligemma, qwen_vl, smolvlm

FAMILIES: dict[str, ModuleType] = {
    "llava": llava,
    "paligemma": paligemma,
    "qwen_vl": qwen_vl,
    "smolvlm": smolvlm,
}


def get(name: str) -> ModuleType:
    """Return the family called `name`; UserError with the list of known ones otherwise."""
    if name == manifest.CLIP:
        raise UserError(
            "this run is a CLIP, which answers with a label and writes nothing: ask it with "
            "vlmface predict, eval/run.py, the demo, or vlmface.infer.Predictor"
        )
    if name not in FAMILIES:
        raise UserError(f"unknown model family {name!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def family_of(model: Any) -> str:
    """Name the family of a model config, of a checkpoint folder or of a model id.

    A folder or an id is looked up through its config.json (from the hub if it is not local).
    Raises UserError for an architecture that no family claims, and for a missing checkpoint.
    """
    config = model
    if isinstance(model, str | Path):
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        except Exception as error:  # transformers raises many unrelated kinds for a damaged file
            raise UserError(
                f"cannot read a model configuration from {str(model)!r}: {error}. Give a folder "
                "with config.json, or a model id that this machine has or may download"
            ) from error
    kind = str(getattr(config, "model_type", type(config).__name__))
    for name, module in FAMILIES.items():
        if kind in module.MODEL_TYPES:
            return name
    raise UserError(
        f"model type {kind!r} belongs to no known family; known: "
        + ", ".join(f"{name} ({', '.join(m.MODEL_TYPES)})" for name, m in FAMILIES.items())
    )


def of_run(name: str, weights: str | Path) -> ModuleType:
    """The family that a run's manifest names. Raises UserError if its weights are of another one:
    they would be asked in a form that they do not know."""
    if (found := family_of(weights)) != name:
        raise UserError(
            f"the run's vlmface.json says family {name}, but the weights in {weights} are {found}: "
            "one of the two is from another run; restore it"
        )
    return get(name)


def load_model(family: ModuleType, path: str | Path, **options: Any) -> Any:
    """`family.load_model` of a checkpoint. Raises UserError if it is damaged."""
    import torch

    try:
        return family.load_model(path, **options)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers raises many unrelated kinds for a damaged file
        raise UserError(
            f"cannot load the model in {path}: {type(error).__name__}: {error}. Restore its files "
            "(weights must be safetensors)"
        ) from error


def load_processor(family: ModuleType, path: str | Path) -> Any:
    """`family.load_processor` of a checkpoint or run. Raises UserError if it is damaged."""
    try:
        return family.load_processor(path)
    except UserError:
        raise
    except Exception as error:  # as above
        raise UserError(
            f"cannot load the processor in {path}: {type(error).__name__}: {error}. Restore its "
            "files"
        ) from error


def set_max_pixels(family: ModuleType, processor: Any, max_pixels: int | None) -> None:
    """Limit what an image may take in the model's input, if `max_pixels` is not None; saved with
    the processor. Raises UserError if the family brings every image to one size."""
    if max_pixels is None:
        return
    if not hasattr(family, "set_max_pixels"):
        raise UserError(
            f"max_pixels is {max_pixels}, but {family.NAME} brings every image to one size: leave "
            "it out (max_pixels: null)"
        )
    family.set_max_pixels(processor, max_pixels)


def padding(family: ModuleType, processor: Any) -> tuple[int, ...] | None:
    """The colour (RGB, 0..255) that the processor pads pictures to a square with, None if it keeps
    their shape or squeezes them."""
    return family.padding(processor) if hasattr(family, "padding") else None


def padded(image: Image.Image, colour: tuple[int, ...] | None) -> Image.Image:
    """The picture (RGB) in the middle of a square of `colour`, as the processor makes it: for
    servers that know the processor of the base alone. Unchanged if there is no colour."""
    side = max(image.size)
    if colour is None or image.size == (side, side):
        return image
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
