"""PaliGemma: a prefix-LM. What the family's module says is what processor and model do, nothing of
the answer leaks, and the recipe trains both versions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Recipe
from safetensors import safe_open
from samples import FACES, picture, rows
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmface import encode, families, manifest, prompts
from vlmface.data import row_images
from vlmface.errors import UserError
from vlmface.evaluate import run as evaluation
from vlmface.families import paligemma, parts, tiny, tiny_paligemma
from vlmface.infer.local import LocalModel
from vlmface.rationale import rules
from vlmface.train import sft
from vlmface.train.rows import encode_rows
from vlmface.train.settings import SFTSettings

PROMPT = prompts.load("face_cot")
QUESTION = PROMPT.messages()[0]["content"][1]["text"]
TARGETS = [
    PROMPT.wrap("The lip corners are pulled up (AU12).", "happiness"),
    PROMPT.wrap("The brows are lowered (AU4), the lids are tight (AU7).", "anger"),
    PROMPT.wrap("Rest.", "neutral"),
]
SHAPES = [(300, 20), (9, 200), (3, 3), (900, 700)]
PICTURES = [picture(seed, size) for seed, size in enumerate([(40, 40), *SHAPES])]
ALL_LORA = {"tower": "lora", "projector": "lora", "llm": "lora"}
LLM_LORA = {"tower": "frozen", "projector": "frozen", "llm": "lora"}


def corpus() -> list[str]:
    found = [
        rules.write(aus, emotion, form=form, seed=seed)
        for aus, emotion in FACES
        for form in ("think_answer", "three_part")
        for seed in range(20)
    ]
    for name in ("face_cot", "expllm", "expllm_label"):
        found += [str(prompts.load(name).messages())] * 20
    return found


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Random PaliGemmas, by version: 32 x 32 pixels, 16 image tokens."""
    folder, texts = tmp_path_factory.mktemp("paligemma"), corpus()
    for version in (1, 2):
        tiny_paligemma.build(folder / str(version), texts, version=version)
    return {version: folder / str(version) for version in (1, 2)}


@pytest.fixture(scope="module", params=[1, 2])
def checkpoint(bases: dict[int, Path], request: pytest.FixtureRequest) -> Path:
    return bases[request.param]


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> Any:
    return paligemma.load_processor(checkpoint)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return paligemma.load_model(checkpoint)


def encoded(processor: Any, n: int = 3) -> list[dict[str, Any]]:
    return [
        encode.encode(processor, paligemma, PROMPT.messages(), PICTURES[i], TARGETS[i])
        for i in range(n)
    ]


# --- the checkpoint -------------------------------------------------------------------------------


def test_the_checkpoint_reloads_equal(checkpoint: Path, model: Any, processor: Any) -> None:
    assert families.family_of(checkpoint) == "paligemma"
    assert families.get("paligemma") is paligemma
    again = AutoModelForImageTextToText.from_pretrained(checkpoint)
    assert type(again).__name__ == "PaliGemmaForConditionalGeneration"
    theirs = dict(again.named_parameters())
    assert set(theirs) == {name for name, _ in model.named_parameters()}
    assert all(torch.equal(p, theirs[name]) for name, p in model.named_parameters())
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        tower = [name for name in file.keys() if "vision_tower" in name]  # noqa: SIM118
    assert tower and all("vision_tower.vision_model." in name for name in tower)  # as published
    vanilla = AutoProcessor.from_pretrained(checkpoint)
    assert type(vanilla) is type(processor)
    assert type(vanilla).__name__ == "PaliGemmaProcessor"
    assert vanilla.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert sum(file.stat().st_size for file in checkpoint.iterdir()) < 2e6


def test_the_versions_differ_in_their_language_model(bases: dict[int, Path]) -> None:
    kinds = [paligemma.load_model(bases[v]).config.text_config.model_type for v in (1, 2)]
    assert kinds == ["gemma", "gemma2"]


# --- text and tokens ------------------------------------------------------------------------------


