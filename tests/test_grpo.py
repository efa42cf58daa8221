"""GRPO through the recipe's main(): what it learns from, what it writes, and that it goes on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.run_files import adapter, read_metrics, training_log
from helpers.samples import rows
from helpers.scripts import ROOT, environment, kill_once, load_script, to_argv
from helpers.trainers import interrupted

from vlmface import prompts
from vlmface.cli import main as vlmface
from vlmface.errors import UserError
from vlmface.infer.local import LocalModel
from vlmface.train import completion_log, grpo, rewards
from vlmface.utils import config

TRAIN = {  # faces of other people: of those it knows by heart it says the same each time
    "dataset_options": "{seed: 1}",
    "temperature": 1.0,
    "n_train": 8,
    "n_eval": 4,
    "num_generations": 3,
    "batch_size": 2,
    "max_steps": 4,
    "max_new_tokens": 120,
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "save_steps": 2,
    "completions_every": 2,
    "eval_batch_size": 4,
}


@pytest.fixture(scope="module")
def recipe(memorised: Path) -> Callable[..., int]:
    script = load_script("recipes/grpo.py")

    def run(output_dir: Path, *words: str, **changes: Any) -> int:
        fixed = TRAIN | {"init_from": memorised, "output_dir": output_dir} | changes
        return script.main([*to_argv(fixed), *words])

    return run


@pytest.fixture(scope="module")
def finished(recipe: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grpo")
    assert recipe(folder) == 0
    return folder


def test_the_adapter_is_trained_further(finished: Path, memorised: Path) -> None:
    before, after = adapter(memorised), adapter(finished)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    train = read_metrics(finished)["train"]
    assert train["steps"] == 4 and train["n"] == 8
    found = json.loads((finished / "vlmface.json").read_text())
    shipped = config.read_yaml(ROOT / "recipes/configs/grpo_tiny.yaml")
    assert found["recipe"] == "grpo" and found["adapter"]
    assert found["dataset"]["rewards"] == shipped["rewards"]
    ours = json.loads((memorised / "vlmface.json").read_text())
    assert (found["base_model"], found["prompts"]) == (ours["base_model"], ours["prompts"])
    assert LocalModel.load(finished).predict([rows(1)[0]["image"]])[0].text


def test_what_is_logged(finished: Path) -> None:
    lines = training_log(finished)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        for name in ("format", "emotion", "au", "consistency"):
            assert {f"rewards/{name}/mean", f"rewards/{name}/std"} <= line.keys()
        assert {"reward", "frac_reward_zero_std", "entropy", "top_label_share"} <= line.keys()
        assert {"completions/mean_length", "completions/clipped_ratio"} <= line.keys()
        assert "clip_ratio/region_mean" in line
        assert sum(v for k, v in line.items() if k.startswith("status/")) == pytest.approx(1)
        assert any(k.startswith("reward_of/") for k in line)
        assert 0 <= line["rollout_drift"] < 1e-4


def test_the_page_shows_every_completion(finished: Path) -> None:
    page = (finished / "samples.html").read_text()
    assert "Step 4" in page and page.count("<section>") == 2
    assert page.count('<td class="text') == 2 * 3
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)  # nothing is fetched
    report = (finished / "report.html").read_text()
    assert "mean reward" in report and "training loss" not in report


def same_run(one: Path, other: Path) -> None:
    mine, theirs = training_log(one), training_log(other)
    assert [line["step"] for line in mine] == [1, 2, 3, 4]
    for a, b in zip(mine, theirs, strict=True):
        for name in ("loss", "grad_norm", "reward", "completions/mean_length", "entropy"):
            assert a[name] == pytest.approx(b[name], abs=1e-5), name
    ours, whole = adapter(one), adapter(other)
    assert all(torch.allclose(ours[name], whole[name], atol=1e-6) for name in whole)


def test_two_and_two_steps_are_four(
    recipe: Callable[..., int], finished: Path, tmp_path: Path
) -> None:
    with interrupted("grpo", 4):
        recipe(tmp_path)
    assert not (tmp_path / "report.html").exists()
    assert recipe(tmp_path) == 0
    same_run(tmp_path, finished)


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    finished: Path, memorised: Path, tmp_path: Path
) -> None:
    words = TRAIN | {"init_from": memorised, "output_dir": tmp_path}
    command = [sys.executable, str(ROOT / "recipes/grpo.py")]
    command += to_argv(words)
    kill_once((tmp_path / "checkpoints/checkpoint-2/complete").exists, command, environment())
    assert not (tmp_path / "report.html").exists()
    subprocess.run(command, env=environment(), check=True)
    same_run(tmp_path, finished)


@pytest.mark.parametrize(
    "changes",
    [
        {"cache_features": "false"},
        {"gradient_checkpointing": "true"},
        {"batch_size": 1, "gradient_accumulation": 2},
    ],
    ids=["pixels", "checkpointing", "accumulation"],
)
def test_the_first_step_is_the_same_however_it_is_computed(
    recipe: Callable[..., int], finished: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert recipe(tmp_path, max_steps=1, **changes) == 0
    (mine,), theirs = training_log(tmp_path), training_log(finished)[0]
    if "gradient_accumulation" in changes:  # other completions are drawn
        assert mine["rollout_drift"] < 1e-4
        return
    assert mine["reward"] == pytest.approx(theirs["reward"])
    assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


@pytest.mark.parametrize(
    "changes",
    [{"beta": 0.1}, {"num_iterations": 2}, {"loss_type": "dr_grpo", "scale_rewards": "batch"}],
    ids=["beta", "num_iterations", "dr_grpo"],
)
def test_other_objectives(
    recipe: Callable[..., int], tmp_path: Path, changes: dict[str, Any], memorised: Path
) -> None:
    assert recipe(tmp_path, max_steps=2, **changes) == 0
    lines = training_log(tmp_path)
    assert len(lines) == 2 and all(abs(line["loss"]) < 10 for line in lines)
    if "beta" in changes:
        assert lines[0]["kl"] == pytest.approx(0, abs=1e-6) and lines[1]["kl"] > 0
        assert adapter(tmp_path).keys() == adapter(memorised).keys()  # without TRL's "ref" copy


# --- rows and errors ------------------------------------------------------------------------------


def test_faces_without_a_signal_are_counted(memorised: Path) -> None:
    found = grpo.start_of(settings_for(memorised))
    faces = rows(6).map(
        lambda row, i: {"emotion": None, "aus": None} if i < 2 else {}, with_indices=True
    )
    used = rewards.parse({"format": 1, "emotion": 1})
    kept, samples, skipped = grpo.encode_prompts(faces, found, used, 60)
    assert len(kept) == len(samples) == 4 and skipped == {"no_truth": 2}
    assert kept[0]["input_ids"][-1] == found.processor.tokenizer.encode(":")[-1]
    with pytest.raises(UserError, match="none of the 6 faces can be trained on"):
        grpo.encode_prompts(faces, found, used, found.max_length)


def settings_for(start: Path, **changes: Any) -> grpo.Settings:
    words: dict[str, Any] = {
        "init_from": str(start),
        "dataset": "synth",
        "benchmark": "synth",
        "rewards": {"format": 1},
        "limitations": "",
        "output_dir": "o",
    }
    return grpo.Settings(**words | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_generations": 1}, "num_generations is 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"temperature": 0}, "temperature is 0, but must be a number above 0"),
        ({"top_p": 0.9, "num_iterations": 2}, r"top_p 0\.9 with num_iterations 2"),
        ({"save_steps": 5, "num_iterations": 2}, "must be a multiple of num_iterations"),
    ],
)
def test_settings_that_cannot_work(memorised: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings_for(memorised, **changes).check()


def test_where_it_may_start(memorised: Path, base: Path) -> None:
    found = grpo.start_of(settings_for(memorised))
    assert found.run == memorised and found.prompt.id == "face_cot"
    bare = grpo.start_of(settings_for(base, prompt="face_cot"))
    assert bare.run is None and bare.trainable["language_model"] == "lora"
    with pytest.raises(UserError, match="is not a vlmface run"):
        grpo.start_of(settings_for(base))
    with pytest.raises(UserError, match="was trained with face_cot, not with prompt expllm"):
        grpo.start_of(settings_for(memorised, prompt="expllm"))


def test_errors_stop_the_run_and_the_checkpoint_remains(
    recipe: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlmface.infer import sampling

    original = sampling.score

    def broken(*args: Any, **kwargs: Any) -> Any:
        found, entropy = original(*args, **kwargs)
        return found + broken.by, entropy  # type: ignore[attr-defined]

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "score", broken)
        broken.by = 1.0  # type: ignore[attr-defined]
        with pytest.raises(UserError, match=r"differ from the rollout's by 1\.0\d+ a token"):
            recipe(tmp_path / "drift")
    real = grpo.train

    def poisoned(*args: Any) -> Any:
        from vlmface.train.group_trainer import GroupTrainer

        step = GroupTrainer._compute_loss

        def nan(self: Any, model: Any, inputs: Any) -> Any:
            if self.state.global_step == 2:
                inputs["advantages"] = inputs["advantages"] * float("nan")
            return step(self, model, inputs)

        with monkeypatch.context() as patch:
            patch.setattr(GroupTrainer, "_compute_loss", nan)
            return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(grpo, "train", poisoned)
        with pytest.raises(UserError, match="the loss is nan at step 3"):
            recipe(tmp_path / "nan")
    assert (tmp_path / "nan/checkpoints/checkpoint-2/complete").exists()
    assert recipe(tmp_path / "nan") == 0 and len(training_log(tmp_path / "nan")) == 4


def test_answers_that_are_always_cut_stop_the_run(
    recipe: Callable[..., int], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="were truncated at max_new_tokens 3: raise it"):
        recipe(tmp_path, max_new_tokens=3, max_steps=8)


def test_a_reward_that_does_not_exist(recipe: Callable[..., int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no reward 'emotoin'.*did you mean 'emotion'"):
        recipe(tmp_path, rewards="{emotoin: 1}")
    assert not tmp_path.joinpath("settings.json").exists()
    assert vlmface(["estimate-memory", "--config", "nothing"]) == 2


# --- alarms ---------------------------------------------------------------------------------------


def lines_of(first: dict[str, float], last: dict[str, float], n: int = 12) -> list[dict[str, Any]]:
    return [first] * n + [last] * n


GOOD = {
    "reward": 1.0,
    "rewards/emotion/mean": 0.5,
    "completions/mean_length": 60.0,
    "top_label_share": 0.3,
    "frac_reward_zero_std": 0.1,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": 1.5, "rewards/emotion/mean": 0.3}, "the emotion reward fell"),
        ({"completions/mean_length": 20.0}, "shrank from 60 to 20"),
        ({"top_label_share": 0.95}, "95% of the answers have the same label"),
        ({"frac_reward_zero_std": 0.9}, "90% of the groups have equal rewards"),
    ],
)
def test_alarms(change: dict[str, float], message: str) -> None:
    assert completion_log.training_warnings(lines_of(GOOD, GOOD)) == []
    better = GOOD | {"reward": 2.0, "rewards/emotion/mean": 0.7}
    assert completion_log.training_warnings(lines_of(GOOD, better)) == []
    (warning,) = completion_log.training_warnings(lines_of(GOOD, GOOD | change))
    assert message in warning
    too_early = lines_of(GOOD, GOOD | change, n=5)
    assert completion_log.training_warnings(too_early) == []


def test_an_alarm_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    seen = completion_log.CompletionLogger(tmp_path, None, 10)
    state = SimpleNamespace(is_world_process_zero=True, global_step=24)
    for share in (0.9, 0.95):  # the figure changes, the cause does not
        lines = lines_of(GOOD, GOOD | {"top_label_share": share})
        path.write_text("\n".join(map(json.dumps, lines)))
        seen.on_log(None, state, None)
    assert capsys.readouterr().out.count("warning at step 24") == 1


# --- why the overrides are there ------------------------------------------------------------------


def test_trl_alone_would_part_the_groups() -> None:
    from trl.trainer.utils import shuffle_sequence_dict

    torch.manual_seed(0)
    shuffled = shuffle_sequence_dict({"group": torch.arange(4).repeat_interleave(4)})["group"]
    assert not torch.equal(shuffled, torch.arange(4).repeat_interleave(4))


def test_the_prompt_is_the_one_that_is_evaluated(memorised: Path) -> None:
    found = grpo.start_of(settings_for(memorised))
    assert found.prompt.sha == prompts.load("face_cot").sha
