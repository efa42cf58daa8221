"""Qwen2.5-VL and Qwen3-VL: free resolutions, m-rope positions, mergers inside the tower."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Recipe
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from samples import FACES, load_script, picture, rows

from vlmface import encode, families, manifest, prompts
from vlmface.data import row_images
from vlmface.errors import RefusedError, UserError
from vlmface.families import llava, parts, qwen_vl, tiny_qwen_vl
from vlmface.infer.local import LocalModel
from vlmface.train import sft
from vlmface.train.rows import encode_rows
from vlmface.train.settings import SFTSettings

PROMPT = prompts.load("face_cot")
TARGET = PROMPT.wrap("The lip corners are pulled up (AU12).", "happiness")
# width, height: square, wide, tall, tiny, large, and one that fits the budget as it is
SHAPES = [(40, 40), (150, 50), (25, 90), (5, 7), (400, 300), (40, 20)]
PICTURES = [picture(seed, size) for seed, size in enumerate(SHAPES)]
# 4 x 4, 2 x 3 and 4 x 3 tokens: positions behind them are 12, 3 and 8 lower than places.
BLOCKS = [PICTURES[0], PICTURES[3], PICTURES[4]]
MODEL_TYPES = ["qwen2_5_vl", "qwen3_vl"]
FROZEN = {"tower": "frozen", "projector": "frozen", "llm": "frozen"}
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


@pytest.fixture(scope="module", params=MODEL_TYPES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose token is 8 x 8 pixels; an image has 256 to 1,024 pixels."""
    from vlmface.rationale import rules

    corpus = [rules.write(aus, emotion, seed=seed) for aus, emotion in FACES for seed in range(20)]
    for name in ("face_cot", "expllm", "expllm_label"):
        corpus += [str(prompts.load(name).messages()), "helpful assistant user system"] * 20
    folder = tmp_path_factory.mktemp(request.param)
    tiny_qwen_vl.build_qwen_vl(folder, corpus, model_type=request.param, min_pixels=256)
    return folder


@pytest.fixture
def processor(checkpoint: Path) -> Any:
    return qwen_vl.load_processor(checkpoint)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return qwen_vl.load_model(checkpoint)


def third(processor: Any) -> bool:
    return type(processor).__name__ == "Qwen3VLProcessor"


def with_image(messages: list[dict[str, Any]], image: Image.Image) -> list[dict[str, Any]]:
    """The messages as the processor's own template call wants them."""
    return [
        {
            **message,
            "content": [
                {"type": "image", "image": image} if block["type"] == "image" else block
                for block in message["content"]
            ],
        }
        for message in messages
    ]


# --- the checkpoint -------------------------------------------------------------------------------


