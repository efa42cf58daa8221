"""`vlmface plan`: what a run will need, before it is started.

The model is built from its configuration without weights and its step is simulated, so that what is
counted is what PyTorch would hold (Rajbhandari et al. 2020, arXiv:1910.02054, name the parts).
Nothing is said of speed unless `measure` takes real steps on this machine.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmface import encode, families, manifest, prompts
from vlmface.data import row_images
from vlmface.errors import UserError
from vlmface.families import modules
from vlmface.families.base import Family
from vlmface.run_dir import read_log
from vlmface.tools import simulate_memory
from vlmface.tools.recipe_setup import read_tasks, settings_from, show_parameters
from vlmface.train import sft
from vlmface.train.checks import steps
from vlmface.train.settings import SFTSettings

GIB = 2**30
# Of a GPU. The rest is for CUDA's context and what its allocator cannot use.
USABLE = 0.9
# Bytes of an NF4 weight with quantised constants: 4 bits, 8 for each 64 weights, 32 for each
# 64 * 256 (Dettmers et al. 2023, arXiv:2305.14314, section 3).
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
# DeepSpeed's defaults, in elements: reduce_bucket_size and stage3_max_live_parameters.
_BUCKET, _LIVE = 5e8, 1e9
_ANSWER = 256  # supervised tokens that are assumed where there are no rows to look at


# --- the model ------------------------------------------------------------------------------------


def base_config(base: str) -> Any:
    """The configuration of a base model: a checkpoint or a folder that holds config.json alone."""
    from transformers import AutoConfig

    path = manifest.resolve(base)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path / 'config.json'}: {error}") from error


def build(config: Any, family: Family, settings: SFTSettings, dtype: Any) -> Any:
    """The model of a run as its trainer sees it, adapters and frozen parts included, on PyTorch's
    meta device: shapes without values."""
    from peft import get_peft_model
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, trust_remote_code=False
        )
    if settings.uses_lora:
        # The processor's tokens, or as many as the model has if there is none.
        tokens = _tokens(settings) or config.get_text_config().vocab_size
        lora = sft.lora_config(settings.lora, family, model, tokens)
        model = get_peft_model(model, lora, low_cpu_mem_usage=True)
    else:
        modules.freeze(family.MODULE_PATHS, model, settings.policy)
    return model.train()


def _tokens(settings: SFTSettings) -> int | None:
    processor = processor_of(settings)
    return None if processor is None else len(processor.tokenizer)


def processor_of(settings: SFTSettings) -> Any | None:
    """The base's processor, or None if the folder has none."""
    path = manifest.resolve(settings.base)
    if not (path / "tokenizer_config.json").is_file():
        return None
    family = families.get(families.family_of(path))
    processor = family.load_processor(path)
    families.set_max_pixels(family, processor, settings.max_pixels)
    return processor


def parameters(model: Any, family: Family) -> dict[str, dict[str, list[int]]]:
    """{part: {type of module: [weights that train, all weights]}}; parts are tower, projector, llm
    and embeddings (with the head). A tied weight counts once."""
    found: dict[str, dict[str, list[int]]] = {}
    for name, parameter in model.named_parameters():
        words = [
            word
            for word in name.split(".")
            if word not in ("weight", "bias", "default", "base_layer", "original_module",
                            "modules_to_save", "token_adapter")
        ]  # fmt: skip
        adapter = next((word for word in words if word.startswith(("lora_", "trainable_"))), None)
        kind = [word for word in words if word != adapter and not word.isdigit()][-1]
        part = modules.part_of(name, family.MODULE_PATHS)
        if kind in ("embed_tokens", "lm_head"):
            part = "embeddings"
        if adapter is not None:
            kind += " (LoRA)" if adapter.startswith("lora_") else " (rows)"
        elif ".modules_to_save." in name:
            kind += " (copy)"
        entry = found.setdefault(part, {}).setdefault(kind, [0, 0])
        entry[0] += parameter.numel() * parameter.requires_grad
        entry[1] += parameter.numel()
    return found


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
    """What is encoded: `n` rows that train and `faces` that they are about (None if unknown), the
    `longest` of them, `collate` to make batches; `notes`: what had to be assumed."""

    n: int | None
    faces: int | None
    longest: Sequence[Row]
    collate: Callable[[Sequence[Row]], dict[str, torch.Tensor]]
    notes: tuple[str, ...] = ()

    def train(self, size: int) -> dict[str, torch.Tensor]:
        """A batch of the longest rows."""
        return self.collate(list(itertools.islice(itertools.cycle(self.longest), size)))

    def ask(self, size: int) -> dict[str, torch.Tensor]:
        """A batch of the prompts of these rows."""
        asked = []
        for row in itertools.islice(itertools.cycle(self.longest), size):
            prompt = next(i for i, label in enumerate(row["labels"]) if label != encode.IGNORED)
            tokens = row.keys() - {"labels", *row_images.IMAGE_COLUMNS}
            lists = {k: row[k][:prompt] for k in tokens if isinstance(row[k], list)}
            asked.append({**row, **lists, "labels": [0] * prompt})
        batch = self.collate(asked)
        del batch["labels"]
        return batch


