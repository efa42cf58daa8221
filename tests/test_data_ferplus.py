"""FER+: how votes become labels, which face a row belongs to, what is left out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from miniatures import ferplus, text

from vlmface import data
from vlmface.data.adapters import ferplus as adapter
from vlmface.errors import UserError


def test_the_majority_of_the_votes(tmp_path):
    ferplus.write(tmp_path)
    rows = data.load("ferplus", tmp_path)
    labels = dict(zip(rows["id"], rows["emotion"], strict=True))
    assert labels == {
        "ferplus-0000000": "anger",
        "ferplus-0000003": "neutral",
        "ferplus-0000008": "contempt",
        "ferplus-0000009": "sadness",
    }
    assert data.load("ferplus", tmp_path, "validation")["emotion"] == ["neutral", "surprise"]
    assert data.load("ferplus", tmp_path, "test")["emotion"] == ["disgust", "fear", "happiness"]
    assert json.loads(rows["label_votes"][3]) == {
        "neutral": 0,
        "happiness": 0,
        "surprise": 0,
        "sadness": 6,
        "anger": 3,
        "disgust": 0,
        "fear": 0,
        "contempt": 0,
        "unknown": 1,
        "no_face": 0,
    }


def test_what_the_majority_leaves_out(tmp_path):
    ferplus.write(tmp_path)
    assert adapter.read(tmp_path, "train").skipped == {
        "no image name": ["line 4"],
        "no majority": ["line 3", "line 6", "line 9"],
        "majority for unknown or no face": ["line 7", "line 8"],
    }
    assert adapter.read(tmp_path, "test").skipped == {}


def test_the_distribution_keeps_ties_without_a_label(tmp_path):
    ferplus.write(tmp_path)
    rows = data.load("ferplus", tmp_path, protocol="distribution")
    labels = {int(i[-7:]): e for i, e in zip(rows["id"], rows["emotion"], strict=True)}
    assert labels == {
        0: "anger",
        1: None,
        3: "neutral",
        4: "sadness",
        5: None,
        7: None,
        8: "contempt",
        9: "sadness",
    }
    votes = [json.loads(cell) for cell in rows["label_votes"]]
    assert [sum(v.values()) for v in votes] == pytest.approx([1] * 8)
    assert {k: v for k, v in votes[3].items() if v} == {
        "neutral": 0.2,
        "sadness": 0.3,
        "unknown": 0.5,
    }
    assert adapter.read(tmp_path, "train", protocol="distribution").skipped == {
        "no image name": ["line 4"],
        "no vote for an emotion": ["line 8"],
    }


def test_each_row_keeps_its_own_face(tmp_path):
    """Neither the rows that have a name, counted, nor the numbers in the names give the row."""
    ferplus.write(tmp_path)
    rows = data.load("ferplus", tmp_path)
    first = [int(np.asarray(image)[0, 0]) for image in rows["image"]]
    assert first == [int(i[-7:]) for i in rows["id"]] == [0, 3, 8, 9]
    names = [json.loads(cell)["name"] for cell in rows["meta"]]
    assert names == ["fer0000000.png", "fer0000002.png", "fer0000007.png", "fer0000002.png"]


@pytest.mark.parametrize("base", [".", "data"])
def test_pictures_in_folders_lack_a_face_whose_name_was_used_again(tmp_path, base):
    ferplus.write_pictures(tmp_path, base)
    rows = data.load("ferplus", tmp_path)
    assert rows["id"] == ["ferplus-0000000", "ferplus-0000008", "ferplus-0000009"]
    assert rows["emotion"] == ["anger", "contempt", "sadness"]
    assert rows[0]["image"].size == (48, 48)
    skipped = adapter.read(tmp_path, "train").skipped
    assert skipped["its picture is that of a later row of the same name"] == ["line 5"]
    assert data.load("ferplus", tmp_path, "test")["emotion"] == ["disgust", "fear", "happiness"]


def test_what_is_wrong_with_a_copy_is_named(tmp_path):
    with pytest.raises(UserError, match=r"fer2013new\.csv is missing"):
        data.load("ferplus", tmp_path)
    ferplus.write_votes(tmp_path)
    with pytest.raises(UserError, match=r"no faces.*fer2013.csv.*FER2013Train"):
        data.load("ferplus", tmp_path)
    ferplus.write(tmp_path)
    with pytest.raises(UserError, match="protocol='mean'"):
        data.load("ferplus", tmp_path, protocol="mean")
    path = tmp_path / "fer2013.csv"
    lines = path.read_text().splitlines()
    text(path, *lines[:3], *lines[4:])
    with pytest.raises(UserError, match=r"14 rows.*15 rows.*row by row"):
        data.load("ferplus", tmp_path)
    text(path, *lines[:1], *lines[:0:-1])
    with pytest.raises(UserError, match="neither sorted nor filtered"):
        data.load("ferplus", tmp_path)


def test_a_malformed_row_is_named(tmp_path):
    ferplus.write(tmp_path)
    path = tmp_path / "fer2013new.csv"
    lines = path.read_text().splitlines()
    text(path, *lines[:-1], lines[-1].replace(",8,", ",many,"))
    with pytest.raises(UserError, match=r"fer2013new.csv.*many"):
        data.load("ferplus", tmp_path)
    text(path, *lines[:-1], lines[-1].replace("PrivateTest", "Private"))
    with pytest.raises(UserError, match="Usage 'Private'"):
        data.load("ferplus", tmp_path)
    text(path, lines[0].replace(",NF", ",no"), *lines[1:])
    with pytest.raises(UserError, match="NF"):
        data.load("ferplus", tmp_path)