def test_a_row_is_what_the_processor_makes_of_prefix_and_suffix(processor: Any) -> None:
    for row, image, target in zip(encoded(processor), PICTURES, TARGETS, strict=False):
        theirs = processor(
            text="<image>" + QUESTION, images=image, suffix=target, return_tensors="pt"
        )
        assert set(theirs) == set(row)
        for name in ("input_ids", "attention_mask", "token_type_ids", "labels"):
            assert row[name] == theirs[name][0].tolist(), name
        assert torch.equal(row["pixel_values"], theirs["pixel_values"])
        asked = encode.encode(processor, paligemma, PROMPT.messages(), image)
        theirs = processor(text="<image>" + QUESTION, images=image, return_tensors="pt")
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            assert asked[name] == theirs[name][0].tolist(), name
        assert "labels" not in asked


def test_a_row_of_gemmas_own_kind_of_tokenizer() -> None:
    """SentencePiece's way of BPE: the space is a letter, bytes fall back, ids in Gemma's order."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import GemmaTokenizer

    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),  # Gemma has no piece that crosses a line
            pre_tokenizers.Split("▁", "merged_with_next"),
        ]
    )
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    trained.train_from_iterator(corpus(), trainer)
    found = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(pair) for pair in found["merges"]]
    tokenizer = GemmaTokenizer(found["vocab"], merges=merges)
    processor = tiny_paligemma.build_processor(tokenizer, image_size=32, patch_size=8)
    for target in (*TARGETS, "naïve \U0001f600\n\nyes"):
        row = encode.encode(processor, paligemma, PROMPT.messages(), PICTURES[0], target)
        theirs = processor(
            text="<image>" + QUESTION, images=PICTURES[0], suffix=target, return_tensors="pt"
        )
        for name in ("input_ids", "attention_mask", "token_type_ids", "labels"):
            assert row[name] == theirs[name][0].tolist(), name
        answer = [token for token in row["labels"] if token >= 0]
        assert tokenizer.decode(answer) == target + "<eos>"
    assert tokenizer.convert_ids_to_tokens(row["input_ids"])[15:17] == ["<image>", "<bos>"]


def test_a_golden_row(processor: Any) -> None:
    """Written by hand: digits are tokens of their own in the tiny tokenizer."""
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "7"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "12"}]},
    ]
    row = encode.encode(processor, paligemma, messages, picture(0), "345")
    tokens = processor.tokenizer.convert_ids_to_tokens(row["input_ids"])
    prompt = ["<image>"] * 16 + ["<s>", "7", "Ċ", "1", "2", "Ċ"]
    assert tokens == [*prompt, "3", "4", "5", "</s>"]
    assert row["token_type_ids"] == [0] * 22 + [1] * 4
    assert row["labels"] == [-100] * 22 + row["input_ids"][22:]
    assert row["labels"][-1] == processor.tokenizer.eos_token_id
    assert paligemma.stop_token_ids(processor) == [processor.tokenizer.eos_token_id]


def test_padding_is_neither_supervised_nor_seen(processor: Any) -> None:
    short, long = sorted(encoded(processor, 2), key=lambda row: len(row["input_ids"]))
    n, m = len(short["input_ids"]), len(long["input_ids"])
    assert n < m
    right = encode.Collator(processor, paligemma)([short, long])
    assert right["labels"][0, n:].tolist() == [-100] * (m - n)
    assert right["attention_mask"][0].tolist() == [1] * n + [0] * (m - n)
    assert right["token_type_ids"][0].tolist() == short["token_type_ids"] + [0] * (m - n)
    supervised = right["input_ids"][right["labels"] != -100]
    assert not (supervised == processor.image_token_id).any()
    assert not (supervised == processor.tokenizer.pad_token_id).any()
    assert torch.equal(right["labels"] != -100, right["token_type_ids"] == 1)
    left = encode.Collator(processor, paligemma, padding="left")([short, long])
    assert left["input_ids"][0, m - n :].tolist() == short["input_ids"]
    assert left["token_type_ids"][0, m - n :].tolist() == short["token_type_ids"]


@pytest.mark.parametrize("size", SHAPES)
def test_image_tokens_are_counted_as_processor_and_model_do(
    processor: Any, model: Any, size: tuple[int, int]
) -> None:
    image = picture(0, size)
    batch = processor(text="<image>?", images=image, return_tensors="pt")
    count = paligemma.image_tokens(processor, size)
    assert (batch["input_ids"] == processor.image_token_id).sum() == count == 16
    (features,) = paligemma.tower_features(model, paligemma.image_inputs(processor, [image]))
    assert len(features) == count
    assert paligemma.image_text(processor, size) == "<image>" * count
    assert paligemma.describe_image(processor) == {"height": 32, "width": 32, "tokens": 16}


def test_strings_are_read_like_blocks_and_earlier_answers_refused(processor: Any) -> None:
    asked = [{"role": "system", "content": "Look."}, {"role": "user", "content": "Who?"}]
    assert paligemma.prompt_text(processor, asked) == "<s>Look.\nWho?\n"
    assert paligemma.prompt_text(processor, PROMPT.messages()) == f"<image><s>{QUESTION}\n"
    asked += [{"role": "assistant", "content": "A man."}, {"role": "user", "content": "Sure?"}]
    with pytest.raises(UserError, match=r"no form for .* earlier answer \('A man.'\): ask one"):
        paligemma.prompt_text(processor, asked)


# --- the prefix -----------------------------------------------------------------------------------


def another(token: torch.Tensor) -> int:
    return 300 if token != 300 else 301  # some word


def moved(model: Any, batch: dict[str, Any], at: int) -> torch.Tensor:
    """How far each position's logits move when the token `at` is another one: (tokens,)."""
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][0, at] = another(batch["input_ids"][0, at])
    with torch.no_grad():
        before, after = (model(**b, use_cache=False).logits[0] for b in (batch, other))
    return (before - after).abs().amax(-1)


