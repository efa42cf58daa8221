"""The scripts of the checkout, and the arguments and processes that start them."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Recipe = Callable[..., int]  # (output_dir, *more arguments) -> exit code


def load_script(name: str) -> ModuleType:
    """A script of the repository ("recipes/sft_cot.py") as a module, for its real main()."""
    path = ROOT / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def to_argv(settings: Mapping[str, Any]) -> list[str]:
    """Settings as a command line has them: --NAME VALUE for each."""
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def environment(**more: str) -> dict[str, str]:
    """This process's variables for a child that imports vlmface from the checkout and is not part
    of a launch; with one thread, since tests run next to each other."""
    launch = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    inherited = {name: value for name, value in os.environ.items() if name not in launch}
    return inherited | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


def kill_once(condition: Callable[[], Any], command: list[str], env: Mapping[str, str]) -> None:
    """Start a command, and kill it as soon as a condition holds."""
    with subprocess.Popen(command, env=env) as process:
        while not condition():
            assert process.poll() is None, "it ended first"
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL


def launcher(config: str) -> list[str]:
    """`accelerate launch` of two processes with a configuration of recipes/accelerate."""
    return [
        *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"),
        *("--config_file", str(ROOT / f"recipes/accelerate/{config}.yaml")),
        *("--num_processes", "2", "--main_process_port", "0"),
    ]
