"""`vlmface estimate-memory`: estimate the memory of a run before it is started.

The model is built from its configuration without weights and one step is simulated, so that the
tensors that PyTorch would hold are counted (the parts are those of Rajbhandari et al. 2020,
arXiv:1910.02054). Time is not estimated; `measure` takes real steps on this machine.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmface import encode, families, manifest
from vlmface.data import row_images
from vlmface.errors import UserError
from vlmface.families import modules
from vlmface.families.base import Family
from vlmface.pipelines.sft import load_prompts
from vlmface.run_dir import read_log
from vlmface.tools import simulate_memory
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
_ASSUMED_ANSWER = 256  # supervised tokens of a row if the data cannot be read


# --- the model ------------------------------------------------------------------------------------


def base_config(base: str) -> Any:
    """The configuration of a base model.

    Args:
        base: A checkpoint, or a folder with config.json only.

    Raises:
        UserError: The file cannot be read.
    """
    from transformers import AutoConfig

    path = manifest.resolve(base)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path / 'config.json'}: {error}") from error


def build(config: Any, family: Family, settings: SFTSettings, dtype: Any) -> Any:
    """Build the model of a run as its trainer does, with adapters and frozen parts, on PyTorch's
    meta device.

    Args:
        config: From `base_config`.
        family: Its family.
        settings: Of the run.
        dtype: Of the weights.
    """
    from peft import get_peft_model
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, trust_remote_code=False
        )
    if settings.uses_lora:
        # The processor's tokens, or those of the model without a processor.
        tokens = _tokens(settings) or config.get_text_config().vocab_size
        lora = sft.lora_config(settings.lora, family, model, tokens)
        model = get_peft_model(model, lora, low_cpu_mem_usage=True)
    else:
        modules.freeze(family.MODULE_PATHS, model, settings.trainable)
    return model.train()


def _tokens(settings: SFTSettings) -> int | None:
    processor = processor_of(settings)
    return None if processor is None else len(processor.tokenizer)


def processor_of(settings: SFTSettings) -> Any | None:
    """The base's processor, None if its folder has no processor."""
    path = manifest.resolve(settings.base_model)
    if not (path / "tokenizer_config.json").is_file():
        return None
    family = families.get(families.family_of(path))
    processor = family.load_processor(path)
    families.set_max_pixels(family, processor, settings.max_pixels)
    return processor


def parameters(model: Any, family: Family) -> dict[str, dict[str, list[int]]]:
    """Count weights. A tied weight counts once.

    Args:
        model: The model.
        family: Its family.

    Returns:
        {part: {type of module: [trained weights, all weights]}}; parts are
        vision_tower, projector, language_model and embeddings (with the head).
    """
    counts: dict[str, dict[str, list[int]]] = {}
    for name, parameter in model.named_parameters():
        words = [
            word
            for word in name.split(".")
            if word
            not in (
                "weight",
                "bias",
                "default",
                "base_layer",
                "original_module",
                "modules_to_save",
                "token_adapter",
            )
        ]
        adapter = next((word for word in words if word.startswith(("lora_", "trainable_"))), None)
        kind = [word for word in words if word != adapter and not word.isdigit()][-1]
        part = modules.part_of(name, family.MODULE_PATHS)
        if kind in ("embed_tokens", "lm_head"):
            part = "embeddings"
        if adapter is not None:
            kind += " (LoRA)" if adapter.startswith("lora_") else " (rows)"
        elif ".modules_to_save." in name:
            kind += " (copy)"
        entry = counts.setdefault(part, {}).setdefault(kind, [0, 0])
        entry[0] += parameter.numel() * parameter.requires_grad
        entry[1] += parameter.numel()
    return counts


def _bytes(model: Any, *, train: bool | None = None) -> int:
    return sum(
        p.numel() * p.element_size()
        for p in model.parameters()
        if train is None or p.requires_grad == train
    )


# --- batches --------------------------------------------------------------------------------------

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """The training rows of a run.

    Attributes:
        n: How many there are, None if unknown.
        faces: How many faces they are about, None if unknown.
        longest: The longest rows.
        collate: Makes a batch.
        notes: Assumptions.
    """

    n: int | None
    faces: int | None
    longest: Sequence[Row]
    collate: Callable[[Sequence[Row]], dict[str, torch.Tensor]]
    notes: tuple[str, ...] = ()

    def train(self, size: int) -> dict[str, torch.Tensor]:
        """A batch of the longest rows."""
        return self.collate(list(itertools.islice(itertools.cycle(self.longest), size)))

    def prompts(self, size: int) -> dict[str, torch.Tensor]:
        """A batch of the prompts of these rows."""
        prompts_only = []
        for row in itertools.islice(itertools.cycle(self.longest), size):
            prompt = next(i for i, label in enumerate(row["labels"]) if label != encode.IGNORED)
            token_fields = row.keys() - {"labels", *row_images.IMAGE_COLUMNS}
            lists = {k: row[k][:prompt] for k in token_fields if isinstance(row[k], list)}
            prompts_only.append({**row, **lists, "labels": [0] * prompt})
        batch = self.collate(prompts_only)
        del batch["labels"]
        return batch


