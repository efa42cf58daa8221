"""Fused layers are open_clip's own: the same outputs, gradients and weights."""

from __future__ import annotations

import copy
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from vlmface.clip import fused, model

CONFIGS = {
    "quick": {"quick_gelu": True, "heads": 3},  # an odd number takes another way through torch
    "gelu": {"quick_gelu": False, "heads": 2},
}


def towers(quick_gelu: bool, heads: int) -> tuple[nn.Module, nn.Module]:
    """A random model of open_clip in double precision, and its fused copy."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8, "width": 32 * heads, "layers": 2, "head_width": 32}
    text = {"context_length": 12, "vocab_size": 40, "width": 64, "heads": 2, "layers": 2}
    stock = open_clip.CLIP(16, vision, text, quick_gelu=quick_gelu).double().eval()
    ours = copy.deepcopy(stock)
    fused.fuse(ours)
    return stock, ours


def outputs(clip: Any) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    pictures = torch.randn(5, 3, 32, 32, generator=draws, dtype=torch.float64)
    tokens = torch.randint(1, 40, (4, 12), generator=draws)
    return clip.encode_image(pictures), clip.encode_text(tokens)


@pytest.mark.parametrize("config", CONFIGS)
def test_outputs_and_gradients_are_the_same(config: str) -> None:
    stock, ours = towers(**CONFIGS[config])
    kinds = {type(module) for module in ours.modules()}
    assert fused.SelfAttention in kinds and nn.MultiheadAttention not in kinds
    assert (fused.QuickGELU in kinds) is (config == "quick")
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for one, other in zip(outputs(stock), outputs(ours), strict=True):
                torch.testing.assert_close(one, other)
    for one in (stock, ours):
        sum(found.square().sum() for found in outputs(one)).backward()
    theirs = dict(stock.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = theirs[name].grad
        if expected is None:
            assert parameter.grad is None
            continue
        torch.testing.assert_close(parameter.grad, expected)
    assert stock.state_dict().keys() == ours.state_dict().keys()


def test_quick_gelu_against_its_definition() -> None:
    x = torch.linspace(-8, 8, 101, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fused.QuickGELU(), x)
    assert torch.equal(fused.QuickGELU()(x), x * torch.sigmoid(1.702 * x))


@pytest.mark.parametrize(
    "words",
    [
        {"need_weights": True},
        {"need_weights": False, "key_padding_mask": torch.tensor([[False] * 4 + [True]] * 2)},
        {"need_weights": False, "attn_mask": torch.randn(2 * 3, 5, 5)},
        {"need_weights": False, "attn_mask": torch.randn(5, 5)},
    ],
)
def test_attention_that_is_asked_for_something_else(words: dict[str, Any]) -> None:
    torch.manual_seed(0)
    stock = nn.MultiheadAttention(12, 3, batch_first=True)
    ours = copy.deepcopy(stock)
    fused.fuse(ours)
    assert type(ours) is fused.SelfAttention
    x = torch.randn(2, 5, 12)
    for one, other in zip(stock(x, x, x, **words), ours(x, x, x, **words), strict=True):
        assert (one is None) is (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    y = torch.randn(2, 7, 12)
    torch.testing.assert_close(stock(x, y, y)[0], ours(x, y, y)[0])


def test_layers_of_another_shape_stay() -> None:
    for layer in (
        nn.MultiheadAttention(8, 2),
        nn.MultiheadAttention(8, 2, add_bias_kv=True),
        nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True),
    ):
        fused.fuse(layer)
        assert type(layer) is nn.MultiheadAttention


def test_the_built_in_clip_is_fused() -> None:
    kinds = {type(module) for module in model.load_clip(model.TINY).model.modules()}
    assert {fused.SelfAttention, fused.QuickGELU} <= kinds
    assert nn.MultiheadAttention not in kinds
