"""Fine-tune a CLIP of open_clip as a fast classifier of faces: a linear probe, LoRA, learnt prompts
or all weights, evaluated before (zero-shot) and after.

    python recipes/clip_finetune.py                            # the built-in CLIP on rendered faces
    python recipes/clip_finetune.py --image_tower frozen --head linear --output_dir runs/clip_probe
    accelerate launch --num_processes 8 recipes/clip_finetune.py --config clip_finetune_vitl14

Training can be interrupted at any time; run the same command again to resume.
The steps are in vlmface/pipelines/clip.py: prepare, evaluate, train, choose, evaluate, report.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmface.pipelines import clip
from vlmface.train.clip.settings import Settings
from vlmface.utils import config


def main(argv: Sequence[str]) -> int:
    settings = config.load_config(Settings, argv, default="clip_finetune_tiny", usage=__doc__ or "")
    return clip.run("clip_finetune", settings)


if __name__ == "__main__":
    config.run_main(main)