def test_nothing_of_the_answer_reaches_earlier_positions(processor: Any, model: Any) -> None:
    row = encoded(processor, 1)[0]
    start = row["token_type_ids"].index(1)
    batch = encode.Collator(processor, paligemma)([row])
    del batch["labels"]
    for at in (start, start + 3, len(row["input_ids"]) - 1):
        found = moved(model, batch, at)
        assert found[:at].max() < 1e-6
        assert found[at] > 1e-4
    # The prefix does see itself both ways.
    assert moved(model, batch, start - 2)[: start - 2].max() > 1e-4
    # That is what token_type_ids are for: with zeros alone the answer leaks into its own labels.
    batch["token_type_ids"] = torch.zeros_like(batch["token_type_ids"])
    assert moved(model, batch, start + 3)[: start + 3].max() > 1e-4


def test_without_token_types_neither_version_is_a_prefix_lm(bases: dict[int, Path]) -> None:
    for version, leaks in ((1, True), (2, False)):
        processor, model = (f(bases[version]) for f in (AutoProcessor.from_pretrained,
                                                        paligemma.load_model))  # fmt: skip
        row = encoded(processor, 1)[0]
        start = row["token_type_ids"].index(1)
        batch = encode.Collator(processor, paligemma)([row])
        del batch["labels"], batch["token_type_ids"]
        assert bool(moved(model, batch, start + 3)[: start + 3].max() > 1e-4) == leaks
        assert bool(moved(model, batch, start - 2)[: start - 2].max() > 1e-4) == leaks


def test_tokens_after_a_cache_are_causal_and_counted_from_one(processor: Any, model: Any) -> None:
    """Several at once, as labels are scored: equal to the whole conversation in one pass."""
    row = encoded(processor, 1)[0]
    start = row["token_type_ids"].index(1)
    whole = encode.Collator(processor, paligemma)([row])
    del whole["labels"]
    prefix = {n: t[:, :start] if t.ndim == 2 else t for n, t in whole.items()}
    positions = torch.arange(start, len(row["input_ids"]))[None]

    def after_cache(tail: torch.Tensor, **inputs: Any) -> torch.Tensor:
        cache = model(**prefix, use_cache=True).cache
        return model(
            input_ids=tail, attention_mask=whole["attention_mask"], cache=cache, **inputs
        ).logits

    tail = whole["input_ids"][:, start:]
    other = tail.clone()
    other[0, -2] = another(other[0, -2])
    with torch.no_grad():
        expected = model(**whole, use_cache=False).logits[:, start:]
        found = after_cache(tail, **paligemma.later_inputs(model, positions))
        changed = after_cache(other, **paligemma.later_inputs(model, positions))
        shifted = after_cache(tail, position_ids=positions)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(found[:, :-2], changed[:, :-2], atol=1e-6)
    assert (found - changed)[:, -2:].abs().max() > 1e-4
    assert (shifted - expected).abs().max() > 1e-4


