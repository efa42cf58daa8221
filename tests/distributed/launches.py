"""How many of N runs of two processes end as they should: exit code 0 in both, the report written.

    python tests/distributed/launches.py --config ddp --n 100
    python tests/distributed/launches.py --config zero2 --n 10 --fresh

One training step of a tiny model. Most of a launch is importing libraries; so by default they are
imported once, and the two processes of each run are forked from there, with the environment that
accelerate's launcher gave to a first pair. They run the recipe's script to the interpreter's very
end. `--fresh` starts every run with `accelerate launch` instead.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers.scripts import ROOT, environment, launcher, to_argv

RECIPE = ROOT / "recipes" / "sft_cot.py"
LONGEST = 600  # seconds that a run may take
SETTINGS: dict[str, Any] = {
    "n_train": 2,
    "n_eval": 1,
    "epochs": 1,
    "batch_size": 1,
    "warmup_steps": 0,
    "train_embeddings": "false",
    "cache_features": "false",
    "logging_steps": 1,
    "save_steps": 100,
    "max_new_tokens": 1,
}


def build_base(folder: Path) -> Path:
    """A random LLaVA of one layer a tower."""
    from vlmface import families, prompts
    from vlmface.rationale import rules

    corpus = [rules.write({6: 3, 12: 3}, "happiness", seed=s) for s in range(20)]
    corpus += [str(prompts.load("face_cot").messages()), "USER: ASSISTANT:"] * 20
    families.get("llava").build_tiny(folder, corpus, vocab_size=400)
    return folder


def words(base: Path, output_dir: Path) -> list[str]:
    settings = SETTINGS | {"base_model": base, "output_dir": output_dir}
    return to_argv(settings)


def fresh(config: str, argv: list[str], log: Path) -> list[int]:
    """The launcher's exit code: 0 if both processes ended with 0."""
    command = [*launcher(config), str(RECIPE), *argv]
    with log.open("w") as out:
        done = subprocess.run(
            command, env=environment(), stdout=out, stderr=out, timeout=LONGEST, check=False
        )
    return [done.returncode]


# --- forked ---------------------------------------------------------------------------------------


def launched_environments(config: str, folder: Path) -> list[dict[str, str]]:
    """What the launcher puts into the environment of each of the two processes."""
    script = folder / "environment.py"
    script.write_text(
        "import json, os, pathlib, sys\n"
        "name = f'environment{os.environ[\"RANK\"]}.json'\n"
        "(pathlib.Path(sys.argv[1]) / name).write_text(json.dumps(dict(os.environ)))\n"
    )
    subprocess.run(
        [*launcher(config), str(script), str(folder)],
        env=environment(),
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return [json.loads((folder / f"environment{rank}.json").read_text()) for rank in (0, 1)]


def preload(config: str, argv: list[str], folder: Path) -> None:
    """Import all that a run imports, but start no thread and no process group: a forked process
    runs alone first, and tells which modules it ended with."""
    import torch

    torch.set_num_threads(1)
    names = folder / "modules.json"
    if (child := os.fork()) == 0:
        become(environment(), folder / "alone.log")
        atexit.register(lambda: names.write_text(json.dumps(list(sys.modules))))
        sys.argv = [str(RECIPE), *argv]
        runpy.run_path(str(RECIPE), run_name="__main__")
    if code_of(child):
        raise SystemExit((folder / "alone.log").read_text())
    more = ["deepspeed", "accelerate.utils.deepspeed"] if config.startswith("zero") else []
    for name in [*json.loads(names.read_text()), *more]:
        with contextlib.suppress(Exception):  # some exist only after others were set up
            importlib.import_module(name)
    gc.freeze()  # children need not look through all of it


def start(
    environments: list[dict[str, str]], argv: list[str], log: Path, recipe: Path = RECIPE
) -> list[int]:
    """Fork a process for each environment; their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    sys.stdout.flush()
    children = []
    for one in environments:
        if (child := os.fork()) == 0:
            become(one | {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"}, log)
            sys.argv = [str(recipe), *argv]
            runpy.run_path(str(recipe), run_name="__main__")
            raise AssertionError("the script did not exit")
        children.append(child)
    return children


def become(environment: Mapping[str, str], log: Path) -> None:
    """A process of its own: with this environment, and with output into a file."""
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)


def code_of(child: int) -> int:
    """The exit code of a process, negative for a signal."""
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL


# --- all of them ----------------------------------------------------------------------------------


def count(config: str, n: int, folder: Path, *, is_fresh: bool = False) -> dict[str, Any]:
    """{"config", "runs", "ended_well", "wall_s", "failures": the codes and the end of the output of
    up to five that did not}. `folder`: an empty one, for the runs."""
    failures, well, began = [], 0, time.monotonic()
    base = build_base(folder / "base")
    environments = [] if is_fresh else launched_environments(config, folder)
    if not is_fresh:
        preload(config, words(base, folder / "alone"), folder)
    for number in range(n):
        out, log = folder / "run", folder / "log"
        argv = words(base, out)
        if is_fresh:
            codes = fresh(config, argv, log)
        else:
            codes = [code_of(child) for child in start(environments, argv, log)]
        good = not any(codes) and (out / "report.html").is_file()
        well += good
        if not good and len(failures) < 5:
            failures.append({"run": number, "codes": codes, "log": log.read_text()[-4000:]})
        print(
            f"{config} {number + 1}/{n}: {codes}, {well} well, {time.monotonic() - began:.0f} s",
            flush=True,
        )
        shutil.rmtree(out, ignore_errors=True)
        log.unlink()
    seconds = round(time.monotonic() - began, 1)
    return {
        "config": config,
        "runs": n,
        "ended_well": well,
        "wall_s": seconds,
        "failures": failures,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="ddp", choices=("ddp", "zero2"))
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--fresh", action="store_true", help="start each with accelerate launch")
    parser.add_argument("--json", type=Path, help="write the counts there")
    arguments = parser.parse_args()
    # Not a context manager: forked processes leave through here too, and would delete the folder.
    folder = Path(tempfile.mkdtemp())
    result = count(arguments.config, arguments.n, folder, is_fresh=arguments.fresh)
    shutil.rmtree(folder)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    return 0 if result["ended_well"] == result["runs"] else 1


if __name__ == "__main__":
    sys.exit(main())
