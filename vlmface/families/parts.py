"""Which weights train: LoRA targets, whole modules and frozen ones, by the three parts of a model.

A family names its parts (`PARTS`: tower, projector, llm -> where they hang in the model, one path
or several) and the linear layers in each (`LINEAR`, by the end of their names); what follows from
that is the same for all families.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlmface.errors import UserError

NAMES = ("tower", "projector", "llm")
POLICIES = ("frozen", "lora", "full")

Parts = Mapping[str, str | Sequence[str]]


def paths(parts: Parts, part: str) -> list[str]:
    """Where a part hangs in the model."""
    found = parts[part]
    return [found] if isinstance(found, str) else list(found)


def part_of(name: str, parts: Parts) -> str:
    """The part that a parameter or module belongs to: the one whose path is the longest in its
    name (a projector may hang within the tower). The head, which is in none, is the llm's."""
    found = [
        (len(path), part)
        for part in NAMES
        for path in paths(parts, part)
        if re.search(rf"(?:^|\.){re.escape(path)}\.", name)
    ]
    return max(found, default=(0, "llm"))[1]


def lora_targets(
    parts: Parts,
    linear: Mapping[str, Sequence[str]],
    policy: Mapping[str, str],
    modules: Sequence[str],
) -> str:
    """A regular expression for peft's `target_modules`: `modules` in every part that is "lora".

    `modules` are names of linear layers, or "all"; the projector, which has its own few layers, is
    adapted whole if it is "lora". Raises UserError for a name that no such part has: peft would
    take it silently when another name matches.
    """
    chosen = [part for part in NAMES if policy[part] == "lora"]
    everything = list(modules) == ["all"]
    known = {name for part in chosen for name in linear[part]}
    if not everything and (unknown := [name for name in modules if name not in known]):
        raise UserError(
            f"lora_modules: {', '.join(unknown)} is not a linear layer of {', '.join(chosen)}; "
            f"there are {', '.join(sorted(known))}, or all"
        )
    branches = []
    for part in chosen:
        all_of_it = everything or part == "projector"
        names = [re.escape(n) for n in linear[part] if all_of_it or n in modules]
        for path in paths(parts, part) if names else ():
            inside = [
                re.escape(other.removeprefix(path + "."))
                for name in NAMES
                for other in paths(parts, name)
                if other.startswith(path + ".")
            ]
            other = rf"(?!(?:{'|'.join(inside)})\.)" if inside else ""
            branches.append(rf"{re.escape(path)}\.{other}(?:.*\.)?(?:{'|'.join(names)})")
    return rf".*\.(?:{'|'.join(branches)})"


def check_lora_modules(
    parts: Parts, model: Any, policy: Mapping[str, str], modules: Sequence[str]
) -> None:
    """Raise UserError for a name of `modules` that no layer of the model's "lora" parts has: of a
    family's architectures one may have a layer that another lacks, and peft would say nothing."""
    layers = [name for name, _ in model.named_modules()]
    names = [name for name in layers if policy[part_of(name + ".", parts)] == "lora"]
    lacking = [m for m in modules if m != "all" and not any(n.endswith("." + m) for n in names)]
    if lacking:
        chosen = ", ".join(part for part in NAMES if policy[part] == "lora")
        raise UserError(
            f"lora_modules: {', '.join(lacking)} is no layer of this {type(model).__name__}'s "
            f"{chosen}: take the name out, or use all"
        )


def full_modules(parts: Parts, policy: Mapping[str, str], model: Any = None) -> list[str]:
    """Modules trained whole beside LoRA (peft's `modules_to_save`); only the projector may be.

    With the model, paths that it lacks are left out, and those of a ModuleList, which peft refuses
    to wrap, are replaced by the paths of the modules in it.
    """
    whole = [part for part in NAMES if policy[part] == "full"]
    if set(whole) - {"projector"}:
        raise UserError(
            f"{' and '.join(whole)}: full beside a LoRA part is not supported (an adapter would "
            "carry a copy of the whole part): use lora there, or no lora at all"
        )
    listed = [path for part in whole for path in paths(parts, part)]
    if model is None:
        return listed
    import torch

    found: list[str] = []
    for name, module in model.named_modules():
        for path in listed:
            if name == path or name.endswith("." + path):
                listing = isinstance(module, torch.nn.ModuleList)
                found += [f"{path}.{i}" for i in range(len(module))] if listing else [path]
    return found


def freeze(parts: Parts, model: Any, policy: Mapping[str, str]) -> None:
    """Let gradients reach the parts that are "full" and no others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(policy[part_of(name, parts)] == "full")


def check_image_tokens(path: object, reserved: int, made: int) -> None:
    """Raise UserError unless the processor reserves as many tokens for a test picture as the model
    makes of it: it would train on shifted text, or stop at the first picture."""
    if reserved != made:
        raise UserError(
            f"{path}: the processor reserves {reserved} tokens for a picture, but the model makes "
            f"{made} of it: take the processor files of the weights' own checkpoint"
        )
