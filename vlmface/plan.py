"""`vlmface plan`: what a run will need, before it is started.

The model is built from its configuration without weights and trains one step on fake tensors:
operations give shapes and no values, so that a 7B model takes seconds and no memory, and what is
counted is what PyTorch would hold (Rajbhandari et al. 2020, arXiv:1910.02054, name the parts).
Nothing is said of speed unless `measure` takes real steps on this machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlmface import encode, families, inspect_rows, manifest
from vlmface.errors import UserError
from vlmface.families import parts
from vlmface.train import sft
from vlmface.train.loss import summed_cross_entropy

GIB = 2**30
# Of a GPU. The rest is for CUDA's context and what its allocator cannot use.
USABLE = 0.9
# Bytes of an NF4 weight with quantised constants: 4 bits, 8 for each 64 weights, 32 for each
# 64 * 256 (Dettmers et al. 2023, arXiv:2305.14314, section 3).
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
# DeepSpeed's defaults, in elements: reduce_bucket_size and stage3_max_live_parameters.
_BUCKET, _LIVE = 5e8, 1e9
_NEEDS_VALUES = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    GuardOnDataDependentSymNode,
)
_ANSWER = 256  # supervised tokens that are assumed where there are no rows to look at


# --- the model ------------------------------------------------------------------------------------


def base_config(base: str) -> Any:
    """The configuration of a base model: a checkpoint or a folder that holds config.json alone."""
    from transformers import AutoConfig

    path = manifest.resolve(base)
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path / 'config.json'}: {error}") from error


def build(config: Any, family: ModuleType, settings: sft.Settings, dtype: Any) -> Any:
    """The model of a run as its trainer sees it, adapters and frozen parts included, on PyTorch's
    meta device: shapes without values."""
    from peft import get_peft_model
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    if settings.uses_lora:
        # The processor's tokens, or as many as the model has if there is none.
        tokens = _tokens(settings) or config.get_text_config().vocab_size
        lora = sft.lora_config(settings, family, model, tokens)
        model = get_peft_model(model, lora, low_cpu_mem_usage=True)
    else:
        parts.freeze(family.PARTS, model, settings.policy)
    return model.train()


def _tokens(settings: sft.Settings) -> int | None:
    processor = processor_of(settings)
    return None if processor is None else len(processor.tokenizer)


def processor_of(settings: sft.Settings) -> Any | None:
    """The base's processor, or None if the folder has none."""
    path = manifest.resolve(settings.base)
    if not (path / "tokenizer_config.json").is_file():
        return None
    return families.get(families.family_of(path)).load_processor(path)


def parameters(model: Any, family: ModuleType) -> dict[str, dict[str, list[int]]]:
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
        part = parts.part_of(name, family.PARTS)
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


# --- one step, simulated --------------------------------------------------------------------------


class _Live(TorchDispatchMode):
    """Counts the bytes of tensors that operations made and that still exist."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}
        self.names = itertools.count()
        self.events: list[tuple[int, int]] = []  # (which, its size; 0: freed), in order

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return out

    def count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            name = next(self.names)
            self.events.append((name, size))
            weakref.finalize(storage, self._gone, key, size, name)

    def _gone(self, key: int, size: int, name: int) -> None:
        self.seen.discard(key)
        self.now -= size
        self.events.append((name, 0))


@contextlib.contextmanager
def _fake(model: Any) -> Iterator[None]:
    """Inside, the weights of a meta model are fake tensors of the CPU: operations choose their
    kernels, attention's included, and compute nothing."""
    made: dict[int, torch.Tensor] = {}
    meta: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in made:
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                        made[id(tensor)] = (
                            torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
                            if isinstance(tensor, torch.nn.Parameter)
                            else fake
                        )
                    meta.append((tensors, name, tensor))
                    tensors[name] = made[id(tensor)]
        try:
            yield
        finally:
            for tensors, name, tensor in meta:
                tensors[name] = tensor


