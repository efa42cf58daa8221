"""The scripts behind the figures on speed still run, in their smallest form."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(
    path.stem
    for path in (ROOT / "tests" / "perf").glob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)


def test_every_script_is_known() -> None:
    assert {"sft_vs_trl", "grpo_vs_trl", "clip_speed", "eval_speed", "gpu"} <= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_and_its_sides_agree(name: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, f"tests/perf/{name}.py", "--small", "--json", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(path.read_text())
    assert set(result) == {"name", "ratio", "runs", "equal", "machine"}
    assert result["name"] == name and result["runs"]
    assert all(math.isfinite(ratio) for ratio in result["ratio"].values())
