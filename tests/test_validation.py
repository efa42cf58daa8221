"""Validation while a model trains: what is measured, early stopping, and the checkpoint that is
kept, also when the run is interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.run_files import adapter, read_metrics, training_log
from helpers.scripts import Recipe, to_argv
from helpers.trainers import interrupted, starter
from helpers.training import EIGHT_STEPS

from vlmface import benchmarks, data, manifest
from vlmface.data import crop_cache
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.pipelines import validation as parts
from vlmface.train.settings import SFTSettings
from vlmface.train.trainer import SupervisedTrainer
from vlmface.train.validation import Selection

SHORT = EIGHT_STEPS | {
    "validation_split": "validation",
    "n_validation": 6,
    "n_generate": 3,
    "logging_steps": 1,
}


def words(**changes: Any) -> list[str]:
    return to_argv({**SHORT, **changes})


def losses(folder: Path, name: str = "loss") -> dict[int, float]:
    return {line["step"]: line[name] for line in training_log(folder) if name in line}


def trained(folder: Path) -> dict[str, Any]:
    return read_metrics(folder)["train"]


def same_weights(found: Path, expected: Path) -> bool:
    mine, theirs = adapter(found), adapter(expected)
    assert mine.keys() == theirs.keys()
    return all(torch.allclose(mine[name], theirs[name], atol=1e-6) for name in mine)


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("checkpoint-*"))


@pytest.fixture
def losses_are(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], None]:
    """Replaces the measured validation losses by {step: loss}, for decisions that are known."""

    def replace(values: dict[int, float]) -> None:
        monkeypatch.setattr(
            "vlmface.train.validation.validation_loss",
            lambda trainer, rows, size: values[trainer.state.global_step],
        )

    return replace


@pytest.fixture(scope="module")
def measured(sft_cot: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps that measures the loss every 2 and answers every 4."""
    folder = tmp_path_factory.mktemp("measured") / "run"
    assert sft_cot(folder, *words(eval_steps=2, eval_generate_steps=4)) == 0
    return folder


# --- what is measured -----------------------------------------------------------------------------


def test_the_log_holds_loss_and_metrics_of_the_validation_rows(measured: Path) -> None:
    assert list(losses(measured)) == list(range(1, 9))
    lines = [line for line in training_log(measured) if "loss" not in line]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert all("eval_loss" in line for line in lines)
    generated = {"eval_accuracy", "eval_uar", "eval_au_f1", "eval_valid_answers"}
    assert [generated <= set(line) for line in lines] == [False, True, False, True]
    assert trained(measured)["validation"]["n"] == 6
    page = (measured / "report.html").read_text()
    assert "training loss and validation loss" in page.lower()
    assert "best" not in trained(measured)


def test_validation_does_not_change_training(
    measured: Path, sft_cot: Recipe, tmp_path: Path
) -> None:
    nothing = words(validation_split="null", n_validation="null", n_generate=64)
    assert sft_cot(tmp_path / "run", *nothing) == 0
    assert losses(tmp_path / "run") == losses(measured)
    assert same_weights(tmp_path / "run", measured)


def test_the_loss_is_the_models_mean_over_all_tokens(
    measured: Path, processor: Any, base: Path
) -> None:
    """By the finished model's own forward pass, against the last line of the log."""
    from helpers.checkpoints import llava

    from vlmface import encode, prompts
    from vlmface.infer.local import LocalModel
    from vlmface.train.rows import encode_rows

    rows = data.load("synth", split="validation", n=6)
    prompt = prompts.load("face_cot")
    encoded, _ = encode_rows(rows, processor, llava, prompt, max_length=512, seed=0)
    batch = encode.Collator(processor, llava)(list(encoded))
    batch.pop("row")
    with torch.no_grad():
        model = LocalModel.load(measured, merge=False).model
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100
    ).item()
    assert losses(measured, "eval_loss")[8] == pytest.approx(expected, abs=1e-4)


