"""Cross-entropy that computes the gradient in the memory of the logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.autograd.function import once_differentiable

_ROWS = 256  # of a block, which limits the size of temporaries


def summed_cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    ignored: int,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Summed cross-entropy.

    With gradients enabled, the memory of `logits` holds their gradient afterwards, so they must not
    be read again. `F.cross_entropy` keeps logits, log-probabilities and gradient: three times the
    memory.

    Args:
        logits: (n, vocabulary), float32.
        targets: (n).
        ignored: The target value of rows that are not counted.
        weights: (n), what the cross-entropy of each row is multiplied by; None: 1.

    Returns:
        The sum over the rows.
    """
    if not (torch.is_grad_enabled() and logits.requires_grad):
        if weights is None:
            return F.cross_entropy(logits, targets, ignore_index=ignored, reduction="sum")
        each = F.cross_entropy(logits, targets, ignore_index=ignored, reduction="none")
        return (each * weights).sum()
    counted = (targets != ignored).to(logits.dtype)
    return _InPlace.apply(logits, targets, counted if weights is None else counted * weights)


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, weights: Any) -> Any:
        gradient = logits.detach()
        total = logits.new_zeros(())
        for part, labels, factors in zip(
            *(tensor.split(_ROWS) for tensor in (gradient, targets, weights)), strict=True
        ):
            factor = factors.unsqueeze(1)
            index = labels.unsqueeze(1).clamp(min=0)  # those that are ignored have weight 0
            log_probs = part.log_softmax(-1)
            total -= (log_probs.gather(1, index) * factor).sum()
            torch.exp(log_probs, out=part)
            part.scatter_add_(1, index, part.new_full((), -1.0).expand_as(index))
            part.mul_(factor)
        ctx.gradient = gradient
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> Any:
        gradient = ctx.gradient
        ctx.gradient = None
        return gradient.mul_(scale), None, None
