"""The manifest vouches for a run: whatever no longer agrees is an error naming both values."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from vlmface import label_spaces, manifest, prompts
from vlmface.errors import UserError

PROMPT = prompts.load("face_cot")


@pytest.fixture
def run(tmp_path: Path, base: Path, processor: Any) -> Path:
    """A run folder without weights, which `load` does not read."""
    folder = tmp_path / "run"
    processor.save_pretrained(folder)
    manifest.save_prompts([PROMPT], folder)
    manifest.Manifest(
        recipe="sft_cot",
        family="llava",
        base_model={"id": str(base), "sha": manifest.weights_sha(base)},
        adapter=True,
        trainable={"vision_tower": "frozen", "projector": "full", "language_model": "lora"},
        prompts=[manifest.prompt_entry(PROMPT)],
        au_set=[1, 12],
        image={"height": 32, "width": 32, "tokens": 16},
        processor=manifest.processor_shas(folder),
        weights={"adapter_model.safetensors": "0" * 64},
        max_length=512,
        generation={"max_new_tokens": 24},
        dataset={"name": "synth", "n": 8, "fingerprint": "0"},
        seed=0,
        limitations="rendered faces only",
    ).save(folder)
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_saved_is_loaded(run: Path, base: Path) -> None:
    found, (prompt,) = manifest.load(run)
    assert dataclasses.asdict(prompt) == dataclasses.asdict(PROMPT)
    assert prompt.sha == PROMPT.sha
    assert found.limitations == "rendered faces only"
    assert manifest.resolve_base(found, run) == base
    assert manifest.is_run(run) and not manifest.is_run(base)


def test_a_changed_prompt(run: Path) -> None:
    file = run / "prompts" / "face_cot.yaml"
    file.write_text(file.read_text().replace("facial muscles", "muscles"))
    changed = prompts.load(file).sha
    with pytest.raises(UserError, match=rf"prompt face_cot in prompts/ is {changed}.*{PROMPT.sha}"):
        manifest.load(run)
    file.unlink()
    with pytest.raises(UserError, match="prompt"):
        manifest.load(run)


def test_a_changed_label_space(run: Path) -> None:
    entry = manifest.prompt_entry(PROMPT) | {"label_space_sha": "0123456789ab"}
    edit(run / manifest.FILENAME, prompts=[entry])
    sha = label_spaces.space("emotion8").sha
    with pytest.raises(UserError, match=rf"label space emotion8 .* is {sha}.*0123456789ab"):
        manifest.load(run)


@pytest.mark.parametrize("name", ["processor_config.json", "chat_template.jinja", "tokenizer.json"])
def test_a_changed_or_lost_processor(run: Path, name: str) -> None:
    before = manifest.processor_shas(run)[name]
    (run / name).write_text((run / name).read_text() + " ")
    after = manifest.processor_shas(run)[name]
    with pytest.raises(UserError, match=rf"{name} is {after}, but .* with {before}"):
        manifest.load(run)
    (run / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing, but .* with {before}"):
        manifest.load(run)


def test_a_foreign_or_broken_file(run: Path, base: Path) -> None:
    with pytest.raises(UserError, match=r"has no vlmface\.json: it is not a finished vlmface run"):
        manifest.load(base)
    edit(run / manifest.FILENAME, schema=99)
    with pytest.raises(UserError, match="has schema 99, but this vlmface"):
        manifest.load(run)
    edit(run / manifest.FILENAME, schema=manifest.SCHEMA, surprise=True)
    with pytest.raises(UserError, match="surprise is missing or unknown"):
        manifest.load(run)
    (run / manifest.FILENAME).write_text("{")
    with pytest.raises(UserError, match="cannot read"):
        manifest.load(run)


def test_a_base_that_is_gone_or_changed(run: Path, tmp_path: Path) -> None:
    found, _ = manifest.load(run)
    gone = dataclasses.replace(found, base_model={"id": str(tmp_path / "gone"), "sha": "0"})
    with pytest.raises(
        UserError, match=r"the adapter in .* needs its base model .*gone', which is"
    ):
        manifest.resolve_base(gone, run)
    other = dataclasses.replace(found, base_model={**found.base_model, "sha": "0123456789ab"})
    with pytest.raises(UserError, match=rf"{found.base_model['sha']}, but .* with 0123456789ab"):
        manifest.resolve_base(other, run)


def test_resolving_a_base(base: Path, tmp_path: Path) -> None:
    assert manifest.resolve(str(base)) == base
    with pytest.raises(UserError, match=r"has no config\.json"):
        manifest.resolve(str(tmp_path))
    for name in ("vlmface-tinny", "/no/such/folder", "./runs/x", "a/b/c"):
        with pytest.raises(UserError, match="unknown base model"):
            manifest.resolve(name)


def test_the_weights_sha_sees_every_end_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    found = set()
    for content in (b"abc", b"abd", b"bbc", b"abcd"):
        file.write_bytes(content)
        found.add(manifest.weights_sha(tmp_path))
    assert len(found) == 4
    assert all(len(sha) == 12 for sha in found)
    file.unlink()
    with pytest.raises(UserError, match="no weights"):
        manifest.weights_sha(tmp_path)
