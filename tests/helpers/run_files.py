"""Readers of the files of a run folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

# What each line of predictions.jsonl has.
PREDICTION = {"id", "image", "truth", "text", "label", "status", "aus", "probabilities"}
PREDICTION |= {"latency_s"}


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_metrics(folder: Path) -> dict[str, Any]:
    """metrics.json of a run."""
    return read_json(folder / "metrics.json")


def training_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl, one for each logged step."""
    return read_jsonl(folder / "log.jsonl")


def losses(folder: Path) -> list[float]:
    """The training loss of each logged step."""
    return [line["loss"] for line in training_log(folder)]


def adapter(folder: Path) -> dict[str, Any]:
    """The tensors of a run's adapter."""
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file in and below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in sorted(folder.rglob("*"))
    }


def assert_same_scores(found: Path, run: Path) -> None:
    """An evaluation in `found` gives what the recipe wrote after training, and the same texts.
    The run folder may be a copy of the one that the recipe wrote."""
    scores, expected = read_metrics(found), read_metrics(run)["after"]
    assert scores.pop("model") == str(run)
    settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    assert expected.pop("model") == settings["output_dir"]
    for name in ("wall_s", "peak_rss_gib"):
        scores.pop(name), expected.pop(name)
    assert scores == expected
    lines = [read_jsonl(folder / "predictions.jsonl") for folder in (found, run)]
    assert [line["text"] for line in lines[0]] == [line["text"] for line in lines[1]]
