"""recipes/sft_cot.py as the tests of distributed training start it: with two things that no user
wants.

STOP_AT=N interrupts every process in its N-th step, as Ctrl-C would. NAN_AT=N makes the loss of the
last process NaN in its N-th step, INF_AT=N its gradient infinite. FSDP_ON_CPU=1 lets accelerate
divide a model over CPU processes: accelerate 1.15 allows FSDP for GPUs only, though PyTorch can.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers.overflow import Overflow
from helpers.scripts import load_script

from vlmface.train.trainer import SupervisedTrainer
from vlmface.utils import config


def stop_at(step: int) -> None:
    original = SupervisedTrainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step - 1:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    SupervisedTrainer.training_step = training_step  # type: ignore[method-assign]


def spoil(step: int, gradient: bool) -> None:
    original = SupervisedTrainer.compute_loss
    is_last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1

    def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_last or self.state.global_step != step - 1:
            return original(self, model, inputs, *args, **kwargs)
        if not gradient:
            return original(self, model, inputs, *args, **kwargs) * float("nan")
        projector = next(m for name, m in model.named_modules() if name.endswith("projector"))

        def forward_hook(module: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
            return output + Overflow.apply(output)

        handle = projector.register_forward_hook(forward_hook)
        try:
            return original(self, model, inputs, *args, **kwargs)
        finally:
            handle.remove()

    SupervisedTrainer.compute_loss = compute_loss  # type: ignore[method-assign]


def fsdp_on_cpu() -> None:
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    original = SupervisedTrainer.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        original(self, *args, **kwargs)

    SupervisedTrainer.__init__ = init  # type: ignore[method-assign]


if __name__ == "__main__":
    if "STOP_AT" in os.environ:
        stop_at(int(os.environ["STOP_AT"]))
    for variable in ("NAN_AT", "INF_AT"):
        if variable in os.environ:
            spoil(int(os.environ[variable]), variable == "INF_AT")
    if "FSDP_ON_CPU" in os.environ:
        fsdp_on_cpu()
    config.run_main(load_script("recipes/sft_cot.py").main)
