"""Teach a vision-language model to describe which facial muscles moved, explain them and conclude
the emotion: supervised fine-tuning on rationales that rules write from action units.

    python recipes/sft_cot.py                                   # vlmface-tiny on rendered faces
    python recipes/sft_cot.py --n_train 1000 --output_dir runs/small
    accelerate launch --num_processes 8 recipes/sft_cot.py --config sft_cot_llava

Training can be interrupted at any time; run the same command again to resume.
The steps are in vlmface/pipelines/sft.py: prepare, evaluate, train, evaluate, report.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmface.pipelines import sft
from vlmface.train.settings import SFTSettings
from vlmface.utils import config


def main(argv: Sequence[str]) -> int:
    settings = config.load_config(SFTSettings, argv, default="sft_cot_tiny", usage=__doc__ or "")
    return sft.run("sft_cot", settings)


if __name__ == "__main__":
    config.run_main(main)
