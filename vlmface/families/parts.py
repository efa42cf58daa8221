"""Which weights train: LoRA targets, whole modules and frozen ones, by the three parts of a model.

A family names its parts (`PARTS`: tower, projector, llm -> where they hang in the model) and the
linear layers in each (`LINEAR`); what follows from that is the same for all families.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlmface.errors import UserError

NAMES = ("tower", "projector", "llm")
POLICIES = ("frozen", "lora", "full")


def part_of(name: str, parts: Mapping[str, str]) -> str:
    """The part that a parameter or module belongs to: the one whose path is the longest in its
    name (a projector may hang within the tower). The head, which is in none, is the llm's."""
    found = [part for part in NAMES if re.search(rf"(?:^|\.){re.escape(parts[part])}\.", name)]
    return max(found, key=lambda part: len(parts[part]), default="llm")


def lora_targets(
    parts: Mapping[str, str],
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
        if names:
            inside = [
                re.escape(parts[other].removeprefix(parts[part] + "."))
                for other in NAMES
                if parts[other].startswith(parts[part] + ".")
            ]
            other = rf"(?!{'|'.join(inside)}\.)" if inside else ""
            branches.append(rf"{re.escape(parts[part])}\.{other}(?:.*\.)?(?:{'|'.join(names)})")
    return rf".*\.(?:{'|'.join(branches)})"


def full_modules(parts: Mapping[str, str], policy: Mapping[str, str]) -> list[str]:
    """Modules trained whole beside LoRA (peft's `modules_to_save`); only the projector may be."""
    whole = [part for part in NAMES if policy[part] == "full"]
    if set(whole) - {"projector"}:
        raise UserError(
            f"{' and '.join(whole)}: full beside a LoRA part is not supported (an adapter would "
            "carry a copy of the whole part): use lora there, or no lora at all"
        )
    return [parts[part] for part in whole]


def freeze(parts: Mapping[str, str], model: Any, policy: Mapping[str, str]) -> None:
    """Let gradients reach the parts that are "full" and no others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(policy[part_of(name, parts)] == "full")
