"""The whole path through the recipe's real main(): files, resumption, refusals, equalities."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import training
from helpers.checkpoints import llava
from helpers.run_files import PREDICTION, adapter, losses, read_metrics, training_log
from helpers.samples import picture, rows
from helpers.scripts import ROOT, Recipe, environment, kill_once
from helpers.trainers import interrupted

from vlmface import encode, manifest
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.infer.local import LocalModel
from vlmface.run_dir import read_log, truncate_log
from vlmface.utils import distributed

# --- what a run leaves ----------------------------------------------------------------------------


def test_a_run_folder_is_complete(run_dir: Path) -> None:
    assert {path.name for path in run_dir.iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "processor_config.json",
        "chat_template.jinja",
        "vlmface.json",
        "prompts",
        "metrics.json",
        "predictions.jsonl",
        "predictions_before.jsonl",
        "log.jsonl",
        "report.html",
    }
    found, (prompt,) = manifest.load(run_dir)
    assert (found.recipe, found.family, found.adapter) == ("sft_cot", "llava", True)
    assert found.dataset["name"] == "synth" and found.dataset["n"] == 48
    assert found.image == {"height": 32, "width": 32, "tokens": 16}
    assert prompt.id == "face_cot"
    assert "rendered faces" in found.limitations
    assert str(run_dir) not in (run_dir / "adapter_config.json").read_text()


def test_the_model_learns_and_the_log_says_so(run_dir: Path) -> None:
    lines = training_log(run_dir)
    assert [line["step"] for line in lines] == list(range(1, 13))  # 2 epochs of 6 steps
    assert losses(run_dir)[-1] < losses(run_dir)[0] - 0.2
    train = read_metrics(run_dir)["train"]
    assert train["steps"] == 12
    assert (train["loss_first"], train["loss_last"]) == (lines[0]["loss"], lines[-1]["loss"])
    assert train["n"] == 48 and train["skipped"] == {}
    assert train["peak_rss_gib"] > 0.1 and train["samples_per_s"] > 0
    assert 0 < train["trainable"] < train["parameters"]


def test_predictions_before_and_after_are_of_the_same_faces(run_dir: Path) -> None:
    before = answering.read_lines(run_dir / "predictions_before.jsonl")
    after = answering.read_lines(run_dir / "predictions.jsonl")
    assert [line["id"] for line in before] == [line["id"] for line in after]
    assert len(after) == 8
    assert set(after[0]) == PREDICTION | {"subject", "prompt"}
    truth = after[0]["truth"]
    assert set(map(int, truth["aus"])) <= set(truth["annotated_aus"])
    assert sum(after[0]["probabilities"].values()) == pytest.approx(1)
    scores = read_metrics(run_dir)
    assert scores["before"]["n"] == scores["after"]["n"] == scores["paired"]["n"] == 8


def test_every_part_moved_as_its_policy_says(run_dir: Path) -> None:
    found = adapter(run_dir)
    for part, path in llava.MODULE_PATHS.items():
        names = [name for name in found if path in name]
        assert names, part
        whole = {name for name in names if "lora_" not in name}
        if part == "projector":
            assert whole == set(names)
        else:
            assert all("embed_tokens" in name for name in whole), part
    assert all(tensor.abs().max() > 0 for name, tensor in found.items() if "lora_B" in name)


def test_the_gpu_settings_run_on_miniatures_of_their_data(tmp_path: Path, sft_cot: Recipe) -> None:
    from miniatures import expllm, rafdb

    expllm.write(tmp_path / "anno_json")
    rafdb.write(tmp_path / "RAF-DB", "_aligned")
    words = ["--config", "sft_cot_llava", "--dataset_root", str(tmp_path / "anno_json")]
    words += ["--benchmark_root", str(tmp_path / "RAF-DB"), "--num_processes", "null"]
    words += ["--n_train", "null", "--n_eval", "null", "--max_length", "1024"]
    assert sft_cot(tmp_path / "run", *words) == 0
    found, (prompt,) = manifest.load(tmp_path / "run")
    assert (prompt.id, found.dataset["name"], found.dataset["n"]) == ("expllm_words", "expllm", 4)
    scores = read_metrics(tmp_path / "run")["after"]
    assert (scores["benchmark"], scores["n"], "au" in scores) == ("rafdb", 2, False)


# --- going on -------------------------------------------------------------------------------------


def test_a_complete_run_is_left_alone(
    run_dir: Path, sft_cot: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run_dir / "metrics.json").stat().st_mtime_ns
    assert sft_cot(run_dir) == 0
    assert "is complete" in capsys.readouterr().out
    assert (run_dir / "metrics.json").stat().st_mtime_ns == before


def test_a_run_that_failed_at_its_report_is_finished(
    run_dir: Path, sft_cot: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report is what is written last: without it a run is not complete."""
    shutil.copytree(run_dir, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    assert sft_cot(tmp_path / "run") == 0
    assert "is complete" not in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").exists()
    assert losses(tmp_path / "run") == losses(run_dir)


def test_a_run_shorter_than_the_logging_interval_is_logged(sft_cot: Recipe, tmp_path: Path) -> None:
    words = ("--logging_steps", "100", "--save_steps", "100", "--epochs", "1")
    assert sft_cot(tmp_path, *words) == 0
    train = read_metrics(tmp_path)["train"]
    assert [line["step"] for line in training_log(tmp_path)] == [6]
    assert train["samples_per_s"] > 0 and train["loss_last"] > 0


def test_other_settings_in_the_same_folder_are_refused(run_dir: Path, sft_cot: Recipe) -> None:
    with pytest.raises(UserError, match=r"learning_rate = 0\.003, but now learning_rate = 0\.001"):
        sft_cot(run_dir, "--learning_rate", "1e-3")


def test_a_misspelt_setting_is_refused(run_dir: Path, sft_cot: Recipe) -> None:
    with pytest.raises(UserError, match=r"'epoch' \(did you mean 'epochs'\?\)"):
        sft_cot(run_dir, "--epoch", "3")


def test_resumed_equals_uninterrupted(
    run_dir: Path, sft_cot: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two interruptions, in the middle of an epoch and in the next one, with dropout on."""
    for step in (6, 11):
        with interrupted("sft", step):
            sft_cot(tmp_path)
    # A kill while a checkpoint was written: it has weights, but was never finished.
    half = tmp_path / "checkpoints" / "checkpoint-10"
    shutil.copytree(tmp_path / "checkpoints" / "checkpoint-8", half)
    (half / "complete").unlink()
    (half / "optimizer.pt").write_bytes(b"half")
    answered = (tmp_path / "predictions_before.jsonl").stat().st_mtime_ns
    assert sft_cot(tmp_path) == 0
    assert f"resuming from {tmp_path / 'checkpoints' / 'checkpoint-8'}" in capsys.readouterr().out
    assert (tmp_path / "predictions_before.jsonl").stat().st_mtime_ns == answered
    assert [line["step"] for line in training_log(tmp_path)] == [
        line["step"] for line in training_log(run_dir)
    ]
    assert losses(tmp_path) == pytest.approx(losses(run_dir), abs=1e-4)
    resumed, whole = adapter(tmp_path), adapter(run_dir)
    for name, tensor in whole.items():
        assert torch.allclose(resumed[name], tensor, atol=1e-5), name


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    run_dir: Path, base: Path, tmp_path: Path
) -> None:
    settings = json.loads((run_dir / "settings.json").read_text())
    # Features of a tower that is trained are not cached, and asking for it is refused.
    settings |= {"output_dir": str(tmp_path), "cache_features": False}
    words = [
        word
        for name, value in settings.items()
        if value is not None
        for word in (
            f"--{name}",
            ",".join(value) if isinstance(value, list) else str(value),
        )
    ]
    command = [sys.executable, str(ROOT / "recipes/sft_cot.py"), *words]
    kill_once(lambda: list(tmp_path.glob("checkpoints/*/complete")), command, environment())
    assert not (tmp_path / "metrics.json").exists()
    subprocess.run(command, env=environment(), check=True)
    assert losses(tmp_path) == pytest.approx(losses(run_dir), abs=1e-4)


# --- equalities -----------------------------------------------------------------------------------


def test_merged_equals_adapter(run_dir: Path) -> None:
    merged, apart = LocalModel.load(run_dir), LocalModel.load(run_dir, merge=False)
    plain = LocalModel.load(manifest.load(run_dir)[0].base_model["id"], prompt="face_cot")
    row = encode.encode(merged.processor, llava, merged.messages, picture(0))
    batch = encode.Collator(merged.processor, llava)([row])
    with torch.no_grad():
        found, expected, untrained = (p.model(**batch).logits for p in (merged, apart, plain))
    assert torch.allclose(found, expected, atol=1e-4)
    assert merged.model.lm_head.weight is merged.model.get_input_embeddings().weight
    assert (found - untrained).abs().max() > 0.1


def train(base: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    fixed: dict[str, Any] = {"batch_size": 4, "epochs": 2, "learning_rate": 1e-3, "save_steps": 100}
    return training.train(base, folder, rows(12), lora_dropout=0.0, **fixed | changes)


def test_cached_features_train_as_pixels_do(base: Path, tmp_path: Path) -> None:
    for name, cached in (("pixels", False), ("cached", True)):
        train(base, tmp_path / name, cache_features=cached)
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "pixels"), abs=1e-5)


@pytest.mark.parametrize("variant", ["rslora", "dora"])
def test_variants_of_lora_train_merge_and_reload(
    variant: str, base: Path, sft_cot: Recipe, tmp_path: Path
) -> None:
    assert sft_cot(tmp_path, "--lora_variant", variant, "--n_train", "16", "--epochs", "4") == 0
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["use_rslora"], written["use_dora"]) == (variant == "rslora", variant == "dora")
    assert losses(tmp_path)[-1] < losses(tmp_path)[0] - 0.3
    merged, apart = LocalModel.load(tmp_path), LocalModel.load(tmp_path, merge=False)
    row = encode.encode(merged.processor, llava, merged.messages, picture(0))
    batch = encode.Collator(merged.processor, llava)([row])
    with torch.no_grad():
        assert torch.allclose(*(p.model(**batch).logits for p in (merged, apart)), atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_trains_as_it_is(base: Path, tmp_path: Path) -> None:
    for cached in (False, True):
        for compiled in (False, True):
            folder = tmp_path / f"{cached}-{compiled}"
            train(base, folder, cache_features=cached, compile=compiled)
            assert losses(folder) == pytest.approx(losses(tmp_path / "False-False"), abs=1e-4)
        written = (tmp_path / f"{cached}-True" / "adapter_model.safetensors").read_bytes()
        assert b"_orig_mod" not in written[:20000]


def test_liger_kernels_are_for_gpus(base: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="liger is true, but its kernels run on GPUs only"):
        train(base, tmp_path, liger=True)


def test_the_loss_is_the_mean_over_all_supervised_tokens(base: Path, tmp_path: Path) -> None:
    """The first logged loss against the model's own loss with the whole head, in one batch and in
    two accumulated ones of different lengths."""
    processor = llava.load_processor(base)
    encoded = training.encode_all(processor, llava, rows(12))
    batch = encode.Collator(processor, llava)(list(encoded))
    batch.pop("row")
    with torch.no_grad():
        logits = llava.load_model(base)(**{k: v for k, v in batch.items() if k != "labels"}).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100
    ).item()
    train(base, tmp_path / "one", batch_size=12, epochs=1)
    train(base, tmp_path / "two", batch_size=6, gradient_accumulation=2, epochs=1)
    assert losses(tmp_path / "one") == pytest.approx([expected], abs=1e-4)
    assert losses(tmp_path / "two") == pytest.approx([expected], abs=1e-4)


def test_full_training_saves_a_whole_checkpoint(base: Path, tmp_path: Path) -> None:
    result = train(base, tmp_path, language_model="full", projector="full", vision_tower="frozen")
    assert result["loss_last"] < result["loss_first"]
    before, after = llava.load_model(base), llava.load_model(tmp_path)
    for name, tensor in after.named_parameters():
        moved = not torch.equal(tensor, before.get_parameter(name))
        assert moved == ("vision_tower" not in name), name


# --- refusals -------------------------------------------------------------------------------------


def test_a_log_that_could_not_be_resumed_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="save_steps 5 is not a multiple of logging_steps 2"):
        train(base, tmp_path, save_steps=5, logging_steps=2)


def test_the_number_of_processes_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    distributed.check_processes(None)
    distributed.check_processes(1)
    with pytest.raises(UserError, match=r"1 process\(es\) run, but num_processes is 8"):
        distributed.check_processes(8)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(UserError, match="started one process instead of several"):
        distributed.check_processes(None)
    monkeypatch.setenv("WORLD_SIZE", "8")
    distributed.check_processes(8)


def test_a_cut_off_log_line_is_dropped(tmp_path: Path) -> None:
    line = {"step": 1, "loss": 1.0, "elapsed_s": 2.5}
    (tmp_path / "log.jsonl").write_text(
        json.dumps(line) + "\n" + json.dumps(line | {"step": 2, "elapsed_s": 5.0}) + '\n{"st'
    )
    assert [entry["step"] for entry in read_log(tmp_path)] == [1, 2]
    assert truncate_log(tmp_path, 1) == 2.5
    assert [entry["step"] for entry in read_log(tmp_path)] == [1]
