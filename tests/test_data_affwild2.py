"""Aff-Wild2: three tracks, frames without a label or a face, headers that are believed."""

from __future__ import annotations

from pathlib import Path

import pytest
from miniatures import affwild2, text

from vlmface import data
from vlmface.errors import UserError

FIRST = "3rd_ABAW_Annotations/EXPR_Classification_Challenge"


def image_names(rows):
    return ["/".join(Path(path).parts[-2:]) for path in rows.columns["image"]]


def test_expressions_go_with_the_frame_of_their_line(tmp_path):
    affwild2.write(tmp_path)
    rows = data.load("affwild2", tmp_path)
    assert rows["emotion"] == [
        "neutral",
        "disgust",
        "fear",
        "happiness",
        "sadness",
        "surprise",
        None,
    ]
    assert rows["context"] == [None] * 6 + [["Other"]]
    assert rows["subject"] == ["1-30"] * 4 + ["video5_left"] * 3
    assert rows["id"][1] == "affwild2-1-30-00003"
    assert rows[0]["image"].size == (112, 112)
    found = data.read("affwild2", tmp_path, "train")
    assert image_names(found) == [
        "1-30/00001.jpg",
        "1-30/00003.jpg",
        "1-30/00004.jpg",
        "1-30/00006.jpg",
        "video5_left/00001.jpg",
        "video5_left/00002.jpg",
        "video5_left/00003.jpg",
    ]
    assert found.skipped == {"not annotated": ["1-30/00005"], "no face image": ["1-30/00002"]}
    assert data.load("affwild2", tmp_path, "validation")["emotion"] == ["anger", None]


def test_every_nth_frame(tmp_path):
    affwild2.write(tmp_path)
    rows = data.read("affwild2", tmp_path, "train", every=2)
    assert image_names(rows) == [
        "1-30/00001.jpg",
        "1-30/00003.jpg",
        "video5_left/00001.jpg",
        "video5_left/00003.jpg",
    ]
    assert rows.skipped == {"not annotated": ["1-30/00005"]}


def test_valence_and_arousal(tmp_path):
    affwild2.write(tmp_path)
    rows = data.load("affwild2", tmp_path, track="va")
    assert rows["valence"] == [0.5, -1, 0]
    assert rows["arousal"] == [-0.25, 1, 0]
    assert rows["emotion"] == [None] * 3
    found = data.read("affwild2", tmp_path, "train", track="va")
    assert found.skipped == {"not annotated": ["1-30/00003"], "no face image": ["1-30/00002"]}
    # A copy that marks them by another number: -5 would be a label then, and is refused.
    with pytest.raises(UserError, match="'valence' is -5"):
        data.load("affwild2", tmp_path, track="va", invalid=-2)


def test_action_units_are_those_of_the_header(tmp_path):
    affwild2.write(tmp_path)
    rows = data.load("affwild2", tmp_path, track="au")
    coded = [1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26]
    assert [unit["au"] for unit in rows[0]["aus"]] == coded
    assert [unit["au"] for unit in rows[0]["aus"] if unit["present"]] == [1, 12]
    # One unit of this frame is not annotated: it is left out of the list, not absent.
    assert [unit["au"] for unit in rows[1]["aus"]] == [n for n in coded if n != 25]
    assert [unit["au"] for unit in rows[1]["aus"] if unit["present"]] == [26]
    assert rows[0]["aus"][0]["intensity"] is None
    found = data.read("affwild2", tmp_path, "train", track="au")
    assert found.skipped == {"not annotated": ["1-30/00003"], "no face image": ["1-30/00002"]}


def test_what_is_wrong_is_named(tmp_path):
    affwild2.write(tmp_path)
    with pytest.raises(UserError, match="track='emotion'"):
        data.load("affwild2", tmp_path, track="emotion")
    with pytest.raises(UserError, match="every is 0, but must be a whole number at least 1"):
        data.load("affwild2", tmp_path, every=0)
    with pytest.raises(UserError, match="expected Aff-Wild2's cropped and aligned faces"):
        data.load("affwild2", tmp_path, images="faces")
    labels = tmp_path / FIRST / "Train_Set" / "1-30.txt"
    text(labels, "Anger,Neutral,Disgust,Fear,Happiness,Sadness,Surprise,Other", "0")
    with pytest.raises(UserError, match=r"video5_left\.txt has the header"):
        data.load("affwild2", tmp_path)
    (tmp_path / FIRST / "Train_Set" / "video5_left.txt").unlink()
    with pytest.raises(UserError, match=r"the header lists the classes \['Anger'"):
        data.load("affwild2", tmp_path)
    text(labels, affwild2.EXPR, "0", "", "1")
    with pytest.raises(UserError, match=r"1-30\.txt has an empty line"):
        data.load("affwild2", tmp_path)
    text(labels, affwild2.EXPR, "0", "happy")
    with pytest.raises(UserError, match=r"1-30\.txt is not the csv file that was expected"):
        data.load("affwild2", tmp_path)
    text(labels, affwild2.EXPR, "-1", "-1")
    with pytest.raises(UserError, match="none of the 1 label files"):
        data.load("affwild2", tmp_path)
    with pytest.raises(UserError, match="an action unit is -1: expected 0, 1, or -9"):
        data.load("affwild2", tmp_path, track="au", invalid=-9)
    (tmp_path / "EXPR_Recognition_Challenge").mkdir()
    with pytest.raises(UserError, match=r"has 2 folders.*annotations="):
        data.load("affwild2", tmp_path)
    assert len(data.load("affwild2", tmp_path, "validation", annotations=FIRST)) == 2
