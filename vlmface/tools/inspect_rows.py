"""`vlmface inspect`: what a run would train on, token by token, and which weights would move."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from vlmface import families, manifest
from vlmface.data.row_images import image_sizes
from vlmface.encode import IGNORED
from vlmface.pipelines.sft import Task
from vlmface.tools.recipe_setup import read_tasks, settings_from, show_parameters
from vlmface.utils.terminal import printable

_GREEN, _DIM, _RESET = "\033[32m", "\033[2m", "\033[0m"
_QUANTILES = (0, 0.05, 0.5, 0.95, 0.99, 1)


# --- text -----------------------------------------------------------------------------------------


def show_tokens(
    processor: Any, ids: Sequence[int], labels: Sequence[int], *, colour: bool = False
) -> str:
    """A row's tokens with | between them: green, or in [ ], where the loss sees them. A line break
    is shown as \\n and made; neighbouring image tokens are counted, not repeated."""
    image, text = processor.tokenizer.convert_tokens_to_ids(processor.image_token), ""
    open_, close = (_GREEN, _RESET) if colour else ("[", "]")
    bar = f"{_DIM}|{_RESET}" if colour else "|"
    start = 0
    while start < len(ids):
        learnt = labels[start] != IGNORED
        end = start
        while end < len(ids) and (labels[end] != IGNORED) == learnt:
            end += 1
        pieces = _pieces(processor, ids[start:end], image)
        if learnt:
            between = bar + open_ if colour else bar
            text += open_ + between.join(pieces) + close
        else:
            text += bar.join(pieces)
        start = end
    return text


def _pieces(processor: Any, ids: Sequence[int], image: int) -> list[str]:
    """The text of each token; bytes of one character together, as they mean nothing alone."""
    pieces: list[str] = []
    held: list[int] = []
    images = 0
    for token in ids:
        if token == image:
            images += 1
            continue
        if images:
            pieces.append(f"{processor.image_token} x {images}")
            images = 0
        held.append(token)
        text = processor.tokenizer.decode(held)
        if "\ufffd" in text and len(held) < 4:
            continue
        pieces.append(printable(text.replace("\n", "\\n\n"), lines=True))
        held = []
    if images:
        pieces.append(f"{processor.image_token} x {images}")
    if held:
        pieces.append(printable(processor.tokenizer.decode(held), lines=True))
    return pieces


def show_row(processor: Any, row: dict[str, Any], *, colour: bool = False) -> str:
    """A row's counts, then its tokens."""
    ids, labels = row["input_ids"], row["labels"]
    image = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    images, learnt = ids.count(image), sum(label != IGNORED for label in labels)
    sizes = ", ".join(f"{width} x {height}" for width, height in image_sizes(row))
    title = (
        f"row {row['row']}: {len(ids)} tokens = {images} of the image ({sizes} pixels)"
        f" + {len(ids) - images - learnt} of the prompt + {learnt} supervised"
    )
    return f"{title}\n{show_tokens(processor, ids, labels, colour=colour)}"


def show_lengths(task: Task, max_length: int) -> str:
    """The lengths of a prompt's rows, what other limits would leave out, and what is left out."""
    import numpy as np

    lengths = np.sort(np.array(task.rows["length"]))
    marks = np.quantile(lengths, _QUANTILES, method="inverted_cdf").astype(int)
    names = ("shortest", "5 %", "median", "95 %", "99 %", "longest")
    lines = [
        f"lengths of {len(lengths):,} rows: "
        + ", ".join(f"{name} {mark}" for name, mark in zip(names, marks, strict=True))
    ]
    limits = {max_length, max_length // 2, max_length * 2, int(marks[2]), int(marks[4])}
    limits.add(32 * math.ceil(int(marks[5]) / 32))
    lines.append("  max_length   rows too long    share")
    for limit in sorted(limits):
        out = task.too_long(limit)
        star = "*" if limit == max_length else " "
        lines.append(f"{star} {limit:10,}   {out:13,}   {out / len(lengths):6.1%}")
    reasons = Counter(task.skipped)
    if too_long := task.too_long(max_length):
        reasons["too_long"] = too_long
    total = len(lengths) + sum(task.skipped.values())
    lines.append(
        f"left out: {sum(reasons.values()):,} of {total:,} rows"
        + "".join(f"\n  {count:,} {reason}" for reason, count in reasons.most_common())
    )
    return "\n".join(lines)


# --- the command ----------------------------------------------------------------------------------


def inspect_command(config: str, words: Sequence[str], n: int, colour: bool) -> int:
    """`vlmface inspect`: prints; returns the exit code."""
    import torch

    from vlmface.tools import meta_model

    settings = settings_from(config, words)
    base = manifest.resolve(settings.base_model)
    family = families.get(families.family_of(base))
    processor = family.load_processor(base)
    colour = colour or sys.stdout.isatty()
    learnt = f"{_GREEN}green{_RESET}" if colour else "in [ ]"
    for task in read_tasks(settings, processor):
        prompt = "texts without images" if task.prompt is None else f"prompt {task.prompt.id}"
        sha = "" if task.prompt is None else f" {task.prompt.sha}"
        data = (
            settings.text_only_data
            if task.prompt is None
            else f"{settings.dataset} ({settings.dataset_split})"
        )
        print(
            f"\n{prompt}{sha}, base {settings.base_model}, data {data}; the loss sees what is "
            f"{learnt}"
        )
        for i in range(min(n, len(task.rows))):
            print(f"\n{show_row(processor, task.rows[i], colour=colour)}")
        print(f"\n{show_lengths(task, settings.max_length)}")
    print(
        "\nweights that train ("
        + ", ".join(f"{k}: {v}" for k, v in settings.trainable.items())
        + ")"
    )
    model = meta_model.build(
        meta_model.base_config(settings.base_model), family, settings, torch.float32
    )
    print(show_parameters(meta_model.parameters(model, family)))
    return 0
