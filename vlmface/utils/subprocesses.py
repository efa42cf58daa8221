"""Child processes that end with their parent, even if that is killed."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

_PERIOD_S = 0.5
_PATIENCE_S = 20.0  # between asking a child to end and killing it
_PDEATHSIG = 1  # PR_SET_PDEATHSIG of Linux's prctl


@functools.cache
def end_with(parent: int) -> None:
    """Called in a worker process: end it soon after the process `parent` has ended.

    Worker pools leave their workers behind when the parent is killed. A thread watches the parent,
    and not the kernel (PR_SET_PDEATHSIG), which would count the thread that started the worker.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PERIOD_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watches the parent").start()


def joblib_arguments() -> dict[str, Any]:
    """Arguments of joblib.Parallel with which its workers end with this process."""
    return {"initializer": end_with, "initargs": (os.getpid(),)}


def run(command: Sequence[str]) -> int:
    """Run a command to its end and return its exit code, as `subprocess.call` does.

    The child is ended (SIGTERM, and SIGKILL if that does not help) when this process is
    interrupted, terminated or, on Linux, killed. For the main thread only.
    """

    def end(*_: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        process = subprocess.Popen(command, preexec_fn=_ended_by_kernel(os.getpid()))
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(_PATIENCE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def _ended_by_kernel(parent: int) -> Callable[[], None] | None:
    """What a child calls before it becomes the command, so that the kernel sends it SIGTERM when
    `parent` dies."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def prepare() -> None:
        prctl(_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has died already
            os._exit(1)

    return prepare
