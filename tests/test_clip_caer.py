"""CLIP-CAER from files to answers: RAER's frames and boxes, the settings that ship, over the
built-in CLIP; what is kept of a run, and its ablation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.run_files import read_metrics, training_log
from helpers.scripts import load_script, to_argv
from miniatures import raer

from vlmface import benchmarks, manifest
from vlmface.data import crops
from vlmface.data.row_images import open_images
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.infer.clip import ClipModel
from vlmface.train.clip.model_selection import LOG

pytestmark = pytest.mark.filterwarnings("ignore:no face boxed", "ignore:no person boxed")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("RAER")
    raer.write(folder)
    for name, box in (
        ("face", {f"{i}.jpg": [5, 5, 30, 30] for i in range(12)}),
        ("body", [2, 2, 40, 40]),
    ):
        path = folder / "bounding_box" / f"{name}.json"
        more = {"train/Fatigue/002": box, "test/Distraction/007": box}
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    return folder


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory) -> Path:
    """The ablation of clip_caer_raer on five clips of 4 frames: face/, scene/ and both/."""
    folder = tmp_path_factory.mktemp("caer") / "runs"
    main = load_script("recipes/context_emotion.py").main
    words = {
        "config": "clip_caer_raer",
        "base_model": "vlmface-clip-tiny",
        "dataset_root": root,
        "num_frames": 4,
        "dataset_options": "{num_frames: 4}",
        "epochs": 2,
        "milestones": "[1]",
        "batch_size": 2,
        "dataloader_workers": 0,
        "logging_steps": 1,
        "save_steps": 1,
        "ablation": "true",
        "output_dir": folder,
    }
    assert main(to_argv(words)) == 0
    return folder


def test_what_a_run_leaves_behind(runs):
    found, (texts,) = manifest.load(runs / "both")
    assert (found.recipe, found.num_frames, texts.id) == ("context_emotion", 4, "clip_raer")
    assert [view.view for view in crops.parse_views(found.views)] == ["face", "person"]
    shape = found.clip_classifier
    assert (shape["num_views"], shape["num_frames"], shape["temporal"]) == (2, 4, "transformer")
    assert (shape["text_tower"], shape["class_specific"]) == ("prompts", True)
    scores = read_metrics(runs / "both")
    assert scores["after"]["n"] == 2
    epochs = [json.loads(line) for line in (runs / "both" / LOG).read_text().splitlines()]
    assert [one["epoch"] for one in epochs] == [1, 2]
    assert scores["train"]["selected"] == max(epochs, key=lambda one: one["uar"])
    lines = training_log(runs / "both")
    # Rates of the first group fall to a tenth after the first epoch, of three steps.
    assert lines[0]["learning_rate"] == pytest.approx(10 * lines[-1]["learning_rate"])


def test_a_run_answers_as_it_was_evaluated(runs, root):
    answers = answering.read_lines(runs / "both" / "predictions.jsonl")
    found, _ = manifest.load(runs / "both")
    benchmark = benchmarks.load_benchmark("raer")
    rows = benchmarks.load_rows(benchmark, str(root), None, crops.parse_views(found.views), 4)
    assert [len(row["images"]) for row in rows] == [8, 8]
    pictures = [open_images(row) for row in rows]
    model = ClipModel.load(runs / "both")
    again = model.predict(pictures, preprocessed=True)
    assert [one.text for one in again] == [line["text"] for line in answers]
    for one, line in zip(again, answers, strict=True):
        np.testing.assert_allclose(
            list(one.probabilities.values()), list(line["probabilities"].values()), atol=1e-5
        )
    # The order of the views is told apart, and so is that of the frames.
    turned = model.predict([[*one[4:], *one[:4]] for one in pictures], preprocessed=True)
    assert any(a.probabilities != b.probabilities for a, b in zip(again, turned, strict=True))
    with pytest.raises(UserError, match="8 picture"):
        model.predict([pictures[0][:4]], preprocessed=True)


def test_ablation_compares_face_person_and_both(runs):
    assert manifest.load(runs / "face")[0].clip_classifier["num_views"] == 1
    assert manifest.load(runs / "scene")[0].clip_classifier["num_views"] == 1
    table = (runs / "ablation.md").read_text()
    for name in ("face only", "context only", "both"):
        assert f"| {name} |" in table
    result = json.loads((runs / "ablation.json").read_text())
    assert len(result["pairs"]) == 3


def test_an_ablation_needs_a_view_of_each(root, tmp_path):
    main = load_script("recipes/context_emotion.py").main
    with pytest.raises(UserError, match="the ablation's run face has no view"):
        main(
            [
                "--config",
                "clip_caer_raer",
                "--base_model",
                "vlmface-clip-tiny",
                "--dataset_root",
                str(root),
                "--views",
                "[{view: face_boxed}, {view: scene}]",
                "--ablation",
                "true",
                "--output_dir",
                str(tmp_path / "run"),
            ]
        )