def _like(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fake tensors of the same shapes."""
    return {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in batch.items()}


def step_bytes(
    model: Any,
    family: ModuleType,
    batch: Mapping[str, torch.Tensor],
    *,
    checkpointing: bool = False,
    cached: bool = False,
    mixed: bool = False,
    accumulate: bool = False,
) -> tuple[int, list[tuple[int, int]]]:
    """(most bytes that forward and backward hold at once beside weights and optimiser: activations,
    temporaries and gradients; what was allocated and freed on the way, in order).

    `batch` is the collator's, on any device (only shapes matter), `labels` included. `cached`: the
    tower's output is given; `mixed`: under bfloat16 autocast; `accumulate`: gradients of an earlier
    pass are there already.
    """
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    labels = batch["labels"]
    kept = labels.shape[1] - int((labels != encode.IGNORED).any(0).nonzero()[0])
    with _fake(model), _Checkpointing(core, on=checkpointing):
        inputs = _like({k: v for k, v in batch.items() if k not in ("labels", "row")})
        targets = _like({"labels": F.pad(labels[:, -kept:], (0, 1))})["labels"]
        features: list[torch.Tensor] = []
        if cached:
            with torch.no_grad():
                features = list(family.tower_features(core, inputs))
            inputs = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask")}

        def passes() -> None:
            if cached:
                inputs.update(family.features_input(core, [one.clone() for one in features]))
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                logits = model(**inputs, use_cache=False, logits_to_keep=kept + 1).logits
            loss = summed_cross_entropy(
                logits.flatten(0, 1).float(), targets.flatten(), encode.IGNORED
            )
            del logits
            (loss / 8).backward()

        with _Live([*model.parameters(), *model.buffers(), *inputs.values(), *features]) as live:
            passes()
            moving = [p for p in model.parameters() if p.requires_grad]
            # Adam's two moments appear at the first step: not counted, but they lie in between.
            states = [(torch.empty_like(p), torch.empty_like(p)) for p in moving]
            for parameter in moving if not accumulate else ():
                parameter.grad = None
            live.peak = live.now
            passes()
            peak = live.peak - sum(a.nbytes + b.nbytes for a, b in states)
        for parameter in moving:
            parameter.grad = None
    return peak, live.events


def claimed(events: Sequence[tuple[int, int]]) -> int:
    """Most bytes that this machine's malloc takes from the system for the allocations.

    They are replayed in a process of their own; no page is touched. The C library keeps freed
    blocks up to 32 MiB in its heap, where larger ones do not fit between those in use, so that a
    CPU run takes more than its tensors' bytes; the records that PyTorch keeps of each tensor (some
    hundred bytes) come to lie in the gaps and keep them from growing together. Where the library
    cannot say (it is not glibc), the most that is in use at once.
    """
    done = subprocess.run(
        [sys.executable, "-c", _REPLAY],
        input=json.dumps(events),
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


_REPLAY = """
import ctypes, json, sys
events, c = json.load(sys.stdin), ctypes.CDLL(None)
held, now, most = {}, 0, 0
if not hasattr(c, "mallinfo2"):
    for name, size in events:
        now += size or -held[name]
        held[name], most = size, max(most, now)
    print(most)
    raise SystemExit
class Info(ctypes.Structure):
    _fields_ = [(n, ctypes.c_size_t) for n in "arena o s hblks hblkhd u f free used k".split()]
c.mallinfo2.restype = Info
# From now on blocks up to 32 MiB come from the heap, as in any process that has freed one.
taken = lambda: c.mallinfo2().arena + c.mallinfo2().hblkhd
big = ctypes.c_void_p()
c.posix_memalign(ctypes.byref(big), ctypes.c_size_t(64), ctypes.c_size_t(2**25 - 2**16))
c.free(big)
before = taken()
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
for name, size in events:
    if size:
        data = ctypes.c_void_p()
        c.posix_memalign(ctypes.byref(data), ctypes.c_size_t(64), ctypes.c_size_t(size))
        held[name] = [data.value, *map(c.malloc, (32, 48, 80, 112, 208))]
        most = max(most, taken() - before)
    else:
        for block in held.pop(name):
            c.free(block)
print(most)
"""


class _Checkpointing:
    """Gradient checkpointing as the trainer switches it on, and off again."""

    def __init__(self, core: Any, *, on: bool) -> None:
        self.core, self.on = core, on

    def __enter__(self) -> None:
        if self.on:
            # A fake random state cannot be restored.
            options = {"use_reentrant": False, "preserve_rng_state": False}
            self.core.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
            self.core.enable_input_require_grads()

    def __exit__(self, *_: Any) -> None:
        if self.on:
            self.core.gradient_checkpointing_disable()
            self.core.disable_input_require_grads()


def feature_bytes(model: Any, family: ModuleType, batch: Mapping[str, torch.Tensor]) -> float:
    """Bytes of the tower's output for one row."""
    with _fake(model), torch.no_grad():
        features = family.tower_features(model, _like(batch))
        return sum(one.nbytes for one in features) / len(features)