def test_the_checkpoint_reloads_equal_under_its_published_names(checkpoint: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    assert families.family_of(checkpoint) == "qwen_vl"
    model, again = (AutoModelForImageTextToText.from_pretrained(checkpoint) for _ in range(2))
    processor = AutoProcessor.from_pretrained(checkpoint)
    kind = "Qwen3VL" if third(processor) else "Qwen2_5_VL"
    assert type(model).__name__ == f"{kind}ForConditionalGeneration"
    assert type(processor).__name__ == f"{kind}Processor"
    theirs = dict(again.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in model.named_parameters())
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    # vLLM reads the names that the models were published with.
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        names = {name.split(".layers.")[0].split(".blocks.")[0] for name in file.keys()}  # noqa: SIM118
    expected = {"model.language_model", "model.visual"} if third(processor) else {"model", "visual"}
    assert expected <= names


def test_the_seed_decides_the_weights(checkpoint: Path, model: Any, tmp_path: Path) -> None:
    kind = families.family_of(checkpoint) and model.config.model_type
    corpus = [str(PROMPT.messages())]
    first, second, other = (
        tiny_qwen_vl.build_qwen_vl(tmp_path / str(i), corpus, model_type=kind, seed=seed)[0]
        for i, seed in enumerate((0, 0, 1))
    )
    weights = [m.model.visual.merger.state_dict().values() for m in (first, second, other)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))


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


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("template", "has no chat template"),
        ("image", r"does not know <\|image_pad\|>"),
        ("end", r"does not know <\|im_end\|>"),
        ("id", r"<\|image_pad\|> has the id \d+ in the tokenizer, but 3 in config.json"),
        ("range", r"ids up to \d+, but the model has embeddings for 50"),
    ],
)
def test_a_wrong_checkpoint_is_refused(
    checkpoint: Path, tmp_path: Path, fault: str, message: str
) -> None:
    wrong = shutil.copytree(checkpoint, tmp_path / "wrong")
    config = json.loads((wrong / "config.json").read_text())
    if fault == "template":
        (wrong / "chat_template.jinja").unlink()
    elif fault in ("image", "end"):
        gone = "<|image_pad|>" if fault == "image" else "<|im_end|>"
        for name in ("tokenizer.json", "tokenizer_config.json"):
            text = (wrong / name).read_text().replace(gone, "<|other|>")
            (wrong / name).write_text(text)
        content = json.loads((wrong / "tokenizer_config.json").read_text())
        content.pop("image_token", None)  # as in the published files
        content.pop("extra_special_tokens", None)
        (wrong / "tokenizer_config.json").write_text(json.dumps(content))
    elif fault == "id":
        config["image_token_id"] = 3
    else:
        config["text_config"]["vocab_size"] = 50
    (wrong / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        qwen_vl.load_processor(wrong)


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


@pytest.mark.parametrize("image", PICTURES, ids=str(SHAPES)[1:-1].split("), "))
def test_the_row_is_what_the_processor_makes_of_the_conversation(
    processor: Any, image: Image.Image
) -> None:
    asked = with_image(PROMPT.messages(), image)
    answered = [*asked, {"role": "assistant", "content": [{"type": "text", "text": TARGET}]}]

    def theirs(messages: list[dict[str, Any]], **options: Any) -> Any:
        return processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", **options
        )

    pairs = [
        (encode.encode(processor, qwen_vl, PROMPT.messages(), image),
         theirs(asked, add_generation_prompt=True)),
        (encode.encode(processor, qwen_vl, PROMPT.messages(), image, TARGET), theirs(answered)),
    ]  # fmt: skip
    for i, (ours, expected) in enumerate(pairs):
        cut = -1 if i else None  # the newline behind the answer's <|im_end|>
        for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            assert ours[name] == expected[name][0].tolist()[:cut], name
        for name in ("pixel_values", "image_grid_thw"):
            assert torch.equal(ours[name], expected[name]), name
        assert set(expected) == set(ours) - {"labels"}
    newline = processor.tokenizer("\n")["input_ids"]
    assert pairs[1][1]["input_ids"][0, -1:].tolist() == newline
    start = len(pairs[0][0]["input_ids"])
    assert pairs[1][0]["input_ids"][:start] == pairs[0][0]["input_ids"]
    assert pairs[1][0]["labels"] == [-100] * start + pairs[1][0]["input_ids"][start:]


