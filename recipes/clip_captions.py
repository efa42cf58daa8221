"""Train a CLIP on captions of faces that are written from annotated attributes and action units
(as in FLIP), and measure its features with linear probes before and after.

    python recipes/clip_captions.py                             # a small CLIP on rendered faces
    accelerate launch --num_processes 8 recipes/clip_captions.py --base_model ViT-B-32/openai ...

The output folder opens in open_clip ("local-dir:FOLDER") and is a `base_model` for
clip_finetune.py.
Training can be interrupted at any time; run the same command again to resume.
The steps are in vlmface/pipelines/captions.py: prepare, probe, train, probe, report.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmface.pipelines import captions
from vlmface.train.clip.contrastive import Settings
from vlmface.utils import config


def main(argv: Sequence[str]) -> int:
    settings = config.load_config(Settings, argv, default="clip_captions_tiny", usage=__doc__ or "")
    return captions.run(settings)


if __name__ == "__main__":
    config.run_main(main)