def evaluation_bytes(
    model: Any, batch: Mapping[str, torch.Tensor], new_tokens: int
) -> tuple[int, int]:
    """(bytes of the keys and values of a batch when its answers are complete, most bytes beside
    them that reading the prompts takes). `batch` is the collator's, prompts only."""
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    core.eval()
    with _fake(model), torch.no_grad():
        inputs = _like(batch)
        with _Live([*model.parameters(), *model.buffers()]) as live:
            output = core(**inputs, use_cache=True, logits_to_keep=1)
            reading = live.peak
            layers = [
                tensor
                for layer in output.cache.layers
                for tensor in (layer.keys, layer.values)
                if tensor is not None
            ]
            held = sum(t.numel() * t.element_size() for t in layers)
            del output, layers
    core.train()
    length = batch["input_ids"].shape[1]
    return int(held * (length + new_tokens) / length), int(reading - held)


# --- batches --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shapes:
    """What batches look like: `rows` that train and `faces` that they are about (of all, None if
    unknown), `train` a batch of the longest rows, `ask` one of prompts; `notes`: what had to be
    assumed."""

    rows: int | None
    faces: int | None
    train: dict[str, torch.Tensor]
    ask: dict[str, torch.Tensor]
    notes: tuple[str, ...] = ()

    def cut(self, batch: dict[str, torch.Tensor], size: int) -> dict[str, torch.Tensor]:
        """The batch with another number of rows: the last ones left out, or the first repeated."""
        now = batch["input_ids"].shape[0]
        cut: dict[str, torch.Tensor] = {}
        for name, tensor in batch.items():
            each = tensor.shape[0] // now  # some families give several patches an image
            cut[name] = torch.cat([tensor[:each]] * max(0, size - now) + [tensor[: each * size]])
        return cut


def shapes_of(settings: sft.Settings, family: ModuleType, config: Any, processor: Any) -> Shapes:
    """Batches of the run's own rows. Without its data, rows of max_length tokens are assumed;
    without its processor too, pictures of the size that the vision tower takes."""
    if processor is not None:
        try:
            tasks = inspect_rows.read_tasks(settings, processor, family)
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
        batch = [rows[i] for _, rows, i in kept[: settings.batch_size]]
        train = encode.Collator(processor, family)(batch)
        first = batch[0]["labels"]
        prompt = next(i for i, label in enumerate(first) if label != encode.IGNORED)
        ask = {
            name: tensor[:, :prompt] if tensor.shape == train["input_ids"].shape else tensor
            for name, tensor in train.items()
            if name not in ("labels", "row")
        }
        return Shapes(len(kept), max(len(task.rows) for task in tasks), train, ask)
    return _assumed(settings, family, config, None, "no processor beside config.json")