def test_what_ends_an_answer_does_not_depend_on_the_eos_of_the_tokenizer(processor: Any) -> None:
    tokenizer = processor.tokenizer
    ends = [tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
    for eos in ("<|im_end|>", "<|endoftext|>"):
        tokenizer.eos_token = eos
        assert qwen_vl.completion_text(processor, PROMPT.messages(), "Yes.") == "Yes.<|im_end|>"
        assert qwen_vl.stop_token_ids(processor) == ends


def test_padding_and_images_of_different_sizes(processor: Any) -> None:
    made = [
        encode.encode(processor, qwen_vl, PROMPT.messages(), PICTURES[0], "Yes."),
        encode.encode(processor, qwen_vl, PROMPT.messages(), PICTURES[1], TARGET),
    ]
    n, m = (len(row["input_ids"]) for row in made)
    for side in ("right", "left"):
        batch = encode.Collator(processor, qwen_vl, padding=side)(made)
        gap = slice(n, m) if side == "right" else slice(0, m - n)
        assert not batch["attention_mask"][0, gap].any()
        assert not batch["mm_token_type_ids"][0, gap].any()
        assert (batch["labels"][0, gap] == -100).all()
        assert torch.equal(batch["pixel_values"], torch.cat([r["pixel_values"] for r in made]))
        grids = [row["image_grid_thw"][0].tolist() for row in made]
        assert batch["image_grid_thw"].tolist() == grids and grids[0] != grids[1]
        supervised = batch["input_ids"][batch["labels"] != -100]
        assert processor.image_token_id not in supervised
        assert processor.tokenizer.pad_token_id not in supervised
    bare = [{"input_ids": r["input_ids"], "mm_token_type_ids": r["mm_token_type_ids"],
             "image": image} for r, image in zip(made, PICTURES, strict=False)]  # fmt: skip
    batch = encode.Collator(processor, qwen_vl)(bare)
    assert torch.equal(batch["pixel_values"], torch.cat([r["pixel_values"] for r in made]))


# --- image tokens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("image", PICTURES, ids=str(SHAPES)[1:-1].split("), "))
def test_image_tokens_are_counted_as_processor_and_model_do(
    processor: Any, model: Any, image: Image.Image
) -> None:
    count = qwen_vl.image_tokens(processor, image.size)
    batch = encode.encode(processor, qwen_vl, PROMPT.messages(), image)
    assert batch["input_ids"].count(processor.image_token_id) == count
    assert qwen_vl.image_text(processor, image.size) == "<|image_pad|>" * count
    inputs = {name: batch[name] for name in ("pixel_values", "image_grid_thw")}
    (features,) = qwen_vl.tower_features(model, inputs)
    assert features.shape[1] * features.shape[2] == 4 * count
    with torch.no_grad():
        (tokens,) = model.get_image_features(**inputs).pooler_output
    assert len(tokens) == count


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
        RefusedError, match=f"{size[0]} x {size[1]} pixels yields no token"
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
    encoded, left_out = encode_rows(data, processor, qwen_vl, PROMPT, max_length=512, seed=0)
    assert left_out == {"image_shape": 1}
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
    enlarged = width * height < smallest <= tokens * 28 * 28
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


def test_families_with_one_image_size_refuse_a_budget(processor: Any) -> None:
    families.set_max_pixels(llava, None, None)
    with pytest.raises(UserError, match="max_pixels is 512, but llava brings every image to one"):
        families.set_max_pixels(llava, None, 512)
    families.set_max_pixels(qwen_vl, processor, 512)
    assert qwen_vl.describe_image(processor)["max_pixels"] == 512


# --- what trains ----------------------------------------------------------------------------------


def matching(model: Any, pattern: str) -> set[str]:
    from peft.tuners.tuners_utils import check_target_module_exists

    config = type("Config", (), {"target_modules": pattern, "exclude_modules": None})()
    return {name for name, _ in model.named_modules() if check_target_module_exists(config, name)}


@pytest.mark.parametrize("part", ["tower", "projector", "llm"])
def test_lora_meets_every_linear_layer_of_its_part_and_nothing_else(model: Any, part: str) -> None:
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head"}
    inside = {
        "tower": {n for n in linear if ".visual." in n and "merger" not in n},
        "projector": {n for n in linear if "merger" in n},
        "llm": {n for n in linear if "language_model" in n},
    }
    assert all(inside.values()) and set().union(*inside.values()) == linear
    pattern = qwen_vl.lora_targets({**FROZEN, part: "lora"}, ["all"])
    assert matching(model, pattern) == inside[part]


def test_lora_modules_are_looked_up_in_the_model(model: Any) -> None:
    policy = {**FROZEN, "tower": "lora", "llm": "lora"}
    found = matching(model, qwen_vl.lora_targets(policy, ["attn.proj", "o_proj"]))
    assert {name.split(".")[-2] for name in found} == {"attn", "self_attn"}
    with pytest.raises(UserError, match="wrong_proj is not a linear layer of tower, llm"):
        qwen_vl.lora_targets(policy, ["attn.proj", "wrong_proj"])
    is_third = model.config.model_type == "qwen3_vl"
    present, other = ("linear_fc1", "gate_proj") if is_third else ("gate_proj", "linear_fc1")
    policy = {**FROZEN, "tower": "lora"}
    parts.check_lora_modules(qwen_vl.PARTS, model, policy, [present, "attn.proj"])
    parts.check_lora_modules(qwen_vl.PARTS, model, policy, ["all"])
    with pytest.raises(
        UserError, match=f"lora_modules: {other} is no layer of this Qwen.*'s tower"
    ):
        parts.check_lora_modules(qwen_vl.PARTS, model, policy, [present, other])


def test_freeze_and_whole_modules(checkpoint: Path) -> None:
    model = qwen_vl.load_model(checkpoint)

    def moving(policy: dict[str, str]) -> set[str]:
        parts.freeze(qwen_vl.PARTS, model, policy)
        return {name for name, p in model.named_parameters() if p.requires_grad}

    split = [moving({**FROZEN, part: "full"}) for part in ("tower", "projector", "llm")]
    assert all(split) and sum(map(len, split)) == len(dict(model.named_parameters()))
    assert all(n.startswith("model.visual.") and "merger" not in n for n in split[0])
    assert all("merger" in n for n in split[1])
    assert "model.language_model.embed_tokens.weight" in split[2]
    whole = parts.full_modules(qwen_vl.PARTS, {**FROZEN, "projector": "full"}, model)
    inner = ["visual.deepstack_merger_list.0"] if model.config.model_type == "qwen3_vl" else []
    assert sorted(whole) == sorted(["visual.merger", *inner])


def test_features_instead_of_pixels_give_the_same_logits(processor: Any, model: Any) -> None:
    made = [encode.encode(processor, qwen_vl, PROMPT.messages(), p, TARGET) for p in PICTURES]
    batch = encode.Collator(processor, qwen_vl)(made)
    del batch["labels"]
    with torch.no_grad():
        expected = model(**batch).logits
        inputs = {name: batch.pop(name) for name in ("pixel_values", "image_grid_thw")}
        features = qwen_vl.tower_features(model, inputs)
        found = model(**batch, **qwen_vl.features_input(model, features)).logits
    assert torch.allclose(found, expected, atol=1e-5)
    levels = 2 if model.config.model_type == "qwen3_vl" else 1
    assert [f.shape[:3] for f in features] == [
        (levels, height, width) for _, height, width in inputs["image_grid_thw"].tolist()
    ]


# --- answers --------------------------------------------------------------------------------------


def naive(predictor: LocalModel, image: Image.Image, rationale: str) -> dict[str, float]:
    """Label probabilities by one full forward pass a label."""
    inputs = encode.encode(predictor.processor, qwen_vl, predictor.messages, image)
    start = len(inputs["input_ids"])
    scores = []
    for ids in predictor.label_ids(rationale, image.size):
        row = {"input_ids": ids, **qwen_vl.token_inputs(predictor.processor, ids, None)}
        row |= {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
        batch = encode.Collator(predictor.processor, qwen_vl)([row])
        with torch.no_grad():
            log_p = predictor.model(**batch).logits[0, start - 1 : -1].log_softmax(-1)
        scores.append(log_p.gather(-1, batch["input_ids"][0, start:, None]).sum())
    values = torch.stack(scores).softmax(0).tolist()
    return dict(zip(predictor.prompt.space.labels, values, strict=True))


@pytest.mark.parametrize("prompt", ["face_cot", "expllm_label"])
def test_a_batch_answers_as_single_images_and_full_passes_do(checkpoint: Path, prompt: str) -> None:
    predictor = LocalModel.load(checkpoint, prompt=prompt, max_new_tokens=8)
    together = predictor.predict(PICTURES, batch_size=6)
    apart = predictor.predict(PICTURES, batch_size=1)
    assert [p.text for p in together] == [p.text for p in apart]
    for image, one, other in zip(PICTURES, together, apart, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
        expected = naive(predictor, image, one.answer.rationale)
        assert one.probabilities == pytest.approx(expected, abs=1e-4)


class Script:
    """Makes generation write the given ids, each row its own: everything else is ruled out."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows
        self.at = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = torch.full_like(scores, -1e9)
        for row, ids in enumerate(self.rows):
            scores[row, ids[min(self.at, len(ids) - 1)]] = 0
        self.at += 1
        return scores


@pytest.fixture
def scripted(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """(predictor, rationales): the model writes them, each of another length, truly cached."""
    predictor = LocalModel.load(checkpoint, prompt="face_cot", max_new_tokens=60)
    rationales = ["The brows are lowered (AU4).", "Rest.", "The jaw drops (AU26), as in surprise."]
    tokenizer, generate = predictor.processor.tokenizer, predictor.model.generate
    texts = [PROMPT.wrap(text, "anger") + "<|im_end|>" for text in rationales]
    script = [tokenizer(text)["input_ids"] for text in texts]
    monkeypatch.setattr(
        predictor.model,
        "generate",
        lambda **inputs: generate(**inputs, logits_processor=[Script(script)]),
    )
    yield predictor, rationales


def test_labels_are_scored_behind_rationales_of_any_length(scripted: Any) -> None:
    predictor, rationales = scripted
    fed: list[int] = []
    predictor.model.register_forward_pre_hook(
        lambda model, args, kwargs: fed.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    found = predictor.predict(BLOCKS)
    assert [p.answer.rationale for p in found] == rationales
    assert all(p.complete for p in found)
    assert max(fed[-len(PROMPT.space.labels) :]) < 20  # the labels and their suffix alone
    for image, prediction in zip(BLOCKS, found, strict=True):
        expected = naive(predictor, image, prediction.answer.rationale)
        assert prediction.probabilities == pytest.approx(expected, abs=1e-4)


def test_plain_positions_would_give_other_probabilities(
    scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, rationales = scripted
    monkeypatch.setattr(
        qwen_vl, "later_inputs", lambda model, positions: {"position_ids": positions}
    )
    (found, *_) = predictor.predict(BLOCKS)
    expected = naive(predictor, BLOCKS[0], rationales[0])
    assert found.probabilities != pytest.approx(expected, abs=1e-4)


# --- the recipe -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(
    checkpoint: Path, sft_cot: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """(run, base): adapters on tower and language model, mergers and embeddings whole."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = ["--base", str(checkpoint), "--n_train", "16", "--n_eval", "4", "--epochs", "3"]
    words += ["--max_pixels", "512", "--lora_dropout", "0", "--gradient_checkpointing", "true"]
    assert sft_cot(folder, *words) == 0
    return folder, checkpoint


def losses(folder: Path, key: str = "loss") -> list[float]:
    return [json.loads(line)[key] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_training_lowers_the_loss_within_the_budget(finished: tuple[Path, Path]) -> None:
    run, _ = finished
    assert losses(run)[-1] < losses(run)[0] - 0.2
    found, _ = manifest.load(run)
    assert found.family == "qwen_vl"
    assert found.image == {"min_pixels": 256, "max_pixels": 512, "pixels_per_token": 64}


def test_transformers_and_peft_alone_load_the_run(finished: tuple[Path, Path]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    run, base = finished
    ours = LocalModel.load(run, merge=False)
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), str(run))
    processor = AutoProcessor.from_pretrained(run)
    inputs = processor.apply_chat_template(
        with_image(PROMPT.messages(), PICTURES[4]),
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    batch = encode.Collator(ours.processor, qwen_vl)(
        [encode.encode(ours.processor, qwen_vl, ours.messages, PICTURES[4])]
    )
    plain = qwen_vl.load_model(base)
    with torch.no_grad():
        found, expected = model.eval()(**inputs).logits, ours.model(**batch).logits
        assert torch.equal(found, expected)
        assert not torch.allclose(plain(**batch).logits, expected, atol=1e-2)


def test_an_adapter_answers_merged_and_unmerged_alike(finished: tuple[Path, Path]) -> None:
    """Also: the positions behind a cache are found through peft's wrapper."""
    run, _ = finished
    merged, adapter = (
        LocalModel.load(run, merge=merge, max_new_tokens=8) for merge in (True, False)
    )
    images = PICTURES[:3]
    for image, a, b in zip(images, merged.predict(images), adapter.predict(images), strict=True):
        assert a.text == b.text
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-4)
        expected = naive(adapter, image, b.answer.rationale)
        assert b.probabilities == pytest.approx(expected, abs=1e-4)


def test_evaluation_gives_the_recipes_numbers(finished: tuple[Path, Path], tmp_path: Path) -> None:
    run, _ = finished
    words = ["--benchmark", "synth", "--n", "4", "--output_dir", str(tmp_path)]
    load_script("eval/run.py").main([*words, "--model", str(run)])
    found = json.loads((tmp_path / "metrics.json").read_text())
    trained = json.loads((run / "metrics.json").read_text())["after"]
    assert (found["emotion"], found["au"]) == (trained["emotion"], trained["au"])
    lines = [(folder / "predictions.jsonl").read_text().splitlines() for folder in (run, tmp_path)]
    texts = [[json.loads(line)["text"] for line in one] for one in lines]
    assert texts[0] == texts[1]


@pytest.fixture(scope="module")
def step(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One optimizer step on eight rows, the mergers whole, the language model under LoRA; returns
    (loss, gradient norm)."""
    processor = qwen_vl.load_processor(checkpoint)
    data, _ = encode_rows(rows(8), processor, qwen_vl, PROMPT, max_length=512, seed=0)

    def run(**changed: Any) -> tuple[float, float]:
        folder = tmp_path_factory.mktemp("step")
        words: dict[str, Any] = {"data": "", "benchmark": "", "prompt": "", "limits": ""}
        words |= {"batch_size": 8, "logging_steps": 1, "lora_dropout": 0.0, **changed}
        settings = SFTSettings(base=str(checkpoint), output_dir=str(folder), **words)
        assert sft.train(checkpoint, processor, qwen_vl, data, settings)["steps"] == 1
        return losses(folder)[0], losses(folder, "grad_norm")[0]

    return run


def test_cached_features_and_pieces_of_a_batch_train_as_the_whole_does(step: Any) -> None:
    """In pieces every supervised token counts alike, too, though Qwen2.5-VL's class says that its
    loss takes no number of tokens in the whole batch."""
    whole = step()
    assert step(cache_features=True) == pytest.approx(whole, rel=1e-5)
    assert step(batch_size=2, gradient_accumulation=4) == pytest.approx(whole, rel=1e-5)


def test_an_unknown_layer_stops_the_training(step: Any, processor: Any) -> None:
    """gate_proj is a layer of Qwen2.5-VL's tower, linear_fc1 one of Qwen3-VL's."""
    other = "gate_proj" if third(processor) else "linear_fc1"
    with pytest.raises(
        UserError, match=f"lora_modules: {other} is no layer of this Qwen.*'s tower:"
    ):
        step(tower="lora", llm="frozen", lora_modules=["qkv", other])


@pytest.mark.slow
def test_the_shipped_settings_run_on_miniatures_of_their_data(
    checkpoint: Path, sft_cot: Recipe, tmp_path: Path
) -> None:
    from miniatures import expllm, rafdb

    expllm.write(tmp_path / "anno_json")
    rafdb.write(tmp_path / "RAF-DB", "_aligned")
    words = ["--config", "sft_cot_qwen", "--base", str(checkpoint), "--tower", "frozen"]
    words += ["--data_root", str(tmp_path / "anno_json"), "--max_length", "4096"]
    words += ["--benchmark_root", str(tmp_path / "RAF-DB"), "--n_train", "null"]
    words += ["--n_eval", "null", "--cache_features", "true", "--dataloader_workers", "0"]
    assert sft_cot(tmp_path / "run", *words) == 0
    found, (prompt,) = manifest.load(tmp_path / "run")
    assert (prompt.id, found.data["name"], found.data["n"]) == ("expllm", "expllm", 4)
    assert found.trainable == {**FROZEN, "llm": "lora"}
    assert found.image["max_pixels"] == 448**2 and found.crop is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy", [("frozen", "frozen", "lora"), ("lora",) * 3, ("full",) * 3], ids="-".join
)
def test_a_handful_of_rows_is_memorised(
    checkpoint: Path, sft_cot: Recipe, tmp_path: Path, policy: tuple[str, str, str]
) -> None:
    words = ["--base", str(checkpoint), "--n_train", "4", "--n_eval", "2", "--epochs", "150"]
    for part, how in zip(("tower", "projector", "llm"), policy, strict=True):
        words += [f"--{part}", how]
    words += ["--batch_size", "4", "--lora_dropout", "0", "--schedule", "constant"]
    words += ["--learning_rate", "3e-3" if "full" in policy else "7e-3", "--save_steps", "150"]
    assert sft_cot(tmp_path / "run", *words) == 0
    assert losses(tmp_path / "run")[-1] < 0.05
    if "full" in policy:  # a complete checkpoint
        from transformers import AutoModelForImageTextToText

        model = AutoModelForImageTextToText.from_pretrained(tmp_path / "run").eval()
        ours = LocalModel.load(tmp_path / "run")
        row = encode.encode(ours.processor, qwen_vl, ours.messages, PICTURES[0])
        batch = encode.Collator(ours.processor, qwen_vl)([row])
        with torch.no_grad():
            assert torch.equal(model(**batch).logits, ours.model(**batch).logits)


def test_four_bits_are_for_the_language_model_alone(checkpoint: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = qwen_vl.load_model(checkpoint, dtype=torch.float32, quantize="nf4")
    small = {n for n, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
    assert small == matching(model, qwen_vl.lora_targets({**FROZEN, "llm": "lora"}, ["all"]))


# --- serving --------------------------------------------------------------------------------------


def test_vllm_is_told_the_pixel_budget(processor: Any) -> None:
    policy = {**FROZEN, "llm": "lora"}
    flags = qwen_vl.vllm_flags(processor, max_length=512, policy=policy)
    assert flags["serve"]["max-model-len"] == 512
    assert json.loads(flags["serve"]["mm-processor-kwargs"]) == {
        "size": {"shortest_edge": 256, "longest_edge": 1024}
    }
    assert (flags["merge"], flags["extra_body"]) == (False, {})
    for part in ("tower", "projector"):
        assert qwen_vl.vllm_flags(processor, max_length=9, policy={**policy, part: "lora"})["merge"]
