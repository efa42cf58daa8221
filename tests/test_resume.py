"""A killed run is resumed as what it was, or not at all: checkpoints that are damaged, other data,
another launch are refused in one line, and the run folder stays as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.run_files import contents, losses
from helpers.trainers import NAMES, interrupted, starter

from vlmface import data, run_dir
from vlmface.errors import UserError


@dataclass
class Killed:
    """A run that was stopped in its fourth step; `again` starts its command in another folder."""

    folder: Path
    again: Callable[..., int]


@pytest.fixture(scope="module")
def killed(
    base: Path, clip_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Killed]:
    runs: dict[str, Killed] = {}

    def make(name: str) -> Killed:
        if name not in runs:
            folder = tmp_path_factory.mktemp("killed") / name
            start = starter(name, base, clip_base)
            with interrupted(name, 4):
                start(folder)
            runs[name] = Killed(folder, start)
        return runs[name]

    return make


def refused(killed: Killed, folder: Path, message: str, **changes: Any) -> None:
    """The command that is started again in `folder` ends with this one line and changes nothing."""
    before = contents(folder.parent)
    with pytest.raises(UserError, match=message) as error:
        killed.again(folder, **changes)
    assert "\n" not in str(error.value)
    assert contents(folder.parent) == before


@pytest.mark.parametrize("name", NAMES)
def test_every_file_of_a_checkpoint_is_needed(
    name: str, killed: Callable[[str], Killed], tmp_path: Path
) -> None:
    run = killed(name)
    last = run.folder / "checkpoints" / "checkpoint-2"
    files = sorted(path.relative_to(last) for path in last.rglob("*") if path.is_file())
    needed = {"complete", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert needed < {path.name for path in files}
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    for file in files:
        path = folder / "checkpoints" / "checkpoint-2" / file
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        refused(run, folder, f"{file.name} (has|is damaged)")
        if file.name != "complete":  # without it, it is a checkpoint that was never finished
            path.unlink()
            refused(run, folder, f"{file.name} is missing")
        path.write_bytes(whole)


@pytest.mark.parametrize("name", NAMES)
def test_other_runs_are_not_resumed(
    name: str, killed: Callable[[str], Killed], tmp_path: Path
) -> None:
    run = killed(name)
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    record = json.loads((folder / run_dir.RUN_FILE).read_text())
    assert record["trained"] and record["identity"]["processes"] == 1
    changes = {
        "data": "0",
        "rows": 3,
        "base_weights": "0",
        "processes": 2,
        "global_batch": 5,
        "sharding": "FSDP",
        "precision": "float16",
    }
    if name != "sft":  # what is compared is the same in all
        changes = {"data": "0", "processes": 2}
    for key, value in changes.items():
        assert record["identity"][key] != value
        other = {**record, "identity": {**record["identity"], key: value}}
        (folder / run_dir.RUN_FILE).write_text(json.dumps(other))
        refused(run, folder, f"was started with {key.replace('_', ' ')}.* {value!r}, but now it is")
    (folder / run_dir.RUN_FILE).write_text(json.dumps(record))
    refused(run, folder, "was started with seed = 0, but now seed = 1", seed=1)
    assert run.again(folder) == 0


def test_other_trained_weights_are_not_resumed(
    killed: Callable[[str], Killed], tmp_path: Path
) -> None:
    run = killed("sft")
    shutil.copytree(run.folder, tmp_path / "run")
    note = tmp_path / "run" / "checkpoints" / "checkpoint-2" / "complete"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"trainable_sha": "ba9876543210"}))
    refused(run, tmp_path / "run", "trainable_sha ba9876543210, now ")


def test_a_checkpoint_that_was_never_finished_is_left_out(
    killed: Callable[[str], Killed], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = killed("clip")
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    half = folder / "checkpoints" / "checkpoint-3"
    shutil.copytree(folder / "checkpoints" / "checkpoint-2", half)
    (half / "complete").unlink()
    (half / "optimizer.pt").write_bytes(b"half")
    assert run.again(folder) == 0
    assert f"resuming from {folder / 'checkpoints' / 'checkpoint-2'}" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", "0123456789ab", '{"files": []}', '{"files": {}}'])
def test_a_note_that_is_none_is_one_message(text: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "complete").write_text(text)
    (tmp_path / "checkpoints" / "checkpoint-old").mkdir()  # put aside by somebody
    with pytest.raises(UserError, match=r"checkpoint-2/complete is damaged \(") as error:
        run_dir.last_checkpoint(tmp_path)
    assert "\n" not in str(error.value)
    run_dir.complete_checkpoint(checkpoint, "0123456789ab")
    assert run_dir.last_checkpoint(tmp_path) == checkpoint
    assert run_dir.checkpoint_to_resume(tmp_path, "0123456789ab") == checkpoint
    assert (tmp_path / "checkpoints" / "checkpoint-old").exists()


# --- other data -----------------------------------------------------------------------------------

TABLE = ("image,emotion", *(f"{i}.png,{('anger', 'happiness')[i % 2]}" for i in range(16)))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of 16 pictures."""
    from helpers.samples import picture

    folder = tmp_path / "own"
    folder.mkdir()
    for i in range(16):
        picture(i).save(folder / f"{i}.png")
    (folder / "t.csv").write_text("\n".join(TABLE) + "\n")
    return folder / "t.csv"


