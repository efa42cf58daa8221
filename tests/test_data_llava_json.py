"""LLaVA conversations: a row of each record or of each pair of turns, labels from a field alone."""

from __future__ import annotations

import json

import pytest
from miniatures import llava_json
from miniatures.records import write_json

from vlmface import data
from vlmface.data.records import split_thought
from vlmface.errors import UserError


def test_the_first_pair_of_each_record_is_a_row(tmp_path):
    llava_json.write(tmp_path)
    rows = data.load("llava_json", tmp_path, label="emotion")
    assert rows["id"] == ["llava_json-1", "llava_json-2", "llava_json-5"]
    assert rows["emotion"] == ["anger", None, "fear"]
    assert rows["rationale"] == ["Low brows (AU4).", "No, not happy.", "Wide eyes."]
    assert rows["subject"] == ["faces/1.jpg", "faces/1.jpg", "faces/2.jpg"]
    assert rows["rationale_source"] == ["teacher"] * 3 and rows["rationale_saw_label"] == [True] * 3
    assert [json.loads(row) for row in rows["meta"]] == [
        {"answer": "anger", "prompt": "What does the face show?", "source_id": "000000033471"},
        {"answer": None, "prompt": "Is she happy?", "source_id": "000000033471"},
        {"answer": None, "prompt": "", "source_id": None},
    ]
    found = data.read("llava_json", tmp_path, "train")
    path = tmp_path / "train.json"
    assert found.skipped == {
        "no image": [f"{path}, record 3"],
        "several images": [f"{path}, record 4"],
        "later turns": [f"{path}, record 1: 1"],
    }
    assert found.columns["emotion"] == [None, None, None]  # "happy" in a text is no label


def test_all_pairs_and_who_wrote_them(tmp_path):
    llava_json.write(tmp_path)
    rows = data.load(
        "llava_json", tmp_path, turns="all", rationale_source="human", rationale_saw_label=False
    )
    assert rows["id"] == [f"llava_json-{n}" for n in ("1-1", "1-2", "2-1", "5-1")]
    assert rows["rationale"][:2] == ["Low brows (AU4).", "The brows."]
    assert [json.loads(row)["prompt"] for row in rows["meta"]][:2] == [
        "What does the face show?",
        "Why?",
    ]
    assert rows["rationale_source"] == ["human"] * 4 and rows["rationale_saw_label"] == [False] * 4
    rest, held = data.hold_out(rows, 0.5)
    assert not set(rest["subject"]) & set(held["subject"])


def test_one_file_is_one_split(tmp_path):
    llava_json.write(tmp_path)
    assert data.load("llava_json", tmp_path, "test", label="emotion")["emotion"] == ["sadness"]
    lines = tmp_path / "test.jsonl"
    assert len(data.load("llava_json", lines, "test", file_split="test")) == 1
    with pytest.raises(UserError, match=r"rows are split 'train', not 'test'.*file_split='test'"):
        data.load("llava_json", lines, "test")
    with pytest.raises(UserError, match=r"validation\.json is missing"):
        data.load("llava_json", tmp_path, "validation")
    (tmp_path / "elsewhere").mkdir()
    lines.rename(tmp_path / "elsewhere" / "talk.jsonl")
    file = tmp_path / "elsewhere" / "talk.jsonl"
    assert len(data.load("llava_json", file, images=str(tmp_path))) == 1


GOOD = {"image": "faces/1.jpg", "conversations": llava_json.talk("?", "!")}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": "../1.jpg"}, "'image' is '../1.jpg', expected a path inside"),
        ({"image": ["/etc/passwd"]}, "inside the image folder"),
        ({"image": 5}, "'image' is 5"),
        ({"image": "\0"}, "inside the image folder"),
        ({"id": {"n": 1}}, "'id' is"),
        ({"mood": "angry?? maybe"}, "'mood' is 'angry[?]{2} maybe', expected one of anger"),
        ({"conversations": llava_json.talk("?", "!", "?")}, "speakers are user, assistant, user"),
        ({"conversations": [{"from": "user", "value": "?"}]}, "the speakers are user: expected"),
        ({"conversations": "?"}, "'conversations' is '[?]', expected"),
        ({"conversations": llava_json.talk("?", "  ")}, "an answer is empty"),
    ],
)
def test_a_wrong_record_is_named_with_its_file_and_number(tmp_path, fields, message):
    llava_json.write(tmp_path)
    path = write_json(tmp_path / "train.json", [GOOD, GOOD | fields])
    with pytest.raises(UserError, match=message) as error:
        data.load("llava_json", tmp_path, label="mood")
    assert str(error.value).startswith(f"{path}, record 2: ")


def test_options_are_checked(tmp_path):
    llava_json.write(tmp_path)
    for option, value in {"turns": "last", "rationale_source": "none", "file_split": "dev"}.items():
        with pytest.raises(UserError, match=f"{option}='{value}': use one of"):
            data.load("llava_json", tmp_path, **{option: value})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Low brows.", ("Low brows.", None)),
        ("<think> Low. </think>\n<answer> anger </answer>", ("Low.", "anger")),
        ("```<think>Low.</think>```<answer>a</answer> or <answer>b</answer>", ("Low.", "b")),
        ("Low.</think><answer>anger</answer>", ("Low.", "anger")),
        ("<think>One.</think><think>Two.</think>", ("One.  Two.", None)),
        ("<think><answer>Low.</think>", ("Low.", None)),
        ("<think> </think><answer>anger</answer>", (None, "anger")),
        (None, (None, None)),
    ],
)
def test_no_tag_is_left_in_a_rationale(text, expected):
    assert split_thought(text) == expected
