"""Qwen2.5-VL and Qwen3-VL: free resolutions, m-rope positions, mergers inside the tower."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.checkpoints import corpus, log_likelihoods, probabilities, qwen_vl, write_script
from helpers.samples import picture, rows
from helpers.scripts import Recipe
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from vlmface import encode, manifest, prompts
from vlmface.data import row_images
from vlmface.errors import SkippedSampleError, UserError
from vlmface.families import modules
from vlmface.infer.local import LocalModel
from vlmface.train import sft
from vlmface.train.rows import encode_rows
from vlmface.train.settings import SFTSettings

PROMPT = prompts.load("face_cot")
TARGET = PROMPT.completion("The lip corners are pulled up (AU12).", "happiness")
# width, height: square, wide, tall, tiny, large, and one that fits the budget as it is
SHAPES = [(40, 40), (150, 50), (25, 90), (5, 7), (400, 300), (40, 20)]
PICTURES = [picture(seed, size) for seed, size in enumerate(SHAPES)]
# 4 x 4, 2 x 3 and 4 x 3 tokens: positions behind them are 12, 3 and 8 lower than places.
BLOCKS = [PICTURES[0], PICTURES[3], PICTURES[4]]
MODEL_TYPES = ["qwen2_5_vl", "qwen3_vl"]
FROZEN = {"vision_tower": "frozen", "projector": "frozen", "language_model": "frozen"}
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


@pytest.fixture(scope="module", params=MODEL_TYPES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose token is 8 x 8 pixels; an image has 256 to 1,024 pixels."""
    folder = tmp_path_factory.mktemp(request.param)
    qwen_vl.build_tiny(folder, corpus(), model_type=request.param, min_pixels=256)
    return folder


@pytest.fixture
def processor(checkpoint: Path) -> Any:
    return qwen_vl.load_processor(checkpoint)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return qwen_vl.load_model(checkpoint)


def third(processor: Any) -> bool:
    return type(processor).__name__ == "Qwen3VLProcessor"


# --- the checkpoint -------------------------------------------------------------------------------


def test_the_weights_have_their_published_names(checkpoint: Path, processor: Any) -> None:
    """vLLM reads these."""
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        names = {name.split(".layers.")[0].split(".blocks.")[0] for name in file.keys()}  # noqa: SIM118
    expected = {"model.language_model", "model.visual"} if third(processor) else {"model", "visual"}
    assert expected <= names


def test_old_processor_files_are_read_alike(checkpoint: Path, tmp_path: Path) -> None:
    """As Qwen2.5-VL was published: min_pixels and max_pixels, in preprocessor_config.json."""
    shutil.copytree(checkpoint, tmp_path / "old")
    content = json.loads((tmp_path / "old/processor_config.json").read_text())["image_processor"]
    del content["size"]
    content |= {"min_pixels": 256, "max_pixels": 1024}
    (tmp_path / "old/processor_config.json").unlink()
    (tmp_path / "old/preprocessor_config.json").write_text(json.dumps(content))
    old = qwen_vl.load_processor(tmp_path / "old")
    described = {"min_pixels": 256, "max_pixels": 1024, "pixels_per_token": 64}
    assert qwen_vl.describe_image(old) == described
    new = qwen_vl.load_processor(checkpoint)
    assert qwen_vl.describe_image(new) == described
    for image in PICTURES:
        ours, theirs = (qwen_vl.image_inputs(p, [image]) for p in (old, new))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# --- text -----------------------------------------------------------------------------------------