def test_features_instead_of_pixels_give_the_same_logits(processor: Any, model: Any) -> None:
    batch = encode.Collator(processor, paligemma)(encoded(processor))
    del batch["labels"]
    with torch.no_grad():
        expected = model(**batch, use_cache=False).logits
        features = paligemma.tower_features(model, batch)
        del batch["pixel_values"]
        replaced = paligemma.features_input(model, features)
        found = model(**batch, **replaced, use_cache=False).logits
    assert torch.equal(found, expected)


# --- answers --------------------------------------------------------------------------------------


def naive(predictor: LocalModel, image: Any, rationale: str) -> dict[str, float]:
    """Label probabilities by one full forward pass a label."""
    scores = []
    for label in predictor.prompt.space.labels:
        text = predictor.prompt.wrap(rationale, label)
        row = encode.encode(predictor.processor, paligemma, predictor.messages, image, text)
        batch = encode.Collator(predictor.processor, paligemma)([row])
        labels = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            log_p = predictor.model(**batch, use_cache=False).logits[0, :-1].log_softmax(-1)
        known = labels != -100
        scores.append(log_p[known].gather(-1, labels[known, None]).sum())
    values = torch.stack(scores).softmax(0).tolist()
    return dict(zip(predictor.prompt.space.labels, values, strict=True))


@pytest.mark.parametrize("prompt", ["face_cot", "expllm_label"])
def test_answers_are_those_of_single_images_and_scores_those_of_full_passes(
    checkpoint: Path, prompt: str
) -> None:
    predictor = LocalModel.load(checkpoint, prompt=prompt, max_new_tokens=6)
    together = predictor.predict(PICTURES[:3], batch_size=3)
    apart = predictor.predict(PICTURES[:3], batch_size=1)
    assert [p.text for p in together] == [p.text for p in apart]
    for image, one, other in zip(PICTURES, together, apart, strict=False):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
        expected = naive(predictor, image, one.answer.rationale)
        assert one.probabilities == pytest.approx(expected, abs=1e-4)