def test_the_metrics_are_those_of_an_evaluation(measured: Path, sft_cot: Recipe) -> None:
    """The last generated evaluation, against the finished model's answers about the same rows."""
    from vlmface.infer.local import LocalModel

    benchmark = benchmarks.load_benchmark("synth")
    rows = crop_cache.apply_views(data.load("synth", split="validation", n=6), (), 1)
    rows = parts.choose(rows, 3, seed=0)
    model = LocalModel.load(measured, merge=False)
    lines = answering.answer(model, rows, benchmark, batch_size=3)
    scores = parts.scores_of(lines, benchmark, model.prompts, "generate")
    last = training_log(measured)[-1]
    assert {f"eval_{name}": value for name, value in scores.items()} == {
        name: value
        for name, value in last.items()
        if name.startswith("eval_") and "loss" not in name
    }


def test_cached_features_are_validated_as_pixels_are(
    measured: Path, sft_cot: Recipe, tmp_path: Path
) -> None:
    cached = words(eval_steps=2, eval_generate_steps=4, cache_features="true")
    assert sft_cot(tmp_path, *cached) == 0
    assert losses(tmp_path, "eval_loss") == pytest.approx(losses(measured, "eval_loss"), abs=1e-4)


# --- which rows -----------------------------------------------------------------------------------


def settings(**changes: Any) -> SFTSettings:
    fixed: dict[str, Any] = {
        "base_model": "vlmface-tiny",
        "dataset": "synth",
        "benchmark": "synth",
        "prompt": "face_cot",
        "output_dir": "runs/none",
        "eval_steps": 10,
    }
    return SFTSettings(**fixed | changes)


def test_a_validation_split_is_used_where_there_is_one() -> None:
    loaded = data.load("synth", n=8)
    training, held = parts.split(settings(n_validation=4), loaded)
    assert training is loaded and held is not None
    assert held["id"] == data.load("synth", split="validation", n=4)["id"]
    assert parts.split(settings(eval_steps=None), loaded) == (loaded, None)


