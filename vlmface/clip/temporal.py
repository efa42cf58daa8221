"""Frames of a clip, and views of a scene, become one feature."""

from __future__ import annotations

import torch
from torch import nn

TIME = ("none", "mean", "transformer")
HEADS, MLP = 8, 1024  # of a temporal transformer, as in DFER-CLIP and CLIP-CAER


class Temporal(nn.Module):
    """A transformer over the frames of one view with a class token, whose output it is: (n, frames,
    width) -> (n, width). After DFER-CLIP (Zhao & Patras 2023, arXiv:2308.13382), one layer."""

    def __init__(self, width: int, frames: int, layers: int = 1) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(width) * width**-0.5)
        self.place = nn.Parameter(torch.randn(frames + 1, width) * width**-0.5)
        layer = nn.TransformerEncoderLayer(
            width, HEADS, MLP, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        token = self.token.expand(len(frames), 1, -1)
        return self.layers(torch.cat([token, frames], 1) + self.place)[:, 0]


class OverTime(nn.Module):
    """(n, views, frames, width) -> (n, views, width): a transformer for each view, or the mean, or
    the only frame."""

    def __init__(self, kind: str, width: int, frames: int, views: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "transformer":
            self.of_view = nn.ModuleList(Temporal(width, frames) for _ in range(views))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.kind == "none":
            return features[:, :, 0]
        if self.kind == "mean":
            return features.mean(2)
        return torch.stack([one(features[:, i]) for i, one in enumerate(self.of_view)], 1)


class Fusion(nn.Module):
    """The views' features side by side, through one linear layer: (n, views, width) -> (n, width);
    CLIP-CAER's way (Zhao et al. 2025, arXiv:2507.00586). It starts as their mean."""

    def __init__(self, width: int, views: int) -> None:
        super().__init__()
        self.join = nn.Linear(views * width, width)
        with torch.no_grad():
            self.join.weight.copy_(torch.eye(width).repeat(1, views) / views)
            self.join.bias.zero_()

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        return self.join(views.flatten(1))