def test_a_golden_row(processor: Any) -> None:
    """The whole conversation by hand; the loss sees the answer and <|im_end|>, nothing else."""
    row = encode.encode(processor, qwen_vl, PROMPT.messages(), picture(3, (40, 20)), TARGET)
    question = PROMPT.messages()[0]["content"][1]["text"]
    tokenizer = processor.tokenizer
    pieces = [
        "" if third(processor) else SYSTEM,
        "<|im_start|>user\n<|vision_start|>",
        "<|image_pad|>" * 10,  # 40 x 16 pixels
        f"<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n",
        f"{TARGET}<|im_end|>",
    ]
    ids = [tokenizer(piece)["input_ids"] for piece in pieces]
    prompt = sum(map(len, ids[:4]))
    assert row["input_ids"] == [token for piece in ids for token in piece]
    assert row["labels"] == [-100] * prompt + ids[4]
    assert row["labels"][-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    before = len(ids[0]) + len(ids[1])
    behind = len(ids[3]) + len(ids[4])
    assert row["mm_token_type_ids"] == [0] * before + [1] * 10 + [0] * behind
    assert row["attention_mask"] == [1] * len(row["input_ids"])
    assert row["image_grid_thw"].tolist() == [[1, 4, 10]]
    assert row["pixel_values"].shape == (40, 2 * 3 * 4 * 4)
    texts = {"input_ids", "attention_mask", "mm_token_type_ids", "labels"}
    assert set(row) == texts | {"pixel_values", "image_grid_thw"}


def test_what_ends_an_answer_does_not_depend_on_the_eos_of_the_tokenizer(processor: Any) -> None:
    tokenizer = processor.tokenizer
    ends = [tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
    for eos in ("<|im_end|>", "<|endoftext|>"):
        tokenizer.eos_token = eos
        assert qwen_vl.completion_text(processor, PROMPT.messages(), "Yes.") == "Yes.<|im_end|>"
        assert qwen_vl.stop_token_ids(processor) == ends


# --- image tokens ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "second", "third_"),
    [
        ((100, 100), 16, 64),  # a face of RAF-DB; Qwen3-VL enlarges to 256 x 256 pixels
        ((224, 224), 64, 64),
        ((1920, 1080), 39 * 69, 34 * 60),
        ((30, 900), 32, 2 * 44),
        ((8, 8), 4, 64),
        ((2000, 3000), 71 * 107, 62 * 94),
    ],
)
def test_published_resolutions(
    processor: Any, size: tuple[int, int], second: int, third_: int
) -> None:
    """The settings of Qwen2.5-VL and Qwen3-VL on the hub, over pictures as they come."""
    settings = processor.image_processor
    settings.patch_size = 16 if third(processor) else 14
    settings.size = (
        {"shortest_edge": 65536, "longest_edge": 16777216}
        if third(processor)
        else {"shortest_edge": 3136, "longest_edge": 12845056}
    )
    count = qwen_vl.image_tokens(processor, size)
    assert count == (third_ if third(processor) else second)
    grid = qwen_vl.image_inputs(processor, [Image.new("RGB", size)])["image_grid_thw"]
    assert grid.prod() // 4 == count


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (10, 2001), (2001, 10)])
def test_a_size_that_yields_no_token_is_refused(processor: Any, size: tuple[int, int]) -> None:
    with pytest.raises(
        SkippedSampleError, match=f"{size[0]} x {size[1]} pixels yields no token"
    ) as error:
        qwen_vl.image_tokens(processor, size)
    assert error.value.reason == "image_shape"
    with pytest.raises(ValueError, match=r"give \(width, height\)"):
        qwen_vl.image_tokens(processor)


