"""FERBench: a slash that is no root, nouns beside adjectives, questions as they are asked."""

from __future__ import annotations

import json

import pytest
from miniatures import ferbench
from miniatures.records import NOT_RECORDS, write_json

from vlmface import data
from vlmface.errors import UserError

EMOTIONS = {
    "rafdb": ["neutral", "happiness"],
    "ferplus": ["anger", "contempt", "sadness"],
    "affectnet": ["fear", "contempt"],
    "sfew": ["anger", "happiness"],
}


@pytest.mark.parametrize("part", [*EMOTIONS, "all"])
def test_every_label_is_the_canonical_noun_and_every_question_is_intact(tmp_path, part):
    ferbench.write(tmp_path)
    rows = data.load("ferbench", tmp_path, "test", part=part)
    parts = list(EMOTIONS) if part == "all" else [part]
    assert rows["emotion"] == [emotion for name in parts for emotion in EMOTIONS[name]]
    asked = [json.loads(row) for row in rows["meta"]]
    items = [
        (name, c, word)
        for name in parts
        for _, c, found in [ferbench.ITEMS[name]]
        for _, word in found
    ]
    assert asked == [
        {
            "part": name,
            "candidate_labels": candidates,
            "label_word": word,
            "prompt": ferbench.question(candidates),
        }
        for name, candidates, word in items
    ]
    assert rows[0]["image"].size == (48, 48)
    assert set(rows["rationale"]) == {None}


def test_ids_are_the_paths_and_published_counts_add_up(tmp_path):
    ferbench.write(tmp_path)
    ids = data.load("ferbench", tmp_path, "test")["id"]
    assert ids[0] == "ferbench-RAF-DB/aligned/test_3068_aligned"
    assert ids[2] == "ferbench-FERPlus/test/angry/fer0032225"
    counts = dict(data.dataset_module("ferbench").PUBLISHED["test"])
    assert counts.pop("rows") == sum(counts.values()) == 3068 + 3573 + 4000 + 431


def test_the_images_may_lie_elsewhere_and_a_missing_one_is_named(tmp_path):
    ferbench.write(tmp_path / "questions")
    (tmp_path / "questions" / "RAF-DB").rename(tmp_path / "RAF-DB")
    loaded = data.load(
        "ferbench", tmp_path / "questions", "test", part="rafdb", images=str(tmp_path)
    )
    assert len(loaded) == 2
    with pytest.raises(UserError, match=r"2 of 9 images.*RAF-DB/aligned/test_3068_aligned\.jpg"):
        data.load("ferbench", tmp_path / "questions", "test")


GOOD = {"image_path": "/a.jpg", "true_label": "happy", "prompt": "?", "candidate_labels": ["happy"]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (GOOD | {"image_path": "/../a.jpg"}, "'image_path' is '/../a.jpg', expected a path inside"),
        (GOOD | {"image_path": "//etc/passwd"}, "inside the image folder"),
        (GOOD | {"image_path": "C:\\a.jpg"}, "inside the image folder"),
        (GOOD | {"image_path": "a\0.jpg"}, "inside the image folder"),
        (GOOD | {"true_label": "unhappy"}, "'true_label' is 'unhappy', expected one of anger"),
        (GOOD | {"true_label": "sad"}, "'sad', expected one of the candidates happy"),
        (GOOD | {"candidate_labels": {"happy": 1}}, "'candidate_labels' is .*a list of texts"),
        (GOOD | {"prompt": 10**300}, r"'prompt' is 1000+\.\.\., expected a text"),
        ({"image_path": "/a.jpg"}, "'candidate_labels' is missing"),
        (["/a.jpg", "happy"], "expected a record"),
    ],
)
def test_a_wrong_record_is_named_with_its_file_and_number(tmp_path, record, message):
    ferbench.write(tmp_path)
    path = write_json(tmp_path / ferbench.ITEMS["rafdb"][0], [GOOD, record])
    with pytest.raises(UserError, match=message) as error:
        data.load("ferbench", tmp_path, "test", part="rafdb")
    assert str(error.value).startswith(f"{path}, record 2: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"image_path": 1}', "expected a list of records"),
        (b'[{"prompt": "caf\xe9"}]', "line 1: byte b'.xe9' is not UTF-8"),
        (b'[{"prompt": "cut o', "is the download complete"),
        (b'[{"prompt": "\\ud83d"}]', "record 1: a text holds half of a"),
        *NOT_RECORDS,
    ],
)
def test_a_file_that_is_something_else_is_named(tmp_path, content, message):
    ferbench.write(tmp_path)
    path = tmp_path / ferbench.ITEMS["rafdb"][0]
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        data.load("ferbench", tmp_path, "test", part="rafdb")
    assert str(path) in str(error.value) and len(str(error.value)) < 500


def test_options_and_splits_that_do_not_exist(tmp_path):
    ferbench.write(tmp_path)
    with pytest.raises(UserError, match="part='ck': use one of 'all', 'rafdb'"):
        data.load("ferbench", tmp_path, "test", part="ck")
    with pytest.raises(UserError, match="no split 'train'"):
        data.load("ferbench", tmp_path, "train")
    with pytest.raises(UserError, match="images='/nowhere' is not a folder"):
        data.load("ferbench", tmp_path, "test", images="/nowhere")
    (tmp_path / ferbench.ITEMS["sfew"][0]).unlink()
    with pytest.raises(UserError, match=r"sfew_2\.0_qa\.json is missing: expected FERBench's"):
        data.load("ferbench", tmp_path, "test")
