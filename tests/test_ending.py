"""Several processes: what is refused in them, and how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.scripts import ROOT, environment, launcher, load_script

from vlmface import cli
from vlmface.errors import UserError
from vlmface.evaluate import faithfulness, landmarks, robustness, run, sweep
from vlmface.pipelines import temporal_ablation
from vlmface.utils import distributed

pytestmark = pytest.mark.distributed

# --- what works in one process --------------------------------------------------------------------

COMMANDS: dict[str, Callable[[], Callable[[list[str]], Any]]] = {
    "eval/run.py": lambda: run.main,
    "eval/sweep.py": lambda: sweep.main,
    "eval/faithfulness.py": lambda: faithfulness.main,
    "eval/robustness.py": lambda: robustness.main,
    "eval/temporal_ablation.py": lambda: temporal_ablation.main,
    "eval/landmarks.py": lambda: landmarks.main,
    **{
        name: lambda name=name: load_script(name).main  # type: ignore[misc]
        for name in (
            "eval/baseline_cnn.py",
            "recipes/synthesize.py",
            "recipes/facial_r1_loop.py",
            "recipes/pretrain_tiny.py",
            "recipes/fit_aus.py",
        )
    },
}


@pytest.mark.parametrize("name", COMMANDS)
def test_several_processes_are_refused_before_anything_is_read(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The words are wrong: were they read, the message would be another."""
    main = COMMANDS[name]()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{name} works in one process, but WORLD_SIZE is 2"):
        main(["--no_such_setting", "1"])
    assert not any(tmp_path.iterdir())


def test_so_are_the_commands_of_vlmface(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = [
        "rationale",
        "build",
        "--dataset",
        "synth",
        "--output_dir",
        str(tmp_path / "out"),
        "--writer",
        "rules",
    ]
    assert cli.main(words) == 2
    assert capsys.readouterr().err.startswith("error: vlmface works in one process")
    assert not any(tmp_path.iterdir())


def test_one_process_of_a_launcher_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    distributed.check_alone("eval/run.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", ["eval/run.py", "eval/sweep.py", "recipes/synthesize.py", "recipes/facial_r1_loop.py"]
)
def test_under_the_launcher_it_is_one_line(script: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [*launcher("ddp"), str(ROOT / script)],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode != 0
    assert result.stderr.count("error: ") == 1 and "exitcode  : 2" in result.stderr
    assert f"error: {script} works in one process, but WORLD_SIZE is 2" in result.stderr
    assert not any(tmp_path.iterdir())


# --- errors ---------------------------------------------------------------------------------------

FAILING = """
import atexit, os, sys
from vlmface.errors import UserError
from vlmface.utils import config, distributed
distributed.HEAD_START = float(sys.argv[2])
atexit.register(print, "cleaned up")
def main(argv):
    if os.environ.get("RANK", "0") in argv[0]:
        raise UserError("the rate is 7")
    return 0
config.run_main(main)
"""


def start(rank: int, failing: str, head_start: float) -> subprocess.Popen[str]:
    """A process whose main raises UserError if its rank is in `failing`."""
    return subprocess.Popen(
        [sys.executable, "-c", FAILING, failing, str(head_start)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(RANK=str(rank), WORLD_SIZE="2"),
        text=True,
    )


def test_an_error_of_all_processes_is_printed_once() -> None:
    first, second = start(0, "01", 60), start(1, "01", 60)
    assert first.wait(30) == 2
    assert second.poll() is None  # the launcher ends it now
    second.terminate()
    texts = [process.communicate()[1] for process in (first, second)]
    assert texts == ["error: the rate is 7\n", ""]


def test_an_error_of_one_process_is_printed_too() -> None:
    first, second = start(0, "1", 0.1), start(1, "1", 0.1)
    assert [process.wait(30) for process in (first, second)] == [0, 2]
    assert second.communicate() == ("cleaned up\n", "error: the rate is 7\n")
    assert first.communicate() == ("cleaned up\n", "")


# --- ending ---------------------------------------------------------------------------------------

ENDING = """
import os, sys, time
from vlmface.errors import UserError
from vlmface.utils import config, distributed
def main(argv):
    import torch
    distributed.wait_for_everyone()
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))
    model.itself = [model]  # a cycle, as trainers are
    model(torch.ones(2, 3)).sum().backward()
    if argv[0] == "report" and distributed.is_main():
        time.sleep(3)
        open(argv[1], "w").write("report")
    if argv[0] == "fail" and not distributed.is_main():
        raise UserError("only here")
    if argv[0] == "fail":
        distributed.wait_for_everyone()  # for ever
    return 0
close = distributed._close_process_group
def closed():
    close()
    assert not sys.modules["torch.distributed"].is_initialized()
    assert os.path.exists(sys.argv[2])  # rank 0 wrote it before anybody left
distributed._close_process_group = closed
config.run_main(main)
"""


@pytest.mark.slow
def test_all_wait_for_the_report_and_close_the_group(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ENDING)
    command = [*launcher("ddp"), str(script), "report", str(tmp_path / "report")]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "report").read_text() == "report"


@pytest.mark.slow
def test_nobody_waits_for_a_process_that_failed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ENDING)
    began = time.monotonic()
    result = subprocess.run(
        [*launcher("ddp"), str(script), "fail", "-"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode != 0 and time.monotonic() - began < 240
    assert result.stderr.count("error: only here") == 1 and "exitcode  : 2" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp", "zero2"])
def test_launches_end_well(config: str, tmp_path: Path) -> None:
    """VLMFACE_LAUNCHES says how many of each: 5, or more for a long look."""
    n = os.environ.get("VLMFACE_LAUNCHES", "5")
    path = tmp_path / "counts.json"
    words = [
        str(ROOT / "tests/distributed/launches.py"),
        "--config",
        config,
        "--n",
        n,
        "--json",
        str(path),
    ]
    subprocess.run([sys.executable, *words], env=environment(), timeout=120 + 120 * int(n))
    result = json.loads(path.read_text())
    assert result["ended_well"] == result["runs"] == int(n), result["failures"]


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    path = tmp_path / "gradients.json"
    words = [str(ROOT / "tests/distributed/gradients.py"), "--json", str(path)]
    subprocess.run([sys.executable, *words], env=environment(), timeout=3600)
    found = json.loads(path.read_text())
    assert len(found) > 20
    assert not {name: x for name, x in found.items() if isinstance(x, str) or x >= 1e-5}
