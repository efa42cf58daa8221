"""What the README tells people to type works as it stands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.S)


def test_every_file_the_docs_link_to_exists():
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_ci_runs_exactly_the_test_command_of_the_readme():
    command = re.search(r"<!-- tests -->\s*```bash\n(.*?)\n```", README, re.S)
    assert command and command[1].endswith("pytest")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert command[1] in script.splitlines()
    # A failure anywhere in that chain stops the script.
    after = script[script.index("export HF_HUB_OFFLINE") :].replace(command[1], "false && true")
    stubbed = f"set -euo pipefail\naccelerate() {{ echo trained; }}\n{after}"
    done = subprocess.run(["bash", "-c", stubbed], capture_output=True, text=True)
    assert done.returncode != 0 and "trained" not in done.stdout


@pytest.mark.slow
def test_the_five_things_run_as_written(tmp_path, monkeypatch):
    """Install lines aside, every block runs, in order, in one folder, on a short training run."""
    environment = {**os.environ, "VLMFACE_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for name in ("recipes", "eval"):
        (tmp_path / name).symlink_to(ROOT / name)

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    run("accelerate launch recipes/sft_cot.py --n_train 128 --n_eval 32")
    from skimage import data
    from skimage.io import imsave

    imsave(tmp_path / "face.jpg", data.astronaut()[0:250, 100:350])
    (tmp_path / "more_faces").mkdir()
    imsave(tmp_path / "more_faces" / "a.png", data.astronaut())
    ran = 0
    for language, text in BLOCKS:
        if "pip install" in text:
            continue
        if language == "bash":
            text = text.replace("--benchmark synth", "--benchmark synth --n 32")
            text = text.replace("--n_train 512", "--n_train 128 --n_eval 32")
            run(text)
        else:
            run(f"{sys.executable} -c {shlex.quote(text)}")
        ran += 1
    assert ran >= 5
    assert (tmp_path / "sheet.png").exists()
    assert (tmp_path / "runs/eval_synth/report.html").exists()
