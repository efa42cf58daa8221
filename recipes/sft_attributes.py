"""Teach a vision-language model to answer questions about a face with one word: gender, age group,
race, emotion. One model may be trained on several prompts.

    python recipes/sft_attributes.py                              # vlmface-tiny on rendered faces
    python recipes/sft_attributes.py --prompt facescan_gender --output_dir runs/gender
    accelerate launch recipes/sft_attributes.py --config sft_attributes_paligemma

Training can be interrupted at any time; run the same command again to resume.
The steps are in vlmface/pipelines/sft.py: prepare, evaluate, train, evaluate, report.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmface.pipelines import sft
from vlmface.train.settings import SFTSettings
from vlmface.utils import config


def main(argv: Sequence[str]) -> int:
    settings = config.load_config(
        SFTSettings, argv, default="sft_attributes_tiny", usage=__doc__ or ""
    )
    return sft.run("sft_attributes", settings)


if __name__ == "__main__":
    config.run_main(main)
