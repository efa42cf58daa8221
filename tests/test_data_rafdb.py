"""RAF-DB: the label order, the split in the file names, copies without `_aligned`."""

from __future__ import annotations

import pytest
from miniatures import rafdb, text

from vlmface import data
from vlmface.data import check
from vlmface.errors import UserError


@pytest.mark.parametrize("suffix", ["", "_aligned"])
def test_labels_and_images_with_and_without_the_suffix(tmp_path, suffix):
    rafdb.write(tmp_path, suffix)
    rows = data.load("rafdb", tmp_path)
    assert rows["id"][0] == "rafdb-train_00001"
    labels = "sadness surprise fear disgust happiness anger neutral"
    assert " ".join(rows["emotion"]) == labels
    assert rows[0]["image"].size == (100, 100)
    assert data.load("rafdb", tmp_path, "test")["emotion"] == ["anger", "neutral"]


def test_compound_expressions_in_their_own_folder_or_beside_the_basic_ones(tmp_path):
    rafdb.write(tmp_path / "basic")
    rafdb.write_compound(tmp_path / "compound")
    for root in (tmp_path, tmp_path / "compound"):
        rows = data.load("rafdb", root, part="compound")
        assert rows["context"] == [
            ["Disgustedly Surprised"],
            ["Happily Surprised"],
            ["Angrily Disgusted"],
        ]
        assert rows["id"][0] == "rafdb-compound-train_00001" and rows["emotion"] == [None] * 3
        assert rows[0]["image"].size == (100, 100)
    assert len(data.load("rafdb", tmp_path)) == 7
    report = check.check("rafdb", tmp_path, options={"part": "compound"})
    assert "rows 3 (published 3,162)" in report["warnings"][0]
    text(tmp_path / "compound" / "EmoLabel" / "list_patition_label.txt", "train_00001.jpg 12")
    with pytest.raises(UserError, match=r"code 12, but compound expressions have 1 to 11"):
        data.load("rafdb", tmp_path, part="compound")
    with pytest.raises(UserError, match="'basic' and 'compound'"):
        data.load("rafdb", tmp_path, part="both")


def test_attributes_keep_the_owners_words(tmp_path):
    rafdb.write(tmp_path)
    rows = data.load("rafdb", tmp_path, attributes=True)
    assert rows["gender"][:3] == ["male", "female", None]
    assert rows["race"][:3] == ["Caucasian", "African-American", "Asian"]
    assert rows["age_group"][:5] == ["0-3", "4-19", "20-39", "40-69", "70+"]


def test_what_is_wrong_with_a_copy_is_named(tmp_path):
    rafdb.write(tmp_path)
    (tmp_path / "Image" / "aligned" / "train_00002.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 7 images.*train_00002"):
        data.load("rafdb", tmp_path)
    with pytest.warns(UserWarning, match="1 rows without an image"):
        assert len(data.load("rafdb", tmp_path, missing="drop")) == 6
    with pytest.raises(UserError, match=r"no split 'validation'.*hold_out"):
        data.load("rafdb", tmp_path, "validation")
    text(tmp_path / "EmoLabel" / "list_patition_label.txt", "train_00001.jpg 9")
    with pytest.raises(UserError, match="no emotion code 9"):
        data.load("rafdb", tmp_path)
