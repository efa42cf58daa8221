"""What the settings of several recipes have in common and can be refused for: as early as it can be
known, before anything is rendered or evaluated."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmface.data.dataset_file import column
from vlmface.errors import UserError
from vlmface.families import modules
from vlmface.families.base import Family
from vlmface.prompts import Prompt
from vlmface.train import trackers, validation
from vlmface.utils.distributed import sharding
from vlmface.utils.ranges import Unused

WITH_WARMUP = ("cosine", "linear")  # schedules; transformers' "constant" begins at the full rate


def saved_when_logged(settings: Any) -> None:
    """Refuse checkpoints between two lines of the log. Raises UserError."""
    if settings.save_steps % settings.logging_steps:
        raise UserError(
            f"save_steps is {settings.save_steps}, but must be a multiple of logging_steps "
            f"({settings.logging_steps}): the log of a resumed run would differ"
        )


def dataset_options(settings: Any, n: str = "n_train") -> None:
    """Refuse `dataset_options` that the data set does not have, or of another type; `n` is the
    field that says how many rows. Raises UserError."""
    from vlmface.data import option_checks

    reserved = {"n": n, "root": "dataset_root", "split": "dataset_split", "name": "dataset"}
    option_checks.check_options(
        settings.dataset, settings.dataset_options, reserved=reserved, where="dataset_options"
    )


def corruptions(names: Sequence[str]) -> None:
    """Refuse corruptions of images that do not exist. Raises UserError."""
    from vlmface.data.corruptions import NAMES

    if unknown := [name for name in names if name not in NAMES]:
        raise UserError(f"there is no corruption {unknown[0]!r}: use some of {', '.join(NAMES)}")


def unused_roots(settings: Any) -> Iterator[Unused]:
    """Folders of data sets that are rendered, not read."""
    from vlmface import benchmarks

    benchmark = benchmarks.load_benchmark(settings.benchmark)
    if not benchmark.needs_root:
        why = f"benchmark {benchmark.id} is on rendered pictures"
        yield Unused("benchmark_root", why, ("benchmark",))
    own_root = benchmark.needs_root and settings.benchmark_root is None
    if not own_root and not reads_root(settings.dataset):
        yield Unused("dataset_root", f"{settings.dataset} is not read from a folder", ("dataset",))


def reads_root(name: str) -> bool:
    """Whether a data set, or a mixture, may take a root."""
    from vlmface import data

    if data.is_mixture(name):
        return True
    module = data.dataset_module(name)
    return getattr(module, "NEEDS_ROOT", True) or name == "rationales"


def rationale_source(settings: Any, prompts: Sequence[Prompt]) -> None:
    """Refuse prompts that ask for a text before the label where a data set's file has neither texts
    nor action units to write them from. Raises UserError."""
    from vlmface import data

    rationale_prompts = [prompt.id for prompt in prompts if prompt.has_rationale]
    if not rationale_prompts or not data.is_dataset_file(settings.dataset):
        return
    rows = data.read(
        settings.dataset, settings.dataset_root, settings.dataset_split, **settings.dataset_options
    )
    if not any(value is not None for name in ("rationale", "aus") for value in column(rows, name)):
        raise UserError(
            f"prompt {rationale_prompts[0]} explains the label by action units or a text, and "
            f"{settings.dataset} has none of them: train with --prompt label"
        )


def unused_warmup(settings: Any) -> Iterator[Unused]:
    """A warm-up under a schedule that has none."""
    if settings.lr_scheduler not in WITH_WARMUP:
        why = f"lr_scheduler {settings.lr_scheduler} has no warm-up, cosine and linear have"
        yield Unused("warmup_steps", why, ("lr_scheduler",))


def warmup(settings: Any, steps: int) -> None:
    """Refuse a warm-up that would not end within the run's `steps`. Raises UserError."""
    if settings.lr_scheduler in WITH_WARMUP and settings.warmup_steps > steps:
        raise UserError(
            f"warmup_steps is {settings.warmup_steps}, but the run has {steps} step(s): lower it, "
            "or give the share of all steps, such as 0.04"
        )


