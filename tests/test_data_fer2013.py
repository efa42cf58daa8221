"""FER2013: pixels in a csv, three parts in one column, folders that sort in another order."""

from __future__ import annotations

import numpy as np
import pytest
from miniatures import fer2013, text

from vlmface import data
from vlmface.data.adapters import fer2013 as adapter
from vlmface.errors import UserError

TRAIN = [
    "anger",
    "disgust",
    "fear",
    "happiness",
    "sadness",
    "surprise",
    "neutral",
    "happiness",
    "sadness",
    "neutral",
]


def test_labels_and_pictures_of_the_csv(tmp_path):
    fer2013.write(tmp_path)
    rows = data.load("fer2013", tmp_path)
    assert rows["emotion"] == TRAIN
    assert rows["id"][0] == "fer2013-0000000"
    assert data.load("fer2013", tmp_path, "validation")["emotion"] == ["neutral", "surprise"]
    test = data.load("fer2013", tmp_path, "test")
    assert test["emotion"] == ["sadness", "anger", "disgust"]
    assert test["id"] == ["fer2013-0000012", "fer2013-0000013", "fer2013-0000014"]
    picture = test[1]["image"]
    assert (picture.mode, picture.size) == ("L", (48, 48))
    expected = fer2013.lines()[13].split(",")[1].split()
    assert np.asarray(picture).ravel().tolist() == [int(value) for value in expected]


def test_many_rows_in_many_pieces(tmp_path):
    """More than a megabyte of text is read in pieces; each face keeps its own pixels."""
    many = fer2013.lines() * 20
    text(tmp_path / "fer2013.csv", "emotion,pixels,Usage", *many)
    rows = data.load("fer2013", tmp_path, "test")
    assert rows["emotion"] == ["sadness", "anger", "disgust"] * 20
    first = [np.asarray(image)[0, 0] for image in rows["image"]]
    assert first == [12, 13, 14] * 20


def test_folders_are_read_by_name_not_by_number(tmp_path):
    fer2013.write_folders(tmp_path)
    rows = data.load("fer2013", tmp_path)
    expected = {f"fer2013-train/{word}/Training_{i}": word for i, word in enumerate(TRAIN)}
    assert dict(zip(rows["id"], rows["emotion"], strict=True)) == expected


def test_the_two_test_parts_in_one_folder_are_told_apart(tmp_path):
    fer2013.write_folders(tmp_path)
    validation = data.load("fer2013", tmp_path, "validation")
    assert validation["id"] == [
        "fer2013-validation/neutral/PublicTest_10",
        "fer2013-validation/surprise/PublicTest_11",
    ]
    test = data.load("fer2013", tmp_path, "test")
    assert sorted(test["emotion"]) == ["anger", "disgust", "sadness"]
    for path in (tmp_path / "test").glob("*/PublicTest_*"):
        path.unlink()
    with pytest.raises(UserError, match=r"no validation part.*hold_out"):
        data.load("fer2013", tmp_path, "validation")


def test_numbered_folders_are_refused(tmp_path):
    fer2013.write_folders(tmp_path)
    (tmp_path / "train" / "neutral").rename(tmp_path / "train" / "4")
    with pytest.raises(UserError, match="'4' is not a label of emotion7"):
        data.load("fer2013", tmp_path)


def test_files_that_are_no_pictures_are_listed(tmp_path):
    fer2013.write_folders(tmp_path)
    text(tmp_path / "train" / "angry" / "Thumbs.db")
    text(tmp_path / "train" / "sad" / "._Training_4.jpg")
    assert adapter.read(tmp_path, "train").skipped == {
        "no image file": ["angry/Thumbs.db", "sad/._Training_4.jpg"]
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7,{pixels},Training", "no emotion code 7"),
        ("3,{pixels} 9,Training", "line 2: 2305 pixels, expected 48 x 48"),
        ("3,{pixels}9,Training", "not a whole number from 0 to 255"),
        ("3,{pixels},Testing", "Usage 'Testing' is none of Training"),
        ("happy,{pixels},Training", "fer2013.csv.*happy"),
        ("3,{pixels}", "fer2013.csv.*columns"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(tmp_path, line, message):
    pixels = " ".join(["200"] * 48 * 48)
    text(tmp_path / "fer2013.csv", "emotion,pixels,Usage", line.format(pixels=pixels))
    with pytest.raises(UserError, match=message):
        data.load("fer2013", tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"fer2013.csv is missing.*holds nothing"):
        data.load("fer2013", tmp_path)
    text(tmp_path / "fer2013.csv", "emotion,pixels", "3,1 2 3")
    with pytest.raises(UserError, match="Usage"):
        data.load("fer2013", tmp_path)
