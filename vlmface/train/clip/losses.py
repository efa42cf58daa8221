"""Losses for labels: pictures of one label, or equal captions, are never negatives.

Where several processes share a batch, the mean of their losses is the loss of the whole batch, and
so are its gradients, which is what data parallel training computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812

LDAM_MARGIN = 0.5  # the rarest label's, in units of the logits before their scale
EFFECTIVE_BETA = 0.999


def class_weights(counts: Sequence[int], kind: str) -> torch.Tensor | None:
    """Weights of the labels, mean 1 over the labels that occur; 0 for those that do not.

    "none": None. "balanced": inverse frequency. "effective": inverse effective number of samples,
    (1 - beta) / (1 - beta^n), after Cui et al. 2019, arXiv:1901.05555.
    """
    if kind == "none":
        return None
    n = torch.tensor(counts, dtype=torch.float64)
    raw = 1 / n if kind == "balanced" else (1 - EFFECTIVE_BETA) / (1 - EFFECTIVE_BETA**n)
    raw = torch.where(n > 0, raw, 0.0)
    return (raw / raw.sum() * (n > 0).sum()).float()


def ldam_margins(counts: Sequence[int]) -> torch.Tensor:
    """Margins of the labels, proportional to n^(-1/4), the rarest label's LDAM_MARGIN (Cao et al.
    2019, arXiv:1906.07413); 0 for labels that do not occur."""
    n = torch.tensor(counts, dtype=torch.float64)
    raw = torch.where(n > 0, n.clamp(min=1) ** -0.25, 0.0)
    return (raw / raw.max() * LDAM_MARGIN).float()


def label_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    scale: torch.Tensor | float = 1.0,
    smoothing: float = 0.0,
    weights: torch.Tensor | None = None,
    margins: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy of scaled `logits` (n, labels) against `targets`: label numbers (n,), or 0 and
    1 for each label (n, labels) where a picture may have several: the mean over the rows of all
    processes.

    `margins` are taken off the true label's logit before the `scale`. `weights` and `smoothing` as
    in torch's cross-entropy; with several labels, smoothing draws targets towards one half.
    """
    if targets.ndim == 2:
        goal = targets * (1 - smoothing) + smoothing / 2
        total = F.binary_cross_entropy_with_logits(
            logits * scale, goal, pos_weight=weights, reduction="sum"
        )
        return total / mean_over_processes(torch.tensor(float(targets.numel())).to(total))
    if margins is not None:
        target_margins = margins.to(logits)[targets]
        logits = logits - F.one_hot(targets, logits.shape[1]) * target_margins[:, None]
    total = F.cross_entropy(
        logits * scale, targets, weight=weights, label_smoothing=smoothing, reduction="sum"
    )
    rows = torch.tensor(float(len(targets))) if weights is None else weights[targets].sum()
    return total / mean_over_processes(rows.to(total))


def affect_loss(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor | None:
    """Mean squared error of valence and arousal (n, 2) over what is annotated, in the rows of all
    processes; `truth` is NaN elsewhere. None if nothing is annotated."""
    is_annotated = ~truth.isnan()
    annotated = mean_over_processes(is_annotated.sum().to(predicted))
    if not annotated:
        return None
    error = (predicted - truth.nan_to_num()) * is_annotated
    return error.square().sum() / annotated


def mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    """The mean of a number over all processes. All of them must call it."""
    if (world := _world_size()) == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world


def of_all_processes(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors of all processes, one after the other; shapes must be equal. Gradients flow to
    this process's own part alone, times the number of processes: each process differentiates the
    same loss by its own part, and data parallel training divides the sum by that number."""
    if (world := _world_size()) == 1:
        return tensors
    joined = []
    for tensor in tensors:
        parts = [torch.empty_like(tensor) for _ in range(world)]
        dist.all_gather(parts, tensor.detach().contiguous())
        parts[dist.get_rank()] = _ScaledGradient.apply(tensor, world)
        joined.append(torch.cat(parts))
    return tuple(joined)


class _ScaledGradient(torch.autograd.Function):
    """The same tensor; its gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.factor, None


def _world_size() -> int:
    distributed = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if distributed else 1


def caption_loss(
    images: torch.Tensor,
    texts: torch.Tensor,
    groups: torch.Tensor,
    scale: torch.Tensor | float,
) -> torch.Tensor:
    """Contrastive loss of normalised features (n, width) in which all pairs of one group match.

    `groups` (n,): pictures whose captions are the same have the same number. Each picture's target
    is shared evenly among the captions of its group, and each caption's among its pictures; with
    all groups different this is CLIP's loss.
    """
    logits = scale * images @ texts.T
    same = (groups[:, None] == groups[None, :]).to(logits)
    goal = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, goal) + F.cross_entropy(logits.T, goal)) / 2
