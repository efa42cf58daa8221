"""One training step and one evaluation batch without weights: what PyTorch would hold.

A model on the meta device gets fake weights of the CPU: operations choose their kernels and give
shapes, but compute nothing, so that a 7B model takes a minute or three and no memory. What follows
from the batch alone (tokens, pixels, the sizes of images) is computed for real, since towers take
pictures apart and number positions by such values.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlmface import encode
from vlmface.families.base import Family
from vlmface.train.loss import summed_cross_entropy

aten = torch.ops.aten


class Live(TorchDispatchMode):
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


class _Known(TorchDispatchMode):
    """Over FakeTensorMode: what no weight takes part in is computed, and so has values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
            # How many rows a mask chooses is known, if only outside of the fake mode.
            args = (args[0], _positions(args[1]), *args[2:])
        return func(*args, **kwargs)


def _positions(indices: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Indices in which masks with values are replaced by the positions that they choose."""
    found: list[torch.Tensor | None] = []
    for index in indices:
        if index is None or index.dtype != torch.bool or isinstance(index, FakeTensor):
            found.append(index)
        else:
            with unset_fake_temporarily():
                found += index.nonzero(as_tuple=True)
    return found


@contextlib.contextmanager
def _fake(model: Any) -> Iterator[None]:
    """Inside, the weights of a meta model are fake tensors of the CPU."""
    made: dict[int, torch.Tensor] = {}
    meta: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    with FakeTensorMode(allow_non_fake_inputs=True):
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
            with _Known():
                yield
        finally:
            for tensors, name, tensor in meta:
                tensors[name] = tensor


def step_bytes(
    model: Any,
    family: Family,
    batch: Mapping[str, torch.Tensor],
    *,
    checkpointing: bool = False,
    cached: bool = False,
    mixed: bool = False,
    accumulate: bool = False,
) -> tuple[int, list[tuple[int, int]]]:
    """(most bytes that forward and backward hold at once beside weights and optimiser: activations,
    temporaries and gradients; what was allocated and freed on the way, in order).

    `batch` is the collator's, on the CPU, `labels` included. `cached`: the tower's output is given;
    `mixed`: under bfloat16 autocast; `accumulate`: gradients of an earlier pass are there already.
    """
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    labels = batch["labels"]
    kept = labels.shape[1] - int((labels != encode.IGNORED).any(0).nonzero()[0])
    with _fake(model), _Checkpointing(core, on=checkpointing):
        inputs = {k: v for k, v in batch.items() if k not in ("labels", "row")}
        targets = F.pad(labels[:, -kept:], (0, 1), value=encode.IGNORED)
        features: list[torch.Tensor] = []
        if cached:
            with torch.no_grad():
                features = list(family.tower_features(core, inputs))
            inputs = {k: v for k, v in inputs.items() if v.shape == labels.shape}

        def passes() -> None:
            if cached:
                inputs.update(family.inputs_from_features(core, [one.clone() for one in features]))
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                logits = model(**inputs, use_cache=False, logits_to_keep=kept + 1).logits
            loss = summed_cross_entropy(
                logits.flatten(0, 1).float(), targets.flatten(), encode.IGNORED
            )
            del logits
            (loss / 8).backward()

        with Live([*model.parameters(), *model.buffers(), *inputs.values(), *features]) as live:
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


def feature_bytes(model: Any, family: Family, batch: Mapping[str, torch.Tensor]) -> float:
    """Bytes of the tower's output for one row."""
    with _fake(model), torch.no_grad():
        features = family.tower_features(model, batch)
        return sum(one.nbytes for one in features) / len(batch["input_ids"])


def evaluation_bytes(
    model: Any, batch: Mapping[str, torch.Tensor], new_tokens: int
) -> tuple[int, int]:
    """(bytes of the keys and values of a batch when its answers are complete, most bytes beside
    them that reading the prompts takes). `batch` is the collator's, prompts only."""
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    core.eval()
    with _fake(model), torch.no_grad(), Live([*model.parameters(), *model.buffers()]) as live:
        output = core(**batch, use_cache=True, logits_to_keep=1)
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
