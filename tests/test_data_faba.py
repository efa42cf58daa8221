"""FABA-Instruct: no label out of a text that denies it, codes of the scorer, paths from above."""

from __future__ import annotations

import json

import pytest
from miniatures import faba
from miniatures.records import presence, write_json

from vlmface import data
from vlmface.errors import UserError


def test_training_texts_are_rationales_and_no_labels(tmp_path):
    faba.write(tmp_path)
    rows = data.load("faba", tmp_path)
    names = ("916/93eb", "1194/4dfc")
    assert rows["id"] == [f"faba-emotion-AffectNet/AffectNet_v2/{name}" for name in names]
    assert rows["emotion"] == [None, None] and rows["aus"] == [None, None]
    assert rows["rationale"] == [faba.GENTLE, "Happy."]
    assert [json.loads(row) for row in rows["meta"]] == [
        {"prompt": "What is the emotion of this face?"},
        {"prompt": "Describe the emotion."},
    ]
    assert rows["rationale_source"] == ["teacher"] * 2 and rows["rationale_saw_label"] == [True] * 2
    assert rows[0]["image"].size == (48, 48)
    units = data.load("faba", tmp_path, task="au", au_set=["AU4", "AU12"])
    assert (units["rationale"], units["aus"]) == ([faba.TENSE], [None])
    assert units["id"] == ["faba-au-AffectNet/AffectNet_v2/1194/4dfc"]


def test_test_labels_are_codes_or_words(tmp_path):
    faba.write(tmp_path)
    rows = data.load("faba", tmp_path, "test")
    assert rows["emotion"] == ["happiness", "fear", "sadness", None]
    assert set(rows["rationale"]) == {faba.GENTLE}
    assert json.loads(rows["meta"][0]) == {"prompt": "What emotions are conveyed by this face?"}


def test_aus_are_those_listed_and_the_rest_is_unknown_or_absent(tmp_path):
    faba.write(tmp_path)
    rows = data.load("faba", tmp_path, "test", task="au")
    assert presence(rows) == [{4: True, 9: True, 15: True}, None, {43: True}]
    rows = data.load("faba", tmp_path, "test", task="au", au_set=[4, 12])
    assert presence(rows) == [
        {4: True, 9: True, 12: False, 15: True},
        {4: False, 12: False},
        {4: False, 12: False, 43: True},
    ]


def test_images_may_lie_elsewhere(tmp_path):
    faba.write(tmp_path / "FABAInstruct")
    (tmp_path / "FABAInstruct" / "train" / "images").rename(tmp_path / "images")
    with pytest.raises(UserError, match=r"2 of 2 images.*train/images/AffectNet/AffectNet_v2/916"):
        data.load("faba", tmp_path / "FABAInstruct")
    (tmp_path / "elsewhere" / "train").mkdir(parents=True)
    (tmp_path / "images").rename(tmp_path / "elsewhere" / "train" / "images")
    elsewhere = str(tmp_path / "elsewhere")
    assert len(data.load("faba", tmp_path / "FABAInstruct", images=elsewhere)) == 2


TURNS = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": "FABAInstruct/../../a.jpg"}, "inside the image folder"),
        ({"image": "FABAInstruct//etc/a.jpg"}, "inside the image folder"),
        ({"conversations": TURNS * 2}, "'conversations' is .*one question and one answer"),
        ({"conversations": TURNS[:1]}, "the speakers are user: expected"),
        ({"conversations": TURNS[::-1]}, "the speakers are assistant, user"),
        ({"conversations": {"human": "?"}}, "'conversations' is"),
        ({"conversations": ["?", "!"]}, "'conversations' is"),
        ({"conversations": []}, "'conversations' is"),
        ({"conversations": [TURNS[0], {"from": "gpt"}]}, "a turn has the content None"),
        ({"label": "joyless"}, "'label' is 'joyless', expected one of anger"),
        ({"label": 7}, "'label' is 7, expected an emotion or one of"),
        ({"label": ["anger"]}, "'label' is"),
    ],
)
def test_a_wrong_record_is_named_with_its_file_and_number(tmp_path, fields, message):
    faba.write(tmp_path)
    path = tmp_path / "train" / "train_emotion_anno.json"
    good = faba.train("916/93eb", "?", "!")
    write_json(path, [good, good | fields])
    with pytest.raises(UserError, match=message) as error:
        data.load("faba", tmp_path)
    assert str(error.value).startswith(f"{path}, record 2: ")


@pytest.mark.parametrize("label", ["4, 99", ["4"], "smile", 1.5])
def test_a_wrong_au_label_is_named(tmp_path, label):
    faba.write(tmp_path)
    path = write_json(tmp_path / "eval" / "eval_au_anno.json", [faba.test("7/a", label, "!")])
    with pytest.raises(UserError, match="record 1: 'label'") as error:
        data.load("faba", tmp_path, "test", task="au")
    assert str(path) in str(error.value)


def test_tasks_and_files(tmp_path):
    faba.write(tmp_path)
    with pytest.raises(UserError, match="task='aus': use one of 'emotion', 'au'"):
        data.load("faba", tmp_path, task="aus")
    with pytest.raises(UserError, match=r"train_emotion_anno\.json is missing"):
        data.load("faba", tmp_path / "eval")
