"""Cross-entropy that needs the logits' memory once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.autograd.function import once_differentiable

_ROWS = 256  # worked on at a time: the temporaries are that small


def summed_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, ignored: int) -> torch.Tensor:
    """The cross-entropy of float32 `logits` (n, vocabulary) and `targets` (n), summed over targets
    that are not `ignored`.

    With gradients enabled, the logits' memory holds their gradient afterwards: nobody may read them
    again. `F.cross_entropy` keeps logits, log-probabilities and gradient, three times as much.
    """
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return F.cross_entropy(logits, targets, ignore_index=ignored, reduction="sum")
    return _InPlace.apply(logits, targets, ignored)


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, ignored: int) -> Any:
        gradient = logits.detach()
        total = logits.new_zeros(())
        for part, wanted in zip(gradient.split(_ROWS), targets.split(_ROWS), strict=True):
            counts = (wanted != ignored).unsqueeze(1)
            place = wanted.unsqueeze(1).where(counts, 0)
            likely = part.log_softmax(-1)
            total -= (likely.gather(1, place) * counts).sum()
            torch.exp(likely, out=part)
            part.scatter_add_(1, place, part.new_full((), -1.0).expand_as(place))
            part.mul_(counts)
        ctx.gradient = gradient
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> Any:
        gradient = ctx.gradient
        ctx.gradient = None
        return gradient.mul_(scale), None, None
