"""What `vlmface inspect` and the memory estimate prepare alike: a recipe's settings and rows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vlmface import data, families
from vlmface.pipelines import context_ablation
from vlmface.prompts import Prompt, check_images
from vlmface.prompts import load as load_prompt
from vlmface.train import budget, task_sampling
from vlmface.train.rows import encode_rows
from vlmface.train.settings import AttributeSettings, VLMSettings
from vlmface.utils.config import parse, peek

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Task:
    """One prompt's rows, of every length: those of `sft.encode_rows`, and how many were left out
    for other reasons than their length."""

    prompt: Prompt
    rows: datasets.Dataset
    left_out: dict[str, int]

    def too_long(self, limit: int) -> int:
        return sum(length > limit for length in self.rows["length"])


def settings_from(config: str, words: Sequence[str]) -> VLMSettings:
    """The settings of a recipe's YAML with `--field value` words over it. Raises UserError."""
    words = ["--config", config, *words]
    other = peek("model", words, default=config)
    kind = AttributeSettings if other is None else context_ablation.Settings
    found: VLMSettings = parse(kind, words, default=config, usage="")
    return found


def read_tasks(settings: VLMSettings, processor: Any, family: ModuleType) -> list[Task]:
    """The rows that the recipes would train on, for each prompt. Raises UserError."""
    from vlmface.data import crop_cache, crops

    families.set_max_pixels(family, processor, settings.max_pixels)
    samples = data.load(
        settings.data,
        settings.data_root,
        settings.data_split,
        n=settings.n_train,
        **settings.data_options,
    )
    if isinstance(settings, context_ablation.Settings):
        asked = [settings.load_prompt()]
    else:
        asked = [load_prompt(name) for name in settings.prompts]
    views = crops.parse_views(settings.crop)
    check_images(asked, len(views), settings.frames)
    samples = crop_cache.apply_views(samples, views, settings.frames)
    seed = settings.seed
    budget.fit_pixels(samples, processor, family, asked, max_length=settings.max_length, seed=seed)
    found = []
    balance = settings.balance if isinstance(settings, AttributeSettings) else "none"
    chosen = task_sampling.select_rows(task_sampling.row_labels(samples, asked), balance, seed)
    for prompt, index in zip(asked, chosen, strict=True):
        rows, left_out = encode_rows(
            samples.select(index), processor, family, prompt, max_length=sys.maxsize, seed=seed
        )
        found.append(Task(prompt, rows, left_out))
    return found


def show_parameters(found: dict[str, dict[str, list[int]]]) -> str:
    """The table of `plan.parameters`."""
    lines = [f"  {'part':11}{'module':26}{'trained':>15}{'weights':>17}"]
    total = [0, 0]
    for part in sorted(found, key=("tower", "projector", "llm", "embeddings").index):
        kinds = found[part]
        sums = [sum(entry[i] for entry in kinds.values()) for i in (0, 1)]
        total = [a + b for a, b in zip(total, sums, strict=True)]
        lines.append(f"  {part:37}{sums[0]:15,}{sums[1]:17,}")
        for kind, (moves, weights) in sorted(kinds.items(), key=lambda item: -item[1][1]):
            lines.append(f"  {'':11}{kind:26}{moves:15,}{weights:17,}")
    share = total[0] / total[1]
    lines.append(f"  {'all':37}{total[0]:15,}{total[1]:17,}   {share:.2%} trained")
    return "\n".join(lines)
