"""Trackers: each holds the numbers of the log, nothing is sent, and no picture is written."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.run_files import training_log
from helpers.scripts import ROOT, Recipe, environment, to_argv

from vlmface.errors import UserError
from vlmface.train import trackers

RUN = {
    "n_train": 12,
    "n_eval": 1,
    "epochs": 1,
    "batch_size": 4,
    "warmup_steps": 0,
    "cache_features": "false",
    "max_new_tokens": 1,
    "logging_steps": 1,
    "save_steps": 4,
    "eval_steps": 2,
    "validation_split": "validation",
    "n_validation": 2,
    "report_to": ",".join(trackers.EXTRAS),
}
VARIABLES = ("WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR", "TENSORBOARD_LOGGING_DIR")


@pytest.fixture(scope="module")
def tracked(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """(a run that reports to all three, trackio's folder, what was printed). In a process of its
    own, as trackio reads its folder's name when it is imported."""
    folder = tmp_path_factory.mktemp("tracked")
    words = to_argv({**RUN, "base_model": base, "output_dir": folder / "run"})
    variables = environment(TRACKIO_DIR=str(folder / "trackio"), CUDA_VISIBLE_DEVICES="")
    result = subprocess.run(
        [sys.executable, str(ROOT / "recipes/sft_cot.py"), *words],
        env={name: value for name, value in variables.items() if name not in VARIABLES},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-5000:]
    return folder / "run", folder / "trackio", result.stdout


def log(folder: Path, key: str) -> dict[int, float]:
    return {line["step"]: line[key] for line in training_log(folder) if key in line}


def test_tensorboard_holds_the_log(tracked: tuple[Path, Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _, printed = tracked
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for tag, key in (("train/loss", "loss"), ("eval/loss", "eval_loss")):
        values = {event.step: event.value for event in events.Scalars(tag)}
        assert values == pytest.approx(log(run, key), abs=1e-6)
    assert not events.Tags()["images"]
    assert f"tensorboard --logdir {run / 'tensorboard'}" in printed


def test_trackio_holds_the_log(tracked: tuple[Path, Path, str]) -> None:
    run, store, printed = tracked
    (path,) = store.glob("*.db")
    with sqlite3.connect(path) as database:
        rows = database.execute("select run_name, metrics from metrics").fetchall()
    assert {name.startswith("run ") for name, _ in rows} == {True}
    metrics = [json.loads(text) for _, text in rows]
    for tag, key in (("train/loss", "loss"), ("eval/loss", "eval_loss")):
        values = {line["train/global_step"]: line[tag] for line in metrics if tag in line}
        assert values == pytest.approx(log(run, key), abs=1e-6)
    assert "trackio show --project vlmface" in printed
    assert not list(store.rglob("*.png")) and not list(store.rglob("*.jpg"))


def test_wandb_writes_an_offline_run(tracked: tuple[Path, Path, str]) -> None:
    run, _, printed = tracked
    (folder,) = (run / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    content = file.read_bytes()
    for name in (b"train/loss", b"eval/loss", b"train/global_step"):
        assert name in content
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert not any(name.endswith((".png", ".jpg", ".jpeg", ".safetensors")) for name in names)
    assert b"PNG" not in content and b"JFIF" not in content
    assert "wandb: offline" in printed


def test_the_user_decides_whether_wandb_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: Any = type("Settings", (), {"output_dir": "runs/a", "trackers": ["wandb"]})()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with trackers.environment(settings):
        assert os.environ["WANDB_MODE"] == "disabled"
    monkeypatch.delenv("WANDB_MODE")
    with trackers.environment(settings):
        assert os.environ["WANDB_MODE"] == "offline"
    assert "WANDB_MODE" not in os.environ


@pytest.mark.parametrize("name", trackers.EXTRAS)
def test_a_missing_tracker_is_refused_before_anything_is_loaded(
    name: str, sft_cot: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda package: None)
    said = rf"report_to is {name}, which is not installed: pip install 'vlmface\[{name}\]'"
    with pytest.raises(UserError, match=said):
        sft_cot(tmp_path / "run", "--base_model", "nowhere", "--report_to", f"{name}")
    assert not (tmp_path / "run").exists()


def test_a_misspelt_tracker_is_refused() -> None:
    with pytest.raises(UserError, match=r"'wandbb', but there is no such tracker.*'wandb'"):
        trackers.check(["wandbb"])