def test_written_rationales_of_any_length_are_scored_as_full_passes(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model "writes" given answers, truly cached, each of another length."""
    predictor = LocalModel.load(checkpoint, prompt="face_cot", max_new_tokens=1)
    tokenizer, generate = predictor.processor.tokenizer, predictor.model.generate
    script = [
        [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for text in TARGETS
    ]
    predictor.max_new_tokens = max(map(len, script))

    def scripted(**inputs: Any) -> Any:
        start = inputs["input_ids"].shape[1]

        def follow(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores = torch.full_like(scores, -1e9)
            for row, wanted in enumerate(script):
                scores[row, wanted[min(ids.shape[1] - start, len(wanted) - 1)]] = 0
            return scores

        return generate(**inputs, logits_processor=[follow])

    monkeypatch.setattr(predictor.model, "generate", scripted)
    predictions = predictor.predict(PICTURES[:3])
    assert [p.text for p in predictions] == TARGETS
    assert all(p.complete for p in predictions)
    for image, prediction in zip(PICTURES, predictions, strict=False):
        expected = naive(predictor, image, prediction.answer.rationale)
        assert prediction.probabilities == pytest.approx(expected, abs=1e-4)


def test_prompts_of_different_lengths_in_one_batch(processor: Any, model: Any) -> None:
    asked = [
        encode.encode(processor, paligemma, prompts.load(name).messages(), PICTURES[0])
        for name in ("face_cot", "expllm")
    ]
    assert len(asked[0]["input_ids"]) != len(asked[1]["input_ids"])
    collate = encode.Collator(processor, paligemma, padding="left")

    def generate(part: list[Any]) -> torch.Tensor:
        batch = collate(part)
        ids = model.generate(**batch, max_new_tokens=8, min_new_tokens=8, do_sample=False)
        return ids[:, batch["input_ids"].shape[1] :]

    together = generate(asked)
    assert torch.equal(together[0], generate(asked[:1])[0])
    assert torch.equal(together[1], generate(asked[1:])[0])


def test_scores_behind_the_sliding_window_are_refused(tmp_path: Path) -> None:
    tiny_paligemma.build(tmp_path, corpus()[:200], max_length=64)
    predictor = LocalModel.load(tmp_path, prompt="face_cot", max_new_tokens=4)
    with pytest.raises(UserError, match=r"do not fit the model's sliding window of 64; ask with"):
        predictor.predict(PICTURES[:1])
    assert predictor.predict(PICTURES[:1], probabilities=False)[0].probabilities is None


# --- training -------------------------------------------------------------------------------------


def matching(model: Any, pattern: str) -> set[str]:
    from peft.tuners.tuners_utils import check_target_module_exists

    config = type("Config", (), {"target_modules": pattern, "exclude_modules": None})()
    return {name for name in linear(model) if check_target_module_exists(config, name)}


def linear(model: Any) -> set[str]:
    return {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}


@pytest.mark.parametrize("part", ["tower", "projector", "llm"])
def test_lora_meets_every_linear_layer_of_its_part_and_no_other(model: Any, part: str) -> None:
    policy = {name: "lora" if name == part else "frozen" for name in paligemma.PARTS}
    expected = {name for name in linear(model) if paligemma.PARTS[part] in name}
    assert len(expected) == {"tower": 12, "projector": 1, "llm": 14}[part]
    assert matching(model, paligemma.lora_targets(policy, ["all"])) == expected
    everything = matching(model, paligemma.lora_targets(ALL_LORA, ["all"]))
    assert everything == linear(model) - {"lm_head"}


def test_a_lora_module_that_no_part_has_is_refused() -> None:
    with pytest.raises(UserError, match="fc1 is not a linear layer of llm; there are down_proj"):
        paligemma.lora_targets(LLM_LORA, ["q_proj", "fc1"])


def test_freeze_trains_what_it_is_told(checkpoint: Path) -> None:
    model = paligemma.load_model(checkpoint)
    for part in paligemma.PARTS:
        policy = {name: "full" if name == part else "frozen" for name in paligemma.PARTS}
        parts.freeze(paligemma.PARTS, model, policy)
        moving = {name for name, p in model.named_parameters() if p.requires_grad}
        assert moving and all(paligemma.PARTS[part] in name for name in moving)


def test_loss_and_gradients_are_those_of_the_models_own_suffix(
    checkpoint: Path, processor: Any, tmp_path: Path
) -> None:
    from trl import SFTConfig

    from vlmface.train.trainer import SupervisedTrainer

    data, _ = encode_rows(rows(4), processor, paligemma, PROMPT, max_length=512, seed=0)
    arguments = SFTConfig(
        output_dir=str(tmp_path),
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
    )
    trainer = SupervisedTrainer(
        model=paligemma.load_model(checkpoint),
        args=arguments,
        train_dataset=data,
        processing_class=processor,
        data_collator=encode.Collator(processor, paligemma),
        family=paligemma,
    )
    batch = trainer.data_collator(list(data))
    texts = [processor.tokenizer.decode([i for i in ids if i >= 0]) for ids in data["labels"]]
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()

    own = paligemma.load_model(checkpoint)
    theirs = processor(
        text=["<image>" + QUESTION] * 4,
        images=[row_images.open_row_image(image) for image in data["image"]],
        suffix=[text.removesuffix("</s>") for text in texts],
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    expected = own(**theirs, use_cache=False).loss
    expected.backward()
    assert len({len(ids) for ids in data["input_ids"]}) > 1
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    gradients = {name: p.grad for name, p in own.named_parameters()}
    trained: Any = trainer.model
    for name, parameter in trained.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], atol=1e-5), name
    assert max(grad.abs().max() for grad in gradients.values()) > 0.01


def test_trls_collator_cannot_be_used(processor: Any) -> None:
    """Why the rows are encoded here: it refuses prompt and completion, and of a whole text it makes
    zeros, with which the answer leaks, and labels everywhere."""
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling as Theirs

    with pytest.raises(ValueError, match="`images` are expected"):
        Theirs(processor)([{"prompt": "<image>Who?", "completion": "You", "image": picture(0)}])
    batch = Theirs(processor)([{"text": "<image>Who? You", "image": picture(0)}])
    assert (batch["token_type_ids"] == 0).all()
    assert (batch["labels"] == processor.image_token_id).any()


@pytest.fixture(scope="module")
def run(sft_cot: Recipe, bases: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the recipe on PaliGemma 2."""
    folder = tmp_path_factory.mktemp("runs") / "paligemma"
    words = ["--base", str(bases[2]), "--n_train", "24", "--n_eval", "4", "--save_steps", "10"]
    assert sft_cot(folder, *words, "--epochs", "3") == 0
    return folder


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_recipe_trains_it(run: Path) -> None:
    found, _ = manifest.load(run)
    assert (found.family, found.adapter) == ("paligemma", True)
    assert found.image == {"height": 32, "width": 32, "tokens": 16}
    assert losses(run)[-1] < losses(run)[0] - 0.2
    assert not (run / "chat_template.jinja").exists()


def test_the_run_reloads_without_vlmface(run: Path) -> None:
    """Tokens, pixels and adapter through transformers and peft alone."""
    from peft import PeftModel

    model: Any = AutoModelForImageTextToText.from_pretrained(manifest.load(run)[0].base["id"])
    processor = AutoProcessor.from_pretrained(run)
    batch = processor(
        text="<image>" + QUESTION, images=PICTURES[0], suffix=TARGETS[0], return_tensors="pt"
    )
    with torch.no_grad():
        untrained = model(**batch).logits
        found = PeftModel.from_pretrained(model, str(run)).eval()(**batch).logits
        for merge in (False, True):
            ours = LocalModel.load(run, merge=merge)
            row = encode.encode(ours.processor, paligemma, ours.messages, PICTURES[0], TARGETS[0])
            mine = encode.Collator(ours.processor, paligemma)([row])
            expected = ours.model(**mine).logits
            assert torch.allclose(found, expected, atol=1e-4), merge
    assert (found - untrained).abs().max() > 0.1


def test_the_merged_run_answers_as_base_and_adapter_do(run: Path) -> None:
    merged, apart = (
        LocalModel.load(run, merge=merge).predict(PICTURES[:2])[1] for merge in (True, False)
    )
    assert merged.text == apart.text
    assert merged.probabilities == pytest.approx(apart.probabilities, abs=1e-4)


def test_a_later_evaluation_gives_the_numbers_of_the_recipe(run: Path, tmp_path: Path) -> None:
    argv = ["--benchmark", "synth", "--model", str(run), "--n", "4"]
    assert evaluation.main([*argv, "--output_dir", str(tmp_path)]) == 0
    later = json.loads((tmp_path / "metrics.json").read_text())
    after = json.loads((run / "metrics.json").read_text())["after"]
    for key in ("emotion", "au", "parse", "n"):
        assert later[key] == after[key], key


def train(base: Path, folder: Path, n: int = 4, **changes: Any) -> dict[str, Any]:
    processor = paligemma.load_processor(base)
    data, _ = encode_rows(rows(n), processor, paligemma, PROMPT, max_length=512, seed=0)
    fixed: dict[str, Any] = {
        "base": str(base),
        "data": "test",
        "benchmark": "synth",
        "prompt": "face_cot",
        "limits": "",
        "output_dir": str(folder),
        "batch_size": n,
        "lora_dropout": 0.0,
        "logging_steps": 1,
        "save_steps": 1000,
    }
    return sft.train(base, processor, paligemma, data, SFTSettings(**fixed | changes))


def test_cached_features_train_as_pixels_do(bases: dict[int, Path], tmp_path: Path) -> None:
    for name, cached in (("pixels", False), ("cached", True)):
        train(bases[1], tmp_path / name, epochs=3, learning_rate=3e-3, cache_features=cached)
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "pixels"), abs=1e-5)


