"""`vlmface serve`: start vLLM for a run and verify that its outputs match.

Weights that vLLM would ignore are merged first; all other settings follow from the manifest. The
server is reported ready only after it has read the same prompts, generated the same answers for the
same images, and given each token nearly the same log-probability as the run in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import httpx2

from vlmface import manifest
from vlmface.errors import UserError
from vlmface.evidence import NOT_MEASURED
from vlmface.infer.remote import request_fields
from vlmface.serving.parity import (
    check_adapter_active,
    check_parity,
    generate_local,
    generate_remote,
    parity_images,
)
from vlmface.serving.plan import API_KEY_ENV, ServeOptions, ServePlan, make_plan
from vlmface.utils import files

MIN_VLLM_VERSION = (0, 32)  # the first version that was tested
_STARTUP_TIMEOUT_S = 900.0


def find_vllm(executable: str | None) -> str:
    """Find vLLM's executable.

    Args:
        executable: By default the environment variable VLLM, or the one on the path.

    Returns:
        Its path.

    Raises:
        UserError: There is none; explains how to install it.
    """
    name = executable or os.environ.get("VLLM") or "vllm"
    path = shutil.which(name)
    if path is None:
        raise UserError(
            f"the executable {name} was not found: vLLM needs other versions of its libraries than "
            "vlmface and is installed in an environment of its own: python -m venv vllm && "
            "vllm/bin/pip install vllm (without a GPU see docs/serving.md), then --vllm "
            "vllm/bin/vllm"
        )
    return path


def check_version(vllm: str) -> str:
    """Check vLLM's version.

    Args:
        vllm: Its executable.

    Returns:
        The version.

    Raises:
        UserError: It is too old or cannot be read.
    """
    shebang = Path(vllm).read_bytes()[:500].splitlines()[0].decode("utf-8", "replace")
    has_shebang = shebang.startswith("#!")
    python = shebang.removeprefix("#!").strip() if has_shebang else sys.executable
    code = "import importlib.metadata as m; print(m.version('vllm'))"
    completed = subprocess.run([*shlex.split(python), "-c", code], capture_output=True, text=True)
    version = completed.stdout.strip()
    try:
        numbers = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        raise UserError(
            f"cannot read the version of {vllm}: {(completed.stderr or version).strip()[-300:]}"
        ) from None
    if numbers < MIN_VLLM_VERSION:
        raise UserError(
            f"{vllm} is vLLM {version}: use {'.'.join(map(str, MIN_VLLM_VERSION))} or newer, older "
            "versions have not been tested"
        )
    return version


@contextlib.contextmanager
def running_server(plan: ServePlan, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the server, wait until it is ready, and stop it at the end.

    Args:
        plan: What is started.
        log: The file for its output.

    Yields:
        The process.

    Raises:
        UserError: It stops or does not become ready.
    """
    environment = os.environ | plan.environment
    environment.pop("OMP_NUM_THREADS", None)  # vLLM would read it as its own setting
    environment.pop("PYTHONPATH", None)
    environment["PATH"] = f"{Path(plan.command[0]).parent}{os.pathsep}{environment['PATH']}"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            plan.command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(plan, process, log)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait_until_ready(plan: ServePlan, process: subprocess.Popen[bytes], log: Path) -> None:
    health = plan.url.removesuffix("/v1") + "/health"
    deadline = time.monotonic() + _STARTUP_TIMEOUT_S
    while True:
        try:
            if httpx2.get(health, timeout=5).status_code == 200 and process.poll() is None:
                return
        except httpx2.TransportError:
            pass  # it does not listen yet
        if process.poll() is not None or time.monotonic() > deadline:
            stopped = process.poll() is not None
            state = "stopped" if stopped else f"is not ready after {_STARTUP_TIMEOUT_S} s"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise UserError(f"vLLM {state}; the end of {log}:\n{tail}")
        time.sleep(0.5)


def serve_command(
    runs: Sequence[str], vllm: str | None, options: ServeOptions, *, dry_run: bool
) -> int:
    """Serve until stopped.

    Args:
        runs: Folders, or NAME=FOLDER.
        vllm: vLLM's executable, see `find_vllm`.
        options: How it is started; `vllm`, `gpu` and `merge` are filled in.
        dry_run: Only print the command.

    Returns:
        The exit code.

    Raises:
        UserError: The server cannot be started, or its outputs do not match.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    executable = vllm or "vllm" if dry_run else find_vllm(vllm)
    gpu = torch.cuda.is_available()
    plan = make_plan(runs, replace(options, vllm=executable, gpu=gpu, merge=not dry_run))
    if dry_run:
        print(plan.as_shell())
        return 0
    version = check_version(executable)
    images = parity_images()
    print(f"vLLM {version}; first computing the runs' answers in this process", flush=True)
    local = {name: generate_local(run, images, plan.dtype) for name, run in plan.models.items()}
    log = files.cache_dir() / "serve" / f"{options.port}.log"
    print(f"starting the server, which takes a minute or more; its log is {log}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with running_server(plan, log) as process:
            for name, run in plan.models.items():
                remote = generate_remote(plan, name, run, images)
                drift = check_parity(local[name], remote, name)
                if plan.adapters:
                    check_adapter_active(plan, name, local[name], remote, images)
                tokens = sum(len(generation.ids) for generation in remote)
                print(
                    f"{name}: the same prompts and answers as in this process; {tokens} tokens, "
                    f"log-probabilities {drift:.1e} apart in the mean"
                )
            print(f"ready: {plan.url}\n\n{curl_example(plan)}\n", flush=True)
            code = process.wait()
            raise UserError(f"vLLM stopped with code {code}: see the end of {log}")
    except KeyboardInterrupt:
        print("stopped")
        return 0


def curl_example(plan: ServePlan) -> str:
    """A shell command that sends FACE.png, or IMAGE1.png and so on, to the first model.

    Args:
        plan: Of the server.
    """
    from vlmface.infer.chat import attach_images

    name, run = next(iter(plan.models.items()))
    run_manifest, (prompt, *_) = manifest.load(run)
    mark = "@@"
    numbers = range(1, prompt.images + 1)
    uris = [f"data:image/png;base64,{mark}{i}{mark}" for i in numbers]
    body = request_fields(run) | {
        "model": name,
        "max_tokens": run_manifest.generation["max_new_tokens"],
        "temperature": 0,
        "messages": attach_images(prompt.messages(NOT_MEASURED), uris),
    }
    quoted = shlex.quote(json.dumps(body))
    for i in numbers:
        file = f"IMAGE{i}.png" if prompt.images > 1 else "FACE.png"
        quoted = quoted.replace(f"{mark}{i}{mark}", f"'\"$(base64 -w0 {file})\"'")
    return (
        f"printf %s {quoted} | curl -s {plan.url}/chat/completions "
        + (f'-H "Authorization: Bearer ${API_KEY_ENV}" ' if os.environ.get(API_KEY_ENV) else "")
        + "-H 'Content-Type: application/json' -d @-"
    )
