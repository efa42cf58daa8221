"""recipes/sft_cot.py as the tests of distributed training start it: with two things that no user
wants.

STOP_AT=N interrupts every process in its N-th step, as Ctrl-C would. FSDP_ON_CPU=1 lets accelerate
divide a model over CPU processes: accelerate 1.15 allows FSDP for GPUs only, though PyTorch can.
"""

from __future__ import annotations

import os
from typing import Any

from samples import load_script

from vlmface import config
from vlmface.train.trainer import SupervisedTrainer


def stop_at(step: int) -> None:
    original = SupervisedTrainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step - 1:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    SupervisedTrainer.training_step = training_step  # type: ignore[method-assign]


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
    if "FSDP_ON_CPU" in os.environ:
        fsdp_on_cpu()
    config.command(load_script("recipes/sft_cot.py").main)
