"""The scripts behind the figures on speed still run, in their smallest form."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.scripts import ROOT, environment

SCRIPTS = sorted(
    path.stem
    for path in (ROOT / "tests" / "perf").glob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
# Each line is a command: it runs as in a process of its own, which is forked from this one after
# the libraries were imported, once for all scripts. The answer is its exit code.
FORKED = """
import json, os, runpy, sys
import torch, transformers, peft, trl.trainer.grpo_trainer, trl.trainer.sft_trainer
for line in sys.stdin:
    script, log, *words = json.loads(line)
    child = os.fork()
    if not child:
        output = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv[:], sys.path[0] = [script, *words], os.path.dirname(script)
        runpy.run_path(script, run_name="__main__")
        raise SystemExit
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def forked() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", FORKED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(CUDA_VISIBLE_DEVICES=""),
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def test_every_script_is_known() -> None:
    assert {"sft_vs_trl", "grpo_vs_trl", "clip_speed", "eval_speed", "gpu"} <= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_and_its_sides_agree(
    name: str, forked: subprocess.Popen[str], tmp_path: Path
) -> None:
    path, log = tmp_path / "result.json", tmp_path / "log"
    script = str(ROOT / f"tests/perf/{name}.py")
    assert forked.stdin is not None and forked.stdout is not None
    print(json.dumps([script, str(log), "--small", "--json", str(path)]), file=forked.stdin)
    forked.stdin.flush()
    code = forked.stdout.readline().strip()
    assert code == "0", log.read_text()[-3000:]
    result = json.loads(path.read_text())
    assert set(result) == {"name", "ratio", "runs", "equal", "machine"}
    assert result["name"] == name and result["runs"]
    assert all(math.isfinite(ratio) for ratio in result["ratio"].values())
