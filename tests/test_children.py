"""Children end with their parent: workers that render, and the stages of a loop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers.scripts import ROOT

from vlmface.utils import subprocesses

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}

WORKERS = """
import time
from joblib import Parallel, delayed
from vlmface.utils import subprocesses

for _ in Parallel(2, return_as="generator_unordered", **subprocesses.joblib_arguments())(
    delayed(time.sleep)(seconds) for seconds in (0.01, 0.01, 600, 600)
):
    print("working", flush=True)
"""


def gone(processes: list[psutil.Process], within_s: float) -> bool:
    """Whether all processes end in time; those that do not are killed."""
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    for process in alive:
        process.kill()
    return not alive


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(end: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKERS], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["working\n"] * 2
    workers = psutil.Process(process.pid).children(recursive=True)
    assert sum("loky" in " ".join(worker.cmdline()) for worker in workers) >= 2
    process.send_signal(end)
    process.wait()
    assert gone(workers, 10)


def test_results_are_those_of_joblib() -> None:
    from joblib import Parallel, delayed

    for jobs in (1, 2):
        parallel = Parallel(jobs, **subprocesses.joblib_arguments())
        assert parallel(delayed(abs)(-i) for i in range(5)) == list(range(5))


STAGES = """
import sys
from vlmface.utils import config, subprocesses

def main(argv):
    print("loop", flush=True)
    return subprocesses.run([sys.executable, "-c", {stage!r}])

config.run_main(main)
"""
STAGE = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {STAGE}"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends the child")
@pytest.mark.parametrize(
    ("end", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_stage_ends_with_the_loop(end: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STAGES.format(stage=STAGE)],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "loop\n"
    stage = psutil.Process(int(process.stdout.readline()))
    process.send_signal(end)
    assert process.wait(30) == code
    assert gone([stage], 5)


def test_a_child_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocesses, "_PATIENCE_S", 0.5)
    caught: list[int] = []

    def interrupt(*_: object) -> None:
        caught.append(1)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 2)
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            subprocesses.run([sys.executable, "-c", STUBBORN])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert caught and time.monotonic() - started < 30
    assert not [one for one in psutil.Process().children() if STUBBORN in " ".join(one.cmdline())]


def test_the_exit_code_is_the_childs(tmp_path: Path) -> None:
    assert subprocesses.run([sys.executable, "-c", "raise SystemExit(7)"]) == 7
    assert subprocesses.run([sys.executable, "-c", ""]) == 0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
