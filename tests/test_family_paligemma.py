"""PaliGemma: a prefix-LM, with a processor that writes the conversation itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import corpus, paligemma
from helpers.samples import picture, rows
from helpers.scripts import Recipe
from safetensors import safe_open
from transformers import AutoProcessor

from vlmface import encode, manifest, prompts
from vlmface.data import row_images
from vlmface.errors import UserError
from vlmface.families import tiny
from vlmface.families.tiny.paligemma import TinyPaliGemma
from vlmface.infer.local import LocalModel
from vlmface.train.rows import encode_rows

PROMPT = prompts.load("face_cot")
QUESTION = PROMPT.messages()[0]["content"][1]["text"]
TARGETS = [
    PROMPT.completion("The lip corners are pulled up (AU12).", "happiness"),
    PROMPT.completion("The brows are lowered (AU4), the lids are tight (AU7).", "anger"),
    PROMPT.completion("Rest.", "neutral"),
]
PICTURES = [picture(0, (40, 40)), picture(1, (300, 20)), picture(2, (9, 200))]
LLM_LORA = {"vision_tower": "frozen", "projector": "frozen", "language_model": "lora"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Random PaliGemmas, by version: 32 x 32 pixels, 16 image tokens."""
    folder, texts = tmp_path_factory.mktemp("paligemma"), corpus()
    for version in (1, 2):
        paligemma.build_tiny(folder / str(version), texts, version=version)
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


def test_the_versions_differ_in_their_language_model(bases: dict[int, Path]) -> None:
    kinds = [paligemma.load_model(bases[v]).config.text_config.model_type for v in (1, 2)]
    assert kinds == ["gemma", "gemma2"]


def test_the_towers_weights_have_their_published_names(checkpoint: Path) -> None:
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        tower = [name for name in file.keys() if "vision_tower" in name]  # noqa: SIM118
    assert tower and all("vision_tower.vision_model." in name for name in tower)


# --- text and tokens ------------------------------------------------------------------------------


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
    processor = TinyPaliGemma().processor(tokenizer)
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
        processor, model = (
            f(bases[version]) for f in (AutoProcessor.from_pretrained, paligemma.load_model)
        )
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
        found = after_cache(tail, **paligemma.decode_step_inputs(model, positions))
        changed = after_cache(other, **paligemma.decode_step_inputs(model, positions))
        shifted = after_cache(tail, position_ids=positions)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(found[:, :-2], changed[:, :-2], atol=1e-6)
    assert (found - changed)[:, -2:].abs().max() > 1e-4
    assert (shifted - expected).abs().max() > 1e-4


# --- answers --------------------------------------------------------------------------------------


def test_scores_behind_the_sliding_window_are_refused(tmp_path: Path) -> None:
    paligemma.build_tiny(tmp_path, corpus()[:200], max_length=64)
    predictor = LocalModel.load(tmp_path, prompt="face_cot", max_new_tokens=4)
    with pytest.raises(UserError, match=r"do not fit the model's sliding window of 64; ask with"):
        predictor.predict(PICTURES[:1])
    assert predictor.predict(PICTURES[:1], probabilities=False)[0].probabilities is None


# --- training -------------------------------------------------------------------------------------


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


@pytest.mark.slow
def test_the_shipped_settings_run_on_miniatures_of_their_data(
    tmp_path: Path, sft_cot: Recipe, bases: dict[int, Path]
) -> None:
    from miniatures import expllm, rafdb

    expllm.write(tmp_path / "anno_json")
    rafdb.write(tmp_path / "RAF-DB", "_aligned")
    words = ["--config", "sft_cot_paligemma", "--base_model", str(bases[2])]
    words += ["--dataset_root", str(tmp_path / "anno_json")]
    words += ["--benchmark_root", str(tmp_path / "RAF-DB"), "--num_processes", "null"]
    words += ["--n_train", "null", "--n_eval", "null", "--max_length", "1024"]
    assert sft_cot(tmp_path / "run", *words) == 0
    found, (prompt,) = manifest.load(tmp_path / "run")
    assert (found.family, prompt.id, found.dataset["n"]) == ("paligemma", "expllm", 4)


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


def test_the_image_token_alone_may_have_no_embedding(broken: Callable[..., Path]) -> None:
    """As published: the image token's id is the first beyond the embeddings."""
    from transformers import AutoTokenizer

    folder = broken()
    ids = sorted(AutoTokenizer.from_pretrained(folder).get_vocab().values())
    text = (folder / "tokenizer.json").read_text()
    for old, new in (("<image>", "<x>"), ("<seg127>", "<image>"), ("<x>", "<seg127>")):
        text = text.replace(f'"{old}"', f'"{new}"')  # they change their places
    (folder / "tokenizer.json").write_text(text)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = ids[-1]
    for name in ("image_token_id", "image_token_index"):
        if name in config:
            config[name] = ids[-1]
    (folder / "config.json").write_text(json.dumps(config))
    assert paligemma.load_processor(folder).image_token_id == ids[-1]
    config["text_config"]["vocab_size"] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"ids up to {ids[-2]} .* has {ids[-2]} embeddings"):
        paligemma.load_processor(folder)


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
    with pytest.raises(UserError, match=r"resizes to \{'shortest_edge': 32\}, but paligemma needs"):
        paligemma.describe_image(processor)


def test_vllm_is_refused(bases: dict[int, Path]) -> None:
    processor = paligemma.load_processor(bases[2])
    with pytest.raises(UserError, match="vLLM reads PaliGemma's question causally"):
        paligemma.vllm_flags(processor, max_length=512, trainable=LLM_LORA)