def rows_of(settings: SFTSettings, family: Family, config: Any, processor: Any) -> Rows:
    """The training rows of a run.

    If the data cannot be read, rows of max_length tokens are assumed; without a processor also
    images of the size of the vision tower.

    Args:
        settings: Of the run.
        family: Its family.
        config: From `base_config`.
        processor: From `processor_of`.

    Raises:
        UserError: All rows are longer than max_length.
    """
    if processor is None:
        return _assumed(settings, family, config, None, "no processor next to config.json")
    try:
        tasks = read_tasks(settings, processor)
    except UserError as error:
        return _assumed(settings, family, config, processor, f"data not read: {error}")
    fitting = [
        (length, task.rows, i)
        for task in tasks
        for i, length in enumerate(task.rows["length"])
        if length <= settings.max_length
    ]
    if not fitting:
        raise UserError(
            f"all rows are longer than max_length {settings.max_length}: raise it "
            "(vlmface inspect shows the lengths)"
        )
    fitting.sort(key=lambda entry: -entry[0])
    size = max(settings.batch_size, settings.eval_batch_size)
    longest = [
        {name: value for name, value in rows[i].items() if name != "row"}
        for _, rows, i in fitting[:size]
    ]
    faces = max(len(task.rows) for task in tasks)
    return Rows(len(fitting), faces, longest, encode.Collator(processor, family))


def _assumed(
    settings: SFTSettings, family: Family, config: Any, processor: Any, reason: str
) -> Rows:
    length = settings.max_length
    answer = min(_ASSUMED_ANSWER, length // 2)
    images = max(prompt.images for prompt in load_prompts(settings))
    collate: Callable[[Sequence[Row]], dict[str, torch.Tensor]]
    if processor is not None:
        from PIL import Image

        size = (336, 336)
        text = family.image_text(processor, size)
        image = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        image_fields: dict[str, Any] = {"image": [Image.new("RGB", size)] * images}
        collate = encode.Collator(processor, family)
    else:
        vision: Any = getattr(config, "vision_config", None)
        side, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
        if family.NEEDS_SIZE or not isinstance(side, int) or not isinstance(patch, int):
            raise UserError(
                f"config.json of {settings.base_model} does not contain the size of its images: "
                "put the processor's files next to it"
            )
        image = [config.image_token_id] * (side // patch) ** 2
        image_fields = {}
        shape = (vision.num_channels, side, side)

        def collate(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
            batch = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
            return {**batch, "pixel_values": torch.zeros(len(rows) * images, *shape)}

    image = image * images
    images_text = "an image" if images == 1 else f"{images} images"
    if len(image) + answer > length:
        raise UserError(
            f"max_length {length} does not hold {images_text} of {len(image)} tokens: raise it"
        )
    ids = image + [0] * (length - len(image))
    row = {"input_ids": ids, **image_fields}
    if processor is not None:
        row |= family.per_token_inputs(processor, ids, length - answer)
    row["labels"] = [encode.IGNORED] * (length - answer) + [0] * answer
    note = f"{reason}; rows of max_length {length} tokens assumed, {answer} of them supervised"
    n = settings.n_train and settings.n_train * len(settings.prompts)
    return Rows(n, settings.n_train, [row], collate, (note,))


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
    sharded: bool = True,
) -> Estimate:
    """Estimate the memory of a run.

    Args:
        settings: Of the run.
        family: Its family.
        config: From `base_config`.
        rows: From `rows_of`.
        gpu: On a GPU (bfloat16, as in the recipes) or on a CPU (float32).
        processes: Their number.
        sharded: Also estimate ZeRO-2 and ZeRO-3.
    """
    dtype = torch.bfloat16 if gpu and settings.uses_lora else torch.float32
    model = build(config, family, settings, dtype)
    batch = rows.train(settings.batch_size)
    checkpointing = settings.gradient_checkpointing
    step = functools.partial(
        simulate_memory.step_bytes,
        family=family,
        batch=batch,
        cached=settings.cache_features and settings.vision_tower == "frozen" and processes == 1,
        accumulate=settings.gradient_accumulation > 1,
    )
    trained = _bytes(model, train=True)
    peak = step(model, checkpointing=checkpointing, mixed=gpu)
    other_peak = step(model, checkpointing=not checkpointing, mixed=gpu)
    activations = max(0, peak - trained)
    buffers = trained if processes > 1 else 0
    weights = _weights(model, family, settings)
    replicated = Memory(weights, trained, 2 * trained, activations, buffers)
    training = {"DDP" if processes > 1 else "1 process": replicated}
    if sharded and gpu and processes > 1:
        if not settings.uses_lora:  # DeepSpeed itself holds bfloat16 weights: no autocast
            half = build(config, family, settings, torch.bfloat16)
            peak = step(half, checkpointing=checkpointing, mixed=False)
            activations = max(0, peak - _bytes(half, train=True))
        quantized_weights = weights if settings.quantization else None
        training |= _zero_memory(model, activations, processes, quantized_weights)
    frozen = dataclasses.replace(
        settings, vision_tower="frozen", projector="frozen", language_model="frozen"
    )
    evaluated = build(config, family, frozen, torch.bfloat16 if gpu else torch.float32)
    cache, prefill = simulate_memory.evaluation_bytes(
        evaluated, rows.prompts(settings.eval_batch_size), settings.max_new_tokens
    )
    evaluation = {
        "weights": float(_bytes(evaluated)),
        "KV cache": float(cache),
        "activations": float(prefill),
    }
    features = 0.0
    if step.keywords["cached"]:
        features = simulate_memory.feature_bytes(evaluated, family, batch)
    return Estimate(training, max(0, other_peak - trained), evaluation, features)


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
        return _bytes(model)
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
    world = settings.num_processes or 1
    for text, changed in suggest_changes(settings):
        estimated = estimate(changed, family, base, rows, gpu=True, processes=world, sharded=False)
        required = next(iter(estimated.training.values())).total
        fits = required <= limit
        print(f"  {text:44}{required / GIB:8.2f}  {'fits' if fits else 'still too much'}")
        if fits:
            return
    print("  a larger GPU, or several with accelerate/zero3.yaml")
