"""Merging the features of a clip's frames, and of the views of a scene."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

TIME = ("none", "mean", "transformer")
HEADS, HEAD_WIDTH, MLP = 8, 64, 1024  # of a temporal transformer, as in DFER-CLIP and CLIP-CAER


class Block(nn.Module):
    """Attention among all frames, then an MLP, each after a norm and added to its input; the
    projections to queries, keys and values have no bias. (n, tokens, width) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * HEADS * HEAD_WIDTH, bias=False)
        self.out = nn.Linear(HEADS * HEAD_WIDTH, width)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP), nn.GELU(approximate="tanh"), nn.Linear(MLP, width)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(self.norm_1(tokens)).unflatten(-1, (3, HEADS, HEAD_WIDTH))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.out(mixed.transpose(1, 2).flatten(-2))
        return tokens + self.mlp(self.norm_2(tokens))


class Temporal(nn.Module):
    """A transformer over the frames of one view with a class token, whose output it is: (n, frames,
    width), not normalised -> (n, width). After DFER-CLIP (Zhao & Patras 2023, arXiv:2308.13382),
    one layer; its token and the places of the frames start as standard normal numbers."""

    def __init__(self, width: int, frames: int, layers: int = 1) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, width))
        self.position_embedding = nn.Parameter(torch.randn(frames + 1, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        tokens = torch.cat([self.token.expand(len(frames), 1, -1), frames], 1)
        return self.blocks(tokens + self.position_embedding)[:, 0]


class OverTime(nn.Module):
    """The image tower's features (n, views, frames, width) -> (n, views, width): a transformer for
    each view over the features as they are; or the mean of them, or the only one, at length 1."""

    def __init__(self, kind: str, width: int, frames: int, views: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "transformer":
            self.of_view = nn.ModuleList(Temporal(width, frames) for _ in range(views))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.kind == "transformer":
            return torch.stack([pool(features[:, i]) for i, pool in enumerate(self.of_view)], 1)
        return F.normalize(features, dim=-1).mean(2)


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
