"""What the scripts in this folder share: options, and the form of their results."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the package, and the helpers of the tests


def parser(doc: str | None, *, repeats: int = 5) -> argparse.ArgumentParser:
    """--repeats, --small (everything as small as it can be, to try the script) and --json."""
    options = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("--repeats", type=int, default=repeats)
    options.add_argument("--small", action="store_true", help="try the script: no figure counts")
    options.add_argument("--json", type=Path)
    return options


def in_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a fresh process, which has imported the libraries already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trl.trainer.grpo_trainer", "trl.trainer.sft_trainer"])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(work, *arguments).result()


def write(
    path: Path | None, name: str, *, ratio: Mapping[str, float], runs: Any, equal: Any
) -> None:
    """Write {"name", "ratio", "runs", "equal", "machine"}; nothing without a path. A ratio above 1
    means that ours is better."""
    if path is None:
        return
    machine = {"cpus": os.cpu_count(), "processor": platform.machine()}
    result = {"name": name, "ratio": ratio, "runs": runs, "equal": equal, "machine": machine}
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
