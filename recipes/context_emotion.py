"""Teach a model what a person feels or does from the face and its surroundings: several views of
one image, or frames of a video, at once.

    python recipes/context_emotion.py                         # vlmface-tiny on rendered scenes
    python recipes/context_emotion.py --ablation true         # face, context and both, in one table
    python recipes/context_emotion.py --model clip-caer       # a CLIP that joins the views
    accelerate launch recipes/context_emotion.py --config context_vlm_llava \
        --dataset_root /data/CAER-S

Training can be interrupted at any time; run the same command again to resume.
The steps are in vlmface/pipelines/sft.py (and clip.py), the ablation's in context_ablation.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmface.errors import UserError
from vlmface.pipelines import context_ablation
from vlmface.utils import config

VLM_CONFIG, CLIP_CONFIG = "context_vlm_tiny", "clip_caer_tiny"


def main(argv: Sequence[str]) -> int:
    model = config.read_field("model", argv, default=VLM_CONFIG) or "vlm"
    usage = __doc__ or ""
    if model == "vlm":
        settings = config.load_config(
            context_ablation.Settings, argv, default=VLM_CONFIG, usage=usage
        )
        return context_ablation.run_vlm(settings)
    if model == "clip-caer":
        from vlmface.train.clip.settings import ContextSettings  # needs open_clip

        clip_settings = config.load_config(ContextSettings, argv, default=CLIP_CONFIG, usage=usage)
        return context_ablation.run_clip(clip_settings)
    raise UserError(f"model is {model!r}: use one of vlm, clip-caer")


if __name__ == "__main__":
    config.run_main(main)