def rows_of(settings: SFTSettings, family: Family, config: Any, processor: Any) -> Rows:
    """The run's own rows. Without its data, rows of max_length tokens are assumed; without its
    processor too, pictures of the size that the vision tower takes."""
    if processor is None:
        return _assumed(settings, family, config, None, "no processor beside config.json")
    try:
        tasks = read_tasks(settings, processor)
    except UserError as error:
        return _assumed(settings, family, config, processor, f"data not read: {error}")
    kept = [
        (length, task.rows, i)
        for task in tasks
        for i, length in enumerate(task.rows["length"])
        if length <= settings.max_length
    ]
    if not kept:
        raise UserError(
            f"all rows are longer than max_length {settings.max_length}: raise it "
            "(vlmface inspect shows the lengths)"
        )
    kept.sort(key=lambda entry: -entry[0])
    size = max(settings.batch_size, settings.eval_batch_size)
    longest = [
        {name: value for name, value in rows[i].items() if name != "row"}
        for _, rows, i in kept[:size]
    ]
    faces = max(len(task.rows) for task in tasks)
    return Rows(len(kept), faces, longest, encode.Collator(processor, family))


def _assumed(settings: SFTSettings, family: Family, config: Any, processor: Any, why: str) -> Rows:
    length = settings.max_length
    answer = min(_ANSWER, length // 2)
    images = max(prompts.load(name).images for name in settings.prompts)
    collate: Callable[[Sequence[Row]], dict[str, torch.Tensor]]
    if processor is not None:
        from PIL import Image

        size = (336, 336)
        text = family.image_text(processor, size)
        image = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        more: dict[str, Any] = {"image": [Image.new("RGB", size)] * images}
        collate = encode.Collator(processor, family)
    else:
        vision: Any = getattr(config, "vision_config", None)
        side, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
        if family.NEEDS_SIZE or not isinstance(side, int) or not isinstance(patch, int):
            raise UserError(
                f"config.json of {settings.base} does not say how large its pictures are: put the "
                "processor's files beside it"
            )
        image = [config.image_token_id] * (side // patch) ** 2
        more = {}
        shape = (vision.num_channels, side, side)

        def collate(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
            batch = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
            return {**batch, "pixel_values": torch.zeros(len(rows) * images, *shape)}

    image = image * images
    what = "an image" if images == 1 else f"{images} images"
    if len(image) + answer > length:
        raise UserError(
            f"max_length {length} does not hold {what} of {len(image)} tokens: raise it"
        )
    ids = image + [0] * (length - len(image))
    row = {"input_ids": ids, **more}
    if processor is not None:
        row |= family.per_token_inputs(processor, ids, length - answer)
    row["labels"] = [encode.IGNORED] * (length - answer) + [0] * answer
    note = f"{why}; rows of max_length {length} tokens assumed, {answer} of them supervised"
    n = settings.n_train and settings.n_train * len(settings.prompts)
    return Rows(n, settings.n_train, [row], collate, (note,))


# --- memory ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at the moment of training that needs most."""

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
    """`training` {how processes share the work: Memory}; `other_activations`: with gradient
    checkpointing the other way round; `evaluation` {what: bytes}; `features`: bytes kept for each
    row, if the frozen tower's output is; `events` of training steps (see `step_bytes`)."""

    training: dict[str, Memory]
    other_activations: float
    evaluation: dict[str, float]
    features: float
    events: list[tuple[int, int]]


def estimate(
    settings: SFTSettings, family: Family, config: Any, rows: Rows, *, gpu: bool,
    processes: int, sharded: bool = True,
) -> Estimate:  # fmt: skip
    """Memory of the run on a GPU (bfloat16, as the recipes train there) or on a CPU (float32)."""
    lora = settings.uses_lora
    model = build(config, family, settings, torch.bfloat16 if gpu and lora else torch.float32)
    batch = rows.train(settings.batch_size)
    how: dict[str, Any] = {
        "cached": settings.cache_features and settings.tower == "frozen" and processes == 1,
        "mixed": gpu,
        "accumulate": settings.gradient_accumulation > 1,
    }
    weights = _weights(model, family, settings)
    moving = _bytes(model, train=True)
    numbers = {
        train: sum(p.numel() for p in model.parameters() if p.requires_grad == train)
        for train in (True, False)
    }
    peak, events = simulate_memory.step_bytes(
        model, family, batch, checkpointing=settings.gradient_checkpointing, **how
    )
    other, _ = simulate_memory.step_bytes(
        model, family, batch, checkpointing=not settings.gradient_checkpointing, **how
    )
    activations = max(0, peak - moving)
    alone = Memory(weights, moving, 2 * moving, activations, moving if processes > 1 else 0)
    training = {"DDP" if processes > 1 else "1 process": alone}
    if sharded and gpu and processes > 1:
        if not lora:  # DeepSpeed holds the weights in bfloat16 itself, and needs no autocast
            half = build(config, family, settings, torch.bfloat16)
            peak, _ = simulate_memory.step_bytes(
                half, family, batch, checkpointing=settings.gradient_checkpointing,
                **{**how, "mixed": False},
            )  # fmt: skip
            activations = max(0, peak - _bytes(half, train=True))
        learnt, all_ = numbers[True], numbers[True] + numbers[False]
        whole = weights if settings.quantize else 2 * all_
        states = (2 * learnt / processes, 12 * learnt / processes, activations)
        training["ZeRO-2"] = Memory(whole, *states, 2 * _BUCKET)
        if not settings.quantize:
            live = 2 * (_BUCKET + min(_LIVE, all_))
            training["ZeRO-3"] = Memory(2 * all_ / processes, *states, live)
    plain = dataclasses.replace(settings, tower="frozen", projector="frozen", llm="frozen")
    asked = build(config, family, plain, torch.bfloat16 if gpu else torch.float32)
    cache, reading = simulate_memory.evaluation_bytes(
        asked, rows.ask(settings.eval_batch_size), settings.max_new_tokens
    )
    evaluation = {
        "weights": float(_bytes(asked)),
        "KV cache": float(cache),
        "activations": float(reading),
    }
    kept = simulate_memory.feature_bytes(asked, family, batch) if how["cached"] else 0.0
    return Estimate(training, max(0, other - moving), evaluation, kept, events)


def _weights(model: Any, family: Family, settings: SFTSettings) -> float:
    """Bytes of the weights; the language model's linear layers in 4 bits if they are quantised."""
    if not settings.quantize:
        return _bytes(model)
    total = 0.0
    for name, p in model.named_parameters():
        packed = (
            p.ndim == 2
            and not p.requires_grad
            and modules.part_of(name, family.MODULE_PATHS) == "llm"
            and not re.search(r"\b(embed_tokens|lm_head)\b", name)
        )
        total += p.numel() * (_NF4 if packed else p.element_size())
    return total


def footprint(config: str, words: Sequence[str], *, data: bool) -> int:
    """Bytes that a CPU run holds before it has a model: a process of its own imports what a recipe
    does, reads the data if it can, and makes one step with a small layer."""
    code = _FOOTPRINT.format(config=config, words=list(words), data=data)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"cannot measure the memory of an empty run: {done.stderr[-500:]}")
    return int(float(done.stdout.split()[-1]) * GIB)


_FOOTPRINT = """
import peft, torch, trl
from vlmface import families, manifest
from vlmface.evaluate import report
from vlmface.infer import predictor
from vlmface.tools import recipe_setup
from vlmface.train import sft, trainer
from vlmface.utils.memory import peak_rss_gib
if {data}:
    settings = recipe_setup.settings_from({config!r}, {words!r})
    base = manifest.resolve(settings.base)
    family = families.get(families.family_of(base))
    kept = recipe_setup.read_tasks(settings, family.load_processor(base))
layer = torch.nn.Linear(256, 256)
optimiser = torch.optim.AdamW(layer.parameters(), fused=True)
layer(torch.ones(256, 256)).sum().backward()
optimiser.step()
print(peak_rss_gib())
"""


def cpu_peak(settings: SFTSettings, found: Estimate, rows: Rows, empty: int) -> dict[str, float]:
    """{what: bytes} of the main process's peak on a CPU, where a run also evaluates.

    A checkpoint's file is mapped: its pages count once they are read. After training, the run
    evaluates (under LoRA with the base read once more), while what training took has not gone back
    to the system.
    """
    (memory,) = found.training.values()
    peak = {
        "empty run": float(empty),
        "weights": memory.weights,
        "training (as malloc lays it out)": simulate_memory.claimed(found.events) + memory.buffers,
    }
    if found.features:
        peak["features of the frozen tower"] = found.features * (rows.faces or 0)
    if settings.uses_lora:
        peak["base read again to evaluate"] = found.evaluation["weights"]
    answering = found.evaluation["KV cache"] + found.evaluation["activations"]
    peak["answers of an evaluation batch"] = answering
    return peak


# --- what to change -------------------------------------------------------------------------------


def changes(settings: SFTSettings) -> Iterator[tuple[str, SFTSettings]]:
    """(words, settings) that need less and less memory; the product of batch_size and
    gradient_accumulation stays."""
    if not settings.gradient_checkpointing:
        settings = dataclasses.replace(settings, gradient_checkpointing=True)
        yield "gradient_checkpointing: true", settings
    while settings.batch_size > 1:
        size = max(1, settings.batch_size // 4)
        more = settings.gradient_accumulation * settings.batch_size // size
        settings = dataclasses.replace(settings, batch_size=size, gradient_accumulation=more)
        yield f"batch_size: {size}, gradient_accumulation: {more}", settings
    if not settings.uses_lora:
        settings = dataclasses.replace(settings, tower="frozen", projector="full", llm="lora")
        yield "tower: frozen, projector: full, llm: lora", settings
    if settings.quantize is None and settings.llm == "lora":
        settings = dataclasses.replace(settings, quantize="nf4")
        yield "quantize: nf4", settings


def measure(settings: SFTSettings, processor: Any, family: Family, count: int = 4) -> float:
    """Seconds a step, measured on this machine: the median of all but the first of `count` real
    steps, in a temporary folder. Needs the base's weights and the data."""
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
            settings, output_dir=folder, epochs=1, logging_steps=1, save_steps=10**6,
            cache_features=False, num_processes=None, report_to="none",
        )  # fmt: skip
        sft.train(manifest.resolve(settings.base), processor, family, rows, trial)
        at = [line["elapsed_s"] for line in read_log(Path(folder))]
    return statistics.median(b - a for a, b in itertools.pairwise(at))


# --- the command ----------------------------------------------------------------------------------


def gpu_bytes(text: str) -> int:
    """ "24GB", "80 GiB" or "24": memory as it is printed on a GPU, which counts in GiB."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:Gi?B?)?\s*", text, re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise UserError(f"--gpu {text!r} is no amount of memory: write it as 24GB")
    return int(float(match[1]) * GIB)


def show(memories: Mapping[str, Memory]) -> str:
    """A table: what takes memory, for each way to share the work."""
    fields = [field.name for field in dataclasses.fields(Memory)]
    lines = [f"  {'GiB per process':18}" + "".join(f"{name:>12}" for name in memories)]
    for field in (*fields, "total"):
        values = [getattr(memory, field) for memory in memories.values()]
        if any(values):
            lines.append(f"  {field:18}" + "".join(f"{value / GIB:12.2f}" for value in values))
    return "\n".join(lines)


def plan_command(config: str, words: Sequence[str], gpu: str | None, measuring: bool) -> int:
    """`vlmface plan`: prints; returns 0 if the run fits, 1 if it does not."""
    room = None if gpu is None else gpu_bytes(gpu)
    settings = settings_from(config, words)
    base = base_config(settings.base)
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
        print("steps: not known without the data (set n_train for an estimate)")
    if measuring:
        if processor is None:
            raise UserError(f"--measure takes real steps, but {settings.base} has no processor")
        seconds = measure(settings, processor, family)
        print(f"measured here: {seconds:.2f} s a step"
              + (f", {seconds * total / 3600:.1f} h for all" if total else ""))  # fmt: skip
    if room is None:
        return _plan_cpu(settings, family, base, rows, config, words)
    return _plan_gpu(settings, family, base, rows, room)


def _plan_cpu(
    settings: SFTSettings, family: Family, base: Any, rows: Rows, config: str,
    words: Sequence[str],
) -> int:  # fmt: skip
    found = estimate(settings, family, base, rows, gpu=False, processes=settings.num_processes or 1)
    (memory,) = found.training.values()
    print(f"\non a CPU, float32:\n{show(found.training)}")
    _other(settings, memory, found)
    empty = footprint(config, words, data=not rows.notes)
    peak = cpu_peak(settings, found, rows, empty)
    print("\npeak of the whole run, GiB per process:")
    for what, value in peak.items():
        print(f"  {what:34}{value / GIB:8.2f}")
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = sum(peak.values()) * (settings.num_processes or 1)
    fits = needed <= USABLE * room
    print(f"  {'all':34}{sum(peak.values()) / GIB:8.2f}")
    print(f"{'fits' if fits else 'does not fit'} in this machine's {room / GIB:.1f} GiB")
    return 0 if fits else 1


def _other(settings: SFTSettings, memory: Memory, found: Estimate) -> None:
    with_, without = memory.activations, found.other_activations
    if not settings.gradient_checkpointing:
        with_, without = without, with_
    print(
        f"  activations with gradient_checkpointing {with_ / GIB:.2f}, without {without / GIB:.2f}"
    )
    held = found.evaluation
    print("  evaluation: " + " + ".join(f"{k} {v / GIB:.2f}" for k, v in held.items())
          + f" = {sum(held.values()) / GIB:.2f}")  # fmt: skip


def _plan_gpu(settings: SFTSettings, family: Family, base: Any, rows: Rows, room: int) -> int:
    world = settings.num_processes or 1
    found = estimate(settings, family, base, rows, gpu=True, processes=world)
    name, memory = next(iter(found.training.items()))
    print(f"\non {world} GPU(s), bfloat16:\n{show(found.training)}")
    _other(settings, memory, found)
    limit = USABLE * room
    evaluation = sum(found.evaluation.values())
    print(
        f"\na GPU of {room / GIB:g} GiB: {limit / GIB:.1f} may be used, the rest is CUDA's own and "
        "what its allocator cannot use"
    )
    for way, needed in {**{k: m.total for k, m in found.training.items()},
                        "evaluation": evaluation}.items():  # fmt: skip
        verdict = "fits" if needed <= limit else "does not fit"
        print(f"  {way:12}{needed / GIB:8.2f}  {verdict}")
    fits = memory.total <= limit and evaluation <= limit
    if evaluation > limit and sum(found.evaluation.values()) - found.evaluation["weights"] > 0:
        print(f"for the evaluation: lower eval_batch_size (now {settings.eval_batch_size})")
    if memory.total > limit:
        print(f"to train by {name} nevertheless, one after the other:")
        for text, changed in changes(settings):
            needed = next(iter(estimate(
                changed, family, base, rows, gpu=True, processes=world, sharded=False
            ).training.values())).total  # fmt: skip
            enough = needed <= limit
            print(f"  {text:44}{needed / GIB:8.2f}  {'fits' if enough else 'still too much'}")
            if enough:
                break
        else:
            print("  a larger GPU, or more of them with accelerate/zero3.yaml")
    return 0 if fits else 1
