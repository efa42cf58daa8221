"""The script that makes vlmface-tiny, and the checkpoint that it made."""

from __future__ import annotations

import json

import pytest
from helpers.scripts import load_script

from vlmface.resources import resource


def test_the_built_in_checkpoint_is_small_complete_and_documented():
    folder = resource("tiny")
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert sum(sizes.values()) < 10 * 2**20
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= set(
        sizes
    )
    card = (folder / "README.md").read_text(encoding="utf-8")
    log = [json.loads(line) for line in (folder / "pretrain_log.jsonl").read_text().splitlines()]
    assert "license: apache-2.0" in card and "recipes/pretrain_tiny.py" in card
    stages = [line["stage"] for line in log]
    assert list(dict.fromkeys(stages)) == [
        "teacher",
        "teacher, held-out faces",
        "geometry",
        "geometry, held-out faces",
        "language",
        "words",
    ]
    language = [line["text"] for line in log if line["stage"] == "language"]
    assert language[-1] < 0.1 * language[0]


@pytest.mark.slow
@pytest.mark.parametrize("datasets", [["synth"], ["synth", "synth_v2"]])
def test_pretraining_runs_and_goes_on_where_it_stopped(datasets, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLMFACE_CACHE", str(tmp_path / "cache"))
    main = load_script("recipes/pretrain_tiny.py").main
    small = [
        "--datasets",
        *datasets,
        "--faces",
        "40",
        "--batch",
        "4",
        "--language_batch",
        "4",
        "--width",
        "32",
    ]
    small += ["--vision_layers", "1", "--layers", "1", "--teacher_steps", "2"]
    small += ["--geometry_steps", "3", "--words_steps", "2"]
    main([*small, "--language_steps", "2", "--output_dir", str(tmp_path / "a")])
    assert "parameters" in capsys.readouterr().out
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "a" / "checkpoint")
    AutoProcessor.from_pretrained(tmp_path / "a" / "checkpoint")
    # The geometry stage is done: started again with more language steps, only those are made.
    before = (tmp_path / "a" / "geometry.pt").stat().st_mtime_ns
    main([*small, "--language_steps", "4", "--output_dir", str(tmp_path / "a")])
    assert (tmp_path / "a" / "geometry.pt").stat().st_mtime_ns == before
    longer = LlavaForConditionalGeneration.from_pretrained(tmp_path / "a" / "checkpoint")
    pairs = zip(model.parameters(), longer.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
