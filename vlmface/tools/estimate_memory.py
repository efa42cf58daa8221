"""`vlmface estimate-memory`: estimate the memory of a run before it is started.

The model is built from its configuration without weights and one step is simulated, so that the
tensors that PyTorch would hold are counted (the parts are those of Rajbhandari et al. 2020,
arXiv:1910.02054). Time is not estimated; `measure` takes real steps on this machine.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmface import families, manifest
from vlmface.errors import UserError
from vlmface.families import modules
from vlmface.families.base import Family
from vlmface.run_dir import read_log
from vlmface.tools import simulate_memory
from vlmface.tools.longest_rows import Rows, rows_of
from vlmface.tools.meta_model import base_config, build, parameters, processor_of, weight_bytes
from vlmface.tools.recipe_setup import read_tasks, settings_from, show_parameters
from vlmface.train import sft
from vlmface.train.checks import steps
from vlmface.train.settings import SFTSettings

GIB = 2**30
# Share of a GPU's memory; the remaining memory is for CUDA's context and fragmentation.
USABLE = 0.9
# Bytes of an NF4 weight with quantised constants: 4 bits, 8 for each 64 weights, 32 for each
# 64 * 256 (Dettmers et al. 2023, arXiv:2305.14314, section 3).
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
# DeepSpeed's defaults, in elements: reduce_bucket_size and stage3_max_live_parameters.
_BUCKET, _LIVE = 5e8, 1e9


# --- memory ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at the peak of training."""

    weights: float
    gradients: float
    optimiser: float
    activations: float
    buffers: float = 0.0

    @property
    def total(self) -> float:
        """All bytes."""
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class Estimate:
    """The memory of a run.

    Attributes:
        training: {parallelism: Memory}.
        other_activations: Bytes with the other setting of gradient_checkpointing.
        evaluation: {part: bytes}.
        features: Bytes of the frozen tower's output for each row, 0 if it is not cached.
    """

    training: dict[str, Memory]
    other_activations: float
    evaluation: dict[str, float]
    features: float


def estimate(
    settings: SFTSettings,
    family: Family,
    config: Any,
    rows: Rows,
    *,
    gpu: bool,
    processes: int,
) -> Estimate:
    """Estimate the memory of a run.

    Args:
        settings: Of the run.
        family: Its family.
        config: From `base_config`.
        rows: From `rows_of`.
        gpu: On a GPU (bfloat16, as in the recipes) or on a CPU (float32).
        processes: Their number.
    """
    model = _training_model(settings, family, config, gpu)
    options = _step_options(settings, gpu, processes)
    batch = rows.train(settings.batch_size)
    replicated = _replicated(model, settings, family, batch, options, processes)
    other_options = dataclasses.replace(options, checkpointing=not options.checkpointing)
    other_peak = simulate_memory.step_bytes(model, family, batch, other_options)
    training = {"DDP" if processes > 1 else "1 process": replicated}
    if gpu and processes > 1:
        activations = replicated.activations
        if not settings.uses_lora:  # DeepSpeed itself holds bfloat16 weights: no autocast
            half = build(config, family, settings, torch.bfloat16)
            plain = dataclasses.replace(options, mixed=False)
            peak = simulate_memory.step_bytes(half, family, batch, plain)
            activations = max(0, peak - weight_bytes(half, train=True))
        quantized_weights = replicated.weights if settings.quantization else None
        training |= _zero_memory(model, activations, processes, quantized_weights)
    frozen = dataclasses.replace(
        settings, vision_tower="frozen", projector="frozen", language_model="frozen"
    )
    evaluated = build(config, family, frozen, torch.bfloat16 if gpu else torch.float32)
    cache, prefill = simulate_memory.evaluation_bytes(
        evaluated, rows.prompts(settings.eval_batch_size), settings.max_new_tokens
    )
    evaluation = {
        "weights": float(weight_bytes(evaluated)),
        "KV cache": float(cache),
        "activations": float(prefill),
    }
    features = 0.0
    if options.cached:
        features = simulate_memory.feature_bytes(evaluated, family, batch)
    other_activations = max(0, other_peak - weight_bytes(model, train=True))
    return Estimate(training, other_activations, evaluation, features)


