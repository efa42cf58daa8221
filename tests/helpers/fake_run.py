"""Prediction rows and a run folder as recipes write them, for the tests of `evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmface.label_spaces import SPACES
from vlmface.metrics import metrics

SPACE = SPACES["emotion8"]
AUS = (1, 2, 4, 6, 12, 15, 26)  # 26 is annotated and never present
ABOUT: dict[str, Any] = {
    "benchmark": "synth",
    "model": "tiny",
    "prompt": {"id": "face_cot", "sha": "0123456789ab"},
    "scoring": "generated",
    "wall_s": 1.5,
    "peak_rss_gib": 0.5,
}


def row(i: int, true: str | None, label: str | None, **fields: Any) -> dict[str, Any]:
    """One prediction; without a label its status is none."""
    status = "strict" if label else "none"
    blank = {"id": str(i), "truth": {"emotion": true, "aus": None}, "text": f"text {i}"}
    found: dict[str, Any] = {"label": label, "status": status, "aus": [], "probabilities": None}
    return blank | found | fields


def random_rows(
    n: int, seed: int, *, unparsed: float = 0.15, skill: float = 0.5, classes: int = 6
) -> list[dict[str, Any]]:
    """Rows of which about `skill` are right; the labels after the first `classes` never occur in
    the truth. The truth depends on the row's number only, so that two runs can be paired."""
    rows = []
    for i in range(n):
        world, model = np.random.default_rng([1, i]), np.random.default_rng([2, seed, i])
        true = str(world.choice(SPACE.labels[:classes]))
        present = {str(au): float(world.integers(1, 6)) for au in AUS[:-1] if world.random() < 0.3}
        label = true if model.random() < skill else str(model.choice(SPACE.labels))
        said = [
            au
            for au in AUS
            if model.random() < (0.8 * skill + 0.4 if str(au) in present else 0.4 * (1 - skill))
        ]
        valid = bool(model.random() >= unparsed)
        names = " ".join(f"(AU{au})" for au in said)
        rows.append(
            row(
                i,
                true,
                label if valid else None,
                aus=said,
                truth={"emotion": true, "aus": present, "annotated_aus": list(AUS)},
                text=f"<think>moves {names}</think>\n<answer>{label if valid else '?'}</answer>",
            )
        )
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def write_run(folder: Path, after: list[dict[str, Any]], before: list[dict[str, Any]]) -> None:
    """The files of a training run."""
    scores = {
        "before": metrics.summarise(before, SPACE, AUS, about=ABOUT),
        "after": metrics.summarise(after, SPACE, AUS, about=ABOUT),
        "train": {
            "steps": 300,
            "loss_first": 6.5,
            "loss_last": 0.4,
            "wall_s": 240.0,
            "peak_rss_gib": 1.25,
            "samples_per_s": 20.0,
        },
        "paired": metrics.compare(before, after, SPACE, AUS),
    }
    (folder / "metrics.json").write_text(json.dumps(scores), encoding="utf-8")
    manifest = {
        "base_model": {"id": "vlmface-tiny", "sha": "ba5eba5eba5e"},
        "trainable": {"vision_tower": "lora", "projector": "full", "language_model": "lora"},
        "dataset": {"name": "synth", "split": "train", "seed": 0, "n": 4000, "fingerprint": "f00d"},
        "note": "Synthetic faces only.",
    }
    (folder / "vlmface.json").write_text(json.dumps(manifest), encoding="utf-8")
    write_lines(folder / "predictions.jsonl", after)
    write_lines(folder / "predictions_before.jsonl", before)
    log = [{"step": s, "loss": 0.4 + 6 * 0.98**s, "learning_rate": 1e-3} for s in range(1, 301, 5)]
    write_lines(folder / "log.jsonl", [*log, {"step": 300, "train_runtime": 240.0}])


def faces(rows: list[dict[str, Any]]) -> dict[str, Image.Image]:
    """A small picture for every row."""
    rng = np.random.default_rng(0)
    return {
        r["id"]: Image.fromarray(rng.integers(0, 255, (24, 20, 3), dtype=np.uint8)) for r in rows
    }
