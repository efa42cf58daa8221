"""A wheel works outside the checkout: recipes, prompts, benchmarks and the tiny model are in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.run_files import read_metrics
from helpers.scripts import ROOT, to_argv

pytestmark = pytest.mark.slow
SHORT = {"n_train": 32, "n_eval": 8, "epochs": 1, "max_new_tokens": 40}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed into an empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    assert wheel.stat().st_size < 16 * 2**20
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def run(site: Path, folder: Path, *words: str) -> str:
    """The output of Python in an empty folder with the wheel alone."""
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-P", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_carries_what_it_needs(site: Path, tmp_path: Path) -> None:
    code = """
import vlmface, sys
from vlmface import prompts
from vlmface import resources
from vlmface.benchmarks import load_benchmark
from vlmface.infer.local import LocalModel
from vlmface.synth import dataset
from vlmface.synth.render import render
from PIL import Image
assert vlmface.__file__.startswith(sys.argv[1]), vlmface.__file__
assert str(resources.resource("recipes/configs")).startswith(sys.argv[1])
assert load_benchmark("rafdb").published
predictor = LocalModel.load("vlmface-tiny", prompt=prompts.load("face_cot"), max_new_tokens=8)
face = Image.fromarray(render(dataset.draw(0, "test", 0).face).image)
print(predictor.predict([face])[0].text)
"""
    run(site, tmp_path, "-c", code, str(site))
    assert (site / "vlmface/py.typed").exists()


def test_it_trains_evaluates_and_reports(site: Path, tmp_path: Path) -> None:
    """`vlmface train`, `vlmface eval` and `vlmface demo` in an empty folder."""
    words = to_argv(SHORT)
    shown = run(site, tmp_path, "-m", "vlmface", "train", "sft_cot", *words)
    folder = tmp_path / "runs/sft_cot"
    assert "runs/sft_cot" in shown and (folder / "report.html").exists()
    scores = read_metrics(folder)
    assert scores["train"]["n"] == 32 and scores["after"]["n"] == 8
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "-m", "vlmface", "train"]
    again = run(site, tmp_path, *launch, "sft_cot", *words)  # the same command under a launcher
    assert "is complete" in again
    evaluate = ["-m", "vlmface", "eval", "run", "--benchmark", "synth", "--n", "8"]
    run(site, tmp_path, *evaluate, "--model", "runs/sft_cot")
    evaluated = json.loads((folder / "eval/synth/metrics.json").read_text())
    assert evaluated["emotion"]["accuracy"] == scores["after"]["emotion"]["accuracy"]
    assert "clip_captions" in run(site, tmp_path, "-m", "vlmface", "train", "--list")
    assert "--compare" in run(site, tmp_path, "-m", "vlmface", "demo", "--help")


def test_its_recipes_are_those_of_the_checkout(site: Path) -> None:
    from vlmface.cli import RECIPES

    for name in RECIPES:
        packed = site / f"vlmface/_files/recipes/{name}.py"
        assert packed.read_bytes() == (ROOT / f"recipes/{name}.py").read_bytes()