def run_length(settings: Any, steps: int) -> None:
    """Refuse a run of so many `steps` that ends within its warm-up, or before an evaluation. Raises
    UserError."""
    warmup(settings, steps)
    validation.check_steps(settings, steps)


def steps(settings: Any, rows: int) -> int:
    """Optimiser steps of a run over so many rows, as transformers' Trainer counts them."""
    world = settings.num_processes or int(os.environ.get("WORLD_SIZE", "1"))
    batches = math.ceil(rows / (settings.batch_size * world))
    return math.ceil(settings.epochs * max(1, math.ceil(batches / settings.gradient_accumulation)))


def shared_people(
    rows: Any, root: str | None, parts: Mapping[str, tuple[Any, str | None]]
) -> dict[str, Any]:
    """Warn of people who are in the training rows and in another part.

    Args:
        rows: what is trained on.
        root: where it was read from.
        parts: {name: (rows, root)} of what is measured or chosen on.

    Returns:
        {"shared_people": {name: what `people.shared` found}} for metrics.json, {} without any.
    """
    from vlmface.data import people

    counts = {}
    for name, (others, where) in parts.items():
        same = root is not None and _place(root) == _place(where)
        if both := people.shared_people(rows, others, same_files=same):
            counts[name] = both
            if os.environ.get("RANK", "0") == "0":
                print(f"warning: {people.overlap_warning(both, name)}", flush=True)
    return {"shared_people": counts} if counts else {}


def _place(root: str | None) -> Path | None:
    return None if root is None else Path(root).expanduser().resolve()


def machine(settings: Any) -> None:
    """Refuse a tracker that is not installed. Raises UserError."""
    trackers.check(settings.trackers)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and getattr(settings, "cache_features", False) and os.environ["RANK"] == "0":
        print("note: cache_features has no effect with several processes")


def check_trainable(settings: Any, family: Family) -> None:
    """Refuse what cannot be trained before anything is rendered or evaluated. Raises UserError."""
    if settings.uses_lora:
        family.lora_targets(settings.trainable, settings.lora_target_modules)
        modules.full_modules(family.MODULE_PATHS, settings.trainable)


def check_supported(settings: Any, gpu: bool) -> None:
    """Refuse settings that the launch, or what lies beneath, cannot do. Raises UserError."""
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") if sharding() == "DeepSpeed" else None
    if settings.train_embeddings and settings.uses_lora:
        if stage == "3" and not gpu:
            raise UserError(
                "train_embeddings under ZeRO-3 needs GPUs: peft gathers the rows of the embeddings "
                "on one. Set train_embeddings: false, or use zero2.yaml"
            )
        if sharding() == "FSDP":
            raise UserError(
                "train_embeddings does not work under FSDP, which cannot divide embeddings that "
                "peft has tied to the head: set train_embeddings: false, or use zero2.yaml"
            )
    if settings.liger and not gpu:
        raise UserError("liger is true, but its kernels run on GPUs only: set liger: false")
    if settings.liger and importlib.util.find_spec("liger_kernel") is None:
        raise UserError("liger is true, but its kernels are missing: pip install 'vlmface[liger]'")
    if settings.quantization is None:
        return
    if settings.language_model != "lora":
        raise UserError(
            f"quantization is {settings.quantization}, but language_model is "
            f"{settings.language_model}: weights of 4 bits are constants, so set language_model: "
            "lora, or quantization: null"
        )
    if stage == "3" or sharding() == "FSDP":
        raise UserError(
            f"quantization is {settings.quantization}, but the launch asks for "
            f"{'ZeRO-3' if stage else 'FSDP'}, which would cut the packed weights into pieces: use "
            "ddp.yaml or zero2.yaml, where every process holds the small base whole"
        )


def check_machine(settings: Any) -> None:
    """Refuse what the launch, this machine or its packages cannot do, before a run is started.

    Raises UserError.
    """
    import torch

    check_supported(settings, torch.cuda.is_available())
    machine(settings)
