"""Train a model by reinforcement learning on its own answers: GRPO with verifiable rewards for
format, emotion, action units and their agreement (Facial-R1's second stage).

    python recipes/grpo.py                                      # from the run of recipes/sft_cot.py
    python recipes/grpo.py --init_from runs/small --max_steps 50 --output_dir runs/grpo_small
    accelerate launch --num_processes 8 recipes/grpo.py --config grpo_facial_r1

Training can be interrupted at any time; run the same command again to resume.
The steps are in vlmface/pipelines/grpo.py: prepare, evaluate, train, evaluate, report.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmface.pipelines import grpo
from vlmface.train.grpo import Settings
from vlmface.utils import config


def main(argv: Sequence[str]) -> int:
    settings = config.load_config(Settings, argv, default="grpo_tiny", usage=__doc__ or "")
    return grpo.run(settings)


if __name__ == "__main__":
    config.run_main(main)
