"""Which weights train: LoRA targets, whole modules and frozen ones, by the three parts of a model.

A family has the paths of its parts in the model (`Family.MODULE_PATHS`: vision_tower, projector,
language_model) and the linear layers in each (`Family.LINEAR_LAYERS`, by the end of their names);
what follows from that is the same for all families.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlmface.errors import UserError

NAMES = ("vision_tower", "projector", "language_model")
POLICIES = ("frozen", "lora", "full")

ModulePaths = Mapping[str, str | Sequence[str]]
LinearLayers = Mapping[str, Sequence[str]]

# The linear layers of CLIP's and SigLIP's towers, and of Llama, Gemma and Qwen.
CLIP_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
LLAMA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# transformers 5 drops the `vision_model.` of CLIP's and SigLIP's weights and reads both spellings;
# vLLM reads only the original one.
LLAVA_PATHS: ModulePaths = {
    "vision_tower": "vision_tower",
    "projector": "multi_modal_projector",
    "language_model": "language_model",
}
PUBLISHED_TOWER_NAMES = {
    r"^((?:model\.)?vision_tower\.)(?!vision_model\.)": r"\1vision_model.",
}


def paths(module_paths: ModulePaths, part: str) -> list[str]:
    """The paths of a part in the model."""
    path = module_paths[part]
    return [path] if isinstance(path, str) else list(path)


def part_of(name: str, module_paths: ModulePaths) -> str:
    """The part that a parameter or module belongs to: the one with the longest path in its name (a
    projector may be inside the vision tower). The head, which is in none, belongs to the language
    model."""
    matches = [
        (len(path), part)
        for part in NAMES
        for path in paths(module_paths, part)
        if re.search(rf"(?:^|\.){re.escape(path)}\.", name)
    ]
    return max(matches, default=(0, "language_model"))[1]


def lora_targets(
    module_paths: ModulePaths,
    linear_layers: LinearLayers,
    trainable: Mapping[str, str],
    target_modules: Sequence[str],
) -> str:
    """A regular expression for peft's `target_modules`.

    Args:
        module_paths: `Family.MODULE_PATHS`.
        linear_layers: `Family.LINEAR_LAYERS`.
        trainable: {part: frozen, lora or full}.
        target_modules: Names of linear layers, or "all". The projector, which has its own few
            layers, is adapted whole if it is "lora".

    Returns:
        A pattern that matches these layers in every part that is "lora".

    Raises:
        UserError: No such part has a layer of that name: peft would take it silently if another
            name matches.
    """
    lora_parts = [part for part in NAMES if trainable[part] == "lora"]
    all_layers = list(target_modules) == ["all"]
    layer_names = {name for part in lora_parts for name in linear_layers[part]}
    if not all_layers and (unknown := [name for name in target_modules if name not in layer_names]):
        raise UserError(
            f"lora_target_modules: {', '.join(unknown)} is not a linear layer of "
            f"{', '.join(lora_parts)}; there are {', '.join(sorted(layer_names))}, or all"
        )
    branches = []
    for part in lora_parts:
        whole = all_layers or part == "projector"
        names = [re.escape(n) for n in linear_layers[part] if whole or n in target_modules]
        for path in paths(module_paths, part) if names else ():
            nested = [
                re.escape(inner.removeprefix(path + "."))
                for name in NAMES
                for inner in paths(module_paths, name)
                if inner.startswith(path + ".")
            ]
            not_nested = rf"(?!(?:{'|'.join(nested)})\.)" if nested else ""
            branches.append(rf"{re.escape(path)}\.{not_nested}(?:.*\.)?(?:{'|'.join(names)})")
    return rf".*\.(?:{'|'.join(branches)})"


def check_lora_target_modules(
    module_paths: ModulePaths,
    model: Any,
    trainable: Mapping[str, str],
    target_modules: Sequence[str],
) -> None:
    """Raise UserError for a target module that no layer of the model's "lora" parts has: of a
    family's architectures one may have a layer that another lacks, and peft would not report it."""
    layers = [name for name, _ in model.named_modules()]
    names = [name for name in layers if trainable[part_of(name + ".", module_paths)] == "lora"]
    missing = [
        target
        for target in target_modules
        if target != "all" and not any(name.endswith("." + target) for name in names)
    ]
    if missing:
        lora_parts = ", ".join(part for part in NAMES if trainable[part] == "lora")
        raise UserError(
            f"lora_target_modules: {', '.join(missing)} is not a layer of this "
            f"{type(model).__name__}'s {lora_parts}: take the name out, or use all"
        )


def full_modules(
    module_paths: ModulePaths, trainable: Mapping[str, str], model: Any = None
) -> list[str]:
    """Modules trained whole in addition to LoRA (peft's `modules_to_save`).

    Args:
        module_paths: `Family.MODULE_PATHS`.
        trainable: {part: frozen, lora or full}.
        model: With the model, paths that it lacks are left out, and those of a ModuleList, which
            peft refuses to wrap, are replaced by the paths of the modules in it.

    Raises:
        UserError: Another part than the projector is "full".
    """
    whole = [part for part in NAMES if trainable[part] == "full"]
    if set(whole) - {"projector"}:
        raise UserError(
            f"{' and '.join(whole)}: full beside a LoRA part is not supported (an adapter would "
            "carry a copy of the whole part): use lora there, or no lora at all"
        )
    all_paths = [path for part in whole for path in paths(module_paths, part)]
    if model is None:
        return all_paths
    import torch

    existing: list[str] = []
    for name, module in model.named_modules():
        for path in all_paths:
            if name == path or name.endswith("." + path):
                is_list = isinstance(module, torch.nn.ModuleList)
                existing += [f"{path}.{i}" for i in range(len(module))] if is_list else [path]
    return existing


def freeze(module_paths: ModulePaths, model: Any, trainable: Mapping[str, str]) -> None:
    """Let gradients reach the parts that are "full" and no others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable[part_of(name, module_paths)] == "full")