POLICIES: dict[str, dict[str, Any]] = {
    "lora": {**LLM_LORA, "train_embeddings": True},
    "lora_everywhere": {**ALL_LORA, "train_embeddings": True},
    "full": {"tower": "full", "projector": "full", "llm": "full"},
}


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_a_handful_of_rows_is_memorised(checkpoint: Path, tmp_path: Path, policy: str) -> None:
    changes = POLICIES[policy] | {"epochs": 200, "schedule": "constant", "warmup_steps": 10}
    rate = 3e-3 if policy == "full" else 5e-3
    result = train(checkpoint, tmp_path, **changes, learning_rate=rate, lora_rank=16)
    assert result["loss_last"] < 0.05 < result["loss_first"]
    if policy == "full":  # a complete checkpoint, for transformers alone
        ours = paligemma.load_model(tmp_path)
        theirs = AutoModelForImageTextToText.from_pretrained(tmp_path)
        batch = encode.Collator(AutoProcessor.from_pretrained(tmp_path), paligemma)(
            encoded(paligemma.load_processor(tmp_path))
        )
        with torch.no_grad():
            assert torch.equal(ours(**batch).logits, theirs.eval()(**batch).logits)


@pytest.mark.slow
def test_the_shipped_settings_run_on_miniatures_of_their_data(
    tmp_path: Path, sft_cot: Recipe, bases: dict[int, Path]
) -> None:
    from miniatures import expllm, rafdb

    expllm.write(tmp_path / "anno_json")
    rafdb.write(tmp_path / "RAF-DB", "_aligned")
    words = ["--config", "sft_cot_paligemma", "--base", str(bases[2])]
    words += ["--data_root", str(tmp_path / "anno_json")]
    words += ["--benchmark_root", str(tmp_path / "RAF-DB"), "--num_processes", "null"]
    words += ["--n_train", "null", "--n_eval", "null", "--max_length", "1024"]
    assert sft_cot(tmp_path / "run", *words) == 0
    found, (prompt,) = manifest.load(tmp_path / "run")
    assert (found.family, prompt.id, found.data["n"]) == ("paligemma", "expllm", 4)


