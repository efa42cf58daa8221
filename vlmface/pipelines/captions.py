"""Contrastive training of a CLIP on captions: prepare, probe, train, probe, report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import data
from vlmface.clip import model, tiny_clip
from vlmface.data import crop_cache, crops
from vlmface.pipelines import steps
from vlmface.run_dir import start_run
from vlmface.train import checks
from vlmface.train.clip import contrastive
from vlmface.utils import distributed
from vlmface.utils.files import atomic_write

if TYPE_CHECKING:
    import datasets

    from vlmface.clip.model import Clip
    from vlmface.train.clip.contrastive import Settings

UNTRAINED = "untrained"  # a base: vlmface-tiny's image tower and an untrained text tower


def run(settings: Settings) -> int:
    """Train a CLIP in the folder `settings.output_dir`, or resume there.

    Args:
        settings: Of the run.

    Returns:
        The exit code.

    Raises:
        UserError: The settings do not fit the launch, the model, the data or the folder.
    """
    return steps.run_in_folder(settings, lambda: train_and_probe(settings), last="metrics.json")


def train_and_probe(settings: Settings) -> None:
    """What `run` does in an opened folder."""
    run_dir = Path(settings.output_dir)
    clip = load_base(settings)
    rows = load_rows(settings)
    probe_test = {"test": (rows.probe[1], settings.probe_root)}
    shared = checks.shared_people(rows.training, settings.dataset_root, probe_test)
    checks.warmup(settings, checks.steps(settings, len(rows.training)))
    start_run(settings, partial(contrastive.identity, clip, rows.loaded, rows.probe))
    before = contrastive.probe(clip, *rows.probe, settings.eval_batch_size)
    shared_by_probes = checks.shared_people(rows.probe[0], settings.probe_root, probe_test)
    result = contrastive.train(clip, rows.training, settings) | shared
    if distributed.is_main():
        model.save_clip(clip, run_dir, settings.saved_as)
    distributed.wait_for_everyone()
    trained = model.load_clip(run_dir, device=distributed.device())
    after = contrastive.probe(trained, *rows.probe, settings.eval_batch_size)
    if distributed.is_main():
        probes = {"before": before, "after": after, **shared_by_probes}
        write_report(run_dir, {"probes": probes, "train": result})


def load_base(settings: Settings) -> Clip:
    """The model that training starts from. Raises UserError if it does not exist."""
    device = distributed.device()
    if settings.base_model != UNTRAINED:
        return model.load_clip(settings.base_model, device=device)
    clip = tiny_clip.build(settings.seed)
    clip.model.to(device)
    return clip


@dataclass(frozen=True)
class Rows:
    """The rows of a run.

    Args:
        loaded: The training rows as the data set contains them.
        training: The same rows with the views that the model is shown.
        probe: The rows that linear probes are trained and tested on.
    """

    loaded: datasets.Dataset
    training: datasets.Dataset
    probe: tuple[datasets.Dataset, datasets.Dataset]


def load_rows(settings: Settings) -> Rows:
    """Load, or render, all rows of a run, in the main process first."""
    views = crops.parse_views(settings.views)
    with distributed.main_first():
        loaded = steps.load_training_rows(settings)
        probed = [
            data.load(settings.probe_data, settings.probe_root, split, n=settings.n_probe)
            for split in settings.probe_splits
        ]
        training, first, second = (
            crop_cache.apply_views(part, views) for part in (loaded, *probed)
        )
    return Rows(loaded, training, (first, second))


def write_report(run_dir: Path, scores: dict[str, Any]) -> None:
    """Write metrics.json of a run, which makes it complete, and print the result."""
    atomic_write(run_dir / "metrics.json", json.dumps(scores, indent=2) + "\n")
    before, after = scores["probes"]["before"], scores["probes"]["after"]
    for name, probe in after.items():
        key = "f1_macro" if name == "au" else "accuracy"
        print(
            f"a linear probe reads {name}: {key} {probe[key]:.3f} (before: {before[name][key]:.3f})"
        )
    print(f"next: python recipes/clip_finetune.py --base_model {run_dir}")
