"""CLIP: pairs a second in training and pictures a second in zero-shot evaluation, ours against
open_clip's own trainer and evaluation, on the same model and files, float32, on a CPU.

    python tests/perf/clip_speed.py [--repeats 5] [--faces 768] [--json FILE]

training   two epochs over faces and captions, in the same order, with the same optimizer: ours are
           decoded once and captions read no further than they go, theirs are decoded at each step
           and read to their 77th token. The mean losses must be equal to 1e-3.
zero-shot  the label of each picture from files: the shares that are right must be equal.

open_clip's trainer needs open_clip_torch[training], which `pip install -e '.[dev]'` brings.
Both sides work in one process, in turn; the median of the pairs' ratios counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]
BATCH, EPOCHS, RATE = 64, 2, 1e-4


def faces(folder: Path, n: int) -> tuple[Any, list[str]]:
    """Rows of faces whose pictures are files, and a caption of its own for each."""
    from datasets import Dataset

    from vlmface.schema import FaceSample, features
    from vlmface.synth import dataset
    from vlmface.train.clip import captions

    kept, said = [], []
    for row in dataset.load("train", n=2 * n).cast(features()):
        caption = captions.write_caption(FaceSample.from_row(row), ["attributes", "aus"], 0)
        if caption is None or caption in said or len(kept) == n:
            continue
        path = folder / f"{row['id']}.jpg"
        row["image"].save(path, quality=95)
        kept.append(row | {"image": {"bytes": None, "path": str(path)}})
        said.append(caption)
    return Dataset.from_list(kept, features=features()), said


def theirs_trains(folder: Path, files: list[str], said: list[str]) -> float:
    """open_clip_train's loop; the mean loss of all steps."""
    import open_clip
    import torch
    from open_clip.loss import ClipLoss
    from open_clip_train import train as upstream
    from open_clip_train.data import CsvDataset, DataInfo
    from torch.utils.data import DataLoader

    model, _, transform = open_clip.create_model_and_transforms(
        f"local-dir:{folder}", output_dict=True
    )
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    table = folder / "pairs.csv"
    table.write_text("file\tcaption\n" + "".join(f"{f}\t{c}\n" for f, c in zip(files, said)))  # noqa: B905
    pairs = CsvDataset(str(table), transform, "file", "caption", tokenizer=tokenizer)
    loader: Any = DataLoader(pairs, BATCH, drop_last=True)
    loader.num_samples, loader.num_batches = len(pairs), len(loader)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    losses: list[float] = []

    class Kept(ClipLoss):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            found = super().forward(*args, **kwargs)
            losses.append(float(found["contrastive_loss"].detach()))
            return found

    settings = argparse.Namespace(
        device="cpu",
        precision="fp32",
        distill=False,
        accum_freq=1,
        skip_scheduler=True,
        grad_clip_norm=1.0,
        horovod=False,
        rank=0,
        local_rank=0,
        log_every_n_steps=1000,
        log_local=False,
        world_size=1,
        batch_size=BATCH,
        wandb=False,
    )
    for epoch in range(EPOCHS):
        upstream.train_one_epoch(
            model, {"train": DataInfo(loader)}, Kept(), epoch, optimizer, None, None, None, settings
        )
    return statistics.fmean(losses)