def exchange_labels(table: Path) -> None:
    rows = [row.replace("anger", "fear") for row in TABLE[:5]]
    table.write_text("\n".join([*rows, *TABLE[5:]]) + "\n")


def exchange_a_picture(table: Path) -> None:
    """By one of the same size in bytes, with the same times."""
    import os

    path = table.with_name("3.png")
    known, content = path.stat(), bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))


def drop_a_row(table: Path) -> None:
    table.write_text("\n".join(TABLE[:-1]) + "\n")


def reorder(table: Path) -> None:
    table.write_text("\n".join([TABLE[0], TABLE[2], TABLE[1], *TABLE[3:]]) + "\n")


CHANGES = [exchange_labels, exchange_a_picture, drop_a_row, reorder]


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_is_of_labels_pictures_and_order(
    change: Callable[[Path], None], table: Path
) -> None:
    def fingerprint() -> str:
        return data.fingerprint(data.load("table", table))

    before = fingerprint()
    assert fingerprint() == before
    moved = table.parent.rename(table.parent.with_name("elsewhere"))
    assert data.fingerprint(data.load("table", moved / "t.csv")) == before
    moved.rename(table.parent)
    change(table)
    assert fingerprint() != before


@pytest.mark.parametrize("change", [exchange_labels, exchange_a_picture])
def test_a_run_is_not_resumed_on_other_data(
    change: Callable[[Path], None], table: Path, base: Path, clip_base: Path, tmp_path: Path
) -> None:
    start = starter("clip", base, clip_base)
    words: dict[str, Any] = {"dataset": "table", "dataset_root": table, "n_train": "null"}
    folder = tmp_path / "runs" / "own"
    with interrupted("clip", 4):
        start(folder, **words)
    kept = table.read_text()
    change(table)
    refused(Killed(folder, start), folder, "was started with data|rows", **words)
    if change is exchange_labels:
        table.write_text(kept)
        assert start(folder, **words) == 0


def test_a_row_of_texts_that_changed_is_other_data(
    base: Path, clip_base: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.jsonl"
    row = {"question": "What is AU4?", "answer": "the brows are lowered"}
    texts.write_text(json.dumps(row) + "\n")
    start, folder = starter("sft", base, clip_base), tmp_path / "runs" / "sft"
    with interrupted("sft", 4):
        start(folder, text_only_data=texts)
    texts.write_text(json.dumps(row | {"answer": "the brows are raised"}) + "\n")
    refused(Killed(folder, start), folder, "started with text only data", text_only_data=texts)


def test_the_best_epoch_so_far_is_needed(base: Path, clip_base: Path, tmp_path: Path) -> None:
    """Where a run keeps the weights of its best epoch, they are part of what is resumed."""
    words = {
        "checkpoint_selection": "best",
        "validation_share": 0.4,
        "epochs": 4,
        "n_train": 24,
        "save_steps": 1,
    }
    start, folder = starter("clip", base, clip_base), tmp_path / "runs" / "best"
    with interrupted("clip", 4):
        start(folder, **words)
    kept = folder / "checkpoints" / "best.pt"
    whole = kept.read_bytes()
    for change in (kept.unlink, lambda: kept.write_bytes(whole[: len(whole) // 2])):
        change()
        refused(Killed(folder, start), folder, r"best\.pt", **words)
    kept.write_bytes(whole)
    assert start(folder, **words) == 0


def test_whole_weights_are_resumed(base: Path, clip_base: Path, tmp_path: Path) -> None:
    """Without an adapter, an interrupted run has the losses of an uninterrupted one."""
    start = starter("sft", base, clip_base)
    whole = {"vision_tower": "full", "projector": "full", "language_model": "full"}
    whole |= {"lora_dropout": 0.05, "train_embeddings": "false"}
    assert start(tmp_path / "whole", **whole) == 0
    with interrupted("sft", 4):
        start(tmp_path / "killed", **whole)
    assert start(tmp_path / "killed", **whole) == 0
    found, expected = losses(tmp_path / "killed"), losses(tmp_path / "whole")
    assert found == pytest.approx(expected, abs=1e-5)
