"""SFEW 2.0: the layouts that go round, a test part without labels."""

from __future__ import annotations

import pytest
from miniatures import face, sfew, text

from vlmface import data
from vlmface.data.adapters import sfew as adapter
from vlmface.errors import UserError

WORDS = ["anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"]


@pytest.mark.parametrize(
    "aligned",
    ["{0}/{0}_Aligned_Faces", "{0}_Aligned_Faces", "{0}/{0}_Aligned_Faces_new", "{0}"],
)
def test_labels_in_every_layout(tmp_path, aligned):
    sfew.write(tmp_path, aligned)
    rows = data.load("sfew", tmp_path)
    assert rows["emotion"] == WORDS
    assert rows["id"][0] == "sfew-Train/anger/Airheads_000000000_00000005"
    assert data.load("sfew", tmp_path, "validation")["emotion"] == WORDS[3:6]
    test = data.load("sfew", tmp_path, "test")
    assert test["emotion"] == [None, None]
    assert test["id"][1] == "sfew-Test/Airheads_000000021_00000005"


def test_aligned_faces_come_before_the_stills(tmp_path):
    sfew.write(tmp_path)
    face(tmp_path / "Train" / "Train" / "Angry" / "x.png", 1)
    face(tmp_path / "Train" / "Angry" / "x.png", 1)
    assert len(data.load("sfew", tmp_path)) == 7


def test_what_is_wrong_with_a_copy_is_named(tmp_path):
    with pytest.raises(UserError, match=r"Train is missing.*Train_Aligned_Faces"):
        data.load("sfew", tmp_path)
    sfew.write(tmp_path)
    text(tmp_path / "Test" / "Test_Aligned_Faces" / "Thumbs.db")
    assert adapter.read(tmp_path, "test").skipped == {"no image file": ["Thumbs.db"]}
    place = tmp_path / "Train" / "Train_Aligned_Faces"
    (place / "Sad").rename(place / "Bored")
    with pytest.raises(UserError, match="'Bored' is not a label of emotion7"):
        data.load("sfew", tmp_path)