def _assumed(
    settings: sft.Settings, family: ModuleType, config: Any, processor: Any, why: str
) -> Shapes:
    length = settings.max_length
    answer = min(_ANSWER, length // 2)
    if processor is not None:
        from PIL import Image

        pixels = family.image_inputs(processor, [Image.new("RGB", (336, 336))])
        tokens = family.image_tokens(processor, (336, 336))
    else:
        vision = getattr(config, "vision_config", None)
        side, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
        if not isinstance(side, int) or not isinstance(patch, int):
            raise UserError(
                f"config.json of {settings.base} does not say how large its pictures are: put the "
                "processor's files beside it"
            )
        pixels = {"pixel_values": torch.zeros(1, config.vision_config.num_channels, side, side)}
        tokens = (side // patch) ** 2
    if tokens + answer > length:
        raise UserError(f"max_length {length} does not hold an image of {tokens} tokens: raise it")
    ids = torch.zeros(1, length, dtype=torch.long)
    labels = torch.full_like(ids, encode.IGNORED)
    labels[:, length - answer :] = 0
    plain = [0] * length
    more = {
        k: torch.tensor([v]) for k, v in _token_inputs(family, processor, plain, length - answer)
    }
    train = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more, **pixels}
    ask = {k: v[:, : length - answer] if v.shape == ids.shape else v for k, v in train.items()}
    note = f"{why}; rows of max_length {length} tokens assumed, {answer} of them supervised"
    rows = settings.n_train and settings.n_train * len(settings.prompts)
    shapes = Shapes(rows, settings.n_train, {**train, "labels": labels}, ask, (note,))
    return dataclasses.replace(shapes, train=shapes.cut(shapes.train, settings.batch_size))


def _token_inputs(
    family: ModuleType, processor: Any, ids: list[int], answer: int
) -> Iterable[tuple[str, list[int]]]:
    return family.token_inputs(processor, ids, answer).items() if processor is not None else ()


def steps(settings: sft.Settings, rows: int) -> int:
    """Optimiser steps of the run, as transformers' Trainer counts them."""
    batches = math.ceil(rows / (settings.batch_size * (settings.num_processes or 1)))
    return math.ceil(settings.epochs * max(1, math.ceil(batches / settings.gradient_accumulation)))


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
    settings: sft.Settings, family: ModuleType, config: Any, shapes: Shapes, *, gpu: bool,
    processes: int, sharded: bool = True,
) -> Estimate:  # fmt: skip
    """Memory of the run on a GPU (bfloat16, as the recipes train there) or on a CPU (float32)."""
    lora = settings.uses_lora
    model = build(config, family, settings, torch.bfloat16 if gpu and lora else torch.float32)
    batch = shapes.cut(shapes.train, settings.batch_size)
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
    peak, events = step_bytes(
        model, family, batch, checkpointing=settings.gradient_checkpointing, **how
    )
    other, _ = step_bytes(
        model, family, batch, checkpointing=not settings.gradient_checkpointing, **how
    )
    activations = max(0, peak - moving)
    alone = Memory(weights, moving, 2 * moving, activations, moving if processes > 1 else 0)
    training = {"DDP" if processes > 1 else "1 process": alone}
    if sharded and gpu and processes > 1:
        if not lora:  # DeepSpeed holds the weights in bfloat16 itself, and needs no autocast
            half = build(config, family, settings, torch.bfloat16)
            peak, _ = step_bytes(
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
    cache, reading = evaluation_bytes(
        asked, shapes.cut(shapes.ask, settings.eval_batch_size), settings.max_new_tokens
    )
    evaluation = {
        "weights": float(_bytes(asked)),
        "KV cache": float(cache),
        "activations": float(reading),
    }
    kept = feature_bytes(asked, family, batch) if how["cached"] else 0.0
    return Estimate(training, max(0, other - moving), evaluation, kept, events)


def _weights(model: Any, family: ModuleType, settings: sft.Settings) -> float:
    """Bytes of the weights; the language model's linear layers in 4 bits if they are quantised."""
    if not settings.quantize:
        return _bytes(model)
    total = 0.0
    for name, p in model.named_parameters():
        packed = (
            p.ndim == 2
            and not p.requires_grad
            and parts.part_of(name, family.PARTS) == "llm"
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
from vlmface import families, inspect_rows, manifest
from vlmface.evaluate import report
from vlmface.infer import predictor
from vlmface.train import sft, trainer
if {data}:
    settings = inspect_rows.settings_from({config!r}, {words!r})
    base = manifest.resolve(settings.base)
    family = families.get(families.family_of(base))
    kept = inspect_rows.read_tasks(settings, family.load_processor(base), family)
layer = torch.nn.Linear(256, 256)
optimiser = torch.optim.AdamW(layer.parameters(), fused=True)
layer(torch.ones(256, 256)).sum().backward()
optimiser.step()
print(sft.peak_rss_gib())
"""


def cpu_peak(
    settings: sft.Settings, found: Estimate, shapes: Shapes, empty: int
) -> dict[str, float]:
    """{what: bytes} of the main process's peak on a CPU, where a run also evaluates.

    A checkpoint's file is mapped: its pages count once they are read. After training, the run
    evaluates (under LoRA with the base read once more), while what training took has not gone back
    to the system.
    """
    (memory,) = found.training.values()
    peak = {
        "empty run": float(empty),
        "weights": memory.weights,
        "training (as malloc lays it out)": claimed(found.events) + memory.buffers,
    }
    if found.features:
        peak["features of the frozen tower"] = found.features * (shapes.faces or 0)
    if settings.uses_lora:
        peak["base read again to evaluate"] = found.evaluation["weights"]
    answering = found.evaluation["KV cache"] + found.evaluation["activations"]
    peak["answers of an evaluation batch"] = answering
    return peak


# --- what to change -------------------------------------------------------------------------------


def changes(settings: sft.Settings) -> Iterator[tuple[str, sft.Settings]]:
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


def measure(settings: sft.Settings, processor: Any, family: ModuleType, count: int = 4) -> float:
    """Seconds a step, measured on this machine: the median of all but the first of `count` real
    steps, in a temporary folder. Needs the base's weights and the data."""
    tasks = inspect_rows.read_tasks(settings, processor, family)
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
        at = [line["elapsed_s"] for line in sft.read_log(Path(folder))]
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
    settings = inspect_rows.settings_from(config, words)
    base = base_config(settings.base)
    family = families.get(families.family_of(base))
    processor = processor_of(settings)
    shapes = shapes_of(settings, family, base, processor)
    for note in shapes.notes:
        print(f"note: {note}")
    meta = build(base, family, settings, torch.float32)
    print(inspect_rows.show_parameters(parameters(meta, family)))
    size, length = shapes.train["input_ids"].shape
    world = settings.num_processes or 1
    print(
        f"\nlongest batch: {size} rows of {length} tokens; {world} process(es) x batch_size "
        f"{settings.batch_size} x gradient_accumulation {settings.gradient_accumulation}"
    )
    total = steps(settings, shapes.rows) if shapes.rows else None
    if total is not None:
        print(f"{total:,} steps: {shapes.rows:,} rows, {settings.epochs:g} epochs")
    else:
        print("steps: not known without the data (set n_train for an estimate)")
    if measuring:
        if processor is None:
            raise UserError(f"--measure takes real steps, but {settings.base} has no processor")
        seconds = measure(settings, processor, family)
        print(f"measured here: {seconds:.2f} s a step"
              + (f", {seconds * total / 3600:.1f} h for all" if total else ""))  # fmt: skip
    try:
        if room is None:
            return _plan_cpu(settings, family, base, shapes, config, words)
        return _plan_gpu(settings, family, base, shapes, room)
    except _NEEDS_VALUES as error:
        known = _fixed(meta if room is None else None, settings, family, base)
        print(f"\nwithout activations and buffers, one process:\n{show({'1 process': known})}")
        raise UserError(
            f"the activations of {family.NAME} are not estimated, as its tower makes tensors whose "
            f"shapes depend on values ({type(error).__name__}): start the run with a small n_train "
            "and look at peak_rss_gib in its metrics.json"
        ) from error


def _fixed(model: Any, settings: sft.Settings, family: ModuleType, base: Any) -> Memory:
    """What does not depend on the batch."""
    if model is None:
        dtype = torch.bfloat16 if settings.uses_lora else torch.float32
        model = build(base, family, settings, dtype)
    moving = _bytes(model, train=True)
    return Memory(_weights(model, family, settings), moving, 2 * moving, 0)


def _plan_cpu(
    settings: sft.Settings, family: ModuleType, base: Any, shapes: Shapes, config: str,
    words: Sequence[str],
) -> int:  # fmt: skip
    found = estimate(
        settings, family, base, shapes, gpu=False, processes=settings.num_processes or 1
    )
    (memory,) = found.training.values()
    print(f"\non a CPU, float32:\n{show(found.training)}")
    _other(settings, memory, found)
    empty = footprint(config, words, data=not shapes.notes)
    peak = cpu_peak(settings, found, shapes, empty)
    print("\npeak of the whole run, GiB per process:")
    for what, value in peak.items():
        print(f"  {what:34}{value / GIB:8.2f}")
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = sum(peak.values()) * (settings.num_processes or 1)
    fits = needed <= USABLE * room
    print(f"  {'all':34}{sum(peak.values()) / GIB:8.2f}")
    print(f"{'fits' if fits else 'does not fit'} in this machine's {room / GIB:.1f} GiB")
    return 0 if fits else 1


def _other(settings: sft.Settings, memory: Memory, found: Estimate) -> None:
    with_, without = memory.activations, found.other_activations
    if not settings.gradient_checkpointing:
        with_, without = without, with_
    print(
        f"  activations with gradient_checkpointing {with_ / GIB:.2f}, without {without / GIB:.2f}"
    )
    held = found.evaluation
    print("  evaluation: " + " + ".join(f"{k} {v / GIB:.2f}" for k, v in held.items())
          + f" = {sum(held.values()) / GIB:.2f}")  # fmt: skip


def _plan_gpu(
    settings: sft.Settings, family: ModuleType, base: Any, shapes: Shapes, room: int
) -> int:
    world = settings.num_processes or 1
    found = estimate(settings, family, base, shapes, gpu=True, processes=world)
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
                changed, family, base, shapes, gpu=True, processes=world, sharded=False
            ).training.values())).total  # fmt: skip
            enough = needed <= limit
            print(f"  {text:44}{needed / GIB:8.2f}  {'fits' if enough else 'still too much'}")
            if enough:
                break
        else:
            print("  a larger GPU, or more of them with accelerate/zero3.yaml")
    return 0 if fits else 1
