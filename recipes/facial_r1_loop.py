"""Train in Facial-R1's three stages, in rounds: fine-tuning on rationales, GRPO, new rationales
by the model itself, which the next round is fine-tuned on; and one page that compares the rounds.

    python recipes/facial_r1_loop.py                            # vlmface-tiny on rendered faces
    python recipes/facial_r1_loop.py --rounds 3 --output_dir runs/loop3

The loop can be interrupted at any time; run the same command again to resume.
The steps are in vlmface/pipelines/loop.py; each stage is a recipe in a process of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmface.pipelines import loop
from vlmface.utils import config, distributed


def main(argv: Sequence[str]) -> int:
    distributed.check_alone("recipes/facial_r1_loop.py")
    settings = config.load_config(
        loop.Settings, argv, default="facial_r1_loop", usage=__doc__ or ""
    )
    return loop.run(settings)


if __name__ == "__main__":
    config.run_main(main)
