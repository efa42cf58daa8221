"""Conversations in the forms of other projects, read and trained on in every answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.checkpoints import llava
from hypothesis import given
from hypothesis import strategies as st
from miniatures import face
from miniatures.llava_json import talk
from miniatures.records import write_json, write_lines

from vlmface import data, encode, prompts
from vlmface.data.conversations import read_conversation
from vlmface.data.records import Record
from vlmface.errors import UserError
from vlmface.train.rows import _with_blocks, encode_rows


def decode(processor: Any, ids: Any) -> str:
    return processor.tokenizer.decode([i for i in ids if i >= 0])


ASKED = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "<image>\nWhat does the face show?"},
    {"role": "assistant", "content": "A smile (AU12)."},
    {"role": "user", "content": "And here <image>?"},
    {"role": "assistant", "content": "A frown."},
]
TEXTS = [message["content"] for message in ASKED]
IMAGES = ["a.jpg", "b.jpg"]
FORMS: dict[str, dict[str, Any]] = {
    "sharegpt": {
        "conversations": [
            {"from": role, "value": text}
            for role, text in zip(("system", "human", "gpt", "human", "gpt"), TEXTS, strict=True)
        ],
        "images": IMAGES,
    },
    "openai": {"messages": ASKED, "images": IMAGES},
    "openai_parts": {
        "messages": [
            ASKED[0],
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "a.jpg"}},
                    {"type": "text", "text": "What does the face show?"},
                ],
            },
            ASKED[2],
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "And here"},
                    {"type": "image", "image": "b.jpg"},
                    {"type": "text", "text": "?"},
                ],
            },
            ASKED[4],
        ]
    },
    "ms_swift": {
        "system": TEXTS[0],
        "conversation": [
            {"human": TEXTS[1], "assistant": TEXTS[2]},
            {"human": TEXTS[3], "assistant": TEXTS[4]},
        ],
        "images": [{"path": "a.jpg", "bytes": None}, {"path": "b.jpg"}],
    },
    "query_response": {
        "system": TEXTS[0],
        "query": TEXTS[3],
        "response": TEXTS[4],
        "history": [[TEXTS[1], TEXTS[2]]],
        "images": IMAGES,
    },
    "alpaca": {
        "system": TEXTS[0],
        "instruction": "And here",
        "input": "<image>?",
        "output": TEXTS[4],
        "history": [[TEXTS[1], TEXTS[2]]],
        "images": IMAGES,
    },
    "qwen_vl": {
        "conversations": [
            {"from": "system", "value": TEXTS[0]},
            {"from": "user", "value": "<img>a.jpg</img>\nWhat does the face show?"},
            {"from": "assistant", "value": TEXTS[2]},
            {"from": "user", "value": "And here <img>b.jpg</img>?"},
            {"from": "assistant", "value": TEXTS[4]},
        ]
    },
}


@pytest.mark.parametrize("name", FORMS)
def test_all_forms_are_the_same_conversation(name):
    conversation = read_conversation(Record("x, line 1", FORMS[name]))
    assert conversation.images == IMAGES
    words = [" ".join(m["content"].replace("<image>", " <image> ").split()) for m in ASKED]
    found = conversation.messages
    assert [" ".join(m["content"].replace("<image>", " <image> ").split()) for m in found] == words
    assert [m["role"] for m in found] == [m["role"] for m in ASKED]


def test_without_a_place_the_pictures_come_before_the_first_question():
    record = Record("x", {"query": "What?", "response": "That.", "images": IMAGES})
    conversation = read_conversation(record)
    assert conversation.messages[0]["content"] == "<image><image>\nWhat?"
    assert conversation.pairs() == [("What?", "That.")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": ["a.jpg"]}, "x, line 3: the texts have 2 times <image>, but there are 1 pict"),
        ({"images": [*IMAGES, "c.jpg"]}, "2 times <image>, but there are 3 pictures"),
        ({"images": []}, "2 times <image>, but there are 0 pictures"),
        ({"messages": ASKED[:-1]}, "speakers are user, assistant, user: expected user and assist"),
        ({"messages": [ASKED[1], ASKED[3], ASKED[2]]}, "speakers are user, user, assistant"),
        ({"messages": [ASKED[1], ASKED[1] | {"role": "assistant"}]}, "an answer holds <image>"),
        ({"messages": [ASKED[1], {"role": "assistant", "content": " "}]}, "an answer is empty"),
        ({"messages": [ASKED[1], {"role": "tool", "content": "{}"}]}, "'messages' is"),
        ({"messages": [{"role": "user", "content": 3}]}, "a turn has the content 3, expected a te"),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            "text or an image",
        ),
        ({"messages": []}, r"'messages' is \[\], expected"),
        ({"videos": ["a.mp4"]}, "'videos' is .*expected pictures only"),
        ({"image": "c.jpg"}, "'images' is .*expected the same as 'image'"),
    ],
)
def test_a_wrong_conversation_is_one_sentence_with_its_place(fields, message):
    with pytest.raises(UserError, match=message) as error:
        read_conversation(Record("x, line 3", FORMS["openai"] | fields))
    assert str(error.value).startswith("x, line 3: ") and len(str(error.value)) < 300


LEAVES = st.one_of(st.none(), st.integers(), st.text(max_size=5), st.just("<image>"))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["role", "from", "content", "value", "type", "text", "image"]), inner
        ),
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from(["messages", "conversations", "query", "response", "history", "images"]),
        VALUES,
    )
)
def test_any_record_is_a_conversation_or_one_error(fields):
    try:
        conversation = read_conversation(Record("x, line 1", fields))
    except UserError as error:
        assert str(error).startswith("x, line 1: ")
        return
    places = sum(message["content"].count("<image>") for message in conversation.messages)
    assert places == len(conversation.images)


# --- rows -----------------------------------------------------------------------------------------


def write(root: Path) -> Path:
    """Three records: two turns about one picture, two pictures, no picture."""
    for number, name in enumerate(IMAGES):
        face(root / name, number)
    first = talk("<image>\nWhat does the face show?", "A smile.", "Why?", "AU12 is there.")
    return write_json(
        root / "train.json",
        [
            {"id": 7, "image": "a.jpg", "mood": "Happy", "conversations": first},
            FORMS["openai"] | {"mood": "sad"},
            {"query": "What is FACS?", "response": "A coding system."},
        ],
    )


def test_rows_hold_whole_conversations(tmp_path):
    path = write(tmp_path)
    rows = data.load("llava_json", tmp_path, turns="conversation", label="mood")
    assert rows["emotion"] == ["happiness", "sadness"] and rows["rationale"] == [None, None]
    assert [image and image.size for image in rows["image"]] == [(48, 48), None]
    assert [clip and len(clip) for clip in rows["frames"]] == [None, 2]
    meta = json.loads(rows["meta"][0])
    assert meta["source_id"] == "7" and len(meta["messages"]) == 4
    found = data.read("llava_json", tmp_path, turns="conversation")
    assert found.skipped == {"no image": [f"{path}, record 3"]}
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(UserError, match=r"record 2: .*b\.jpg is missing"):
        data.load("llava_json", tmp_path, turns="conversation")


def blocks(messages: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [_with_blocks(message) for message in messages]


def test_one_turn_is_encoded_as_before(processor: Any) -> None:
    prompt = prompts.load("face_cot").messages()
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A smile."}]}
    (row,) = encode.encode_conversation(processor, llava, [*prompt, answer])
    assert row == encode.encode_text(processor, llava, prompt, "A smile.")


def test_every_answer_and_its_end_is_trained_on(processor: Any) -> None:
    (row,) = encode.encode_conversation(processor, llava, blocks(ASKED[1:]))
    eos = processor.tokenizer.eos_token
    assert decode(processor, row["labels"]) == f" A smile (AU12).{eos} A frown.{eos}"
    shown = decode(processor, row["input_ids"])
    assert shown.count("<image>") == 32 and "What does the face show?" in shown
    trained = [i for i, label in enumerate(row["labels"]) if label != encode.IGNORED]
    assert [row["input_ids"][i] for i in trained] == [row["labels"][i] for i in trained]
    # A server that shows the conversation up to the second answer shows the same tokens.
    served = encode.encode_text(processor, llava, blocks(ASKED[1:-1]), None)["input_ids"]
    assert row["input_ids"][: len(served)] == served


def test_a_template_without_the_end_of_answers_gives_a_row_for_each(published: Any) -> None:
    talked = blocks([ASKED[1], ASKED[2], {"role": "user", "content": "Why?"}, ASKED[4]])
    rows = encode.encode_conversation(published, llava, talked)
    assert [decode(published, row["labels"]) for row in rows] == [
        " A smile (AU12).</s>",
        " A frown.</s>",
    ]
    assert rows[1] == encode.encode_text(published, llava, talked[:-1], "A frown.")
    with pytest.raises(encode.SkippedSampleError, match="an image comes after the first answer"):
        encode.encode_conversation(published, llava, blocks(ASKED[1:]))


def test_a_conversation_that_is_too_long_is_refused_whole(processor: Any) -> None:
    with pytest.raises(encode.SkippedSampleError) as error:
        encode.encode_conversation(processor, llava, blocks(ASKED[1:]), max_length=60)
    assert error.value.reason == "too_long"
    with pytest.raises(UserError, match=r"about 2 picture\(s\), but 1 are shown"):
        encode.encode_conversation(processor, llava, blocks(ASKED[1:]), image_size=[(48, 48)])


def test_training_rows_show_all_pictures_of_a_conversation(tmp_path, processor: Any) -> None:
    write(tmp_path)
    loaded = data.load("llava_json", tmp_path, turns="conversation")
    prompt = prompts.load("face_cot")
    rows, skipped = encode_rows(loaded, processor, llava, prompt, max_length=2048, seed=0)
    assert skipped == {} and len(rows) == 2
    assert [len(images) for images in rows["images"]] == [0, 2]
    batch = encode.Collator(processor, llava)(list(rows))
    assert batch["pixel_values"].shape[0] == 3
    texts = [decode(processor, labels) for labels in rows["labels"]]
    assert texts[0] == " A smile.</s> AU12 is there.</s>"


def test_the_recipe_trains_on_conversations(tmp_path, sft_cot, capsys):
    for number in (1, 2):
        face(tmp_path / "data" / f"{number}.jpg", number)
    line = {"conversations": talk("<image>\nWhat?", "A smile.", "Why?", "AU12."), "image": "1.jpg"}
    write_lines(tmp_path / "data" / "train.jsonl", *[line] * 4)
    words = ["--dataset", "llava_json", "--dataset_root", str(tmp_path / "data")]
    options = ["--dataset_options", '{"turns": "conversation"}', "--n_train", "null"]
    assert sft_cot(tmp_path / "run", *words, *options) == 0
    assert "4 of 4 rows are conversations: every answer is trained on" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["train"]["n"] == 4
