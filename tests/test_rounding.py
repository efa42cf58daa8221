"""Rounding is measured on the model itself, and nothing else passes for it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import llava
from helpers.samples import picture

from vlmface import encode, prompts
from vlmface.errors import UserError
from vlmface.utils import rounding

PROMPT = prompts.load("face_cot")


def logits_of(model: torch.nn.Module, base: Path) -> list[torch.Tensor]:
    processor = llava.load_processor(base)
    row = encode.encode(processor, llava, PROMPT.messages(), picture(0), "the brows are lowered")
    batch = encode.Collator(processor, llava)([row])
    del batch["labels"]
    with torch.inference_mode():
        return [model(**encode.to_model(batch, model)).logits[0].float()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_level_is_that_of_the_precision(base: Path, dtype: torch.dtype) -> None:
    exact = logits_of(llava.load_model(base, dtype=torch.float64), base)
    model = llava.load_model(base, dtype=dtype)
    found = logits_of(model, base)
    with rounding.reordered(model):
        level = rounding.level(found, logits_of(model, base), dtype)
    assert torch.equal(logits_of(model, base)[0], found[0])  # undone
    error = rounding.difference(found, exact)
    # bfloat16 rounds weights too, which the float64 model did not.
    assert error.within(level) or dtype == torch.bfloat16
    eps = torch.finfo(dtype).eps
    assert 0.05 * eps < level.rms < 50 * eps
    assert not rounding.Difference(level.rms * 4, level.largest).within(level)
    assert not rounding.Difference(level.rms, level.largest * 6).within(level)


def test_a_constant_added_to_all_logits_is_no_difference() -> None:
    a = [torch.tensor([[0.0, 1.0, 2.0]])]
    assert rounding.difference(a, [a[0] + 3]).largest < 1e-6
    assert rounding.difference(a, [a[0] * 2]).largest > 0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_never_rounding(bad: float) -> None:
    a, b = [torch.zeros(2, 3)], [torch.zeros(2, 3)]
    b[0][1, 2] = bad
    level = rounding.Difference(1.0, 1.0)
    for found in (rounding.difference(a, b), rounding.difference(b, a)):
        assert not found.within(level)
    assert not rounding.Difference(0.0, 0.0).within(rounding.Difference(math.nan, math.nan))
    with pytest.raises(UserError, match=r"1 of 6 logits of the run are not finite"):
        rounding.check_finite(b, "the run")
    rounding.check_finite(a, "the run")
