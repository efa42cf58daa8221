"""The encoder: what the model sees, what it is supervised on, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.checkpoints import llava
from helpers.samples import picture, rows, samples

from vlmface import encode, prompts
from vlmface.data import row_images
from vlmface.errors import UserError
from vlmface.train.rows import encode_rows

PROMPT = prompts.load("face_cot")
TARGET = PROMPT.completion("The lip corners are pulled up (AU12).", "happiness")


def decode(processor: Any, ids: Any) -> str:
    return processor.tokenizer.decode([i for i in ids if i >= 0])


def test_a_golden_row(processor: Any) -> None:
    row = encode.encode(processor, llava, PROMPT.messages(), picture(3, (50, 30)), TARGET)
    assert set(row) == {"input_ids", "attention_mask", "labels", "pixel_values"}
    question = PROMPT.messages()[0]["content"][1]["text"]
    prompt = f"<s>USER: {'<image>' * 16}\n{question} ASSISTANT:"
    answer = " <think>The lip corners are pulled up (AU12).</think>\n<answer>happiness</answer></s>"
    assert decode(processor, row["input_ids"]) == prompt + answer
    start = len(row["input_ids"]) - sum(label != -100 for label in row["labels"])
    assert row["labels"] == [-100] * start + row["input_ids"][start:]
    assert decode(processor, row["labels"]) == answer
    assert row["attention_mask"] == [1] * len(row["input_ids"])
    assert row["labels"][-1] == processor.tokenizer.eos_token_id
    assert row["input_ids"].count(processor.image_token_id) == 16
    assert processor.image_token_id not in row["labels"]
    assert row["pixel_values"].shape == (1, 3, 32, 32)
    assert row["pixel_values"].abs().max() <= 1


def test_the_row_is_what_the_processor_makes_of_the_whole_conversation(processor: Any) -> None:
    turn = {"role": "assistant", "content": [{"type": "text", "text": TARGET}]}
    image = picture(4, (61, 47))
    full = processor.apply_chat_template([*PROMPT.messages(), turn])
    theirs = processor(text=full, images=image, return_tensors="pt", add_special_tokens=False)
    ours = encode.encode(processor, llava, PROMPT.messages(), image, TARGET)
    assert ours["input_ids"] == theirs["input_ids"][0].tolist()
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])


def test_serving_sees_the_prompt_that_training_saw(processor: Any) -> None:
    image = picture(5)
    asked = encode.encode(processor, llava, PROMPT.messages(), image)
    learnt = encode.encode(processor, llava, PROMPT.messages(), image, TARGET)
    assert "labels" not in asked
    assert learnt["input_ids"][: len(asked["input_ids"])] == asked["input_ids"]
    assert torch.equal(asked["pixel_values"], learnt["pixel_values"])


def test_the_published_template_gets_its_bos_and_eos(published: Any) -> None:
    row = encode.encode(published, llava, PROMPT.messages(), picture(0), TARGET)
    text = decode(published, row["input_ids"])
    assert text.startswith("<s>USER: <image>") and text.count("<s>") == 1
    assert text.endswith("ASSISTANT: " + TARGET + "</s>")
    assert decode(published, row["labels"]) == " " + TARGET + "</s>"
    alone = published(
        text=llava.prompt_text(published, PROMPT.messages()), images=picture(0), return_tensors="pt"
    )
    asked = encode.encode(published, llava, PROMPT.messages(), picture(0))
    assert asked["input_ids"] == alone["input_ids"][0].tolist()


def test_nothing_is_cut(processor: Any) -> None:
    whole = encode.encode_text(processor, llava, PROMPT.messages(), TARGET)["input_ids"]
    fits = encode.encode_text(processor, llava, PROMPT.messages(), TARGET, max_length=len(whole))[
        "input_ids"
    ]
    assert fits == whole
    with pytest.raises(
        encode.SkippedSampleError, match=r"16 of the image, .* of the answer"
    ) as error:
        encode.encode_text(processor, llava, PROMPT.messages(), TARGET, max_length=len(whole) - 1)
    assert error.value.reason == "too_long"


@pytest.mark.parametrize(
    ("target", "reason"), [("", "no_target"), (" \n", "no_target"), ("an <image>", "image_in_text")]
)
def test_rows_that_cannot_be_learnt_are_refused(processor: Any, target: str, reason: str) -> None:
    with pytest.raises(encode.SkippedSampleError) as error:
        encode.encode_text(processor, llava, PROMPT.messages(), target)
    assert error.value.reason == reason


def test_a_conversation_without_an_image_has_no_image_tokens(processor: Any) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "Say: brow"}]}]
    row = encode.encode_text(processor, llava, messages, "brow")
    assert processor.image_token_id not in row["input_ids"]
    assert set(encode.Collator(processor, llava)([row])) == {
        "input_ids",
        "attention_mask",
        "labels",
    }
    with pytest.raises(encode.SkippedSampleError, match=r"1 times '<image>', but has 0 image\(s\)"):
        encode.encode_text(processor, llava, messages, "an <image>")


def test_a_template_that_rewrites_the_prompt_is_an_error(base: Any) -> None:
    processor = llava.load_processor(base)
    processor.chat_template = "{{ messages | length }}<image>" + processor.chat_template
    with pytest.raises(UserError, match="training and serving would not agree"):
        encode.encode_text(processor, llava, PROMPT.messages(), TARGET)


def test_padding(processor: Any) -> None:
    short = encode.encode(processor, llava, PROMPT.messages(), picture(0), "Yes.")
    long = encode.encode(processor, llava, PROMPT.messages(), picture(1), TARGET)
    n, m = len(short["input_ids"]), len(long["input_ids"])
    right = encode.Collator(processor, llava)([short, long])
    assert right["input_ids"].shape == right["labels"].shape == (2, m)
    assert right["input_ids"][0, :n].tolist() == short["input_ids"]
    assert right["input_ids"][0, n:].tolist() == [processor.tokenizer.pad_token_id] * (m - n)
    assert right["labels"][0, n:].tolist() == [-100] * (m - n)
    assert right["attention_mask"].sum(1).tolist() == [n, m]
    assert right["pixel_values"].shape == (2, 3, 32, 32)
    left = encode.Collator(processor, llava, padding="left")([short, long])
    assert left["input_ids"][0, m - n :].tolist() == short["input_ids"]
    assert left["attention_mask"][0].tolist() == [0] * (m - n) + [1] * n
    with pytest.raises(ValueError, match="left or right"):
        encode.Collator(processor, llava, padding="both")


def test_images_are_preprocessed_in_the_collator_as_in_encode(processor: Any) -> None:
    sample = samples(1)[0]
    text = encode.encode_text(processor, llava, PROMPT.messages(), TARGET)
    batch = encode.Collator(processor, llava)([{**text, "image": sample.image, "row": 7}])
    alone = llava.image_inputs(processor, [row_images.open_row_image(sample.image)])["pixel_values"]
    assert torch.equal(batch["pixel_values"], alone)
    assert batch["row"].tolist() == [7]


def test_grouping_sees_every_row_once_and_saves_padding() -> None:
    lengths = [int(x) for x in torch.randint(50, 150, (203,), generator=torch.manual_seed(0))]
    sampler = encode.GroupedSampler(lengths, 8, seed=1)

    def padding(order: list[int]) -> int:
        batches = [order[i : i + 8] for i in range(0, len(order), 8)]
        return sum(len(b) * max(lengths[i] for i in b) for b in batches) - sum(lengths)

    first = list(sampler)
    assert sorted(first) == list(range(203))
    assert padding(first) < 0.2 * padding(list(range(203)))
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(encode.GroupedSampler(lengths, 8, seed=2)) != first


def test_rows_are_encoded_counted_and_left_out_by_reason(processor: Any) -> None:
    from datasets import Dataset

    from vlmface.schema import features

    found = samples(8)
    found[1].emotion = None
    found[2].aus = None
    found[3].rationale, found[3].rationale_source = "The brows are low (AU4). " * 60, "human"
    found[4].rationale, found[4].rationale_source = "The nose is wrinkled (AU9).", "human"
    data = Dataset.from_list([sample.to_row() for sample in found], features=features())
    encoded, skipped = encode_rows(data, processor, llava, PROMPT, max_length=400, seed=0)
    assert skipped == {"no_label": 1, "no_aus": 1, "too_long": 1}
    assert encoded["row"] == [0, 4, 5, 6, 7]
    assert encoded["length"] == [len(ids) for ids in encoded["input_ids"]]
    texts = [decode(processor, labels) for labels in encoded["labels"]]
    assert texts[1] == " " + PROMPT.completion("The nose is wrinkled (AU9).", "disgust") + "</s>"
    for text, index in zip(texts, (0, 4, 5, 6, 7), strict=True):
        answer = PROMPT.parse(text.strip().removesuffix("</s>"))
        assert (answer.status, answer.label) == ("strict", found[index].emotion)
        assert answer.aus == ((9,) if index == 4 else found[index].present_aus())
    assert encoded[1]["image"]["bytes"] == found[4].image["bytes"]


def test_the_text_of_a_row_does_not_depend_on_its_place(processor: Any) -> None:
    data = rows(8)
    encoded, _ = encode_rows(data, processor, llava, PROMPT, max_length=512, seed=0)
    turned, _ = encode_rows(
        data.select(range(7, -1, -1)), processor, llava, PROMPT, max_length=512, seed=0
    )
    assert encoded["input_ids"] == turned["input_ids"][::-1]
    other, _ = encode_rows(data, processor, llava, PROMPT, max_length=512, seed=1)
    assert encoded["input_ids"] != other["input_ids"]


def test_nothing_left_is_an_error(processor: Any) -> None:
    with pytest.raises(UserError, match=r"none of the 2 rows .*too_long"):
        encode_rows(rows(2), processor, llava, PROMPT, max_length=20, seed=0)
