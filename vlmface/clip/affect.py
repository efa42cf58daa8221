"""Heads for valence and arousal in addition to the labels.

"linear" reads them from the picture's feature alone. "graph" lets labels and dimensions inform each
other: a graph convolution over the labels and the two dimensions, whose edges are learnt, refines
the logits and the readings. It follows Emotion-GCN (Antoniadis et al. 2021, arXiv:2106.03487),
where the graph makes the classifiers' weights instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


class Linear(nn.Module):
    """Valence and arousal from the feature; labels as they are."""

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2))

    def forward(
        self, features: torch.Tensor, logits: torch.Tensor, scale: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return logits, self.read(features * features.shape[-1] ** 0.5).tanh()


class Graph(nn.Module):
    """Nodes are the labels and the two dimensions. Each starts with what the picture says of it
    (a logit, or a reading) and a vector of its own; two graph convolutions mix them along learnt
    edges; what comes out is added to the logits and to the readings."""

    def __init__(self, width: int, labels: int, hidden: int = 32) -> None:
        super().__init__()
        self.labels = labels
        nodes = labels + 2
        self.read = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2))
        self.node = nn.Parameter(torch.randn(nodes, hidden) * 0.1)
        self.edges = nn.Parameter(torch.eye(nodes) * 2)
        self.enter = nn.Linear(1, hidden)
        self.first = nn.Linear(hidden, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.leave = nn.Linear(hidden, 1)
        nn.init.zeros_(self.leave.weight)  # it starts as `Linear`
        nn.init.zeros_(self.leave.bias)

    def forward(
        self, features: torch.Tensor, logits: torch.Tensor, scale: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        readings = self.read(features * features.shape[-1] ** 0.5)
        inputs = torch.cat([(logits * scale).log_softmax(-1).clamp(min=-10), readings], -1)
        mixing = self.edges.softmax(-1)
        state = self.enter(inputs[..., None]) + self.node
        state = state + F.gelu(mixing @ self.first(state))
        state = state + F.gelu(mixing @ self.second(state))
        added = self.leave(state)[..., 0]
        labels = logits + added[:, : self.labels] / scale
        return labels, (readings + added[:, self.labels :]).tanh()


AFFECT_HEADS: dict[str, type[Linear] | type[Graph]] = {"linear": Linear, "graph": Graph}
