"""RAER: labels from 1, frames without zeros in their names, boxes that belong to the frames."""

from __future__ import annotations

import json

import pytest
from miniatures import raer, text

from vlmface import data
from vlmface.errors import UserError


@pytest.mark.parametrize("above", ["", "RAER/"])
def test_labels_frames_and_boxes(tmp_path, above):
    root = tmp_path / "RAER"
    raer.write(root, above)
    rows = data.load("raer", root, **raer.ARGUMENTS)
    assert rows["id"][3] == f"raer-{above}train/Fatigue/001"
    assert rows["context"] == [[word] for word in raer.WORDS]
    assert rows["emotion"] == [None] * 5
    assert len(rows[0]["frames"]) == 4
    extra = [json.loads(meta) for meta in rows["meta"]]
    # The middles of four segments of twelve frames: 1, 4, 7 and 10, by number.
    assert extra[0]["face_boxes"] == [[i, 1, i + 20, 30] for i in (1, 4, 7, 10)]
    assert extra[0]["body_box"] is None
    assert extra[1] == {"face_boxes": [None] * 4, "body_box": [0, 5, 40, 48]}
    assert extra[4] == {"face_boxes": [None] * 4, "body_box": None}


def test_splits_and_another_list(tmp_path):
    raer.write(tmp_path)
    options = {"num_frames": 1, "faces": None, "bodies": None}
    assert data.load("raer", tmp_path, "validation", **options)["context"] == [["Fatigue"]]
    test = data.load("raer", tmp_path, "test", **options)
    assert test["context"] == [["Distraction"], ["Neutrality"]]
    assert test["meta"] == ["{}", "{}"]
    text(tmp_path / "annotation" / "train.txt", "train/Enjoyment/001 12 2")
    rows = data.load("raer", tmp_path, listing="train.txt", **options)
    assert rows["context"] == [["Enjoyment"]]


def test_boxes_stay_with_their_clip_when_another_is_skipped(tmp_path):
    raer.write(tmp_path)
    (tmp_path / "train" / "Neutrality" / "001").rename(tmp_path / "moved")
    rows = data.dataset_module("raer").read(tmp_path, "train", num_frames=1)
    assert rows.columns["context"] == [[word] for word in raer.WORDS[1:]]
    assert json.loads(rows.columns["meta"][0])["body_box"] == [0, 5, 40, 48]
    assert len(rows.skipped["no folder of frames"]) == 1


def test_what_is_wrong_is_named(tmp_path):
    raer.write(tmp_path)
    with pytest.raises(UserError, match=r"other\.json is missing: expected RAER's boxes"):
        data.load("raer", tmp_path, faces="other.json")
    with pytest.raises(UserError, match=r"all\.txt is missing"):
        data.load("raer", tmp_path, listing="all.txt")
    text(tmp_path / "bounding_box" / "body.json", json.dumps({"/elsewhere/001": [0, 0, 1, 1]}))
    with pytest.raises(UserError, match=r"'/elsewhere/001'.*none for the clips of the list"):
        data.load("raer", tmp_path)
    (tmp_path / "bounding_box" / "body.json").unlink()
    assert "body_box" not in json.loads(data.load("raer", tmp_path, num_frames=1)["meta"][0])
    text(tmp_path / "annotation" / "test.txt", "test/Neutrality/003 12 0")
    with pytest.raises(UserError, match=r"label '0', expected 1 to 5 \(Neutrality"):
        data.load("raer", tmp_path, "test")
    text(tmp_path / "annotation" / "test.txt", "/elsewhere/003 12 1")
    with pytest.raises(UserError, match=r"none of the 1 clips.*/elsewhere/003; extract"):
        data.load("raer", tmp_path, "test", faces=None, bodies=None)
