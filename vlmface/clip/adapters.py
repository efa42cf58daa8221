"""Adapters in the blocks of a frozen image tower, after AIM (Yang et al. 2023, arXiv:2302.03024)
and FineCLIPER (Chen et al. 2024, arXiv:2407.02157): few weights, which start as nothing at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vlmface.clip.model import Clip
from vlmface.errors import UserError

NARROWER = 4  # how much an adapter's middle is, than the tower


class Bottleneck(nn.Module):
    """(..., width) -> the same, zeros before any training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, width // NARROWER)
        self.up = nn.Linear(width // NARROWER, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(nn.functional.gelu(self.down(x)))


class Adapted(nn.Module):
    """A block of open_clip with three adapters: after its attention, parallel to its MLP, and, for
    clips, behind the same attention turned round: each place of the picture attends to itself in
    the `frames` frames of a clip, which stand one after the other in a batch."""

    def __init__(self, block: Any, width: int, frames: int) -> None:
        super().__init__()
        self.block, self.frames = block, frames
        names = ["attention", "mlp", *(["time"] if frames > 1 else [])]
        self.adapters = nn.ModuleDict({name: Bottleneck(width) for name in names})

    def forward(
        self, x: torch.Tensor, k_x: Any = None, v_x: Any = None, attn_mask: Any = None
    ) -> torch.Tensor:
        block = self.block
        if "time" in self.adapters:
            clips = x.unflatten(0, (-1, self.frames)).transpose(1, 2)  # (clips, places, frames, .)
            mixed = block.attention(block.ln_1(clips.flatten(0, 1)))
            mixed = mixed.unflatten(0, clips.shape[:2]).transpose(1, 2).flatten(0, 1)
            x = x + self.adapters["time"](mixed)
        attended = block.ls_1(block.attention(block.ln_1(x), attn_mask=attn_mask))
        x = x + attended + self.adapters["attention"](attended)
        entering = block.ln_2(x)
        return x + block.ls_2(block.mlp(entering)) + self.adapters["mlp"](entering)

    def get_weight_dtype(self) -> torch.dtype:
        """Called by open_clip on its blocks."""
        return self.block.get_weight_dtype()


def add_adapters(clip: Clip, frames: int) -> None:
    """Put adapters into every block of the image tower. Raises UserError for towers that are not
    open_clip's own."""
    tower = getattr(clip.model.visual, "transformer", None)
    blocks = getattr(tower, "resblocks", None)
    if blocks is None or not all(hasattr(block, "attention") for block in blocks):
        raise UserError(
            f"image_tower is adapters, but the image tower of {clip.base} is not built of "
            "open_clip's own blocks: use image_tower: lora or full"
        )
    for number, block in enumerate(blocks):
        blocks[number] = Adapted(block, clip.model.visual.ln_post.weight.shape[0], frames)
