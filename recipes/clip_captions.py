"""Train a CLIP on captions of faces that are written from annotated attributes and action units
(FLIP's way), and measure with linear probes what its features tell.

    python recipes/clip_captions.py                             # a small CLIP on rendered faces
    accelerate launch --num_processes 8 recipes/clip_captions.py --base ViT-B-32/openai ...

The output folder opens in open_clip ("local-dir:FOLDER") and is a `base` for clip_finetune.py.
Stopped at any moment, the same command goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vlmface import data
from vlmface.clip import model, tiny_clip
from vlmface.data import crop_cache, crops
from vlmface.run_dir import open_run, start_run
from vlmface.train import checks
from vlmface.train.clip import contrastive
from vlmface.utils import config, distributed
from vlmface.utils.files import atomic_write

UNTRAINED = "untrained"  # a base: vlmface-tiny's image tower, and a text tower that knows no word


def main(argv: Sequence[str]) -> int:
    settings = config.parse(
        contrastive.Settings, argv, default="clip_captions_tiny", usage=__doc__ or ""
    )
    distributed.check_processes(settings.num_processes)
    checks.machine(settings)
    distributed.set_cpu_threads()
    with open_run(settings, last="metrics.json") as is_open:
        if is_open:
            train(settings)
    return 0


def train(settings: contrastive.Settings) -> None:
    """What the recipe does in its folder. Raises UserError."""
    run_dir = Path(settings.output_dir)

    device = distributed.device()
    if settings.base == UNTRAINED:
        clip = tiny_clip.build(settings.seed)
        clip.model.to(device)
    else:
        clip = model.load_clip(settings.base, device=device)
    views = crops.parse_views(settings.crop)
    with distributed.main_first():
        loaded = data.load(
            settings.data, settings.data_root, settings.data_split, n=settings.n_train,
            **settings.data_options,
        )  # fmt: skip
        probed = [
            data.load(settings.probe_data, settings.probe_root, split, n=settings.n_probe)
            for split in settings.probe_splits
        ]
        rows, *probed = [crop_cache.apply_views(part, views) for part in (loaded, *probed)]
    parts = {"test": (probed[1], settings.probe_root)}
    shared = checks.shared_people(rows, settings.data_root, parts)
    checks.warmup(settings, checks.steps(settings, len(rows)))
    start_run(settings, partial(contrastive.identity, clip, loaded, probed))
    before = contrastive.probe(clip, *probed, settings.eval_batch_size)
    of_probes = checks.shared_people(probed[0], settings.probe_root, parts)
    trained = contrastive.train(clip, rows, settings) | shared
    if distributed.is_main():
        model.save_clip(clip, run_dir, settings.saved_as)
    distributed.wait_for_everyone()
    after = contrastive.probe(
        model.load_clip(run_dir, device=device), *probed, settings.eval_batch_size
    )
    if not distributed.is_main():
        return
    scores = {"probes": {"before": before, "after": after, **of_probes}, "train": trained}
    atomic_write(run_dir / "metrics.json", json.dumps(scores, indent=2) + "\n")
    for name, found in after.items():
        key = "f1_macro" if name == "au" else "accuracy"
        print(
            f"a linear probe reads {name}: {key} {found[key]:.3f} (before: {before[name][key]:.3f})"
        )
    print(f"next: python recipes/clip_finetune.py --base {run_dir}")


if __name__ == "__main__":
    config.command(main)
