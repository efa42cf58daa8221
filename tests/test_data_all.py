"""Every data set: its miniature is read in the house's own terms, trained on and evaluated."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from helpers.run_files import read_metrics
from helpers.scripts import load_script

from vlmface import data
from vlmface.data.dataset_rows import with_still_images
from vlmface.data.row_images import open_row_image
from vlmface.errors import UserError
from vlmface.schema import FaceSample, features

if TYPE_CHECKING:
    import datasets

NAMES = [name for name in data.names() if not name.startswith("synth")]
# What a data set can be asked about: field -> (label space, question).
QUESTIONS = {
    "emotion": ("emotion8", "What does the face express? Answer with one of {candidates}."),
    "gender": ("gender", "Answer with one of {candidates}."),
}


def load(name: str, root: Path) -> tuple[datasets.Dataset, dict[str, Any]]:
    """The miniature's first split, and the protocol of a benchmark on it."""
    module = importlib.import_module(f"miniatures.{name}")
    module.write(root)
    split = getattr(module, "SPLIT", data.dataset_module(name).SPLITS[0])
    rows = data.load(name, root, split, **module.ARGUMENTS)
    return rows, {"dataset": name, "split": split, "protocol": module.ARGUMENTS}


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_valid_samples_with_pictures(name, tmp_path):
    rows, protocol = load(name, tmp_path)
    assert rows.features == features()
    origin = getattr(importlib.import_module(f"miniatures.{name}"), "ORIGIN", name)
    assert len(rows) >= 2 and set(rows["dataset"]) == {origin}
    with_pictures = with_still_images(rows)
    for row, stored in zip(rows, with_pictures, strict=True):
        FaceSample.from_row(row).validate()
        assert open_row_image(stored["image"]).mode == "RGB"
    streamed = data.load(name, tmp_path, protocol["split"], streaming=True, **protocol["protocol"])
    assert [row["id"] for row in streamed] == rows["id"]
    fewer = data.load(name, tmp_path, protocol["split"], n=1, **protocol["protocol"])
    assert len(fewer) == 1 and fewer["id"][0] in rows["id"]
    assert data.fingerprint(fewer) != data.fingerprint(rows)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_is_something_else_is_refused_with_its_name(name, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to see")
    split = data.dataset_module(name).SPLITS[0]
    with pytest.raises(UserError) as error:
        data.load(name, tmp_path, split)
    assert str(tmp_path) in str(error.value)
    with pytest.raises(UserError, match="does not exist"):
        data.load(name, tmp_path / "gone", split)


@pytest.mark.parametrize(
    "name", [n if n == "rafdb" else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_the_recipe_trains_on_it_and_the_run_is_evaluated_on_it(name, tmp_path, sft_cot, capsys):
    rows, protocol = load(name, tmp_path / "data")
    field = next((f for f in QUESTIONS if any(value is not None for value in rows[f])), None)
    space, question = QUESTIONS[field or "emotion"]
    prompt, benchmark = tmp_path / "prompt.yaml", tmp_path / "benchmark.yaml"
    prompt.write_text(
        yaml.safe_dump(
            {
                "id": "asked",
                "version": 1,
                "format": "label",
                "label_space": space,
                "system": None,
                "user": question,
                "source": "test",
                "notes": "test",
            }
        )
    )
    benchmark.write_text(
        yaml.safe_dump({"id": "mini", "label_space": space, "source": "test", **protocol})
    )
    words = ["--dataset", name, "--dataset_root", str(tmp_path / "data"), "--dataset_split"]
    words += [protocol["split"], "--dataset_options", json.dumps(protocol["protocol"])]
    words += ["--prompt", str(prompt), "--benchmark", str(benchmark), "--epochs", "1"]
    words += ["--n_train", "null", "--n_eval", "null"]
    if field is None:  # nothing that this prompt asks for is annotated: said, with the count
        with pytest.raises(UserError, match=rf"none of the {len(rows)} rows.*'no_label'"):
            sft_cot(tmp_path / "run", *words)
        return
    assert sft_cot(tmp_path / "run", *words) == 0
    scores = read_metrics(tmp_path / "run")["after"]
    assert scores["n"] == len(rows)
    where = ["--dataset_root", str(tmp_path / "data"), "--output_dir", str(tmp_path / "again")]
    evaluate = load_script("eval/run.py").main
    assert evaluate(["--benchmark", str(benchmark), "--model", str(tmp_path / "run"), *where]) == 0
    again = read_metrics(tmp_path / "again")
    block = "emotion" if field == "emotion" else "attributes"
    assert again[block] == scores[block]
