"""Teach a vision-language model the labels of your own data set: it answers with one of them, or
with all that apply.

    vlmface data init faces.csv                                 # writes faces.yaml
    python recipes/sft_labels.py --dataset faces.yaml --output_dir runs/faces
    python recipes/sft_labels.py                                # vlmface-tiny on rendered faces

Training can be interrupted at any time; run the same command again to resume.
The steps are in vlmface/pipelines/sft.py: prepare, evaluate, train, evaluate, report.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmface.pipelines import sft
from vlmface.train.settings import SFTSettings
from vlmface.utils import config


def main(argv: Sequence[str]) -> int:
    settings = config.load_config(SFTSettings, argv, default="sft_labels_tiny", usage=__doc__ or "")
    return sft.run("sft_labels", settings)


if __name__ == "__main__":
    config.run_main(main)
