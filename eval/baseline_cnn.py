"""A plain convolutional network on the synth benchmark: the ceiling a language model must beat.

    python eval/baseline_cnn.py --output eval/benchmarks/synth_baseline.json

0.5 M parameters, trained from scratch on the same faces as the default recipe, with one head for
the emotion and one for the action units. The epoch is fixed in advance; thresholds are 0.5; the
test split is read once.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from tqdm import tqdm

from vlmface import data, facs
from vlmface.label_spaces import EMOTIONS, SPACES
from vlmface.metrics import metrics
from vlmface.synth.dataset import DEFAULT_N, VERSION
from vlmface.utils import distributed, files
from vlmface.utils.config import ArgumentParser, option, run_main
from vlmface.utils.ranges import Count, Seed


def tensors(
    split: str, n: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[dict]]:
    """Images (n, 3, 96, 96) in -1..1, emotion numbers, AU presence (n, AUs), and the rows."""
    rows = list(data.load("synth", split=split, n=n, seed=seed))
    images = np.stack([np.asarray(row["image"].convert("RGB")) for row in rows])
    units = [{a["au"] for a in row["aus"] if a["present"]} for row in rows]
    return (
        torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1,
        torch.tensor([EMOTIONS.index(row["emotion"]) for row in rows]),
        torch.tensor([[float(au in present) for au in facs.SYNTH_AUS] for present in units]),
        rows,
    )


class Network(nn.Module):
    """Five strided convolution blocks, average pooling, two linear heads."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128, 192)
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in itertools.pairwise(widths)
            )
        )
        self.hidden = nn.Linear(192 * 9, 64)
        self.emotion, self.units = nn.Linear(64, len(EMOTIONS)), nn.Linear(64, len(facs.SYNTH_AUS))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = F.relu(self.hidden(F.dropout(self.body(images).flatten(1), 0.2, self.training)))
        return self.emotion(features), self.units(features)


def train(
    images: torch.Tensor, emotions: torch.Tensor, units: torch.Tensor, epochs: int
) -> Network:
    """A network trained on faces."""
    network = Network()
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    batches = -(-len(images) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=epochs * batches)
    for _ in tqdm(range(epochs), "epochs"):
        for index in torch.randperm(len(images)).split(32):
            batch = images[index] * (1 + 0.15 * torch.randn(len(index), 1, 1, 1))
            label, unit = network(batch)
            loss = F.cross_entropy(label, emotions[index]) + 4 * F.binary_cross_entropy_with_logits(
                unit, units[index]
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval()


def predict(network: Network, images: torch.Tensor, rows: Any) -> list[dict[str, Any]]:
    """Prediction records of rows with their images, as `metrics.summarise` takes them."""
    with torch.no_grad():
        outputs = [network(part) for part in images.split(100)]
    labels = torch.cat([a for a, _ in outputs]).argmax(1).tolist()
    present = torch.cat([b for _, b in outputs]) > 0
    return [
        {
            "id": row["id"],
            "truth": {
                "emotion": row["emotion"],
                "aus": {str(a["au"]): a["intensity"] for a in row["aus"] if a["present"]},
                "annotated_aus": list(facs.SYNTH_AUS),
            },
            "label": EMOTIONS[label],
            "status": "strict",
            "aus": [au for au, on in zip(facs.SYNTH_AUS, flags.tolist(), strict=True) if on],
        }
        for row, label, flags in zip(rows, labels, present, strict=True)
    ]


def main(argv: Sequence[str]) -> int:
    distributed.check_alone("eval/baseline_cnn.py")
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    option(parser, "--n-train", Count, default=DEFAULT_N["train"])
    option(parser, "--n-test", Count, default=DEFAULT_N["test"])
    option(parser, "--epochs", Count, default=12)
    option(parser, "--seed", Seed, default=0)
    arguments = parser.parse_args(argv)
    torch.manual_seed(arguments.seed)
    start = time.time()
    images, emotions, units, _ = tensors("train", arguments.n_train, arguments.seed)
    network = train(images, emotions, units, arguments.epochs)
    images, _, _, rows = tensors("test", arguments.n_test, arguments.seed)
    parameters = sum(p.numel() for p in network.parameters())
    name = f"CNN, {parameters / 1e6:.1f} M parameters"
    summary = metrics.summarise(
        predict(network, images, rows),
        SPACES["emotion8"],
        facs.SYNTH_AUS,
        {
            "benchmark": "synth",
            "model": name,
            "prompt": {},
            "scoring": "generated",
            "wall_s": time.time() - start,
            "peak_rss_gib": 0.0,
        },
    )
    result = {
        "name": name,
        "source": f"eval/baseline_cnn.py: {arguments.n_train} training faces, "
        f"{arguments.epochs} epochs, seed {arguments.seed}",
        "synth_version": VERSION,
        "n": len(rows),
        "emotion": summary["emotion"],
        "au": summary["au"],
        "wall_s": round(time.time() - start, 1),
    }
    files.atomic_write(arguments.output, json.dumps(result, indent=1) + "\n")
    accuracy, f1 = summary["emotion"]["accuracy"], summary["au"]["f1_macro"]
    print(f"accuracy {accuracy:.3f}, macro AU F1 {f1:.3f}")
    return 0


if __name__ == "__main__":
    run_main(main)
