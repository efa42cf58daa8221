"""What every model family must keep, on a random checkpoint of each of its model types.

Families of installed packages are tested too. What only one family has is in `test_family_*.py`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import (
    BUILDERS,
    corpus,
    log_likelihoods,
    paligemma,
    probabilities,
    processed,
    write_script,
)
from helpers.run_files import assert_same_scores, training_log
from helpers.samples import picture, rows
from helpers.scripts import Recipe
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmface import encode, families, manifest, prompts
from vlmface.data import row_images
from vlmface.errors import UserError
from vlmface.evaluate import run as evaluation
from vlmface.families import modules
from vlmface.families.base import Family
from vlmface.families.llava import Llava
from vlmface.infer.local import LocalModel
from vlmface.schema import FaceSample
from vlmface.train import sft
from vlmface.train.rows import encode_rows, training_target
from vlmface.train.settings import SFTSettings

VARIANTS = BUILDERS | {
    "paligemma_1": partial(paligemma.build_tiny, version=1),
    # Below the default, so that images take different numbers of tokens.
    "qwen2_5_vl": partial(BUILDERS["qwen2_5_vl"], min_pixels=256),
    "qwen3_vl": partial(BUILDERS["qwen3_vl"], min_pixels=256),
}
# Where another variant of the family trains in the same way.
NOT_TRAINED = {"paligemma_1": "paligemma", "idefics3": "smolvlm"}
NOT_SERVED = {"paligemma"}  # vLLM does not read its prompts as it was trained to

PROMPT = prompts.load("face_cot")
TARGET = PROMPT.completion("The lip corners are pulled up (AU12).", "happiness")
# (width, height): square, wide, tall, tiny, large, one pixel short of square, a strip.
SHAPES = [(40, 40), (150, 50), (25, 90), (5, 7), (400, 300), (17, 16), (300, 20)]
PICTURES = [picture(seed, size) for seed, size in enumerate(SHAPES)]
PARTS = ("vision_tower", "projector", "language_model")
FROZEN = dict.fromkeys(PARTS, "frozen")
LORA = dict.fromkeys(PARTS, "lora")


@dataclass(frozen=True)
class Case:
    """A family and a random checkpoint of it."""

    name: str
    family: Family
    folder: Path

    def processor(self) -> Any:
        return self.family.load_processor(self.folder)

    def model(self) -> Any:
        return self.family.load_model(self.folder)


@pytest.fixture(scope="module", params=VARIANTS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    VARIANTS[request.param](folder, corpus())
    return Case(request.param, families.get(families.family_of(folder)), folder)


@pytest.fixture(scope="module")
def trained_case(case: Case) -> Case:
    if case.name in NOT_TRAINED:
        pytest.skip(f"{NOT_TRAINED[case.name]} is trained")
    return case


@pytest.fixture
def processor(case: Case) -> Any:
    return case.processor()


@pytest.fixture(scope="module")
def model(case: Case) -> Any:
    return case.model()


@pytest.fixture(scope="module")
def predictor(case: Case) -> LocalModel:
    return LocalModel.load(case.folder, prompt=PROMPT, max_new_tokens=8)


def encoded(
    case: Case, processor: Any, image: Any, target: str | None = None, **options: Any
) -> dict[str, Any]:
    return encode.encode(processor, case.family, PROMPT.messages(), image, target, **options)


def collated(case: Case, processor: Any, rows: list[dict[str, Any]], side: str = "right") -> Any:
    batch = encode.Collator(processor, case.family, padding=side)(rows)
    batch.pop("labels", None)
    return batch


# --- the checkpoint -------------------------------------------------------------------------------


def test_a_checkpoint_is_complete_and_transformers_alone_loads_it(case: Case, model: Any) -> None:
    assert families.family_of(case.folder) == families.family_of(str(case.folder))
    assert families.family_of(case.folder) == families.family_of(model.config) == case.family.NAME
    assert families.get(case.family.NAME) is case.family
    theirs: Any = AutoModelForImageTextToText.from_pretrained(case.folder)
    assert type(theirs) is type(model)
    weights = dict(theirs.named_parameters())
    assert set(weights) == {name for name, _ in model.named_parameters()}
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    tied = theirs.lm_head.weight is theirs.get_input_embeddings().weight
    assert tied == (model.lm_head.weight is model.get_input_embeddings().weight)
    ours, plain = case.processor(), AutoProcessor.from_pretrained(case.folder)
    assert type(plain) is type(ours)
    assert plain.tokenizer.get_vocab() == ours.tokenizer.get_vocab()
    files = {file.name for file in case.folder.iterdir()}
    assert files >= {"config.json", "tokenizer.json", "processor_config.json", "model.safetensors"}
    assert ("chat_template.jinja" in files) == bool(ours.chat_template)
    assert sum(file.stat().st_size for file in case.folder.iterdir()) < 2e6


def test_a_saved_checkpoint_has_the_same_names_and_the_new_weights(
    case: Case, processor: Any, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    changed = case.model()
    for parameter in changed.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    case.family.save_checkpoint(changed, processor, tmp_path)
    stored = [load_file(folder / "model.safetensors") for folder in (case.folder, tmp_path)]
    assert stored[0].keys() == stored[1].keys()
    batch = collated(case, processor, [encoded(case, processor, PICTURES[0], TARGET)])
    theirs: Any = AutoModelForImageTextToText.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = changed(**batch).logits
        assert torch.equal(case.family.load_model(tmp_path)(**batch).logits, expected)
        assert torch.equal(theirs.eval()(**batch).logits, expected)
        assert not torch.allclose(case.model()(**batch).logits, expected, atol=1e-3)


def test_the_seed_decides_the_weights(case: Case, model: Any, tmp_path: Path) -> None:
    build = partial(case.family.build_tiny, model_type=model.config.model_type)
    first, second, other = (
        build(tmp_path / str(i), [str(PROMPT.messages())], seed=seed)[0].state_dict()
        for i, seed in enumerate((0, 0, 1))
    )
    assert all(torch.equal(weights, second[name]) for name, weights in first.items())
    assert any(not torch.equal(weights, other[name]) for name, weights in first.items())


def test_published_generation_settings_change_no_answer(
    case: Case, predictor: LocalModel, tmp_path: Path
) -> None:
    folder = shutil.copytree(case.folder, tmp_path / "copy")
    file = folder / "generation_config.json"
    penalties = {"repetition_penalty": 1.3, "top_k": 20, "do_sample": True, "temperature": 0.7}
    file.write_text(json.dumps(json.loads(file.read_text()) | penalties))
    changed = LocalModel.load(folder, prompt=PROMPT, max_new_tokens=8)
    pairs = zip(changed.predict(PICTURES[:2]), predictor.predict(PICTURES[:2]), strict=True)
    for found, expected in pairs:
        assert (found.text, found.probabilities) == (expected.text, expected.probabilities)


# --- processors that do not fit the model ---------------------------------------------------------


@pytest.fixture
def copy(case: Case, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return shutil.copytree(case.folder, tmp_path / "damaged")


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_missing_chat_template_is_refused(case: Case, processor: Any, copy: Path) -> None:
    if not processor.chat_template:
        pytest.skip("the processor writes the conversation itself")
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"has no chat template.*add its chat_template\.jinja"):
        case.family.load_processor(copy)


def test_a_tokenizer_without_a_required_token_is_refused(
    case: Case, processor: Any, copy: Path
) -> None:
    for token in case.family.required_tokens(processor):
        for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
            text = (case.folder / name).read_text().replace(token, "<other>")
            content = json.loads(text)
            for key in ("image_token", "extra_special_tokens"):  # as in published files
                content.pop(key, None)
            (copy / name).write_text(json.dumps(content))
        with pytest.raises(UserError):
            families.load_processor(case.family, copy)


@pytest.mark.parametrize("fault", ["image token", "vocabulary"])
def test_the_tokenizer_of_another_model_is_refused(
    case: Case, processor: Any, copy: Path, fault: str
) -> None:
    if isinstance(case.family, Llava):
        pytest.skip("published LLaVA-1.5 checkpoints differ in what they state of tokens")
    config = json.loads((copy / "config.json").read_text())
    if fault == "image token":
        name = "image_token_id" if "image_token_id" in config else "image_token_index"
        config[name] = 7
        message = rf" has the id {processor.image_token_id} in the tokenizer, but 7 in config.json"
    else:
        config["text_config"]["vocab_size"] = 50
        message = r"the tokenizer has ids up to \d+ \(.*\), but the model has 50 embeddings"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        case.family.load_processor(copy)


# --- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", PICTURES, ids=map(str, SHAPES))
def test_a_row_is_what_the_processor_makes_of_the_conversation(
    case: Case, processor: Any, image: Image.Image
) -> None:
    prompt_length = 0
    for target in (None, TARGET):
        ours = encoded(case, processor, image, target)
        theirs = processed(processor, PROMPT.messages(), [image], target)
        length = len(ours["input_ids"])
        tail = theirs["input_ids"][0, length:]  # white space that a template adds to an answer
        assert not processor.tokenizer.decode(tail).strip()
        assert target is not None or not len(tail)
        per_token = {name for name, value in ours.items() if isinstance(value, list)}
        for name in per_token & set(theirs):
            assert ours[name] == theirs[name][0, :length].tolist(), name
        for name in set(ours) - per_token:
            assert torch.equal(ours[name], theirs[name]), name
        assert set(theirs) - {"labels"} <= set(ours)
        if target is None:
            assert "labels" not in ours
            prompt_length, asked = length, ours["input_ids"]
        else:  # serving sees the prompt that training saw
            assert ours["input_ids"][:prompt_length] == asked
            assert ours["labels"] == [-100] * prompt_length + ours["input_ids"][prompt_length:]
            assert ours["labels"][-1] == case.family.stop_token_ids(processor)[0]
            answer = processor.tokenizer.decode(ours["labels"][prompt_length:-1])
            assert answer.lstrip() == TARGET


def test_content_may_be_a_string(case: Case, processor: Any) -> None:
    text = case.family.prompt_text(processor, [{"role": "user", "content": "Who?"}])
    blocks = [{"type": "text", "text": "Who?"}]
    assert case.family.prompt_text(processor, [{"role": "user", "content": blocks}]) == text
    assert "Who?" in text and processor.image_token not in text
    assert case.family.prompt_text(processor, PROMPT.messages()).count(processor.image_token) == 1


def test_rows_that_cannot_be_learnt_are_refused_before_anything_is_decoded(
    case: Case, processor: Any
) -> None:
    def encode_text(target: str, size: tuple[int, int], max_length: int | None = None) -> Any:
        return encode.encode_text(
            processor,
            case.family,
            PROMPT.messages(),
            target,
            max_length=max_length,
            image_size=size,
        )["input_ids"]

    length = len(encode_text(TARGET, (90, 40)))
    assert len(encode_text(TARGET, (90, 40), length)) == length
    for target, max_length, reason in (
        (TARGET, length - 1, "too_long"),
        (" \n", None, "no_target"),
        (f"an {processor.image_token}", None, "image_in_text"),
    ):
        with pytest.raises(encode.SkippedSampleError) as error:
            encode_text(target, (90, 40), max_length)
        assert error.value.reason == reason
    with pytest.raises(UserError, match=r"is about 1 picture\(s\), but 2 are shown"):
        encode_text(TARGET, [(90, 40)] * 2)  # type: ignore[arg-type]


def test_every_answer_of_a_conversation_is_trained_on_as_it_is_served(case: Case) -> None:
    processor = case.processor()
    talk = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A smile."}]},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "The corners are up."}]},
    ]
    size = (40, 40)
    if case.family.NAME == "paligemma":
        with pytest.raises(UserError, match="no form for a conversation with an earlier answer"):
            encode.encode_conversation(processor, case.family, talk, image_size=size)
        return
    rows_of_talk = encode.encode_conversation(processor, case.family, talk, image_size=size)
    assert len(rows_of_talk) in (1, 2)
    trained = []
    for row in rows_of_talk:
        ids = [i for i, label in enumerate(row["labels"]) if label != encode.IGNORED]
        assert [row["labels"][i] for i in ids] == [row["input_ids"][i] for i in ids]
        trained += [row["input_ids"][i] for i in ids]
    text = processor.tokenizer.decode(trained)
    assert "A smile." in text and "The corners are up." in text and "Why?" not in text
    for end in (1, 3):
        served = encode.encode_text(processor, case.family, talk[:end], None, image_size=size)
        ids = served["input_ids"]
        assert any(row["input_ids"][: len(ids)] == ids for row in rows_of_talk)


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", PICTURES, ids=map(str, SHAPES))
def test_image_tokens_are_counted_as_processor_and_model_do(
    case: Case, processor: Any, model: Any, image: Image.Image
) -> None:
    count = case.family.image_tokens(processor, image.size)
    theirs = processed(processor, PROMPT.messages(), [image])
    assert (theirs["input_ids"] == processor.image_token_id).sum() == count > 0
    assert case.family.image_text(processor, image.size).count(processor.image_token) == count
    with torch.no_grad():
        output = model.get_image_features(**case.family.image_inputs(processor, [image]))
    assert sum(len(tokens) for tokens in output.pooler_output) == count


def test_images_are_described_alike_by_a_saved_processor(
    case: Case, processor: Any, tmp_path: Path
) -> None:
    processor.save_pretrained(tmp_path)
    again = case.family.load_processor(tmp_path)
    description = case.family.describe_image(processor)
    assert case.family.describe_image(again) == description
    if not case.family.NEEDS_SIZE:
        assert case.family.image_tokens(processor) == description["tokens"]
    for image in PICTURES:
        ours, theirs = (case.family.image_inputs(p, [image]) for p in (processor, again))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_pixel_limit_is_kept_and_saved_or_refused(
    case: Case, processor: Any, tmp_path: Path
) -> None:
    before = case.family.describe_image(processor)
    families.set_max_pixels(case.family, processor, None)
    assert case.family.describe_image(processor) == before
    pixel_range = case.family.pixel_range(processor)
    if pixel_range is None:
        with pytest.raises(UserError, match=r"max_pixels is 512, but .* brings every image to one"):
            families.set_max_pixels(case.family, processor, 512)
        return
    low, high = pixel_range
    assert low <= high
    large = case.family.image_tokens(processor, (400, 300))
    families.set_max_pixels(case.family, processor, min(low, high // 2))
    assert case.family.image_tokens(processor, (400, 300)) < large
    processor.save_pretrained(tmp_path)
    again = case.family.load_processor(tmp_path)
    assert case.family.describe_image(again) == case.family.describe_image(processor) != before
    row = encoded(case, again, PICTURES[4])
    tokens = case.family.image_tokens(processor, PICTURES[4].size)
    assert row["input_ids"].count(again.image_token_id) == tokens


# --- batches --------------------------------------------------------------------------------------


def test_padding_is_neither_seen_nor_supervised(case: Case, processor: Any) -> None:
    answers = zip(PICTURES, ("Yes.", TARGET), strict=False)
    made = [encoded(case, processor, image, answer) for image, answer in answers]
    short, long = (len(row["input_ids"]) for row in made)
    per_token = [name for name, value in made[0].items() if isinstance(value, list)]
    fillers = {"input_ids": processor.tokenizer.pad_token_id, "labels": -100}
    for side in ("right", "left"):
        batch = encode.Collator(processor, case.family, padding=side)(made)
        real = slice(0, short) if side == "right" else slice(long - short, long)
        gap = slice(short, long) if side == "right" else slice(0, long - short)
        for name in per_token:
            assert batch[name][0, real].tolist() == made[0][name], name
            assert batch[name][0, gap].tolist() == [fillers.get(name, 0)] * (long - short), name
            assert batch[name][1].tolist() == made[1][name], name
        supervised = batch["input_ids"][batch["labels"] != -100]
        assert processor.image_token_id not in supervised
        assert processor.tokenizer.pad_token_id not in supervised


def test_images_are_preprocessed_in_the_collator_as_in_encode(case: Case, processor: Any) -> None:
    whole = [encoded(case, processor, image, TARGET) for image in PICTURES]
    lazy = [
        encode.encode_text(processor, case.family, PROMPT.messages(), TARGET, image_size=image.size)
        | {"image": image, "row": index}
        for index, image in enumerate(PICTURES)
    ]
    expected = encode.Collator(processor, case.family)(whole)
    found = encode.Collator(processor, case.family)(lazy)  # type: ignore[arg-type]
    assert found.pop("row").tolist() == list(range(len(PICTURES)))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(found[name], values), name


def test_a_batch_computes_what_its_rows_do_alone(case: Case, processor: Any, model: Any) -> None:
    made = [encoded(case, processor, image, TARGET) for image in PICTURES]
    with torch.no_grad():
        together = model(**collated(case, processor, made)).logits
        for row, logits in zip(made, together, strict=True):
            alone = model(**collated(case, processor, [row])).logits[0]
            assert torch.allclose(alone, logits[: len(alone)], atol=1e-4)


def test_prompts_of_different_lengths_in_one_batch_generate_as_alone(
    case: Case, processor: Any, model: Any
) -> None:
    made = [
        encode.encode(processor, case.family, prompts.load(name).messages(), PICTURES[0])
        for name in ("face_cot", "expllm")
    ]
    assert len(made[0]["input_ids"]) != len(made[1]["input_ids"])

    def generate(rows: list[Any]) -> torch.Tensor:
        batch = collated(case, processor, rows, "left")
        ids = model.generate(**batch, max_new_tokens=8, min_new_tokens=8, do_sample=False)
        return ids[:, batch["input_ids"].shape[1] :]

    together = generate(made)
    assert torch.equal(together[0], generate(made[:1])[0])
    assert torch.equal(together[1], generate(made[1:])[0])


def test_tokens_after_a_cache_give_the_logits_of_one_pass(
    case: Case, processor: Any, model: Any
) -> None:
    """Several tokens at once, as labels are scored."""
    asked = [encoded(case, processor, image) for image in PICTURES]
    made = [encoded(case, processor, image, TARGET) for image in PICTURES]
    for prompt, row in zip(asked, made, strict=True):
        start = len(prompt["input_ids"])
        whole = collated(case, processor, [row])
        positions = torch.arange(start, len(row["input_ids"]))[None]
        with torch.no_grad():
            expected = model(**whole, use_cache=False).logits[:, start:]
            cache = model(**collated(case, processor, [prompt]), use_cache=True).cache
            found = model(
                input_ids=whole["input_ids"][:, start:],
                attention_mask=whole["attention_mask"],
                cache=cache,
                **case.family.decode_step_inputs(model, positions),
            ).logits
        assert torch.allclose(found, expected, atol=1e-5)


def test_features_instead_of_pixels_give_the_same_logits(
    case: Case, processor: Any, model: Any
) -> None:
    batch = collated(case, processor, [encoded(case, processor, p, TARGET) for p in PICTURES])
    names = case.family.image_inputs(processor, PICTURES[:1])
    with torch.no_grad():
        expected = model(**batch).logits
        features = case.family.tower_features(model, batch)
        text = {name: values for name, values in batch.items() if name not in names}
        found = model(**text, **case.family.inputs_from_features(model, features)).logits
    assert len(features) == len(PICTURES)
    assert torch.allclose(found, expected, atol=1e-5)


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["face_cot", "expllm_label"])
def test_a_batch_answers_as_single_images_and_full_passes_do(
    predictor: LocalModel, prompt: str
) -> None:
    predictor = predictor.with_prompt(prompts.load(prompt))
    images = [PICTURES[0], PICTURES[1], PICTURES[3], PICTURES[4]]
    together = predictor.predict(images, batch_size=len(images))
    apart = predictor.predict(images, batch_size=1)
    assert [p.text for p in together] == [p.text for p in apart]
    for image, batched, alone in zip(images, together, apart, strict=True):
        assert batched.probabilities == pytest.approx(alone.probabilities, abs=1e-4)
        expected = probabilities(log_likelihoods(predictor, image, batched.answer.rationale))
        assert batched.probabilities == pytest.approx(expected, abs=1e-4)


def test_labels_are_scored_after_rationales_of_any_length(
    predictor: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rationales = ["The brows are lowered (AU4).", "Rest.", "The jaw drops (AU26), as in surprise."]
    images = [PICTURES[0], PICTURES[3], PICTURES[4]]
    predictor = predictor.with_prompt(PROMPT)
    texts = [PROMPT.completion(rationale, "anger") for rationale in rationales]
    write_script(monkeypatch, predictor, texts)
    lengths: list[int] = []
    hook = predictor.model.register_forward_pre_hook(
        lambda model, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        predictions = predictor.predict(images)
    finally:
        hook.remove()
    assert [p.text for p in predictions] == texts
    assert [p.answer.rationale for p in predictions] == rationales
    assert all(p.complete for p in predictions)
    # The labels and what follows them alone, not the prompt or the rationale again.
    assert max(lengths[-len(PROMPT.space.labels) :]) < 20
    for image, prediction in zip(images, predictions, strict=True):
        expected = probabilities(log_likelihoods(predictor, image, prediction.answer.rationale))
        assert prediction.probabilities == pytest.approx(expected, abs=1e-4)


def test_answers_are_the_greedy_ones_of_transformers_alone(
    case: Case, predictor: LocalModel
) -> None:
    model: Any = AutoModelForImageTextToText.from_pretrained(case.folder)
    processor = AutoProcessor.from_pretrained(case.folder)
    stops = case.family.stop_token_ids(processor)
    for image in PICTURES[:2]:
        batch = processed(processor, PROMPT.messages(), [image])
        ids = model.eval().generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=stops)[
            0, batch["input_ids"].shape[1] :
        ]
        text = processor.decode(ids, skip_special_tokens=True).strip()
        assert predictor.predict([image])[0].text == text


# --- what trains ----------------------------------------------------------------------------------


def linear_layers(model: Any, family: Family) -> dict[str, set[str]]:
    """The linear layers in each part, by the longest of the paths in their names."""
    layers: dict[str, set[str]] = {part: set() for part in PARTS}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            paths = {
                path: part
                for part in PARTS
                for path in modules.paths(family.MODULE_PATHS, part)
                if f".{path}." in f".{name}."
            }
            layers[paths[max(paths, key=len)]].add(name)
    return layers


def targeted(model: Any, pattern: str) -> set[str]:
    """The modules that peft would adapt."""
    from peft.tuners.tuners_utils import check_target_module_exists

    config = type("Config", (), {"target_modules": pattern, "exclude_modules": None})()
    return {name for name, _ in model.named_modules() if check_target_module_exists(config, name)}


@pytest.mark.parametrize("part", PARTS)
def test_lora_meets_every_linear_layer_of_its_part_and_no_other(
    case: Case, model: Any, part: str
) -> None:
    layers = linear_layers(model, case.family)
    assert all(layers.values())
    pattern = case.family.lora_targets(FROZEN | {part: "lora"}, ["all"])
    assert targeted(model, pattern) == layers[part]
    everything = targeted(model, case.family.lora_targets(LORA, ["all"]))
    assert everything == set().union(*layers.values())


def test_lora_layers_are_looked_up_in_their_parts(case: Case, model: Any) -> None:
    policy = FROZEN | {"vision_tower": "lora", "language_model": "lora"}
    layers = linear_layers(model, case.family)
    shared = [
        name for name in case.family.LINEAR_LAYERS["language_model"] if name in ("q_proj", "o_proj")
    ]
    found = targeted(model, case.family.lora_targets(policy, shared))
    assert found == {
        name
        for part in ("vision_tower", "language_model")
        for name in layers[part]
        if name.endswith(tuple(shared))
    }
    modules.check_lora_target_modules(case.family.MODULE_PATHS, model, policy, shared)
    modules.check_lora_target_modules(case.family.MODULE_PATHS, model, policy, ["all"])
    with pytest.raises(
        UserError, match="gate_prj is not a linear layer of vision_tower, language_model; there are"
    ):
        case.family.lora_targets(policy, [*shared, "gate_prj"])
    with pytest.raises(UserError, match="gate_prj is not a layer of this"):
        modules.check_lora_target_modules(
            case.family.MODULE_PATHS, model, policy, [*shared, "gate_prj"]
        )


def test_freezing_splits_the_weights_by_part(case: Case) -> None:
    model, paths = case.model(), case.family.MODULE_PATHS
    training: dict[str, set[str]] = {}
    for part in PARTS:
        modules.freeze(paths, model, FROZEN | {part: "full"})
        training[part] = {name for name, p in model.named_parameters() if p.requires_grad}
        layers = linear_layers(model, case.family)[part]
        assert {f"{name}.weight" for name in layers} <= training[part]
    assert sum(map(len, training.values())) == len(dict(model.named_parameters()))
    assert len(set().union(*training.values())) == len(dict(model.named_parameters()))
    embeddings = [n for n, p in model.named_parameters() if p is model.lm_head.weight]
    assert set(embeddings) <= training["language_model"]


def test_only_the_projector_may_be_full_beside_lora(case: Case, model: Any) -> None:
    paths = case.family.MODULE_PATHS
    assert modules.full_modules(paths, LORA, model) == []
    whole = modules.full_modules(paths, FROZEN | {"projector": "full"}, model)
    assert whole and all(modules.part_of(f"model.{name}.x", paths) == "projector" for name in whole)
    with pytest.raises(UserError, match="vision_tower: full beside a LoRA part"):
        modules.full_modules(paths, LORA | {"vision_tower": "full"})


def test_four_bits_are_for_the_language_model_alone(case: Case) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    plain = linear_layers(case.model(), case.family)
    model = case.family.load_model(case.folder, dtype=torch.float32, quantization="nf4")
    small = {n for n, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
    assert small == plain["language_model"]


def log_column(folder: Path, key: str = "loss") -> list[float]:
    return [line[key] for line in training_log(folder)]


def fit(case: Case, processor: Any, data: Any, folder: Path, **changes: Any) -> dict[str, Any]:
    """Train on all rows, and save the model and its processor."""
    encoded_rows, skipped = encode_rows(
        data, processor, case.family, PROMPT, max_length=512, seed=0
    )
    assert skipped == {}
    fixed: dict[str, Any] = {
        "base_model": str(case.folder),
        "dataset": "",
        "benchmark": "",
        "prompt": "",
        "limitations": "",
        "output_dir": str(folder),
        "batch_size": 8,
        "logging_steps": 1,
        "save_steps": 1000,
    }
    settings = SFTSettings(**fixed | changes)
    return sft.train(case.folder, processor, case.family, encoded_rows, settings)


def test_cached_features_and_pieces_of_a_batch_train_as_the_whole_does(
    trained_case: Case, processor: Any, tmp_path: Path
) -> None:
    """Two steps on eight images of several shapes, a whole projector, LoRA for the language."""
    data = rows(8).map(_reshaped, with_indices=True)

    def losses(name: str, **changes: Any) -> list[float]:
        settings = {"epochs": 2, "learning_rate": 3e-3, "lora_dropout": 0.0, **changes}
        fit(trained_case, processor, data, tmp_path / name, **settings)
        return [*log_column(tmp_path / name), *log_column(tmp_path / name, "grad_norm")]

    whole = losses("whole")
    assert len(whole) == 4
    assert losses("cached", cache_features=True) == pytest.approx(whole, rel=1e-4)
    pieces = losses("pieces", batch_size=2, gradient_accumulation=4)
    assert pieces == pytest.approx(whole, rel=1e-4)


def _reshaped(row: dict[str, Any], index: int) -> dict[str, Any]:
    import io

    buffer = io.BytesIO()
    PICTURES[index % 3].save(buffer, "PNG")
    return {"image": {"bytes": buffer.getvalue(), "path": None}}


POLICIES: dict[str, dict[str, Any]] = {
    "lora on language_model": {**FROZEN, "language_model": "lora"},
    "lora": LORA,
    "full": dict.fromkeys(PARTS, "full"),
}


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_four_rows_are_memorised(case: Case, processor: Any, tmp_path: Path, policy: str) -> None:
    """transformers and peft alone read the answers from the saved model."""
    data = rows(4).map(_reshaped, with_indices=True)
    lora = {"lora_rank": 32, "lora_alpha": 64, "lora_dropout": 0.0, "train_embeddings": True}
    result = fit(
        case,
        processor,
        data,
        tmp_path,
        batch_size=4,
        epochs=200,
        lr_scheduler="constant",
        warmup_steps=10,
        learning_rate=3e-3 if policy == "full" else 5e-3,
        **POLICIES[policy],
        **({} if policy == "full" else lora),
    )
    # An answer has some 30 tokens: without a look at the images, ln(4) / 30 = 0.046 would remain.
    assert result["loss_last"] < 0.02 < result["loss_first"]
    model: Any = AutoModelForImageTextToText.from_pretrained(
        tmp_path if policy == "full" else case.folder
    )
    if policy != "full":
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(tmp_path))
    plain = AutoProcessor.from_pretrained(tmp_path)
    for row in data.select([0, 1]):
        sample = FaceSample.from_row(row)
        target = training_target(sample, PROMPT, 0)
        batch = processed(plain, PROMPT.messages(), [row_images.open_row_image(row["image"])])
        stops = case.family.stop_token_ids(plain)
        ids = model.eval().generate(
            **batch, max_new_tokens=100, do_sample=False, eos_token_id=stops
        )[0, batch["input_ids"].shape[1] :]
        assert ids[-1] in stops
        assert plain.decode(ids, skip_special_tokens=True).strip() == target


# --- a run of the recipe --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(trained_case: Case, sft_cot: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: adapters on tower and language model, projector and embeddings whole."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = [
        "--base_model",
        str(trained_case.folder),
        "--n_train",
        "16",
        "--n_eval",
        "4",
        "--epochs",
        "3",
    ]
    words += ["--lora_dropout", "0", "--gradient_checkpointing", "true"]
    if trained_case.family.NAME == "qwen_vl":
        words += ["--max_pixels", "512"]
    assert sft_cot(folder, *words) == 0
    return folder


def test_a_run_learns_and_describes_itself(case: Case, run: Path) -> None:
    assert log_column(run)[-1] < log_column(run)[0] - 0.2
    found, _ = manifest.load(run)
    assert (found.family, found.adapter) == (case.family.NAME, True)
    assert found.image == case.family.describe_image(case.family.load_processor(run))
    assert (run / "chat_template.jinja").exists() == bool(case.processor().chat_template)


def test_transformers_and_peft_alone_load_a_run(case: Case, run: Path) -> None:
    """Tokens, pixels and adapter, and the adapter merged or not."""
    from peft import PeftModel

    base: Any = AutoModelForImageTextToText.from_pretrained(manifest.load(run)[0].base_model["id"])
    theirs = PeftModel.from_pretrained(base, str(run)).eval()
    batch = processed(AutoProcessor.from_pretrained(run), PROMPT.messages(), [PICTURES[4]])
    with torch.no_grad():
        expected = theirs(**batch).logits
        for merge in (False, True):
            ours = LocalModel.load(run, merge=merge)
            row = encode.encode(ours.processor, ours.family, ours.messages, PICTURES[4])
            own = collated(case, ours.processor, [row])
            found = ours.model(**own).logits
            assert torch.allclose(found, expected, atol=1e-4), merge
            assert torch.equal(found, expected) or merge
        untrained = case.model()(**own).logits
    assert (found - untrained).abs().max() > 0.1


def test_an_adapter_answers_merged_and_unmerged_alike(run: Path) -> None:
    """Also: positions after a cache are found through peft's wrapper."""
    merged, adapter = (
        LocalModel.load(run, merge=merge, max_new_tokens=8) for merge in (True, False)
    )
    images = PICTURES[:3]
    for image, a, b in zip(images, merged.predict(images), adapter.predict(images), strict=True):
        assert a.text == b.text
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-4)
        expected = probabilities(log_likelihoods(adapter, image, b.answer.rationale))
        assert b.probabilities == pytest.approx(expected, abs=1e-4)


def test_a_later_evaluation_gives_the_numbers_of_the_recipe(run: Path, tmp_path: Path) -> None:
    argv = ["--benchmark", "synth", "--model", str(run), "--n", "4"]
    assert evaluation.main([*argv, "--output_dir", str(tmp_path)]) == 0
    assert_same_scores(tmp_path, run)


# --- serving --------------------------------------------------------------------------------------


def test_a_server_is_started_for_the_lengths_images_and_adapters_of_a_run(
    case: Case, processor: Any
) -> None:
    if case.family.NAME in NOT_SERVED:
        with pytest.raises(UserError):
            case.family.vllm_flags(processor, max_length=512, trainable=FROZEN)
        return
    flags = case.family.vllm_flags(
        processor, max_length=512, trainable=FROZEN | {"language_model": "lora"}, images=2
    )
    assert flags["serve"]["max-model-len"] == 512
    assert json.loads(flags["serve"]["limit-mm-per-prompt"])["image"] == 2
    assert flags["merge"] is False
    for part in ("vision_tower", "projector"):
        policy = FROZEN | {part: "lora"}
        assert case.family.vllm_flags(processor, max_length=512, trainable=policy)["merge"] is True