def estimate_gpu(settings: SFTSettings, family: Family, config: Any, rows: Rows) -> Memory:
    """The memory of each process of a run on GPUs, without ZeRO; arguments as in `estimate`."""
    model = _training_model(settings, family, config, gpu=True)
    world = settings.num_processes or 1
    options = _step_options(settings, True, world)
    batch = rows.train(settings.batch_size)
    return _replicated(model, settings, family, batch, options, world)


def _training_model(settings: SFTSettings, family: Family, config: Any, gpu: bool) -> Any:
    dtype = torch.bfloat16 if gpu and settings.uses_lora else torch.float32
    return build(config, family, settings, dtype)


def _step_options(settings: SFTSettings, gpu: bool, processes: int) -> simulate_memory.StepOptions:
    return simulate_memory.StepOptions(
        checkpointing=settings.gradient_checkpointing,
        cached=settings.cache_features and settings.vision_tower == "frozen" and processes == 1,
        mixed=gpu,
        accumulate=settings.gradient_accumulation > 1,
    )


def _replicated(
    model: Any,
    settings: SFTSettings,
    family: Family,
    batch: Mapping[str, torch.Tensor],
    options: simulate_memory.StepOptions,
    processes: int,
) -> Memory:
    """The memory of a process that holds the whole model."""
    trained = weight_bytes(model, train=True)
    peak = simulate_memory.step_bytes(model, family, batch, options)
    return Memory(
        weights=_weights(model, family, settings),
        gradients=trained,
        optimiser=2 * trained,
        activations=max(0, peak - trained),
        buffers=trained if processes > 1 else 0,
    )


def _zero_memory(
    model: Any, activations: float, processes: int, quantized_weights: float | None
) -> dict[str, Memory]:
    """ZeRO-2, and ZeRO-3 unless the weights are quantised."""
    n_all = sum(p.numel() for p in model.parameters())
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = 2 * n_all if quantized_weights is None else quantized_weights
    states = (2 * n_trained / processes, 12 * n_trained / processes, activations)
    memories = {"ZeRO-2": Memory(weights, *states, 2 * _BUCKET)}
    if quantized_weights is None:
        live = 2 * (_BUCKET + min(_LIVE, n_all))
        memories["ZeRO-3"] = Memory(2 * n_all / processes, *states, live)
    return memories


def _weights(model: Any, family: Family, settings: SFTSettings) -> float:
    """Bytes of the weights, with the language model's linear layers in 4 bits if quantised."""
    if not settings.quantization:
        return weight_bytes(model)
    total = 0.0
    for name, p in model.named_parameters():
        packed = (
            p.ndim == 2
            and not p.requires_grad
            and modules.part_of(name, family.MODULE_PATHS) == "language_model"
            and not re.search(r"\b(embed_tokens|lm_head)\b", name)
        )
        total += p.numel() * (_NF4 if packed else p.element_size())
    return total


# --- suggestions ----------------------------------------------------------------------------------


