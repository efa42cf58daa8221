"""Rows without a picture: they teach what their text alone would, and the tower still runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import concatenate_datasets
from helpers.checkpoints import BUILDERS, llava
from helpers.run_files import read_metrics
from helpers.samples import picture, rows
from helpers.scripts import Recipe

from vlmface import encode, families, prompts
from vlmface.errors import SkippedSampleError, UserError
from vlmface.train import text_only
from vlmface.train.rows import encode_rows

QUESTION, ANSWER = "Which muscle lowers the brows?", "the brows are lowered"


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


@pytest.mark.parametrize("name", BUILDERS)
def test_the_loss_is_that_of_the_text_alone(name: str, tmp_path: Path) -> None:
    corpus = [str(prompts.load("face_cot").messages()), QUESTION, ANSWER] * 20
    BUILDERS[name](tmp_path, corpus)
    family = families.get(families.family_of(tmp_path))
    processor = family.load_processor(tmp_path)
    model = family.load_model(tmp_path, dtype=torch.float32)
    row = text_only.encode_row(processor, family, QUESTION, ANSWER)
    messages = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    plain = encode.encode_text(processor, family, messages, ANSWER)
    end = len(plain["input_ids"])
    assert row["input_ids"][:end] == plain["input_ids"]
    assert row["labels"][:end] == plain["labels"]
    assert set(row["labels"][end:]) == {encode.IGNORED}
    assert processor.image_token_id not in plain["input_ids"]
    assert row["input_ids"].count(processor.image_token_id) == family.image_tokens(
        processor, (32, 32)
    )

    from PIL import Image

    # Beside a row with a picture, as in training.
    face = encode.encode(processor, family, prompts.load("face_cot").messages(), picture(1), ANSWER)
    blank = family.image_inputs(processor, [Image.new("RGB", (32, 32))])
    collate = encode.Collator(processor, family)
    names = set(plain) - {"labels"}
    alone = {name: torch.tensor([plain[name]]) for name in names}
    with torch.no_grad():
        expected = model(**alone).logits[0]
        for batch in ([{**row, **blank}], [{**row, **blank}, face], [face, {**row, **blank}]):
            inputs = collate(batch)
            place = next(i for i, r in enumerate(batch) if r is not face)
            del inputs["labels"]
            found = model(**inputs).logits[place, :end]
            learnt = torch.tensor(plain["labels"]) != encode.IGNORED
            # What predicts the supervised tokens: the position before each.
            before = learnt.roll(-1)
            assert torch.allclose(found[before], expected[before], atol=1e-5)


def test_every_part_gets_a_gradient_of_zero_from_text(base: Path, processor: Any) -> None:
    model = llava.load_model(base, dtype=torch.float32)
    row = text_only.encode_row(processor, llava, QUESTION, ANSWER)
    from PIL import Image

    inputs = encode.Collator(processor, llava)([{**row, "image": Image.new("RGB", (32, 32))}])
    labels = inputs.pop("labels")
    logits = model(**inputs).logits
    torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:]).backward()
    tower = [p for n, p in model.named_parameters() if "multi_modal_projector" in n]
    assert tower and all(p.grad is not None and not p.grad.any() for p in tower)


def test_what_the_file_may_hold(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.jsonl",
        {"question": "a", "answer": "b"},
        "",
        '{"question": "c", "answer": "d", "more": 1}',
    )
    assert text_only.read_questions(path) == [("a", "b"), ("c", "d")]
    for line, message in [
        ("not json", "line 2: expected"),
        ({"question": "a"}, "line 2: expected"),
        (["a", "b"], "line 2: expected"),
        ({"question": "a", "answer": " "}, "line 2: question and answer must be text, not empty"),
        ({"question": 1, "answer": "b"}, "line 2: question and answer must be text"),
        ('{"question": "a", "answer": "\\ud83d"}', "line 2: half of a"),
    ]:
        write(path, {"question": "a", "answer": "b"}, line)
        with pytest.raises(UserError, match=message):
            text_only.read_questions(path)
    with pytest.raises(UserError, match="holds no line"):
        text_only.read_questions(write(path, ""))
    with pytest.raises(UserError, match="cannot read text_only_data"):
        text_only.read_questions(tmp_path / "nothing.jsonl")


def test_rows_are_mixed_and_what_does_not_fit_is_counted(processor: Any, tmp_path: Path) -> None:
    faces, _ = encode_rows(
        rows(4), processor, llava, prompts.load("face_cot"), max_length=512, seed=0
    )
    long = {"question": QUESTION, "answer": ANSWER * 200}
    token = {"question": processor.image_token, "answer": ANSWER}
    path = write(tmp_path / "t.jsonl", {"question": QUESTION, "answer": ANSWER}, long, token)
    words: dict[str, Any] = {"features": faces.features, "row": 4}
    texts, skipped = text_only.encode_file(path, processor, llava, 512, **words)
    assert len(texts) == 1 and skipped == {"too_long": 1, "image_in_text": 1}
    mixed = concatenate_datasets([faces, texts])
    assert mixed.features == faces.features
    assert mixed["row"][:] == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match=r"no row of text_only_data .* can be trained on"):
        text_only.encode_file(write(path, long), processor, llava, 512, **words)
    with pytest.raises(SkippedSampleError, match="do not fit max_length 20"):
        text_only.encode_row(processor, llava, QUESTION, ANSWER, max_length=20)


@pytest.mark.parametrize("cache", ["true", "false"])
def test_the_recipe_trains_on_both(sft_cot: Recipe, tmp_path: Path, cache: str) -> None:
    path = write(tmp_path / "t.jsonl", *[{"question": QUESTION, "answer": ANSWER}] * 4)
    run = tmp_path / "run"
    words = ("--n_train", "12", "--text_only_data", str(path), "--epochs", "1", "--batch_size", "4")
    how = ("--vision_tower", "frozen", "--cache_features", cache)
    assert sft_cot(run, *words, *how) == 0
    train = read_metrics(run)["train"]
    assert train["n"] == 16 and train["steps"] == 4