def test_people_are_held_out_otherwise(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from helpers.samples import picture

    lines = ["image,emotion,subject"]
    for i in range(20):
        picture(i % 4).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{('anger', 'happiness')[i % 2]},p{i // 4}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    loaded = data.load("table", tmp_path / "t.csv")
    table = settings(dataset="table", dataset_root=str(tmp_path / "t.csv"), validation_share=0.2)
    training, held = parts.split(table, loaded)
    assert held is not None and (len(training), len(held)) == (16, 4)
    assert not set(training["subject"]) & set(held["subject"])
    table = settings(dataset="table", dataset_root=str(tmp_path / "t.csv"))
    parts.split(table, loaded)
    said = capsys.readouterr().out
    assert "table has no split to validate on: 4 of 20 training rows" in said


def test_test_rows_are_never_validated_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("test", "train"):
        with pytest.raises(UserError, match=f"validation_split is {split}, but selection on test"):
            settings(validation_split=split).check()
    # A benchmark that tests on what its owners call validation, as AffectNet's does.
    benchmark = benchmarks.load_benchmark("synth")
    tested = benchmarks.replace(benchmark, split="validation")
    monkeypatch.setattr(benchmarks, "load_benchmark", lambda name: tested)
    with pytest.raises(UserError, match="validation_split is validation, but selection on test"):
        settings(validation_split="validation").check()
    loaded = data.load("synth", n=8)
    training, held = parts.split(settings(validation_share=None), loaded)
    assert held is not None and {*training["id"], *held["id"]} == {*loaded["id"]}


# --- settings that are refused --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eval_steps": 15}, "eval_steps is 15, but must be a multiple of logging_steps"),
        ({"eval_generate_steps": 15}, "eval_generate_steps is 15, but must be a multiple"),
        ({"metric_for_best_model": "uar"}, "uar, which is measured every eval_generate_steps"),
        (
            {"metric_for_best_model": "loss", "eval_steps": None, "eval_generate_steps": 10},
            "loss, which is measured every eval_steps",
        ),
        ({"metric_for_best_model": "uarr"}, "'uarr', but this recipe measures loss, accuracy"),
        (
            {"validation_split": "validation", "validation_share": 0.1},
            "validation_split is validation and validation_share 0.1",
        ),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        settings(**changes).check()


@pytest.mark.parametrize(
    "changes",
    [
        {"eval_steps": None, "n_validation": 5},
        {"eval_steps": None, "validation_share": 0.5},
        {"eval_steps": None, "metric_for_best_model": "loss"},
        {"n_generate": 5},
        {"early_stopping_patience": 2},
    ],
)
def test_settings_without_effect_are_refused(changes: dict[str, Any]) -> None:
    from vlmface.utils.config import refuse_unused

    with pytest.raises(UserError, match="but has no effect"):
        refuse_unused(settings(**changes))


def test_a_run_without_an_evaluation_is_refused(sft_cot: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"eval_steps is 9, but the run has 8 step\(s\)"):
        sft_cot(tmp_path / "run", *words(eval_steps=9, n_generate=64))
    assert not (tmp_path / "run").exists()


# --- the best checkpoint, and early stopping ------------------------------------------------------


def test_the_selection_follows_the_metrics_direction() -> None:
    history = [{"step": i, "eval_x": x} for i, x in enumerate([3.0, 1.0, 4.0, 1.0, 5.0, 2.0])]
    lower, higher = Selection("x", False, patience=3), Selection("x", True, patience=1)
    assert lower.best(history) == {"step": 1, "eval_x": 1.0}  # the first of equal ones
    assert higher.best(history) == {"step": 4, "eval_x": 5.0}
    assert [lower.stops(history[:n]) for n in range(7)] == [False] * 5 + [True] * 2
    assert higher.stops(history[:2]) and not higher.stops(history[:1])
    assert not Selection("x", False).stops(history)
    assert lower.best([{"step": 1, "loss": 2.0}]) is None


SELECT: dict[str, Any] = {"eval_steps": 1, "metric_for_best_model": "loss", "n_generate": 64}
# The best is at step 2; saved are also steps 3 and 6, and the last one.
CURVE = dict(enumerate([9.0, 5.0, 6.0, 7.0, 5.5, 5.2, 5.1, 5.05], 1))


def test_the_best_checkpoint_is_the_result(
    sft_cot: Recipe, tmp_path: Path, losses_are: Any, measured: Path
) -> None:
    losses_are(CURVE)
    assert sft_cot(tmp_path / "best", *words(**SELECT)) == 0
    best = trained(tmp_path / "best")["best"]
    assert best == {"step": 2, "epoch": 0.5, "metric": "loss", "value": 5.0}
    assert trained(tmp_path / "best")["steps"] == 8
    kept = ["checkpoint-2", "checkpoint-6", "checkpoint-8"]
    assert checkpoints(tmp_path / "best") == kept
    assert same_weights(tmp_path / "best", tmp_path / "best" / "checkpoints" / "checkpoint-2")
    assert not same_weights(tmp_path / "best", measured)
    assert "Kept are the weights after step 2" in (tmp_path / "best" / "report.html").read_text()
    run, _ = manifest.load(tmp_path / "best")
    manifest.check_weights(run, tmp_path / "best")


def test_training_stops_when_patience_runs_out(
    sft_cot: Recipe, tmp_path: Path, losses_are: Any
) -> None:
    losses_are(CURVE)
    run = words(**SELECT, early_stopping_patience=3)
    assert sft_cot(tmp_path / "run", *run) == 0
    result = trained(tmp_path / "run")
    assert (result["steps"], result["best"]["step"], result["stopped_early"]) == (5, 2, True)
    # Without its report the run is finished again, without a further step.
    before = adapter(tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    assert sft_cot(tmp_path / "run", *run) == 0
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4, 5]
    after = adapter(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert trained(tmp_path / "run")["stopped_early"]


@pytest.fixture
def killed_while_saving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Interrupts the run at a step after its evaluation, when its checkpoint is half written."""
    original = SupervisedTrainer._save_checkpoint

    def arm(step: int) -> None:
        def save(self: Any, model: Any, trial: Any) -> None:
            if self.state.global_step == step:
                folder = Path(self.args.output_dir) / f"checkpoint-{step}"
                folder.mkdir(parents=True)
                (folder / "adapter_model.safetensors").write_bytes(b"half")
                raise KeyboardInterrupt
            original(self, model, trial)

        monkeypatch.setattr(SupervisedTrainer, "_save_checkpoint", save)

    yield arm
    monkeypatch.setattr(SupervisedTrainer, "_save_checkpoint", original)


@pytest.mark.parametrize("patience", ["null", 3])
def test_an_interrupted_run_decides_as_an_uninterrupted_one(
    patience: Any,
    sft_cot: Recipe,
    tmp_path: Path,
    losses_are: Any,
    killed_while_saving: Callable[[int], None],
) -> None:
    """Killed between the best evaluation and its checkpoint, in the middle of a step, and between
    the last evaluation and its checkpoint."""
    losses_are(CURVE)
    run = words(**SELECT, early_stopping_patience=patience)
    assert sft_cot(tmp_path / "whole", *run) == 0
    last = trained(tmp_path / "whole")["steps"]
    killed = tmp_path / "killed"
    for step in (2, last):
        with pytest.raises(KeyboardInterrupt):
            killed_while_saving(step)
            sft_cot(killed, *run)
        killed_while_saving(-1)
        with interrupted("sft", 5 if step == 2 else last):
            sft_cot(killed, *run)
    assert sft_cot(killed, *run) == 0
    for name in ("best", "stopped_early", "steps"):
        assert trained(killed)[name] == trained(tmp_path / "whole")[name]
    assert losses(killed) == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    assert [line["step"] for line in training_log(killed)] == [
        line["step"] for line in training_log(tmp_path / "whole")
    ]
    assert checkpoints(killed) == checkpoints(tmp_path / "whole")
    assert same_weights(killed, tmp_path / "whole")


def test_the_best_checkpoint_so_far_is_needed(
    sft_cot: Recipe, tmp_path: Path, losses_are: Any
) -> None:
    losses_are(CURVE)
    run = words(**SELECT)
    with interrupted("sft", 8):
        sft_cot(tmp_path / "run", *run)
    best = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    shutil.move(best, tmp_path / "aside")
    with pytest.raises(UserError, match=r"checkpoint-2.*best checkpoint so far; restore it"):
        sft_cot(tmp_path / "run", *run)
    shutil.move(tmp_path / "aside", best)
    assert sft_cot(tmp_path / "run", *run) == 0


# --- GRPO -----------------------------------------------------------------------------------------


def test_grpo_measures_answers_and_can_be_made_longer(
    base: Path, clip_base: Path, tmp_path: Path
) -> None:
    start = starter("grpo", base, clip_base)
    watched = {
        "eval_generate_steps": 2,
        "n_generate": 2,
        "n_validation": 3,
        "metric_for_best_model": "accuracy",
        "lr_scheduler": "constant",
    }
    for steps in (2, 4):
        assert start(tmp_path / "longer", **watched, max_steps=steps) == 0
    assert start(tmp_path / "whole", **watched, max_steps=4) == 0
    lines = {name: training_log(tmp_path / name) for name in ("longer", "whole")}
    for found, expected in zip(*lines.values(), strict=True):
        assert found.keys() == expected.keys()
        compared = expected.keys() - {"elapsed_s", "step_time"}
        assert {key: found[key] for key in compared} == pytest.approx(
            {key: expected[key] for key in compared}, abs=1e-5
        )
    assert [line["step"] for line in lines["whole"] if "eval_accuracy" in line] == [2, 4]
    # No answer of four tokens is right: the first of equal evaluations is the best.
    for name in lines:
        assert trained(tmp_path / name)["best"]["step"] == 2
        assert same_weights(tmp_path / name, tmp_path / name / "checkpoints" / "checkpoint-2")
    assert same_weights(tmp_path / "longer", tmp_path / "whole")


def test_grpo_has_no_validation_loss(base: Path, clip_base: Path, tmp_path: Path) -> None:
    start = starter("grpo", base, clip_base)
    with pytest.raises(UserError, match="'loss', but this recipe measures accuracy"):
        start(tmp_path / "run", eval_generate_steps=2, metric_for_best_model="loss")