def ours_trains(folder: Path, rows: Any, said: list[str]) -> float:
    """Our loop on the same pairs; the mean loss of all steps."""
    from torch.utils.data import SequentialSampler

    from vlmface.clip import model
    from vlmface.train.clip import contrastive, trainer

    class InOrder(trainer.ClipTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

    with tempfile.TemporaryDirectory() as out:
        settings = contrastive.Settings(
            base_model=str(folder),
            dataset="",
            probe_data="",
            output_dir=out,
            batch_size=BATCH,
            epochs=EPOCHS,
            learning_rate=RATE,
            lr_scheduler="constant",
            logging_steps=1,
            save_steps=10_000,
        )
        clip = model.load_clip(folder)
        pairs = contrastive.ContrastivePairs(clip, [[i] for i in range(len(said))], said, settings)
        data = trainer.ImageDataset(rows, clip, settings.cache_gib)
        plain, trainer.ClipTrainer = trainer.ClipTrainer, InOrder  # type: ignore[misc]
        try:
            trainer.fit(pairs, data, settings)
        finally:
            trainer.ClipTrainer = plain  # type: ignore[misc]
        log = Path(out, "log.jsonl").read_text(encoding="utf-8").splitlines()
        return statistics.fmean(json.loads(line)["loss"] for line in log)


def theirs_answers(folder: Path, files: list[str], truth: list[int], asked: Any) -> float:
    """open_clip_train's zero-shot evaluation; the share that is right."""
    import open_clip
    from open_clip_train import zero_shot
    from PIL import Image
    from torch.utils.data import DataLoader

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    every = asked.positive
    templates = [lambda label, k=k: every[label][k] for k in range(len(next(iter(every.values()))))]
    table = open_clip.build_zero_shot_classifier(model.eval(), tokenizer, list(every), templates)
    pairs = [(file, label) for file, label in zip(files, truth, strict=True)]

    class Files:
        def __len__(self) -> int:
            return len(pairs)

        def __getitem__(self, i: int) -> Any:
            return transform(Image.open(pairs[i][0])), pairs[i][1]

    def accuracy(output: Any, target: Any, topk: Any = (1,)) -> list[float]:
        found = output.topk(max(topk), 1).indices == target[:, None]
        return [float(found[:, :k].sum()) for k in topk]

    zero_shot.accuracy = accuracy  # open_clip 3.3's own fails under NumPy 2.4
    settings = argparse.Namespace(device="cpu", precision="fp32", batch_size=BATCH)
    return zero_shot.run(model, table, DataLoader(Files(), BATCH), settings)[0]  # type: ignore[arg-type]


def ours_answers(folder: Path, rows: Any, truth: list[int], asked: Any) -> float:
    """`ClipModel` as evaluation asks it; the share that is right."""
    from vlmface import benchmarks
    from vlmface.evaluate import answering
    from vlmface.infer.clip import ClipModel

    model = ClipModel.load(folder, prompt=asked)
    benchmark = benchmarks.load_benchmark("synth")
    lines = answering.answer(model, rows, benchmark, batch_size=BATCH)
    labels = list(asked.space.labels)
    right = [labels.index(line["label"]) == t for line, t in zip(lines, truth, strict=True)]
    return statistics.fmean(right)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def main() -> None:
    global EPOCHS
    parser = harness.parser(__doc__)
    parser.add_argument("--faces", type=int, default=768)
    words = parser.parse_args()
    if words.small:
        words.faces, words.repeats, EPOCHS = BATCH, 1, 1

    from vlmface import label_texts
    from vlmface.clip import model
    from vlmface.data.dataset_rows import with_still_images

    n = words.faces // BATCH * BATCH  # theirs drops what does not fill a batch
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_clip(model.load_clip(model.TINY), folder)
        rows, said = faces(folder, n)
        rows = with_still_images(rows)
        asked = label_texts.load("clip_signs")
        labels = list(asked.space.labels)
        truth = [labels.index(emotion) for emotion in rows["emotion"]]
        files = [str(folder / f"{id}.jpg") for id in rows["id"]]
        sides: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
            "training": (
                lambda: ours_trains(folder, rows, said),
                lambda: theirs_trains(folder, files, said),
            ),
            "zero_shot": (
                lambda: ours_answers(folder, rows, truth, asked),
                lambda: theirs_answers(folder, files, truth, asked),
            ),
        }
        seconds: dict[str, list[list[float]]] = {"training": [], "zero_shot": []}
        equal = {"training": 0.0, "zero_shot": 0.0}
        for repeat in range(words.repeats + 1):
            for task, (ours, theirs) in sides.items():
                pair = [timed(ours), timed(theirs)]
                equal[task] = max(equal[task], abs(pair[0][1] - pair[1][1]))
                if repeat:  # the first pass warms up
                    seconds[task].append([pair[0][0], pair[1][0]])
                    print(
                        f"{task} {repeat}: ours {pair[0][0]:.2f} s ({pair[0][1]:.4f}), "
                        f"open_clip {pair[1][0]:.2f} s ({pair[1][1]:.4f})",
                        flush=True,
                    )
    print(
        f"largest difference of mean losses {equal['training']:.1e}, of accuracies "
        f"{equal['zero_shot']:.1e}"
    )
    assert equal["training"] < 1e-3 and equal["zero_shot"] < 1e-9
    ratios = {
        task: statistics.median(theirs / ours for ours, theirs in runs)
        for task, runs in seconds.items()
    }
    print(", ".join(f"{task} {ratio:.2f} times as fast" for task, ratio in ratios.items()))
    harness.write(words.json, "clip_speed", ratio=ratios, runs=seconds, equal=equal)


if __name__ == "__main__":
    main()
