"""Training that diverges stops in that step, with one message: no later checkpoint, no adapter, no
logged number that stands for another, and what was saved before can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.overflow import Overflow
from helpers.run_files import contents, training_log
from helpers.trainers import NAMES, starter, trainer_class

from vlmface.errors import UserError

INF = float("inf")
# What a finished run would have: weights, manifest, report.
RESULTS = (
    "adapter_model.safetensors",
    "trained.safetensors",
    "open_clip_model.safetensors",
    "vlmface.json",
    "metrics.json",
    "report.html",
    "predictions.jsonl",
)


def spoil(patch: pytest.MonkeyPatch, name: str, step: int, fault: str) -> None:
    """In one step, make the loss, or the gradient alone, something that is not finite."""
    cls = trainer_class(name)
    method = "_compute_loss" if name == "grpo" else "compute_loss"
    original = getattr(cls, method)

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        if self.state.global_step != step - 1:
            return loss
        if fault == "gradient":
            weight = next(p for p in self.model.parameters() if p.requires_grad)
            return loss + Overflow.apply(weight)
        return loss * float(fault)

    patch.setattr(cls, method, compute_loss)


def stopped_at(folder: Path, step: int) -> None:
    """The run holds what was done before `step`, and nothing of it or after it."""
    lines = training_log(folder)
    assert [line["step"] for line in lines] == list(range(1, step))
    assert all(abs(line["loss"]) < INF and line["grad_norm"] < INF for line in lines)
    done = sorted(path.parent.name for path in folder.glob("checkpoints/*/complete"))
    assert done == [f"checkpoint-{2 * k}" for k in range(1, (step - 1) // 2 + 1)]
    assert not [name for name in RESULTS if (folder / name).exists()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("fault", "message"),
    [("nan", "the loss is nan at step 3"), ("gradient", r"gradient norm is (inf|nan) at step 3")],
)
def test_a_step_that_is_not_finite_ends_the_run(
    name: str, fault: str, message: str, base: Path, clip_base: Path, tmp_path: Path
) -> None:
    folder, start = tmp_path / "run", starter(name, base, clip_base)
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, name, 3, fault)
        with pytest.raises(UserError, match=message) as error:
            start(folder)
    assert "\n" not in str(error.value) and "lower learning_rate" in str(error.value)
    stopped_at(folder, 3)
    if fault == "nan":
        assert start(folder) == 0
        steps = [line["step"] for line in training_log(folder)]
        assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize("step", [1, 4])
def test_the_first_and_the_last_step_are_looked_at(
    step: int, base: Path, clip_base: Path, tmp_path: Path
) -> None:
    start = starter("clip", base, clip_base)
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, "clip", step, "inf")
        with pytest.raises(UserError, match=f"the loss is inf at step {step}"):
            start(tmp_path / "run")
    if step == 4:
        stopped_at(tmp_path / "run", 4)
    else:  # nothing was trained: the corrected command starts as in a new folder
        assert start(tmp_path / "run", learning_rate=1e-5) == 0


def test_one_micro_batch_is_enough(base: Path, clip_base: Path, tmp_path: Path) -> None:
    """Of two accumulated ones, the first is spoilt; the loss is logged after the second."""
    start = starter("sft", base, clip_base)
    calls = []
    cls = trainer_class("sft")
    original = cls.compute_loss

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        loss = original(self, *args, **kwargs)
        return loss * float("nan") if len(calls) == 3 else loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "compute_loss", compute_loss)
        with pytest.raises(UserError, match="the loss is nan at step 2"):
            start(tmp_path / "run", batch_size=4, gradient_accumulation=2, logging_steps=1)


@pytest.mark.parametrize("name", ["sft", "captions"])
@pytest.mark.parametrize("step", [2, 4])
def test_weights_are_finite_or_not_saved(
    step: int, name: str, base: Path, clip_base: Path, tmp_path: Path
) -> None:
    """The update after a finite loss and gradient makes a weight infinite: at a checkpoint, and in
    the last step, which no loss follows."""
    folder, start = tmp_path / "run", starter(name, base, clip_base)
    original = torch.optim.AdamW.step
    steps = []

    def update(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, *args, **kwargs)
        steps.append(1)
        if len(steps) == step:
            self.param_groups[0]["params"][0].data.view(-1)[0] = INF
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", update)
        with pytest.raises(UserError, match=f"1 trained weights are not finite after step {step}"):
            start(folder, save_steps=2 if step == 2 else 3)
    done = [path.parent.name for path in folder.glob("checkpoints/*/complete")]
    assert done == ([] if step == 2 else ["checkpoint-3"])
    assert not [file for file in RESULTS if (folder / file).exists()]


def test_a_rate_that_is_far_too_high_is_one_message(
    base: Path, clip_base: Path, tmp_path: Path
) -> None:
    """The first step makes the weights so large that the next loss cannot be computed."""
    start = starter("sft", base, clip_base)
    with pytest.raises(
        UserError, match=r"(loss|norm) is (nan|inf) at step \d|are not finite after"
    ):
        start(tmp_path / "run", learning_rate=1e30, projector="full", epochs=3)
    before = contents(tmp_path / "run")
    assert not any(Path(name).name in RESULTS[2:] for name in before)