def test_rows_are_measured_without_decoding_and_left_out_by_shape(
    processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rows(4)
    monkeypatch.setattr(
        row_images, "row_image_size", _in_turn([(40, 40), (1, 400), (40, 20), (90, 9)])
    )
    encoded, skipped = encode_rows(data, processor, qwen_vl, PROMPT, max_length=512, seed=0)
    assert skipped == {"image_shape": 1}
    assert [ids.count(processor.image_token_id) for ids in encoded["input_ids"]] == [16, 10, 11]
    assert [sum(kinds) for kinds in encoded["mm_token_type_ids"]] == [16, 10, 11]


def _in_turn(values: list[Any]) -> Any:
    left = iter(values)
    return lambda image: next(left)


# --- the pixel budget -----------------------------------------------------------------------------


def test_a_budget_is_kept_by_whoever_loads_the_processor(processor: Any, tmp_path: Path) -> None:
    assert qwen_vl.image_tokens(processor, (400, 300)) == 12
    qwen_vl.set_max_pixels(processor, 512)
    assert qwen_vl.image_tokens(processor, (400, 300)) == 6
    processor.save_pretrained(tmp_path)
    again = qwen_vl.load_processor(tmp_path)
    assert qwen_vl.describe_image(again) == {
        "min_pixels": 256,
        "max_pixels": 512,
        "pixels_per_token": 64,
    }
    row = encode.encode(again, qwen_vl, PROMPT.messages(), PICTURES[4])
    assert row["input_ids"].count(again.image_token_id) == 6 == len(row["pixel_values"]) / 4
    qwen_vl.set_max_pixels(processor, 128)  # below the minimum
    assert qwen_vl.describe_image(processor)["min_pixels"] == 32
    qwen_vl.set_max_pixels(processor, 64**2)  # raised again: small images stay small
    assert qwen_vl.describe_image(processor)["min_pixels"] == 32
    with pytest.raises(UserError, match=r"max_pixels is 63, but one token .* 8 x 8 = 64"):
        qwen_vl.set_max_pixels(processor, 63)


@given(
    tokens=st.integers(1, 90),
    width=st.integers(1, 900),
    height=st.integers(1, 900),
    smallest=st.sampled_from([3136, 65536]),
)
def test_no_image_takes_more_than_the_budget(
    tokens: int, width: int, height: int, smallest: int
) -> None:
    from transformers import Qwen2VLImageProcessor

    settings = Qwen2VLImageProcessor(size={"shortest_edge": smallest, "longest_edge": 10**7})
    holder = SimpleNamespace(image_processor=settings)
    qwen_vl.set_max_pixels(holder, tokens * 28 * 28)
    # Sides are rounded to whole tokens before they are held against the minimum.
    rounded = [max(1, round(side / 28)) * 28 for side in (width, height)]
    enlarged = math.prod(rounded) < smallest <= tokens * 28 * 28
    strip = max(width, height) > min(tokens, 200) * min(width, height)
    if not strip and not enlarged:
        assert 1 <= qwen_vl.image_tokens(holder, (width, height)) <= tokens


@pytest.mark.parametrize("max_pixels", [65536, 100352, 200704, 10**6])
def test_a_budget_leaves_the_minimum_of_the_checkpoint(max_pixels: int) -> None:
    """Qwen3-VL enlarges a face of 224 x 224 pixels to 64 tokens, within any budget of so many."""
    from transformers import Qwen2VLImageProcessor

    settings = Qwen2VLImageProcessor(
        patch_size=16, size={"shortest_edge": 65536, "longest_edge": 2**24}
    )
    holder = SimpleNamespace(image_processor=settings)
    qwen_vl.set_max_pixels(holder, max_pixels)
    assert qwen_vl.describe_image(holder)["min_pixels"] == 65536
    assert qwen_vl.image_tokens(holder, (224, 224)) == 64


# --- what trains ----------------------------------------------------------------------------------


def test_lora_modules_are_looked_up_in_the_model(model: Any) -> None:
    policy = {**FROZEN, "vision_tower": "lora", "language_model": "lora"}
    pattern = re.compile(qwen_vl.lora_targets(policy, ["attn.proj", "o_proj"]))
    found = {name for name, _ in model.named_modules() if pattern.fullmatch(name)}
    assert {name.split(".")[-2] for name in found} == {"attn", "self_attn"}
    is_third = model.config.model_type == "qwen3_vl"
    present, other = ("linear_fc1", "gate_proj") if is_third else ("gate_proj", "linear_fc1")
    policy = {**FROZEN, "vision_tower": "lora"}
    modules.check_lora_target_modules(qwen_vl.MODULE_PATHS, model, policy, [present, "attn.proj"])
    modules.check_lora_target_modules(qwen_vl.MODULE_PATHS, model, policy, ["all"])
    with pytest.raises(
        UserError,
        match=f"lora_target_modules: {other} is not a layer of this Qwen.*'s vision_tower",
    ):
        modules.check_lora_target_modules(qwen_vl.MODULE_PATHS, model, policy, [present, other])


def test_the_mergers_are_the_projector(model: Any) -> None:
    training: dict[str, set[str]] = {}
    for part in ("vision_tower", "projector", "language_model"):
        modules.freeze(qwen_vl.MODULE_PATHS, model, {**FROZEN, part: "full"})
        training[part] = {name for name, p in model.named_parameters() if p.requires_grad}
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    assert all(
        n.startswith("model.visual.") and "merger" not in n for n in training["vision_tower"]
    )
    assert all("merger" in name for name in training["projector"])
    assert "model.language_model.embed_tokens.weight" in training["language_model"]
    whole = modules.full_modules(qwen_vl.MODULE_PATHS, {**FROZEN, "projector": "full"}, model)
    inner = ["visual.deepstack_merger_list.0"] if model.config.model_type == "qwen3_vl" else []
    assert sorted(whole) == sorted(["visual.merger", *inner])


def test_features_have_the_input_of_every_merger(processor: Any, model: Any) -> None:
    inputs = qwen_vl.image_inputs(processor, PICTURES)
    features = qwen_vl.tower_features(model, inputs)
    levels = 2 if model.config.model_type == "qwen3_vl" else 1
    assert [f.shape[:3] for f in features] == [
        (levels, height, width) for _, height, width in inputs["image_grid_thw"].tolist()
    ]


# --- answers --------------------------------------------------------------------------------------


def test_plain_positions_would_give_other_probabilities(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = LocalModel.load(checkpoint, prompt="face_cot", max_new_tokens=60)
    rationales = ["The brows are lowered (AU4).", "Rest.", "The jaw drops (AU26), as in surprise."]
    write_script(monkeypatch, predictor, [PROMPT.completion(text, "anger") for text in rationales])
    monkeypatch.setattr(
        qwen_vl, "decode_step_inputs", lambda model, positions: {"position_ids": positions}
    )
    (found, *_) = predictor.predict(BLOCKS)
    expected = probabilities(log_likelihoods(predictor, BLOCKS[0], rationales[0]))
    assert found.probabilities != pytest.approx(expected, abs=1e-4)


# --- the recipe -----------------------------------------------------------------------------------


def test_an_unknown_layer_stops_the_training(
    checkpoint: Path, processor: Any, tmp_path: Path
) -> None:
    """gate_proj is a layer of Qwen2.5-VL's tower, linear_fc1 one of Qwen3-VL's."""
    other = "gate_proj" if third(processor) else "linear_fc1"
    data, _ = encode_rows(rows(2), processor, qwen_vl, PROMPT, max_length=512, seed=0)
    words: dict[str, Any] = {"dataset": "", "benchmark": "", "prompt": "", "limitations": ""}
    words |= {
        "vision_tower": "lora",
        "language_model": "frozen",
        "lora_target_modules": ["qkv", other],
    }
    settings = SFTSettings(base_model=str(checkpoint), output_dir=str(tmp_path), **words)
    with pytest.raises(
        UserError,
        match=f"lora_target_modules: {other} is not a layer of this Qwen.*'s vision_tower:",
    ):
        sft.train(checkpoint, processor, qwen_vl, data, settings)


@pytest.mark.slow
def test_the_shipped_settings_run_on_miniatures_of_their_data(
    checkpoint: Path, sft_cot: Recipe, tmp_path: Path
) -> None:
    from miniatures import expllm, rafdb

    expllm.write(tmp_path / "anno_json")
    rafdb.write(tmp_path / "RAF-DB", "_aligned")
    words = [
        "--config",
        "sft_cot_qwen",
        "--base_model",
        str(checkpoint),
        "--vision_tower",
        "frozen",
    ]
    words += ["--dataset_root", str(tmp_path / "anno_json"), "--max_length", "4096"]
    words += ["--benchmark_root", str(tmp_path / "RAF-DB"), "--n_train", "null"]
    words += ["--n_eval", "null", "--cache_features", "true", "--dataloader_workers", "0"]
    assert sft_cot(tmp_path / "run", *words) == 0
    found, (prompt,) = manifest.load(tmp_path / "run")
    assert (prompt.id, found.dataset["name"], found.dataset["n"]) == ("expllm", "expllm", 4)
    assert found.trainable == {**FROZEN, "language_model": "lora"}
    assert found.image["max_pixels"] == 448**2 and found.views is not None


# --- serving --------------------------------------------------------------------------------------


def test_vllm_is_told_the_pixel_budget(processor: Any) -> None:
    policy = {**FROZEN, "language_model": "lora"}
    flags = qwen_vl.vllm_flags(processor, max_length=512, trainable=policy)
    assert flags["serve"]["max-model-len"] == 512
    assert json.loads(flags["serve"]["mm-processor-kwargs"]) == {
        "size": {"shortest_edge": 256, "longest_edge": 1024}
    }
    assert json.loads(flags["serve"]["limit-mm-per-prompt"]) == {"image": 1, "video": 0}
    assert flags["extra_body"] == {}
