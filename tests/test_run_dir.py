"""Run folders: one process at a time, replaced only by a run that trains, and nothing else ever
deleted."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from helpers.run_files import contents
from helpers.scripts import ROOT
from helpers.trainers import starter, stop_in

from vlmface import run_dir
from vlmface.errors import UserError
from vlmface.utils import lock

HOLD = """
import sys, time
from vlmface.utils import lock
with lock.hold(sys.argv[1]):
    print("held", flush=True)
    {then}
"""


@contextmanager
def holder(folder: Path, then: str = "time.sleep(600)") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(then=then), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


# --- the lock -------------------------------------------------------------------------------------


def test_the_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    with holder(folder) as process:
        for path in (folder, folder.parent / "other" / ".." / "one"):
            with pytest.raises(UserError) as error, lock.hold(path):
                pass
        message = str(error.value)
        assert f"is in use by process {process.pid} on {platform.node()} since 20" in message
        assert "\n" not in message
        with lock.hold(folder.parent / "two"):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with lock.hold(folder):  # the lock has gone with its holder
            pass
    assert not list(folder.parent.iterdir())


def test_a_lock_ends_with_its_holder_though_forked_children_live(tmp_path: Path) -> None:
    """Such as the workers of a data loader."""
    fork = "import os; os.fork() or os.setsid(); time.sleep(30)"
    with holder(tmp_path / "run", fork) as process:
        time.sleep(0.3)
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        process.kill()
        process.wait()
        try:
            with lock.hold(tmp_path / "run"):
                pass
        finally:
            for child in children:
                os.kill(int(child), signal.SIGKILL)
    assert len(children) == 1


def test_a_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), lock.hold(tmp_path / "run"):
            raise ZeroDivisionError
    with lock.hold(tmp_path / "run"):
        (tmp_path / "run").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_file_in_the_way_of_the_folder_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"cannot lock .*file/run with "),
        lock.hold(tmp_path / "file" / "run"),
    ):
        pass


# --- what is in the folder ------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    output_dir: str
    rate: float = 1.0
    overwrite: bool = False


def run(settings: Settings, until: str = "end", **identity: object) -> list[str]:
    """A run of one step, stopped "before" it, "after" it, or at its "end"; what was in the folder
    when it had begun."""
    folder = Path(settings.output_dir)
    with run_dir.open_run(settings) as is_open:
        if not is_open:
            return ["complete"]
        run_dir.start_run(settings, lambda: identity)
        found = sorted(path.name for path in folder.iterdir())
        (folder / "predictions_before.jsonl").write_text(f"{settings.rate}\n")
        if until == "before":
            raise KeyboardInterrupt
        run_dir.mark_trained(folder)
        (folder / "log.jsonl").write_text(f"{settings.rate}\n")
        if until == "after":
            raise KeyboardInterrupt
        (folder / "report.html").write_text(f"{settings.rate}\n")
    return found


def stopped(settings: Settings, until: str, **identity: object) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(settings, until, **identity)


FRESH = ["run.json", "settings.json"]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(str(tmp_path / "run"))


def test_a_run_is_resumed_by_the_same_settings_only(settings: Settings, tmp_path: Path) -> None:
    stopped(settings, "after", data="a")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"started with rate = 1\.0, but now rate = 2\.0"):
        run(replace(settings, rate=2.0), data="a")
    with pytest.raises(UserError, match=r"with data \(fingerprint\) 'a', but now it is 'b'"):
        run(settings, data="b")
    assert contents(tmp_path) == before
    assert "log.jsonl" in run(settings, data="a")
    assert run(settings, data="a") == ["complete"]


def test_what_never_trained_does_not_block(settings: Settings) -> None:
    stopped(settings, "before", data="a")
    assert "predictions_before.jsonl" in run(replace(settings), "end", data="a")  # resumed
    shutil.rmtree(settings.output_dir)
    stopped(settings, "before", data="a")
    stopped(replace(settings, rate=2.0), "before", data="a")
    assert run(replace(settings, rate=2.0), data="b") == FRESH


def test_overwriting_replaces_a_run_once_the_new_one_trains(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(settings)
    before = contents(tmp_path)
    new = replace(settings, rate=2.0, overwrite=True)
    stopped(new, "before")
    assert "the earlier run is back" in capsys.readouterr().out
    assert contents(tmp_path) == before
    stopped(new, "after")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert (tmp_path / "run" / "log.jsonl").read_text() == "2.0\n"
    assert run(new) == FRESH


OVERWRITE = """
import sys, os, signal
sys.path.insert(0, {tests!r})
from test_run_dir import Settings, run_dir, Path
settings = Settings({folder!r}, rate=2.0, overwrite=True)
with run_dir.open_run(settings):
    run_dir.start_run(settings, dict)
    if {trained}:
        run_dir.mark_trained(Path(settings.output_dir))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def overwrite_and_die(folder: str, trained: bool) -> None:
    code = OVERWRITE.format(tests=str(ROOT / "tests"), folder=folder, trained=trained)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL


def test_a_replacement_that_was_killed_is_undone(settings: Settings, tmp_path: Path) -> None:
    stopped(settings, "after")
    (tmp_path / "run" / "adapter.bin").write_bytes(b"weights")
    overwrite_and_die(settings.output_dir, trained=False)
    assert (tmp_path / ".run.replaced" / "adapter.bin").exists()
    assert "adapter.bin" in run(settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_replacement_that_was_killed_in_training_goes_on(
    settings: Settings, tmp_path: Path
) -> None:
    stopped(settings, "after")
    overwrite_and_die(settings.output_dir, trained=True)
    assert "log.jsonl" not in run(replace(settings, rate=2.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("until", ["before", "after", "end"])
def test_a_run_behind_a_link_is_replaced(until: str, settings: Settings, tmp_path: Path) -> None:
    run(settings)
    (tmp_path / "latest").symlink_to(tmp_path / "run")
    new = replace(settings, output_dir=str(tmp_path / "latest"), rate=2.0, overwrite=True)
    if until == "end":
        run(new)
    else:
        stopped(new, until)
    assert (tmp_path / "latest").is_symlink()
    rate = json.loads((tmp_path / "run" / "settings.json").read_text())["rate"]
    assert rate == (1.0 if until == "before" else 2.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "run"]


# --- folders that are something else --------------------------------------------------------------

FOREIGN = {
    "another program's": {"settings.json": '{"editor.tabSize": 4}', "thesis.tex": "years of work"},
    "empty": {"settings.json": ""},
    "like a run's": {
        "settings.json": '{"output_dir": "run", "rate": 1.0, "overwrite": false}',
        "thesis.tex": "years of work",
    },
    "another run.json": {"run.json": '{"format": 1}', "settings.json": "{}"},
    "a list": {"run.json": "[1]", "thesis.tex": "years of work"},
    "no settings": {"thesis.tex": "years of work"},
    "a folder": {"data/thesis.tex": "years of work"},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_run_is_never_deleted(
    files: dict[str, str], settings: Settings, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"holds other files than a run .* will not be deleted"):
        run(replace(settings, overwrite=True))
    assert contents(tmp_path) == before
    if "settings.json" in files or "run.json" in files:  # a new run would write there
        with pytest.raises(UserError, match=r"holds .*\.json, but was not started by this version"):
            run(settings)
        assert contents(tmp_path) == before


def test_files_that_were_there_before_a_run_are_kept(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    stopped(settings, "before")
    stopped(replace(settings, rate=2.0), "before")  # clears what the first attempt left
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"
    run(replace(settings, rate=2.0))
    with pytest.raises(UserError, match=r"before the run \(thesis\.tex\): it will not be deleted"):
        run(replace(settings, overwrite=True))
    (tmp_path / "run" / "thesis.tex").unlink()
    run(replace(settings, overwrite=True))


# --- a whole recipe -------------------------------------------------------------------------------


def test_a_recipe_in_a_folder_that_is_in_use(base: Path, clip_base: Path, tmp_path: Path) -> None:
    start, folder = starter("clip", base, clip_base), tmp_path / "run"
    with holder(folder) as process:
        for words in ((), ("--overwrite",)):
            with pytest.raises(UserError, match=f"in use by process {process.pid} on "):
                start(folder, *words)
        assert not folder.exists()


BAD = {
    "prompt": {"prompt": "nothing"},
    "benchmark": {"benchmark": "nothing"},
    "other labels": {"benchmark": "rafau"},
    "data": {"dataset": "rafdb", "dataset_root": "/nowhere"},
    "split": {"dataset_split": "nothing"},
    "base": {"base_model": "./nowhere"},
    "views": {"views": "[{view: nothing}]"},
}


def test_overwriting_with_settings_that_cannot_work_leaves_the_old_run(
    base: Path, clip_base: Path, tmp_path: Path
) -> None:
    start, folder = starter("sft", base, clip_base), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_in(patch, "sft", 4)
        with pytest.raises(KeyboardInterrupt):
            start(folder)
    before = contents(tmp_path)
    for changes in BAD.values():
        with pytest.raises(UserError) as error:
            start(folder, "--overwrite", **changes)
        assert "\n" not in str(error.value)
        assert contents(tmp_path) == before
    # What is noticed only when the model is trained puts the old run back as well.
    with pytest.raises(UserError, match="lora_target_modules"):
        start(folder, "--overwrite", lora_target_modules="nothing")
    assert contents(tmp_path) == before
    with pytest.MonkeyPatch.context() as patch:
        stop_in(patch, "sft", 1)
        with pytest.raises(KeyboardInterrupt):
            start(folder, "--overwrite", learning_rate=1e-4)
    assert contents(tmp_path) == before
    assert start(folder, "--overwrite", learning_rate=1e-4) == 0
    assert json.loads((folder / "settings.json").read_text())["learning_rate"] == 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["sft", "clip", "captions", "grpo"])
def test_the_corrected_command_starts(
    name: str, base: Path, clip_base: Path, tmp_path: Path
) -> None:
    start, folder = starter(name, base, clip_base), tmp_path / "runs" / "run"
    wrong = {"dataset_split": "nothing"} if name == "captions" else BAD["prompt"]
    with pytest.raises(UserError):
        start(folder, **wrong)
    assert not list(tmp_path.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        stop_in(patch, name, 1)
        with pytest.raises(KeyboardInterrupt):
            start(folder, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        stop_in(patch, name, 2)
        with pytest.raises(KeyboardInterrupt):
            start(folder)
    assert json.loads((folder / "settings.json").read_text())["seed"] == 0
    with pytest.raises(UserError, match="started with seed = 0, but now seed = 1"):
        start(folder, seed=1)
