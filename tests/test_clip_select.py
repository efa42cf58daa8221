"""The best epoch on held-out rows is kept, also by a run that was stopped and goes on."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from helpers.clip_rows import picture, rows_of

from vlmface import label_texts
from vlmface.clip import checkpoint, tiny_clip
from vlmface.clip.classifier import Classifier
from vlmface.errors import UserError
from vlmface.run_dir import read_log
from vlmface.train.clip.model_selection import BEST, LOG, HeldOutSet, uar_of
from vlmface.train.clip.settings import Settings
from vlmface.train.clip.trainer import train

LABELS = ("anger", "fear", "happiness", "sadness")


def clips(n: int, seed: int, frames: int):
    """Labels that the pictures say little of, so that scores on held-out rows go up and down."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        label = int(rng.integers(4))
        shown = [
            picture((60 + 30 * label, 120, 90), 100 * seed + 16 * i + k) for k in range(frames)
        ]
        made.append((LABELS[label], shown))
    return rows_of(made)


def chosen(folder, **changes) -> Settings:
    values = {
        "base_model": "tiny",
        "dataset": "synth",
        "benchmark": "synth",
        "prompt": "clip_emotion",
        "output_dir": str(folder),
        "num_frames": 3,
        "temporal": "transformer",
        "validation_share": 0.1,
        "checkpoint_selection": "best",
        "epochs": 5,
        "batch_size": 8,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "lr_scheduler": "constant",
        "logging_steps": 1,
        "save_steps": 1,
        "eval_batch_size": 7,
    }
    settings = Settings(**(values | changes))
    settings.check()
    return settings


def trained_run(settings, rows, held=None):
    torch.manual_seed(0)
    model = Classifier(tiny_clip.build(), label_texts.load("clip_emotion"), settings.shape(1))
    found = train(model, rows, settings, held)
    return model, found


@pytest.fixture(scope="module")
def rows():
    return clips(40, 1, 3), clips(60, 2, 3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, rows):
    """(run folder, model, what training returned) of a run that was not interrupted, with all its
    checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlmface.train.trainer.KEPT", 1000)
        return folder, *trained_run(chosen(folder), *rows)


def equal(one, other) -> bool:
    one, other = checkpoint.trained_state(one), checkpoint.trained_state(other)
    return all(torch.equal(one[name], other[name]) for name in one)


def test_best_epoch_is_kept(tmp_path, rows, whole):
    folder, model, found = whole
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 25]
    scores = [line["uar"] for line in lines]
    assert len(set(scores)) > 1
    best = scores.index(max(scores))
    assert best < 4, "the test shows nothing if the last epoch is the best"
    assert found["selected"] == lines[best]
    held = HeldOutSet.from_rows(model, rows[1], 100, 0)
    assert held.uar() == pytest.approx(max(scores))
    assert held.features is not None  # the second time they are at hand
    assert held.uar() == pytest.approx(max(scores))

    shorter = chosen(tmp_path / "b", epochs=float(best + 1), checkpoint_selection="last")
    until, found = trained_run(shorter, rows[0])
    assert "selected" not in found
    assert equal(model, until)
    last, _ = trained_run(chosen(tmp_path / "c", checkpoint_selection="last"), rows[0])
    assert not equal(model, last)


@pytest.mark.parametrize("step", [3, 5])
def test_resumed_run_keeps_the_same_epoch(tmp_path, rows, whole, step):
    folder, model, found = whole
    killed = tmp_path / "killed"
    shutil.copytree(folder, killed)
    for later in (killed / "checkpoints").glob("checkpoint-*"):
        if int(later.name.split("-")[1]) > step:
            shutil.rmtree(later)
    assert (killed / "checkpoints" / BEST).exists()
    again, found_again = trained_run(chosen(killed), *rows)
    assert found_again["selected"] == found["selected"]
    assert (killed / LOG).read_text() == (folder / LOG).read_text()
    assert [one["step"] for one in read_log(killed)] == list(range(1, 26))
    assert equal(model, again)


def test_without_held_out_rows_there_is_no_best(tmp_path, rows):
    with pytest.raises(
        UserError, match="there are no held-out rows to measure or to choose an epoch on"
    ):
        trained_run(chosen(tmp_path), rows[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation_share": None, "validation_split": "test"}, "validation_split is test, but"),
        ({"validation_share": None, "validation_split": "train"}, "validation_split is train, but"),
        ({"validation_split": "validation"}, "set one of them"),
        ({"eval_steps": 2, "metric_for_best_model": "loss"}, "best epoch, and metric_for_best"),
    ],
)
def test_choosing_on_the_wrong_rows_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        chosen(tmp_path, **changes)


def test_uar_by_hand():
    shares = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.2, 0.8]])
    assert uar_of(shares, torch.tensor([0, 0, 1, 1])) == 0.75
    assert uar_of(shares, torch.tensor([0, 0, 0, 0])) == 0.75  # labels that do not occur
    several = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    # First label: said of 3, true of 2, both of 2: F1 4/5. Second: said 1, true 2, both 1: 2/3.
    assert uar_of(shares, several) == pytest.approx((4 / 5 + 2 / 3) / 2)
