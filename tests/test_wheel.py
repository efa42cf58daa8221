"""A wheel works outside the checkout: prompts, benchmarks and the tiny model travel with it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_carries_what_it_needs(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 12 * 2**20
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = """
import vlmface, sys
from vlmface import prompts
from vlmface.utils import files
from vlmface.benchmarks import load_benchmark
from vlmface.infer.local import LocalModel
from vlmface.synth import dataset
from vlmface.synth.render import render
from PIL import Image
assert vlmface.__file__.startswith(sys.argv[1]), vlmface.__file__
assert str(files.resource("recipes/configs")).startswith(sys.argv[1])
assert load_benchmark("rafdb").published
predictor = LocalModel.load("vlmface-tiny", prompt=prompts.load("face_cot"), max_new_tokens=8)
face = Image.fromarray(render(dataset.draw(0, "test", 0).face).image)
print(predictor.predict([face])[0].text)
"""
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(site)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
