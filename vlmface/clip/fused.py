"""The same numbers as open_clip's layers in less time: attention without the copies that
torch.nn.MultiheadAttention makes around it, and QuickGELU with one saved tensor instead of three.

Both change how long a step takes and how much memory it needs, not what weights there are: a model
is saved, opened and adapted as before.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.autograd.function import once_differentiable


def fuse(model: nn.Module) -> None:
    """Replace what can be in all towers of an open_clip model, in place."""
    from open_clip.transformer import QuickGELU as Stock

    for module in list(model.modules()):
        if type(module) is nn.MultiheadAttention and _is_plain(module):
            # In place, so that references to the layer (its block, a hook) stay valid.
            module.__class__ = SelfAttention
        for name, child in module.named_children():
            if type(child) is Stock:
                setattr(module, name, QuickGELU())


def _is_plain(layer: nn.MultiheadAttention) -> bool:
    return (
        layer.batch_first
        and layer.in_proj_weight is not None
        and layer.bias_k is None
        and not layer.add_zero_attn
        and layer.dropout == 0
    )


class SelfAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention, with a faster path for self-attention of (n, length, width)."""

    def forward(  # type: ignore[override]
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        alone = query is key is value and query.dim() == 3
        if not alone or need_weights or key_padding_mask is not None or others:
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, **others
            )
        projected = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        heads = projected.unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        if attn_mask is not None and attn_mask.dim() == 3:  # (n x heads, length, length)
            attn_mask = attn_mask.unflatten(0, (len(query), self.num_heads))
        queries, keys, values = heads.unbind(0)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=attn_mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x) (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _QuickGELU.apply(x)


class _QuickGELU(torch.autograd.Function):
    """It is silu(1.702 x) / 1.702, so that its derivative is that of silu at 1.702 x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(1.702 * x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad, 1.702 * x)