# --- bases that do not fit ------------------------------------------------------------------------


@pytest.fixture
def broken(bases: dict[int, Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a base whose config.json and image processor have other values."""

    def make(config: dict[str, Any] | None = None, image: dict[str, Any] | None = None) -> Path:
        shutil.copytree(bases[2], tmp_path / "base")
        for name, part, changes in (
            ("config.json", None, config),
            ("processor_config.json", "image_processor", image),
        ):
            file = tmp_path / "base" / name
            content = json.loads(file.read_text())
            for key, value in (changes or {}).items():
                place = content[part] if part else content
                *path, last = key.split(".")
                for step in path:
                    place = place[step]
                place[last] = value
            file.write_text(json.dumps(content))
        return tmp_path / "base"

    return make


def test_a_tokenizer_without_loc_and_seg_is_refused(broken: Callable[..., Path]) -> None:
    folder = broken()
    tiny.build_tokenizer(corpus()[:50]).save_pretrained(folder)
    with pytest.raises(UserError, match=r"lacks 1152 of PaliGemma's 1152 .* <loc0000> first"):
        paligemma.load_processor(folder)


def test_ids_beyond_the_embeddings_are_refused(broken: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"goes up to id \d+ .* embeddings for 900 ids"):
        paligemma.load_processor(broken({"text_config.vocab_size": 900}))


def test_another_image_token_is_refused(broken: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"'<image>' as id 3, but .* at id 257152"):
        paligemma.load_processor(broken({"image_token_index": 257152}))


def test_images_that_do_not_fit_the_tower_are_refused(broken: Callable[..., Path]) -> None:
    folder = broken(image={"size": {"height": 48, "width": 48}})
    with pytest.raises(UserError, match=r"48 x 48 pixels and 16 tokens, but .* 32 x 32 and"):
        paligemma.load_processor(folder)


def test_an_image_that_yields_no_token_is_refused(
    broken: Callable[..., Path], bases: dict[int, Path]
) -> None:
    with pytest.raises(UserError, match="an image of 6 pixels holds no patch of 8"):
        paligemma.load_processor(broken({"vision_config.image_size": 6}))
    processor = paligemma.load_processor(bases[2])
    processor.image_seq_length = 0
    with pytest.raises(UserError, match="image_seq_length is 0, so an image would yield no token"):
        encode.encode_text(processor, paligemma, PROMPT.messages(), None)
    processor.image_processor.size = {"shortest_edge": 32}
    with pytest.raises(UserError, match=r"resizes to \{'shortest_edge': 32\}, but PaliGemma needs"):
        paligemma.describe_image(processor)


def test_vllm_is_refused(bases: dict[int, Path]) -> None:
    processor = paligemma.load_processor(bases[2])
    with pytest.raises(UserError, match="vLLM reads PaliGemma's question causally"):
        paligemma.vllm_flags(processor, max_length=512, policy=LLM_LORA)
