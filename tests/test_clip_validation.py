"""Validation while a CLIP trains: what is measured, the best checkpoint, early stopping, and that a
resumed run equals an uninterrupted one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.clip_rows import picture, rows_of
from helpers.trainers import interrupted

from vlmface import benchmarks, label_texts
from vlmface.clip import checkpoint, tiny_clip
from vlmface.clip.classifier import Classifier
from vlmface.errors import UserError
from vlmface.pipelines import validation
from vlmface.run_dir import read_log
from vlmface.train.clip.model_selection import HeldOutSet
from vlmface.train.clip.settings import Settings
from vlmface.train.clip.trainer import train
from vlmface.train.clip.validation import loss_of

LABELS = ("anger", "fear", "happiness", "sadness")


def faces(n: int, seed: int, *, labelled: bool) -> Any:
    """Pictures of four colours. Unless it is `known`, the label says nothing of the colour, so that
    the loss on such rows soon rises while a model learns the others."""
    drawn = np.random.default_rng(seed).integers(0, 4, (n, 2)).tolist()
    return rows_of(
        [
            (LABELS[colour if labelled else other], [picture((60 + 40 * colour, 120, 90), i)])
            for i, (colour, other) in enumerate(drawn, 100 * seed)
        ]
    )


def settings(folder: Path, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "base_model": "tiny",
        "dataset": "synth",
        "benchmark": "synth",
        "prompt": "clip_emotion",
        "output_dir": str(folder),
        "image_tower": "full",
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 2e-3,
        "lr_scheduler": "constant",
        "logging_steps": 1,
        "save_steps": 2,
        "eval_batch_size": 7,
        "eval_steps": 1,
        "metric_for_best_model": "loss",
    }
    settings_ = Settings(**(values | changes))
    settings_.check()
    return settings_


def run(chosen: Settings, rows: tuple[Any, Any]) -> tuple[Classifier, dict[str, Any]]:
    torch.manual_seed(0)
    texts = label_texts.load("clip_emotion")
    model = Classifier(tiny_clip.build(), texts, chosen.shape(1))
    benchmark = benchmarks.load_benchmark("synth")
    scorer = validation.classifier_scorer(chosen, benchmark, texts)
    return model, train(model, rows[0], chosen, rows[1], scorer)


def measured(folder: Path, name: str = "eval_loss") -> dict[int, float]:
    return {line["step"]: line[name] for line in read_log(folder) if name in line}


def equal(first: Classifier, other: Classifier) -> bool:
    mine, theirs = checkpoint.trained_state(first), checkpoint.trained_state(other)
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture(scope="module")
def rows() -> tuple[Any, Any]:
    return faces(24, 1, labelled=True), faces(20, 2, labelled=False)


@pytest.fixture(scope="module")
def whole(
    rows: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Classifier, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, *run(settings(folder), rows)


def test_the_best_checkpoint_is_kept(
    rows: tuple[Any, Any], whole: tuple[Path, Classifier, dict[str, Any]], tmp_path: Path
) -> None:
    folder, model, result = whole
    losses = measured(folder)
    assert list(losses) == list(range(1, 10))
    assert measured(folder, "eval_uar").keys() == losses.keys()
    best = min(losses, key=losses.__getitem__)
    assert best < 9, "the test shows nothing if the last step is the best"
    assert (result["best"]["step"], result["best"]["metric"]) == (best, "loss")
    assert not result["stopped_early"] and result["steps"] == 9
    held = HeldOutSet.from_rows(model, rows[1], 100, 0)
    assert loss_of(held.shares(), held.targets) == pytest.approx(losses[best], abs=1e-5)
    until, _ = run(
        settings(tmp_path, epochs=best / 3, eval_steps=None, metric_for_best_model=None), rows
    )
    assert equal(model, until)  # measuring did not change the training


@pytest.mark.parametrize("stop", [3, 6])
def test_resumed_equals_uninterrupted(
    stop: int,
    rows: tuple[Any, Any],
    whole: tuple[Path, Classifier, dict[str, Any]],
    tmp_path: Path,
) -> None:
    folder, model, result = whole
    with interrupted("clip", stop):
        run(settings(tmp_path), rows)
    again, result_again = run(settings(tmp_path), rows)
    assert result_again["best"] == result["best"] and equal(model, again)
    assert measured(tmp_path) == measured(folder)


def test_training_stops_early_and_stays_stopped(rows: tuple[Any, Any], tmp_path: Path) -> None:
    """UAR over few rows soon stops rising: the first of equal evaluations is kept."""
    chosen = settings(tmp_path, metric_for_best_model="uar", early_stopping_patience=2)
    model, result = run(chosen, rows)
    scores = measured(tmp_path, "eval_uar")
    assert result["stopped_early"] and result["steps"] == max(scores) < 9
    best = max(scores, key=lambda step: (scores[step], -step))
    assert result["best"]["step"] == best == result["steps"] - 2
    again, result_again = run(chosen, rows)
    assert result_again["steps"] == result["steps"] and equal(model, again)


def test_the_loss_by_hand() -> None:
    shares = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    single_label_loss = loss_of(shares, torch.tensor([0, 1]))
    assert single_label_loss == pytest.approx(-(math.log(0.5) + math.log(0.75)) / 2)
    several = loss_of(shares, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert several == pytest.approx(-(2 * math.log(0.5) + 2 * math.log(0.75)) / 4)
    assert math.isfinite(loss_of(torch.tensor([[0.0, 1.0]]), torch.tensor([0])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_steps": 3, "logging_steps": 2}, "must be a multiple of logging_steps"),
        ({"metric_for_best_model": "urr"}, "metric_for_best_model is 'urr', but this recipe"),
        ({"eval_steps": None}, ""),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    from vlmface.utils.config import refuse_unused

    if message:
        with pytest.raises(UserError, match=message):
            settings(tmp_path, **changes)
        return
    with pytest.raises(UserError, match="metric_for_best_model is 'loss', but has no effect"):
        refuse_unused(settings(tmp_path, **changes))
