"""Measure how much the outputs of a model depend on the order of floating-point sums.

Floating-point sums depend on their order. How much that moves a log-probability depends on the
model: its depth, width, the size of its logits, its precision. An absolute bound is therefore
wrong for some models: 1e-4 rejects correct merges of a language model of 135 million parameters,
whose logits go up to 40, and accepts a small model whose adapter has half its strength. So the
model is run a second time on the same inputs with its sums in another order, and the tolerance of a
comparison is a small multiple of that change. This costs one more pass, in any precision.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmface.errors import UserError

if TYPE_CHECKING:
    import torch

# Tolerances as multiples of the change that another order of summation causes. Merging an adapter
# changes 0.8 to 1.1 of it (mean square) in a language model of 135 million parameters;
# the largest of many differences varies more.
ALLOWED, ALLOWED_LARGEST = 3.0, 5.0


@dataclass(frozen=True)
class Difference:
    """The difference of log-probabilities in nats: root mean square, and the largest."""

    rms: float
    largest: float

    def within(self, level: Difference) -> bool:
        """Whether rounding of this `level` explains the difference; never for NaN."""
        usual = self.rms <= ALLOWED * level.rms
        return usual and self.largest <= ALLOWED_LARGEST * level.largest

    def __str__(self) -> str:
        return f"{self.rms:.1e} nats (root mean square; {self.largest:.1e} at most)"


def difference(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> Difference:
    """The difference of the distributions of two lists of logits, (tokens, vocabulary) each."""
    total, count, largest = 0.0, 0, 0.0
    for x, y in zip(a, b, strict=True):
        gap = (x.log_softmax(-1) - y.log_softmax(-1)).abs()
        total += float(gap.double().square().sum())
        count += gap.numel()
        largest = max(largest, float(gap.nan_to_num(nan=math.inf).max()))
    return Difference(math.sqrt(total / count), largest)


def level(
    logits: Sequence[torch.Tensor], reordered_logits: Sequence[torch.Tensor], dtype: torch.dtype
) -> Difference:
    """The change by another order of summation; at least the rounding of the largest logit.

    Args:
        logits: Of the model.
        reordered_logits: Computed under `reordered`.
        dtype: Of the computation.
    """
    import torch

    change = difference(logits, reordered_logits)
    least = torch.finfo(dtype).eps * max(float(x.abs().max()) for x in logits)
    return Difference(max(change.rms, least), max(change.largest, least))


def check_finite(logits: Sequence[torch.Tensor], description: str) -> None:
    """Check logits before a comparison.

    Args:
        logits: Of a model.
        description: The model, for the message.

    Raises:
        UserError: A logit is NaN or infinite.
    """
    bad = sum(int((~x.isfinite()).sum()) for x in logits)
    if bad:
        raise UserError(
            f"{bad} of {sum(x.numel() for x in logits)} logits of {description} are not finite "
            "(NaN or infinite): its weights are damaged, or its training diverged; restore them, "
            "or train again with a lower learning_rate"
        )


@contextlib.contextmanager
def reordered(model: Any) -> Iterator[None]:
    """Inside the block, every linear layer sums its inputs in two halves, and rounds its output to
    one of the two nearest numbers at random (with a fixed seed), like another implementation."""
    import torch

    generator = torch.Generator(model.device).manual_seed(0)
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, torch.nn.Linear)
        and layer.weight.shape == (layer.out_features, layer.in_features)
    ]

    def forward_of(layer: Any) -> Any:
        half = layer.in_features // 2

        def forward(x: torch.Tensor) -> torch.Tensor:
            linear = torch.nn.functional.linear
            y = linear(x[..., half:], layer.weight[:, half:], layer.bias)
            y = y + linear(x[..., :half], layer.weight[:, :half])
            noise = torch.rand(y.shape, generator=generator, device=y.device) - 0.5
            return (y.float() * (1 + torch.finfo(y.dtype).eps * noise)).to(y.dtype)

        return forward

    for layer in layers:
        layer.forward = forward_of(layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
