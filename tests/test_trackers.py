"""Trackers: each holds the numbers of the log, nothing is sent, and no picture is written."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.scripts import Recipe

from vlmface.errors import UserError
from vlmface.train import trackers

RUN = (
    *("--n_train", "12", "--n_eval", "1", "--epochs", "1", "--batch_size", "4"),
    *("--vision_tower", "frozen", "--cache_features", "false", "--train_embeddings", "false"),
    *("--max_new_tokens", "1", "--eval_steps", "2", "--validation_split", "validation"),
    *("--n_validation", "2"),
)


VARIABLES = ("WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR", "TENSORBOARD_LOGGING_DIR")


@pytest.fixture(scope="module")
def tracked(sft_cot: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """(a run that reports to all three, trackio's folder, what was printed)."""
    assert "trackio" not in sys.modules  # it reads its folder when it is imported
    folder = tmp_path_factory.mktemp("tracked")
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        patch.setattr(trackers, "print", lambda text: printed.append(text), raising=False)
        report_to = ",".join(trackers.EXTRAS)
        assert sft_cot(folder / "run", *RUN, "--report_to", report_to) == 0
        assert not os.environ.keys() & set(VARIABLES)
    return folder / "run", folder / "trackio", "\n".join(printed)


def log(folder: Path, key: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


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