def suggest_changes(settings: SFTSettings) -> Iterator[tuple[str, SFTSettings]]:
    """Yields (description, settings) with decreasing memory. The product of batch_size and
    gradient_accumulation is constant."""
    if not settings.gradient_checkpointing:
        settings = dataclasses.replace(settings, gradient_checkpointing=True)
        yield "gradient_checkpointing: true", settings
    while settings.batch_size > 1:
        size = max(1, settings.batch_size // 4)
        accumulation = settings.gradient_accumulation * settings.batch_size // size
        settings = dataclasses.replace(
            settings, batch_size=size, gradient_accumulation=accumulation
        )
        yield f"batch_size: {size}, gradient_accumulation: {accumulation}", settings
    if not settings.uses_lora:
        settings = dataclasses.replace(
            settings, vision_tower="frozen", projector="full", language_model="lora"
        )
        yield "vision_tower: frozen, projector: full, language_model: lora", settings
    if settings.quantization is None and settings.language_model == "lora":
        settings = dataclasses.replace(settings, quantization="nf4")
        yield "quantization: nf4", settings


def measure(settings: SFTSettings, processor: Any, family: Family, count: int = 4) -> float:
    """Measure the time of a step on this machine, in a temporary folder.

    Args:
        settings: Of the run.
        processor: From `processor_of`.
        family: The model's family.
        count: Real steps.

    Returns:
        Seconds: the median of all steps but the first.

    Raises:
        UserError: There are too few rows.
    """
    tasks = read_tasks(settings, processor)
    rows = tasks[0].rows
    short = [i for i, length in enumerate(rows["length"]) if length <= settings.max_length]
    needed = count * settings.batch_size * settings.gradient_accumulation
    if len(short) < needed:
        raise UserError(f"measuring takes {needed} rows, but there are {len(short)}: raise n_train")
    rows = rows.select(short[:needed]).remove_columns("row")
    rows = rows.add_column("row", list(range(needed)))
    with tempfile.TemporaryDirectory() as folder:
        trial = dataclasses.replace(
            settings,
            output_dir=folder,
            epochs=1,
            logging_steps=1,
            save_steps=10**6,
            cache_features=False,
            num_processes=None,
            report_to="none",
        )
        sft.train(manifest.resolve(settings.base_model), processor, family, rows, trial)
        at = [line["elapsed_s"] for line in read_log(Path(folder))]
    return statistics.median(b - a for a, b in itertools.pairwise(at))


# --- the command ----------------------------------------------------------------------------------


def gpu_bytes(text: str) -> int:
    """Parse "24GB", "80 GiB" or "24" as GiB, as the names of GPUs count them."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:Gi?B?)?\s*", text, re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise UserError(f"--gpu {text!r} is not an amount of memory: write it as 24GB")
    return int(float(match[1]) * GIB)


def format_table(memories: Mapping[str, Memory]) -> str:
    """A table of the parts of the memory, for each parallelism."""
    fields = [field.name for field in dataclasses.fields(Memory)]
    lines = [f"  {'GiB per process':18}" + "".join(f"{name:>12}" for name in memories)]
    for field in (*fields, "total"):
        values = [getattr(memory, field) for memory in memories.values()]
        if any(values):
            lines.append(f"  {field:18}" + "".join(f"{value / GIB:12.2f}" for value in values))
    return "\n".join(lines)


def estimate_memory_command(
    config: str, words: Sequence[str], gpu: str | None, measuring: bool
) -> int:
    """`vlmface estimate-memory`: print the estimate.

    Args:
        config: The recipe's settings, a file or a name.
        words: Settings of the command line.
        gpu: Memory of a GPU, such as "24GB"; None: a CPU.
        measuring: Also take real steps.

    Returns:
        The exit code: 1 if the run does not fit on the GPU.

    Raises:
        UserError: The settings are not valid, or a file is missing.
    """
    gpu_memory = None if gpu is None else gpu_bytes(gpu)
    settings = settings_from(config, words)
    base = base_config(settings.base_model)
    family = families.get(families.family_of(base))
    processor = processor_of(settings)
    rows = rows_of(settings, family, base, processor)
    for note in rows.notes:
        print(f"note: {note}")
    meta = build(base, family, settings, torch.float32)
    print(show_parameters(parameters(meta, family)))
    size, length = rows.train(settings.batch_size)["input_ids"].shape
    world = settings.num_processes or 1
    print(
        f"\nlongest batch: {size} rows of {length} tokens; {world} process(es) x batch_size "
        f"{settings.batch_size} x gradient_accumulation {settings.gradient_accumulation}"
    )
    total = steps(settings, rows.n) if rows.n else None
    if total is not None:
        print(f"{total:,} steps: {rows.n:,} rows, {settings.epochs:g} epochs")
    else:
        print("steps: unknown without the data (set n_train for an estimate)")
    if measuring:
        if processor is None:
            raise UserError(
                f"--measure takes real steps, but {settings.base_model} has no processor"
            )
        seconds = measure(settings, processor, family)
        hours = f", {seconds * total / 3600:.1f} h for all" if total else ""
        print(f"measured here: {seconds:.2f} s a step{hours}")
    if gpu_memory is None:
        _print_cpu(settings, family, base, rows)
        return 0
    return _print_gpu(settings, family, base, rows, gpu_memory)


def _print_cpu(settings: SFTSettings, family: Family, base: Any, rows: Rows) -> None:
    world = settings.num_processes or 1
    estimated = estimate(settings, family, base, rows, gpu=False, processes=world)
    (memory,) = estimated.training.values()
    print(f"\non a CPU, float32:\n{format_table(estimated.training)}")
    _print_alternatives(settings, memory, estimated)
    if estimated.features:
        feature_bytes = estimated.features * (rows.faces or 0)
        print(f"  features of the frozen tower: {feature_bytes / GIB:.2f}")
    print(
        "a process needs more: Python and its libraries, the data, and memory that the allocator "
        "does not return; this is not estimated"
    )


def _print_alternatives(settings: SFTSettings, memory: Memory, estimated: Estimate) -> None:
    """Print activations with and without gradient checkpointing, and the evaluation."""
    with_, without = memory.activations, estimated.other_activations
    if not settings.gradient_checkpointing:
        with_, without = without, with_
    print(
        f"  activations with gradient_checkpointing {with_ / GIB:.2f}, without {without / GIB:.2f}"
    )
    evaluation = estimated.evaluation
    terms = " + ".join(f"{name} {value / GIB:.2f}" for name, value in evaluation.items())
    print(f"  evaluation: {terms} = {sum(evaluation.values()) / GIB:.2f}")


def _print_gpu(
    settings: SFTSettings, family: Family, base: Any, rows: Rows, gpu_memory: int
) -> int:
    world = settings.num_processes or 1
    estimated = estimate(settings, family, base, rows, gpu=True, processes=world)
    name, memory = next(iter(estimated.training.items()))
    print(f"\non {world} GPU(s), bfloat16:\n{format_table(estimated.training)}")
    _print_alternatives(settings, memory, estimated)
    limit = USABLE * gpu_memory
    evaluation = sum(estimated.evaluation.values())
    print(
        f"\na GPU of {gpu_memory / GIB:g} GiB: {limit / GIB:.1f} can be used; the remaining memory "
        "is for CUDA's context and fragmentation"
    )
    totals = {strategy: m.total for strategy, m in estimated.training.items()}
    for strategy, required in {**totals, "evaluation": evaluation}.items():
        verdict = "fits" if required <= limit else "does not fit"
        print(f"  {strategy:12}{required / GIB:8.2f}  {verdict}")
    if evaluation > limit and evaluation > estimated.evaluation["weights"]:
        print(f"for the evaluation: lower eval_batch_size (now {settings.eval_batch_size})")
    if memory.total > limit:
        print(f"to train with {name} anyway, apply these changes one after the other:")
        _print_changes(settings, family, base, rows, limit)
    return 0 if memory.total <= limit and evaluation <= limit else 1


def _print_changes(
    settings: SFTSettings, family: Family, base: Any, rows: Rows, limit: float
) -> None:
    """Print changes of the settings until the run fits."""
    for text, changed in suggest_changes(settings):
        required = estimate_gpu(changed, family, base, rows).total
        fits = required <= limit
        print(f"  {text:44}{required / GIB:8.2f}  {'fits' if fits else 'still too much'}")
        if fits:
            return
    print("  a larger GPU, or several with accelerate/zero3.yaml")
