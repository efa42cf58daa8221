"""What `vlmface inspect` shows is what the recipe trains on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import llava
from helpers.run_files import read_metrics
from helpers.samples import rows
from helpers.scripts import load_script

from vlmface import prompts
from vlmface.cli import main
from vlmface.errors import UserError
from vlmface.pipelines import sft as pipeline
from vlmface.pipelines import steps
from vlmface.pipelines.sft import Task
from vlmface.tools import inspect_rows, meta_model, recipe_setup
from vlmface.train import sft
from vlmface.train.rows import encode_rows
from vlmface.train.settings import SFTSettings


@pytest.fixture(scope="module")
def task(processor: Any) -> Task:
    prompt = prompts.load("face_cot")
    found, skipped = encode_rows(rows(16), processor, llava, prompt, max_length=10**6, seed=0)
    return Task(prompt, found, skipped)


def test_the_tokens_are_the_rows_and_the_marked_ones_the_supervised(
    processor: Any, task: Task
) -> None:
    decode = processor.tokenizer.decode
    for row in task.rows:
        ids, labels = row["input_ids"], row["labels"]
        text = inspect_rows.show_tokens(processor, ids, labels)
        before, _, marked = text.partition("[")
        assert text.count("[") == text.count("]") == 1 and marked.endswith("]")
        learnt = [label for label in labels if label != -100]
        assert marked[:-1].replace("|", "").replace("\\n\n", "\n") == decode(learnt)
        assert marked.count("|") == len(learnt) - 1
        assert before.count("<image> x 16") == 1
        plain = before.replace("|", "").replace("\\n\n", "\n").replace(" x 16", "")
        prompt = [token for token, label in zip(ids, labels, strict=True) if label == -100]
        assert plain == decode(prompt).replace("<image>" * 16, "<image>")


def test_characters_of_several_tokens_are_shown_whole(processor: Any) -> None:
    ids = processor.tokenizer("naïve \U0001f600 face", add_special_tokens=False)["input_ids"]
    shown = inspect_rows.show_tokens(processor, ids, ids)
    assert "\ufffd" not in shown and "\U0001f600" in shown
    assert shown.replace("|", "") == "[naïve \U0001f600 face]"


def test_colours_are_green_for_supervised_tokens_and_for_no_others(
    processor: Any, task: Task
) -> None:
    row = task.rows[0]
    text = inspect_rows.show_tokens(processor, row["input_ids"], row["labels"], colour=True)
    green = [piece.partition("\033")[0] for piece in text.split("\033[32m")[1:]]
    learnt = [label for label in row["labels"] if label != -100]
    assert len(green) == len(learnt)
    assert "".join(green).replace("\\n\n", "\n") == processor.tokenizer.decode(learnt)


def test_the_table_says_what_the_recipe_leaves_out(processor: Any, task: Task) -> None:
    lengths = sorted(task.rows["length"])
    for limit in (lengths[3], lengths[10]):
        kept, skipped = encode_rows(
            rows(16), processor, llava, task.prompt, max_length=limit, seed=0
        )
        assert task.too_long(limit) == skipped["too_long"] == 16 - len(kept)
        shown = inspect_rows.show_lengths(task, limit)
        line = next(line for line in shown.splitlines() if line.startswith("*"))
        assert line.split()[1:3] == [str(limit), str(skipped["too_long"])]
        assert f"left out: {skipped['too_long']} of 16 rows" in shown
    assert f"shortest {lengths[0]}" in shown and f"longest {lengths[-1]}" in shown


def test_reasons_are_counted(processor: Any) -> None:
    def spoil(row: dict[str, Any], i: int) -> dict[str, Any]:
        if i < 3:
            row["emotion"] = None
        elif i < 5:
            row["aus"] = None
        return row

    prompt = prompts.load("face_cot")
    spoilt = rows(16).map(spoil, with_indices=True)
    found, skipped = encode_rows(spoilt, processor, llava, prompt, max_length=10**6, seed=0)
    task = Task(prompt, found, skipped)
    shown = inspect_rows.show_lengths(task, min(found["length"]))
    too_long = sum(length > min(found["length"]) for length in found["length"])
    assert f"left out: {5 + too_long} of 16 rows" in shown
    for line in ("  3 no_label", "  2 no_aus", f"  {too_long} too_long"):
        assert line in shown.splitlines()


def without_long_rows(task: Task, limit: int) -> Task:
    lengths = enumerate(task.rows["length"])
    return dataclasses.replace(
        task, rows=task.rows.select([i for i, length in lengths if length <= limit])
    )


HELD_OUT = ["--validation_share", "0.25", "--eval_steps", "2", "--logging_steps", "1"]
CASES: dict[str, tuple[str, str, list[str]]] = {
    "cot": ("sft_cot", "sft_cot_tiny", []),
    "labels": ("sft_labels", "sft_labels_tiny", []),
    "balanced": ("sft_attributes", "sft_attributes_tiny", ["--balance_by", "labels"]),
    "context": ("context_emotion", "context_vlm_tiny", ["--label_space", "null"]),
    "held_out": ("sft_labels", "sft_labels_tiny", HELD_OUT),
    "weighted": ("sft_labels", "sft_labels_tiny", ["--label_weight_power", "1"]),
    "mirrored": ("sft_cot", "sft_cot_tiny", ["--augment", "flip"]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_rows_are_those_that_training_encodes(
    case: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What inspect and the memory estimate read, without what is too long, is the data set that
    the recipe hands to the trainer."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"question": "Who is it?", "answer": "The model cannot tell."}\n')
    recipe, yaml, words = CASES[case]
    words = [
        "--base_model",
        str(base),
        "--n_train",
        "16",
        "--n_eval",
        "4",
        *words,
        "--text_only_data",
        str(texts),
        "--output_dir",
        str(tmp_path / "run"),
    ]
    trained: list[Any] = []

    def stop(
        base: Path, processor: Any, family: Any, rows: Any, settings: Any, validation: Any
    ) -> None:
        trained.append(rows)
        raise KeyboardInterrupt

    monkeypatch.setattr(sft, "train", stop)
    monkeypatch.setattr(steps.Evaluation, "predict", lambda *_, **__: [])
    longest: int | None = None
    for _ in range(2):  # the second time, about half of the rows are too long
        limit = [] if longest is None else ["--max_length", str(longest)]
        with pytest.raises(KeyboardInterrupt):
            load_script(f"recipes/{recipe}.py").main([*words, *limit])
        settings = recipe_setup.settings_from(yaml, [*words, *limit])
        tasks = recipe_setup.read_tasks(settings, llava.load_processor(base))
        fitting = [without_long_rows(task, settings.max_length) for task in tasks]
        expected, rows = pipeline.join_tasks(fitting), trained.pop()
        assert rows.column_names == expected.column_names
        for column in {*rows.column_names} - {"image", "frames"}:
            assert rows[column][:] == expected[column][:]
        n = len(rows) - 1
        assert n == sum(len(task.rows) for task in fitting if task.prompt is not None)
        longest = max(sorted(task.rows["length"])[len(task.rows) // 2] for task in tasks)


def test_trained_weights_are_those_of_the_run(run_dir: Path) -> None:
    content = json.loads((run_dir / "settings.json").read_text())
    settings = SFTSettings(**content)
    model = meta_model.build(
        meta_model.base_config(settings.base_model), llava, settings, torch.float32
    )
    found = meta_model.parameters(model, llava)
    train = read_metrics(run_dir)["train"]
    entries = [entry for kinds in found.values() for entry in kinds.values()]
    assert sum(entry[0] for entry in entries) == train["trainable"]
    assert sum(entry[1] for entry in entries) == train["parameters"]
    assert set(found) == {"vision_tower", "projector", "language_model", "embeddings"}
    assert found["vision_tower"]["q_proj"][0] == 0 < found["vision_tower"]["q_proj (LoRA)"][0]
    assert found["projector"]["linear_1 (copy)"][0] == found["projector"]["linear_1"][1]
    assert found["embeddings"]["embed_tokens (rows)"][0] == found["embeddings"]["embed_tokens"][1]


def test_the_adapter_that_training_starts_from_sets_what_is_trained(
    base: Path, run_dir: Path
) -> None:
    words = ["--base_model", str(base), "--init_from", str(run_dir), "--lora_dropout", "0.1"]
    settings = recipe_setup.settings_from("sft_cot_tiny", words)
    content = json.loads((run_dir / "settings.json").read_text())
    earlier = SFTSettings(**content)
    assert settings.trainable == earlier.trainable and settings.train_embeddings
    assert settings.lora_rank == earlier.lora_rank
    with pytest.raises(UserError, match="lora_rank is 3, but the adapter"):
        recipe_setup.settings_from("sft_cot_tiny", [*words, "--lora_rank", "3"])


def test_the_command(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--base_model",
        str(base),
        "--n_train",
        "12",
        "--max_length=400",
        "--vision_tower",
        "frozen",
    ]
    assert main(["inspect", "--n", "2", *words, "--cache_features"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("<image> x 16") == 2 and "\033" not in shown
    assert "16 of the image (96 x 96 pixels)" in shown
    assert "\n*        400 " in shown
    assert "left out: 0 of 12 rows" in shown
    assert main(["inspect", "--n", "1", *words, "--color"]) == 0
    assert "\033[32m" in capsys.readouterr().out


def test_settings_are_checked_as_in_the_recipe(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", "--base_model", str(base), "--n_trian", "12"]) == 2
    assert "'n_trian' (did you mean 'n_train'?)" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["predict", "a.jpg", "--model", "b", "--n_train", "12"])
    assert "unrecognized arguments: --n_train 12" in capsys.readouterr().err
