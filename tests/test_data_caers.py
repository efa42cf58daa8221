"""CAER-S: two spellings of a folder, no validation part."""

from __future__ import annotations

import pytest
from miniatures import caers, text

from vlmface import data
from vlmface.data.adapters import caers as adapter
from vlmface.errors import UserError

WORDS = ["anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"]


@pytest.mark.parametrize("anger", ["Anger", "Angry"])
def test_labels_with_both_spellings(tmp_path, anger):
    caers.write(tmp_path, anger)
    rows = data.load("caers", tmp_path)
    assert rows["emotion"] == [word for word in WORDS for _ in range(2)]
    assert rows["id"][:3] == [
        "caers-train/anger/0001",
        "caers-train/anger/0002",
        "caers-train/disgust/0001",
    ]
    assert rows[0]["image"].size == (72, 40)
    assert data.load("caers", tmp_path, "test")["emotion"] == WORDS


def test_what_is_wrong_with_a_copy_is_named(tmp_path):
    with pytest.raises(UserError, match="train is missing"):
        data.load("caers", tmp_path)
    caers.write(tmp_path)
    with pytest.raises(UserError, match=r"no split 'validation'.*hold_out"):
        data.load("caers", tmp_path, "validation")
    text(tmp_path / "test" / "Sad" / ".DS_Store")
    assert adapter.read(tmp_path, "test").skipped == {"no image file": ["Sad/.DS_Store"]}
    (tmp_path / "test" / "Contempt").mkdir()
    with pytest.raises(UserError, match="'Contempt' is not a label of emotion7"):
        data.load("caers", tmp_path, "test")


def test_both_spellings_in_one_copy_are_an_error(tmp_path):
    caers.write(tmp_path)
    caers.write(tmp_path, "Angry")
    with pytest.raises(UserError, match="'caers-train/anger/0001' occurs more than once"):
        data.load("caers", tmp_path)
