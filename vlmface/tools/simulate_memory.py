"""Simulate a training step and an evaluation batch without weights, to count the bytes of tensors
that PyTorch would hold.

A model on the meta device gets fake CPU weights: operations select their kernels and return shapes,
but compute nothing, so that a 7B model takes one to three minutes and no memory. Values that depend
on the batch alone (tokens, pixels, image sizes) are computed, since towers split images and number
positions by them.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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


class LiveTensorTracker(TorchDispatchMode):
    """Counts the bytes of tensors that were created by operations and still exist.

    Args:
        excluded: Tensors that are not counted.

    Attributes:
        current: Bytes now.
        peak: The most bytes so far.
    """

    def __init__(self, excluded: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in excluded}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return out

    def count(self, storage: Any) -> None:
        """Count a storage until it is freed."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.current += size
            self.peak = max(self.peak, self.current)
            weakref.finalize(storage, self._on_free, key, size)

    def _on_free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.current -= size


class _ComputeRealInputs(TorchDispatchMode):
    """Over FakeTensorMode: operations without a fake tensor are computed and have values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
            # The number of rows that a mask selects is known only outside of the fake mode.
            args = (args[0], _mask_positions(args[1]), *args[2:])
        return func(*args, **kwargs)


def _mask_positions(indices: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Indices in which masks with values are replaced by the positions that they select."""
    positions: list[torch.Tensor | None] = []
    for index in indices:
        if index is None or index.dtype != torch.bool or isinstance(index, FakeTensor):
            positions.append(index)
        else:
            with unset_fake_temporarily():
                positions += index.nonzero(as_tuple=True)
    return positions


@contextlib.contextmanager
def _fake(model: Any) -> Iterator[None]:
    """Inside the block, the weights of a meta model are fake CPU tensors."""
    fakes: dict[int, torch.Tensor] = {}
    meta: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in fakes:
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                        fakes[id(tensor)] = (
                            torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
                            if isinstance(tensor, torch.nn.Parameter)
                            else fake
                        )
                    meta.append((tensors, name, tensor))
                    tensors[name] = fakes[id(tensor)]
        try:
            with _ComputeRealInputs():
                yield
        finally:
            for tensors, name, tensor in meta:
                tensors[name] = tensor


@dataclass(frozen=True)
class StepOptions:
    """How a training step is taken.

    Attributes:
        checkpointing: With gradient checkpointing.
        cached: The tower's output is given.
        mixed: With bfloat16 autocast.
        accumulate: Gradients of an earlier pass already exist.
    """

    checkpointing: bool = False
    cached: bool = False
    mixed: bool = False
    accumulate: bool = False


def step_bytes(
    model: Any, family: Family, batch: Mapping[str, torch.Tensor], options: StepOptions
) -> int:
    """The peak of one training step.

    Args:
        model: On the meta device.
        family: Its family.
        batch: From the collator, on the CPU, with `labels`.
        options: How the step is taken.

    Returns:
        The most bytes that forward and backward hold at once in addition to weights and optimiser:
        activations, temporaries and gradients.
    """
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    labels = batch["labels"]
    supervised = labels.shape[1] - int((labels != encode.IGNORED).any(0).nonzero()[0])
    with _fake(model), _Checkpointing(core, enabled=options.checkpointing):
        inputs = {k: v for k, v in batch.items() if k not in ("labels", "row")}
        targets = F.pad(labels[:, -supervised:], (0, 1), value=encode.IGNORED)
        features: list[torch.Tensor] = []
        if options.cached:
            with torch.no_grad():
                features = list(family.tower_features(core, inputs))
            inputs = {k: v for k, v in inputs.items() if v.shape == labels.shape}

        def forward_backward() -> None:
            if options.cached:
                inputs.update(
                    family.inputs_from_features(core, [feature.clone() for feature in features])
                )
            with torch.autocast("cpu", torch.bfloat16, enabled=options.mixed):
                logits = model(**inputs, use_cache=False, logits_to_keep=supervised + 1).logits
            loss = summed_cross_entropy(
                logits.flatten(0, 1).float(), targets.flatten(), encode.IGNORED
            )
            del logits
            (loss / 8).backward()

        excluded = [*model.parameters(), *model.buffers(), *inputs.values(), *features]
        with LiveTensorTracker(excluded) as tracker:
            forward_backward()
            trained = [p for p in model.parameters() if p.requires_grad]
            # Adam's two moments are created in the first step. They are not counted.
            states = [(torch.empty_like(p), torch.empty_like(p)) for p in trained]
            for parameter in trained if not options.accumulate else ():
                parameter.grad = None
            tracker.peak = tracker.current
            forward_backward()
            peak = tracker.peak - sum(a.nbytes + b.nbytes for a, b in states)
        for parameter in trained:
            parameter.grad = None
    return peak


class _Checkpointing:
    """Enables gradient checkpointing as the trainer does, and disables it at the end."""

    def __init__(self, core: Any, *, enabled: bool) -> None:
        self.core, self.enabled = core, enabled

    def __enter__(self) -> None:
        if self.enabled:
            # A fake random state cannot be restored.
            options = {"use_reentrant": False, "preserve_rng_state": False}
            self.core.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
            self.core.enable_input_require_grads()

    def __exit__(self, *_: Any) -> None:
        if self.enabled:
            self.core.gradient_checkpointing_disable()
            self.core.disable_input_require_grads()


def feature_bytes(model: Any, family: Family, batch: Mapping[str, torch.Tensor]) -> float:
    """Bytes of the tower's output for one row."""
    with _fake(model), torch.no_grad():
        features = family.tower_features(model, batch)
        return sum(feature.nbytes for feature in features) / len(batch["input_ids"])


def evaluation_bytes(
    model: Any, batch: Mapping[str, torch.Tensor], new_tokens: int
) -> tuple[int, int]:
    """The memory of one evaluation batch.

    Args:
        model: On the meta device.
        batch: From the collator, prompts only.
        new_tokens: Of each answer.

    Returns:
        (bytes of the key-value cache with complete answers, the most bytes in addition to it while
        the prompts are processed).
    """
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    core.eval()
    weights = [*model.parameters(), *model.buffers()]
    with _fake(model), torch.no_grad(), LiveTensorTracker(weights) as tracker:
        output = core(**batch, use_cache=True, logits_to_keep=1)
        prefill = tracker.peak
        layers = [
            tensor
            for layer in output.cache.layers
            for tensor in (layer.keys, layer.values)
            if tensor is not None
        ]
        cache = sum(t.numel() * t.element_size() for t in layers)
        del output, layers
    core.train()
    length = batch["input_ids"].shape[1]
    return int(cache * (length + new_tokens) / length), int(prefill - cache)
