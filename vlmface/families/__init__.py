"""Model families: the registry, and which family a checkpoint belongs to.

A family is a subclass of `base.Family`, built in or named by an entry point of the group
`vlmface.families` in an installed package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from vlmface import manifest
from vlmface.errors import UserError
from vlmface.families.base import Family
from vlmface.families.llava import Llava
from vlmface.families.paligemma import PaliGemma
from vlmface.families.qwen_vl import QwenVL
from vlmface.families.smolvlm import SmolVLM
from vlmface.registry import Registry

FAMILIES: Registry[type[Family]] = Registry(
    "model family",
    "vlmface.families",
    {family.NAME: family for family in (Llava, PaliGemma, QwenVL, SmolVLM)},
)


_INSTANCES: dict[str, Family] = {}


def get(name: str) -> Family:
    """The family of a name.

    The name may come from the manifest of an untrusted run. It is therefore never resolved as a
    file or as `module:object`: the family must be built in or installed.

    Args:
        name: A built-in name, or the name of an entry point.

    Returns:
        The family; the same object for every call.

    Raises:
        UserError: There is no such family, or an installed package does not provide a usable one.
    """
    if name == manifest.CLIP:
        raise UserError(
            "this run is a CLIP, which answers with a label and writes nothing: ask it with "
            "vlmface predict, eval/run.py, the demo, or vlmface.infer.Predictor"
        )
    if name not in FAMILIES:
        raise UserError(f"unknown model family {name!r}; known: {', '.join(FAMILIES)}")
    if name not in _INSTANCES:
        _INSTANCES[name] = _usable(FAMILIES.get(name), name)()
    return _INSTANCES[name]


def _usable(family: Any, name: str) -> type[Family]:
    """The class of a family. Raises UserError if it cannot be used under that name."""
    source = f"model family {name!r} of an installed package"
    if not (isinstance(family, type) and issubclass(family, Family)):
        raise UserError(
            f"{source} is {family!r}, but must be a subclass of vlmface.families.base.Family"
        )
    attributes = ("NAME", "MODEL_TYPES", "MODULE_PATHS", "LINEAR_LAYERS")
    missing = [attribute for attribute in attributes if not hasattr(family, attribute)]
    if missing := sorted(family.__abstractmethods__) + missing:
        raise UserError(f"{source} does not define {', '.join(missing)}")
    if name != family.NAME:
        raise UserError(
            f"{source} has the NAME {family.NAME!r}: use the same name for its entry point"
        )
    return family


def family_of(model: Any) -> str:
    """Name the family of a checkpoint.

    Args:
        model: A checkpoint folder or a model id, whose config.json is read (from the hub if it is
            not local), or a model configuration.

    Raises:
        UserError: No family claims the architecture, or the checkpoint is missing or damaged.
    """
    if not isinstance(model, str | Path):
        return _family_of_type(str(getattr(model, "model_type", type(model).__name__)))
    from transformers import AutoConfig, PretrainedConfig

    name = None
    try:
        config, _ = PretrainedConfig.get_config_dict(model)
        if model_type := config.get("model_type"):
            # First: a family of an installed package may register its own configuration class.
            name = _family_of_type(str(model_type))
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # transformers raises many unrelated kinds for a damaged file
        raise UserError(
            f"cannot read a model configuration from {str(model)!r}: {error}. Give a folder "
            "with config.json, or a model id that this machine has or may download"
        ) from error
    return name or _family_of_type(config.model_type)


def _family_of_type(model_type: str) -> str:
    """The family that claims a model type. Built-in families are asked first; a generic family for
    any image-text model would be asked last."""
    for name in sorted(FAMILIES, key=lambda name: name not in FAMILIES.built_in):
        if get(name).claims(model_type):
            return name
    families_text = ", ".join(f"{name} ({', '.join(get(name).MODEL_TYPES)})" for name in FAMILIES)
    raise UserError(f"model type {model_type!r} belongs to no known family; known: {families_text}")


def of_run(name: str, weights: str | Path) -> Family:
    """The family that a run's manifest names.

    Raises:
        UserError: The run's weights are of another family, whose prompts have another form.
    """
    if (actual := family_of(weights)) != name:
        raise UserError(
            f"the run's vlmface.json says family {name}, but the weights in {weights} are "
            f"{actual}: one of the two is from another run; restore it"
        )
    return get(name)


def load_model(family: Family, path: str | Path, **options: Any) -> Any:
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


def load_processor(family: Family, path: str | Path) -> Any:
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


def set_max_pixels(family: Family, processor: Any, max_pixels: int | None) -> None:
    """`family.set_max_pixels`, unless `max_pixels` is None."""
    if max_pixels is not None:
        family.set_max_pixels(processor, max_pixels)


def padded(image: Image.Image, color: tuple[int, ...] | None) -> Image.Image:
    """The image (RGB) in the middle of a square of `color`, as `Family.padding` states it.

    For servers that have the processor of the base alone. Unchanged if `color` is None.
    """
    side = max(image.size)
    if color is None or image.size == (side, side):
        return image
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
