"""Training that starts from an earlier run's adapter, and runs that are made longer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.run_files import adapter, read_metrics, training_log
from helpers.scripts import Recipe, to_argv
from helpers.training import EIGHT_STEPS

from vlmface import manifest
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.utils.config import find_config

SHORT = EIGHT_STEPS | {"lora_dropout": 0.1}


def words(**changes: Any) -> list[str]:
    return to_argv({**SHORT, **changes})


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in training_log(folder) if "loss" in line]


def same_weights(found: Path, expected: Path, atol: float = 1e-5) -> bool:
    mine, theirs = adapter(found), adapter(expected)
    assert mine.keys() == theirs.keys()
    return all(torch.allclose(mine[name], theirs[name], atol=atol) for name in mine)


@pytest.fixture(scope="module")
def first(sft_cot: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 8 steps."""
    folder = tmp_path_factory.mktemp("first") / "run"
    assert sft_cot(folder, *words()) == 0
    return folder


@pytest.fixture(scope="module")
def longer(sft_cot: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with 12 steps from the start."""
    folder = tmp_path_factory.mktemp("longer") / "run"
    assert sft_cot(folder, *words(epochs=3)) == 0
    return folder


# --- init_from ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def second(first: Path, sft_cot: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on other rows that starts from the adapter of the first, without a step that counts."""
    folder = tmp_path_factory.mktemp("second") / "run"
    more = words(init_from=first, dataset_options="{seed: 1}", learning_rate=1e-12, epochs=1)
    assert sft_cot(folder, *more) == 0
    return folder


def test_training_starts_from_the_adapters_weights(first: Path, second: Path) -> None:
    assert same_weights(second, first)
    assert losses(second)[0] < losses(first)[0] - 0.1
    before = answering.read_lines(second / "predictions_before.jsonl")
    after = answering.read_lines(second / "predictions.jsonl")
    assert [line["text"] for line in before] == [line["text"] for line in after]
    scores = read_metrics(second)
    assert scores["before"]["model"] == str(first)


def test_the_manifest_names_base_and_adapter(first: Path, second: Path) -> None:
    run, _ = manifest.load(second)
    earlier, _ = manifest.load(first)
    assert run.base_model == earlier.base_model
    assert run.init_from == {"id": str(first), "sha": manifest.weights_sha(first)}
    assert run.trainable == earlier.trainable and earlier.init_from is None


def test_an_adapter_without_a_run_is_a_start_too(
    first: Path, sft_cot: Recipe, tmp_path: Path
) -> None:
    """A checkpoint has no manifest: what it trains is read from its weights."""
    start = first / "checkpoints" / "checkpoint-8"
    assert sft_cot(tmp_path / "run", *words(init_from=start, learning_rate=1e-12, epochs=1)) == 0
    assert same_weights(tmp_path / "run", first)
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (settings["vision_tower"], settings["projector"], settings["language_model"]) == (
        "frozen",
        "full",
        "lora",
    )


def test_a_run_is_not_resumed_from_another_adapter(
    first: Path, second: Path, sft_cot: Recipe, tmp_path: Path
) -> None:
    from helpers.trainers import interrupted

    start = tmp_path / "start"
    shutil.copytree(first, start)
    run = words(init_from=start, epochs=1, save_steps=1)
    with interrupted("sft", 3):
        sft_cot(tmp_path / "run", *run)
    path = start / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is .* but the model was"):
        sft_cot(tmp_path / "run", *run)
    path.write_bytes(whole)
    assert sft_cot(tmp_path / "run", *run) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_rank": 5}, "lora_rank is 5, but the adapter in .* has "),
        ({"projector": "lora"}, "projector is 'lora', but the adapter in .* has 'full'"),
        ({"init_from": "nowhere"}, "nowhere lacks adapter_config.json"),
        (
            {"base_model": "vlmface-tiny"},
            "belongs to the base model .* but base_model is vlmface-tiny",
        ),
    ],
)
def test_what_does_not_fit_the_adapter_is_refused(
    changes: dict[str, Any], said: str, first: Path, sft_cot: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        sft_cot(tmp_path / "run", *words(**{"init_from": first, **changes}))
    assert not (tmp_path / "run").exists()


def test_a_settings_file_gives_way_to_the_adapter_but_not_in_dropout(
    first: Path, tmp_path: Path
) -> None:
    """sft_cot_tiny has another rank than the adapter, and no dropout."""
    from vlmface.train.init_from import with_adapter
    from vlmface.train.settings import SFTSettings
    from vlmface.utils.config import load_config

    config = json.loads((first / "adapter_config.json").read_text())
    stored = json.loads((first / "settings.json").read_text())

    def settings(*more: str) -> SFTSettings:
        argv = ["--init_from", str(first), "--base_model", stored["base_model"], *more]
        argv += ["--output_dir", str(tmp_path / "run")]
        return with_adapter(load_config(SFTSettings, argv, default="sft_cot_qwen", usage=""))

    settings_ = settings()
    assert (settings_.lora_rank, settings_.lora_alpha) == (config["r"], config["lora_alpha"])
    assert settings_.lora_target_modules == stored["lora_target_modules"] == ["all"]
    assert settings_.trainable == {name: stored[name] for name in settings_.trainable}
    assert settings_.train_embeddings == stored["train_embeddings"]
    qwen = yaml.safe_load(find_config("sft_cot_qwen").read_text())
    assert settings_.lora_dropout == qwen["lora_dropout"] != config["lora_dropout"]
    assert settings("--lora_dropout", "0.3").lora_dropout == 0.3
    with pytest.raises(UserError, match=r"lora_alpha is 3.*, but the adapter in .* has"):
        settings("--lora_alpha", "3")
    with pytest.raises(UserError, match=r"lora_target_modules is \['q_proj'\], but the adapter"):
        settings("--lora_target_modules", "[q_proj]")


def test_dropout_is_that_of_the_new_run(first: Path, sft_cot: Recipe, tmp_path: Path) -> None:
    """Also after an interruption."""
    from helpers.trainers import interrupted

    run = words(init_from=first, lora_dropout=0.4, n_train=12, epochs=1, save_steps=1)
    assert sft_cot(tmp_path / "whole", *run) == 0
    config = json.loads((tmp_path / "whole" / "adapter_config.json").read_text())
    assert config["lora_dropout"] == 0.4
    without = words(init_from=first, lora_dropout=0.0, n_train=12, epochs=1)
    assert sft_cot(tmp_path / "without", *without) == 0
    assert losses(tmp_path / "without")[0] < losses(tmp_path / "whole")[0]
    with interrupted("sft", 2):
        sft_cot(tmp_path / "resumed", *run)
    assert sft_cot(tmp_path / "resumed", *run) == 0
    assert same_weights(tmp_path / "resumed", tmp_path / "whole")


def test_an_adapter_is_trained_further_over_4_bits(
    first: Path, sft_cot: Recipe, tmp_path: Path
) -> None:
    """Its weights are kept, the base is quantised, and the manifest names both."""
    pytest.importorskip("bitsandbytes")
    still = words(init_from=first, quantization="nf4", learning_rate=1e-12, epochs=1, n_train=12)
    assert sft_cot(tmp_path / "still", *still) == 0
    assert same_weights(tmp_path / "still", first)
    assert losses(tmp_path / "still")[0] == pytest.approx(losses(first)[-1], abs=0.5)
    run, _ = manifest.load(tmp_path / "still")
    assert run.quantization == "nf4" and run.init_from is not None
    moved = words(init_from=tmp_path / "still", quantization="nf4", epochs=1, n_train=12)
    assert sft_cot(tmp_path / "moved", *moved) == 0
    assert not same_weights(tmp_path / "moved", first)


def test_a_run_is_not_its_own_start(first: Path, sft_cot: Recipe) -> None:
    with pytest.raises(UserError, match="init_from and output_dir are both"):
        sft_cot(first, *words(init_from=first), "--overwrite", "true")
    assert (first / "report.html").exists()


def test_complete_weights_are_a_base(base: Path, sft_cot: Recipe, tmp_path: Path) -> None:
    whole = words(language_model="full", projector="full", n_train=6, epochs=1)
    del whole[whole.index("--lora_dropout") : whole.index("--lora_dropout") + 2]
    assert sft_cot(tmp_path / "whole", *whole) == 0
    with pytest.raises(UserError, match="complete weights and not an adapter: set base_model to"):
        sft_cot(tmp_path / "run", *words(init_from=tmp_path / "whole"))


# --- longer runs ----------------------------------------------------------------------------------


def test_a_finished_run_with_more_epochs_is_the_longer_run(
    first: Path, longer: Path, sft_cot: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(first, folder)
    assert sft_cot(folder, *words(epochs=3)) == 0
    said = capsys.readouterr().out
    assert "epochs is raised from 2 to 3" in said and "jumps" not in said
    assert [line["step"] for line in training_log(folder)] == list(range(1, 13))
    assert losses(folder) == pytest.approx(losses(longer), abs=1e-5)
    assert same_weights(folder, longer)
    for name in ("predictions.jsonl", "predictions_before.jsonl"):
        texts = [
            [line["text"] for line in answering.read_lines(run / name)] for run in (folder, longer)
        ]
        assert texts[0] == texts[1]
    assert json.loads((folder / "settings.json").read_text())["epochs"] == 3
    with pytest.raises(UserError, match=r"was started with epochs = 3\.0, but now epochs = 2\.0"):
        sft_cot(folder, *words())
    assert sft_cot(folder, *words(epochs=3)) == 0
    assert "is complete" in capsys.readouterr().out


def test_an_interrupted_run_with_more_epochs_is_the_longer_run(
    longer: Path, sft_cot: Recipe, tmp_path: Path
) -> None:
    from helpers.trainers import interrupted

    for stop, epochs in ((5, 2), (10, 3)):
        with interrupted("sft", stop):
            sft_cot(tmp_path / "run", *words(epochs=epochs))
    assert sft_cot(tmp_path / "run", *words(epochs=3)) == 0
    assert losses(tmp_path / "run") == pytest.approx(losses(longer), abs=1e-5)
    assert same_weights(tmp_path / "run", longer)


def test_a_kill_while_a_run_is_made_longer(
    first: Path, longer: Path, sft_cot: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlmface.utils import config

    folder = tmp_path / "run"
    shutil.copytree(first, folder)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(config, "save_config", killed)
        sft_cot(folder, *words(epochs=3))
    assert not (folder / "report.html").exists()
    assert sft_cot(folder, *words(epochs=3)) == 0
    assert same_weights(folder, longer)


def test_another_schedule_is_that_of_the_longer_run_from_there_on(
    sft_cot: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"n_train": 12, "lr_scheduler": "cosine", "lora_dropout": 0.0}
    assert sft_cot(tmp_path / "run", *words(**few, epochs=1)) == 0
    assert sft_cot(tmp_path / "run", *words(**few, epochs=4)) == 0
    assert "the learning rate jumps" in capsys.readouterr().out
    assert sft_cot(tmp_path / "whole", *words(**few, epochs=4)) == 0
    rates, expected = (
        [line["learning_rate"] for line in training_log(folder)]
        for folder in (tmp_path / "run", tmp_path / "whole")
    )
    assert rates[:2] != pytest.approx(expected[:2])
    assert rates[3:] == pytest.approx(expected[3:])
    assert rates[2] == pytest.approx(rates[1], abs=2e-3) and rates[3] > rates[2]
