"""Fine-tune a CLIP of open_clip as a fast classifier of faces: linear probe, LoRA, learnt prompts
or all of it, with labels as the loss, and measure it before (zero-shot) and after.

    python recipes/clip_finetune.py                            # the built-in CLIP on rendered faces
    python recipes/clip_finetune.py --image frozen --head linear --output_dir runs/clip_probe
    accelerate launch --num_processes 8 recipes/clip_finetune.py --config clip_finetune_vitl14

Stopped at any moment, the same command goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmface.pipelines import clip
from vlmface.run_dir import open_run
from vlmface.train import checks
from vlmface.train.clip.settings import Settings
from vlmface.utils import config, distributed


def main(argv: Sequence[str]) -> int:
    settings = config.parse(Settings, argv, default="clip_finetune_tiny", usage=__doc__ or "")
    distributed.check_processes(settings.num_processes)
    checks.machine(settings)
    distributed.set_cpu_threads()
    with open_run(settings) as is_open:
        if is_open:
            clip.run("clip_finetune", settings)
    return 0


if __name__ == "__main__":
    config.command(main)
