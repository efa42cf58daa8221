"""The cross-entropy of training against PyTorch's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from vlmface.tools import simulate_memory
from vlmface.train.loss import summed_cross_entropy

IGNORED = -100


def case(rows: int, words: int = 50, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, words, generator=generator) * 5
    targets = torch.randint(0, words, (rows,), generator=generator)
    targets[::3] = IGNORED
    return logits, targets


@pytest.mark.parametrize("rows", [1, 2, 255, 256, 257, 1000])
def test_loss_and_gradient_are_pytorchs(rows: int) -> None:
    logits, targets = case(rows)
    expected = logits.clone().requires_grad_()
    whole = F.cross_entropy(expected, targets, ignore_index=IGNORED, reduction="sum")
    (whole / 7).backward()
    found = logits.clone().requires_grad_()
    loss = summed_cross_entropy(found * 1, targets, IGNORED)
    (loss / 7).backward()
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=1e-6)
    assert found.grad is not None and expected.grad is not None
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        before = logits.clone()
        assert summed_cross_entropy(logits, targets, IGNORED) == pytest.approx(whole.item())
        assert torch.equal(logits, before)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    loss = summed_cross_entropy(logits * 1, torch.tensor([0, 0]), IGNORED)
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[0.0, 0, 0], [-1.0, 1, 0]]))


def test_half_precision_gradients_come_back_in_half_precision() -> None:
    logits, targets = case(300)
    half = logits.bfloat16().requires_grad_()
    summed_cross_entropy((half * 1).float(), targets, IGNORED).backward()
    other = logits.bfloat16().requires_grad_()
    F.cross_entropy(other.float(), targets, ignore_index=IGNORED, reduction="sum").backward()
    assert half.grad is not None and other.grad is not None and half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(half.grad, other.grad)


def test_the_logits_memory_is_needed_once() -> None:
    logits, targets = case(4096, 500)

    def most(loss_of: Callable[[torch.Tensor], torch.Tensor]) -> float:
        """Most memory at a time beside `leaf`, in sizes of the logits."""
        leaf = logits.clone().requires_grad_()
        with simulate_memory.LiveTensorTracker([leaf, targets]) as live:
            loss_of(leaf * 1).backward()
        return live.peak / logits.nbytes

    # Ours: the logits, then the gradient of `leaf` beside them.
    assert most(lambda x: summed_cross_entropy(x, targets, IGNORED)) < 2.3
    assert most(lambda x: F.cross_entropy(x, targets, reduction="sum")) > 2.9
