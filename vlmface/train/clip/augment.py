"""Random changes of a batch of uint8 squares, drawn from torch's global random state, so that a
resumed run makes the same changes as an uninterrupted one."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812

TURN, SCALE, SHIFT = 10.0, 0.12, 0.06  # degrees; share of the side
BRIGHTNESS, CONTRAST = 0.2, 0.2


def augment_squares(squares: torch.Tensor, kind: str) -> torch.Tensor:
    """`squares` (rows, pictures, 3, side, side) changed: all pictures of a row in the same way.

    "none"; "flip": half of the rows are mirrored; "face": also turned, scaled and shifted a
    little, brighter or darker, with more or less contrast.
    """
    if kind == "none":
        return squares
    rows = len(squares)
    mirrored = torch.rand(rows) < 0.5
    if kind == "flip":
        turned = torch.where(mirrored.view(-1, 1, 1, 1, 1), squares.cpu().flip(-1), squares.cpu())
        return turned.to(squares.device)
    turn = (torch.rand(rows) * 2 - 1) * math.radians(TURN)
    scale = 1 + (torch.rand(rows) * 2 - 1) * SCALE
    shift = (torch.rand(rows, 2) * 2 - 1) * SHIFT * 2
    gain = 1 + (torch.rand(rows) * 2 - 1) * CONTRAST
    lift = (torch.rand(rows) * 2 - 1) * BRIGHTNESS * 255
    cosine, sine = turn.cos() * scale, turn.sin() * scale
    sign = torch.where(mirrored, -1.0, 1.0)
    placed = torch.stack(
        [
            torch.stack([sign * cosine, -sine, shift[:, 0]], -1),
            torch.stack([sign * sine, cosine, shift[:, 1]], -1),
        ],
        1,
    )
    flat = squares.flatten(1, 2).float()  # pictures of a row as channels
    grid = F.affine_grid(placed.to(flat), list(flat.shape), align_corners=False)
    moved = F.grid_sample(flat, grid, padding_mode="border", align_corners=False)
    moved = (moved - 127.5) * gain.to(flat).view(-1, 1, 1, 1) + 127.5
    moved = moved + lift.to(flat).view(-1, 1, 1, 1)
    return moved.round().clamp(0, 255).to(torch.uint8).view_as(squares)
