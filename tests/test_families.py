"""What a family's module says is what the real processor and model do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from samples import picture
from transformers import LlavaForConditionalGeneration

from vlmface import families, prompts
from vlmface.errors import UserError
from vlmface.families import llava, parts

ALL_LORA = {"tower": "lora", "projector": "lora", "llm": "lora"}


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    return llava.load_model(base)


def test_the_family_is_found_and_an_unknown_one_refused(base: Path) -> None:
    assert families.family_of(base) == "llava"
    assert families.family_of(str(base)) == "llava"
    assert families.get("llava") is llava
    with pytest.raises(UserError, match="unknown model family 'clap'; known: llava"):
        families.get("clap")
    with pytest.raises(UserError, match="this run is a CLIP"):
        families.get("clip")
    with pytest.raises(UserError, match="model type 'gpt2' belongs to no known family"):
        families.family_of(type("Config", (), {"model_type": "gpt2"})())
    with pytest.raises(UserError, match="cannot read a model configuration"):
        families.family_of(base / "nothing")


def test_the_checkpoint_is_complete_and_reloads_equal(base: Path, model: Any) -> None:
    with safe_open(base / "model.safetensors", "pt") as file:
        tower = [name for name in file.keys() if "vision_tower" in name]  # noqa: SIM118
    assert tower
    assert all("vision_tower.vision_model." in name for name in tower)  # as vLLM reads them
    again = LlavaForConditionalGeneration.from_pretrained(base)
    theirs = dict(again.named_parameters())
    assert set(theirs) == {name for name, _ in model.named_parameters()}
    assert all(torch.equal(p, theirs[name]) for name, p in model.named_parameters())
    assert again.lm_head.weight is again.model.language_model.embed_tokens.weight
    assert {f.name for f in base.iterdir()} >= {
        "config.json",
        "tokenizer.json",
        "processor_config.json",
        "chat_template.jinja",
    }


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


def test_image_tokens_are_counted_as_processor_and_model_do(processor: Any, model: Any) -> None:
    count = llava.image_tokens(processor)
    text = llava.prompt_text(processor, prompts.load("face_cot").messages())
    batch = processor(text=text, images=picture(0), return_tensors="pt", add_special_tokens=False)
    assert (batch["input_ids"] == processor.image_token_id).sum() == count == 16
    (features,) = llava.tower_features(model, batch)
    assert len(features) == count
    assert llava.image_text(processor) == "<image>" * count


def test_features_instead_of_pixels_give_the_same_logits(processor: Any, model: Any) -> None:
    text = llava.prompt_text(processor, prompts.load("face_cot").messages())
    batch = processor(text=text, images=picture(1), return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        expected = model(**batch).logits
        features = llava.tower_features(model, batch)
        del batch["pixel_values"]
        found = model(**batch, **llava.features_input(model, features)).logits
    assert torch.equal(found, expected)


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


def matching(model: Any, pattern: str) -> set[str]:
    from peft.tuners.tuners_utils import check_target_module_exists

    config = type("Config", (), {"target_modules": pattern, "exclude_modules": None})()
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return {name for name in linear if check_target_module_exists(config, name)}


@pytest.mark.parametrize("part", ["tower", "projector", "llm"])
def test_lora_meets_every_linear_layer_of_its_part_and_no_other(model: Any, part: str) -> None:
    policy = {name: "lora" if name == part else "frozen" for name in llava.PARTS}
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    expected = {name for name in linear if llava.PARTS[part] in name}
    assert expected
    assert matching(model, llava.lora_targets(policy, ["all"])) == expected


def test_lora_modules_are_looked_up_in_their_part(model: Any) -> None:
    policy = {"tower": "lora", "projector": "frozen", "llm": "lora"}
    found = matching(model, llava.lora_targets(policy, ["q_proj", "v_proj"]))
    assert len(found) == 2 * 2 + 2 * 2  # two layers in each tower
    assert all(name.endswith(("q_proj", "v_proj")) for name in found)
    with pytest.raises(UserError, match="gate_prj is not a linear layer of tower, llm"):
        llava.lora_targets(policy, ["q_proj", "gate_prj"])
    with pytest.raises(UserError, match="gate_proj is not a linear layer of tower;"):
        llava.lora_targets({**policy, "llm": "frozen"}, ["gate_proj"])


def test_only_the_projector_may_be_full_beside_lora() -> None:
    assert parts.full_modules(llava.PARTS, {**ALL_LORA, "projector": "full"}) == [
        "multi_modal_projector"
    ]
    assert parts.full_modules(llava.PARTS, ALL_LORA) == []
    with pytest.raises(UserError, match="tower: full beside a LoRA part"):
        parts.full_modules(llava.PARTS, {**ALL_LORA, "tower": "full"})


def test_freeze_trains_what_it_is_told(base: Path) -> None:
    model = llava.load_model(base)
    parts.freeze(llava.PARTS, model, {"tower": "frozen", "projector": "full", "llm": "frozen"})
    moving = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moving
    assert all("multi_modal_projector" in name for name in moving)
    parts.freeze(llava.PARTS, model, {"tower": "frozen", "projector": "frozen", "llm": "full"})
    assert model.lm_head.weight.requires_grad
    assert not any(p.requires_grad for p in model.model.vision_tower.parameters())


def test_vllm_is_told_what_it_needs(processor: Any) -> None:
    frozen = {"tower": "frozen", "projector": "frozen", "llm": "lora"}
    flags = llava.vllm_flags(processor, max_length=512, policy=frozen)
    assert flags["serve"]["max-model-len"] == 512
    assert (flags["merge"], flags["extra_body"]) == (False, {})
    assert llava.vllm_flags(processor, max_length=512, policy=ALL_LORA)["merge"] is True
