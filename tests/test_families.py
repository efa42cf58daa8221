"""The registry of families, and what only LLaVA has."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.checkpoints import llava
from PIL import Image
from safetensors import safe_open

from vlmface import families
from vlmface.errors import UserError
from vlmface.families.base import Family
from vlmface.families.llava import Llava

# --- the registry ---------------------------------------------------------------------------------


class OtherLlava(Llava):
    """A family as an installed package adds it."""

    NAME = "other_llava"
    MODEL_TYPES = ("other_llava",)


class Incomplete(Family):
    NAME = "incomplete"
    MODEL_TYPES = ("incomplete",)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make entry points of an installed package: {name: "module:object"}."""

    def install(**points: str) -> None:
        group = {
            name: EntryPoint(name, value, families.FAMILIES.group) for name, value in points.items()
        }
        monkeypatch.setattr(families.FAMILIES, "entry_points", group)

    monkeypatch.setattr(families, "_INSTANCES", dict(families._INSTANCES))
    return install


def config_of(model_type: str) -> Any:
    return type("Config", (), {"model_type": model_type})()


def test_the_family_is_found_and_an_unknown_one_refused(base: Path) -> None:
    assert families.family_of(base) == "llava"
    assert families.family_of(str(base)) == "llava"
    assert type(families.get("llava")) is Llava
    with pytest.raises(UserError, match="unknown model family 'clap'; known: llava"):
        families.get("clap")
    with pytest.raises(UserError, match="this run is a CLIP"):
        families.get("clip")
    with pytest.raises(UserError, match="model type 'gpt2' belongs to no known family"):
        families.family_of(config_of("gpt2"))
    with pytest.raises(UserError, match="cannot read a model configuration"):
        families.family_of(base / "nothing")


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"model_type": "llava", "vision_config": 3}']
)
def test_a_damaged_configuration_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="cannot read a model configuration"):
        families.family_of(tmp_path)


def test_a_family_of_an_installed_package(installed: Any) -> None:
    with pytest.raises(UserError, match="belongs to no known family"):
        families.family_of(config_of("other_llava"))
    installed(other_llava=f"{__name__}:OtherLlava")
    assert families.family_of(config_of("other_llava")) == "other_llava"
    assert families.family_of(config_of("llava")) == "llava"
    assert isinstance(families.get("other_llava"), OtherLlava)
    assert families.get("other_llava") is families.get("other_llava")
    assert "other_llava" in families.FAMILIES


def test_built_in_families_are_asked_first(installed: Any, base: Path) -> None:
    """A package that cannot be imported harms the checkpoints of no other family."""
    installed(aaa="no_such_module:Family")
    assert families.family_of(base) == "llava"
    with pytest.raises(UserError, match="'aaa' of an installed package cannot be imported"):
        families.family_of(config_of("other"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("incomplete", "Incomplete", "does not define image_tokens, inputs_from_features, tower"),
        ("config_of", "config_of", "must be a subclass of"),
        ("another", "OtherLlava", "has the NAME 'other_llava': use the same name"),
    ],
)
def test_an_unusable_family_of_a_package_is_refused(
    installed: Any, name: str, value: str, message: str
) -> None:
    installed(**{name: f"{__name__}:{value}"})
    with pytest.raises(UserError, match=message):
        families.get(name)


def test_the_name_in_a_manifest_never_imports_anything(tmp_path: Path) -> None:
    """Other extensions may be named as FILE.py:NAME or MODULE:NAME, but a run is not trusted."""
    file = tmp_path / "evil.py"
    file.write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nFamily = None\n")
    for name in (f"{file}:Family", "antigravity:geohash", "os:system", f"{file}"):
        with pytest.raises(UserError, match="unknown model family"):
            families.get(name)
    assert not (tmp_path / "imported").exists()


# --- LLaVA ----------------------------------------------------------------------------------------


def test_the_towers_weights_have_their_published_names(base: Path) -> None:
    with safe_open(base / "model.safetensors", "pt") as file:
        tower = [name for name in file.keys() if "vision_tower" in name]  # noqa: SIM118
    assert tower
    assert all("vision_tower.vision_model." in name for name in tower)  # as vLLM reads them


def test_the_weights_of_several_files_have_their_published_names(
    base: Path, processor: Any, tmp_path: Path
) -> None:
    model = llava.load_model(base)
    save = model.save_pretrained
    model.save_pretrained = lambda folder, **options: save(
        folder, max_shard_size="100KB", **options
    )
    llava.save_checkpoint(model, processor, tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    for name, shard in index.items():
        with safe_open(tmp_path / shard, "pt") as file:
            assert name in file.keys()  # noqa: SIM118
    assert any("vision_tower.vision_model." in name for name in index)
    again = dict(llava.load_model(tmp_path).named_parameters())
    assert all(torch.equal(p, again[name]) for name, p in model.named_parameters())


def test_head_and_embeddings_are_one_matrix(base: Path) -> None:
    model = llava.load_model(base)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_the_tokenizer(processor: Any) -> None:
    tokenizer = processor.tokenizer
    pieces = tokenizer.tokenize("the brows (AU12) are lowered")
    assert {"1", "2", "Ġbrows"} <= set(pieces)
    for token in ("<pad>", "<s>", "</s>", "<image>"):
        assert len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1
    text = "naïve 4 (AU4) <think>\n\U0001f600"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_images_keep_their_border(processor: Any) -> None:
    """A wide picture is squeezed into the square, not cropped."""
    wide = np.zeros((40, 160, 3), dtype=np.uint8)
    wide[:, :20] = wide[:, -20:] = 255
    values = processor.image_processor([Image.fromarray(wide)], return_tensors="pt")["pixel_values"]
    assert values.shape == (1, 3, 32, 32)
    assert values[..., 0].min() > 0.9 and values[..., -1].min() > 0.9
    assert values[..., 16].max() < -0.9
    assert llava.describe_image(processor) == {"height": 32, "width": 32, "tokens": 16}


def test_the_template_reads_blocks_and_strings(processor: Any) -> None:
    blocks = [
        {"role": "system", "content": [{"type": "text", "text": "Look."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A man."}]},
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
    ]
    strings = [{**m, "content": m["content"][-1]["text"]} for m in blocks]  # type: ignore[index]
    strings[1]["content"] = "<image>\nWho?"
    expected = "<s>Look. USER: <image>\nWho? ASSISTANT: A man.</s>USER: Sure? ASSISTANT:"
    assert llava.prompt_text(processor, blocks) == expected
    assert llava.prompt_text(processor, strings) == expected


def test_lora_layers_are_looked_up_in_their_part() -> None:
    policy = {"vision_tower": "lora", "projector": "frozen", "language_model": "lora"}
    with pytest.raises(
        UserError, match="gate_prj is not a linear layer of vision_tower, language_model"
    ):
        llava.lora_targets(policy, ["q_proj", "gate_prj"])
    with pytest.raises(UserError, match="gate_proj is not a linear layer of vision_tower;"):
        llava.lora_targets({**policy, "language_model": "frozen"}, ["gate_proj"])


def test_a_server_adds_the_bos_only_if_the_template_does_not(processor: Any, base: Path) -> None:
    policy = dict.fromkeys(("vision_tower", "projector", "language_model"), "frozen")
    assert llava.vllm_flags(processor, max_length=512, trainable=policy)["extra_body"] == {}
    bare = llava.load_processor(base)
    bare.chat_template = bare.chat_template.replace("{{- bos_token -}}", "")
    flags = llava.vllm_flags(bare, max_length=512, trainable=policy)
    assert flags["extra_body"] == {"add_special_tokens": True}
