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

from vlmface.train.label_weights import label_weights as weights_by_label

LDAM_MARGIN = 0.5  # the rarest label's, in units of the logits before their scale


def label_weights(counts: Sequence[float], power: float) -> torch.Tensor | None:
    """`vlmface.train.label_weights` of labels by number; 0 for labels that do not occur. None if
    `power` is 0."""
    if not power:
        return None
    occurring = {str(label): n for label, n in enumerate(counts) if n > 0}
    weights = weights_by_label(occurring, power)
    return torch.tensor([weights.get(str(label), 0.0) for label in range(len(counts))])


def ldam_margins(counts: Sequence[float]) -> torch.Tensor:
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
    """Cross-entropy of labels of which a picture has one: the mean over the rows of all processes.

    Args:
        logits: (n, labels).
        targets: Label numbers (n,), or probabilities of the labels (n, labels).
        scale: What the logits are multiplied by.
        smoothing: As in torch's cross-entropy.
        weights: (labels,), see `label_weights`.
        margins: (labels,), subtracted from the true label's logit before the `scale`; for label
            numbers only.
    """
    if margins is not None:
        target_margins = margins.to(logits)[targets]
        logits = logits - F.one_hot(targets, logits.shape[1]) * target_margins[:, None]
    total = F.cross_entropy(
        logits * scale, targets, weight=weights, label_smoothing=smoothing, reduction="sum"
    )
    return total / mean_over_processes(torch.tensor(float(len(targets))).to(total))


def multilabel_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    scale: torch.Tensor | float = 1.0,
    smoothing: float = 0.0,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Binary cross-entropy of labels of which a picture may have several: the mean over rows and
    labels of all processes.

    Args:
        logits: (n, labels).
        targets: 0 or 1 for each label, (n, labels).
        scale: What the logits are multiplied by.
        smoothing: Moves targets towards one half.
        weights: (labels,) of the labels that are present, see `label_weights`.
    """
    goal = targets * (1 - smoothing) + smoothing / 2
    total = F.binary_cross_entropy_with_logits(
        logits * scale, goal, pos_weight=weights, reduction="sum"
    )
    return total / mean_over_processes(torch.tensor(float(targets.numel())).to(total))


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
