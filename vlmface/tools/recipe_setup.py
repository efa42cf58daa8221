"""The settings and rows of a recipe, as its pipeline prepares them, for `vlmface inspect` and the
memory estimate."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from vlmface.pipelines import context_ablation, sft
from vlmface.train import init_from
from vlmface.train.settings import SFTSettings
from vlmface.utils.config import load_config, read_field


def settings_from(config: str, words: Sequence[str]) -> SFTSettings:
    """The settings of a recipe's YAML with `--field value` words over it, and those of the adapter
    that training starts from.

    Args:
        config: A YAML file, or a name in recipes/configs.
        words: The command line.

    Raises:
        UserError: A field does not exist, or has a value that is not allowed, or that the adapter
            in `init_from` does not have.
    """
    words = ["--config", config, *words]
    is_context = read_field("model", words, default=config) is not None
    kind = context_ablation.Settings if is_context else SFTSettings
    return init_from.with_adapter(load_config(kind, words, default=config, usage=""))


def read_tasks(settings: SFTSettings, processor: Any) -> list[sft.Task]:
    """The rows that the recipe encodes, by prompt, before those over max_length are skipped.

    Args:
        settings: Of the recipe.
        processor: Of the base model; its pixel budget is set.

    Raises:
        UserError: The data cannot be read or trained on.
    """
    model = sft.load_model(settings, processor)
    samples = sft.load_samples(settings, model)
    return sft.encode_tasks(settings, model, samples, max_length=sys.maxsize)


def show_parameters(parts: dict[str, dict[str, list[int]]]) -> str:
    """The table of `meta_model.parameters`."""
    lines = [f"  {'part':11}{'module':26}{'trained':>15}{'weights':>17}"]
    total = [0, 0]
    for part in sorted(
        parts, key=("vision_tower", "projector", "language_model", "embeddings").index
    ):
        kinds = parts[part]
        sums = [sum(entry[i] for entry in kinds.values()) for i in (0, 1)]
        total = [a + b for a, b in zip(total, sums, strict=True)]
        lines.append(f"  {part:37}{sums[0]:15,}{sums[1]:17,}")
        for kind, (moves, weights) in sorted(kinds.items(), key=lambda item: -item[1][1]):
            lines.append(f"  {'':11}{kind:26}{moves:15,}{weights:17,}")
    share = total[0] / total[1]
    lines.append(f"  {'all':37}{total[0]:15,}{total[1]:17,}   {share:.2%} trained")
    return "\n".join(lines)
