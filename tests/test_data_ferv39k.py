"""FERV39k: words separated by a blank, clip numbers that start again in each scene."""

from __future__ import annotations

import json

import pytest
from miniatures import ferv39k, text

from vlmface import data
from vlmface.errors import UserError


def test_labels_scenes_and_frames(tmp_path):
    ferv39k.write(tmp_path)
    rows = data.load("ferv39k", tmp_path, **ferv39k.ARGUMENTS)
    assert " ".join(rows["emotion"]) == "anger disgust fear happiness neutral sadness surprise"
    assert rows["id"][:2] == ["ferv39k-A/Angry/0001", "ferv39k-B/Disgust/0001"]
    assert [json.loads(m)["scene"] for m in rows["meta"]] == list("ABCDEFG")
    assert len(rows[3]["frames"]) == 4
    test = data.load("ferv39k", tmp_path, "test", num_frames=1)
    assert test["emotion"] == ["sadness", "sadness"]
    assert test["id"] == ["ferv39k-A/Sad/0001", "ferv39k-A/Sad/0010"]


def test_malformed_lines_and_missing_clips_are_listed(tmp_path):
    ferv39k.write(tmp_path)
    listing = tmp_path / "4_setups" / "All_scenes" / "test_All.csv"
    text(listing, *ferv39k.TEST, "", "A/Sad/0011,Sad", "A/Sad/0012 Sad")
    rows = data.dataset_module("ferv39k").read(tmp_path, "test")
    assert len(rows) == 2
    assert rows.skipped == {
        "malformed line": ["test_All.csv:4: A/Sad/0011,Sad"],
        "no folder of frames": [str(tmp_path / "2_ClipsforFaceCrop" / "A" / "Sad" / "0012")],
    }


def test_what_is_wrong_is_named(tmp_path):
    ferv39k.write(tmp_path)
    with pytest.raises(UserError, match=r"no folder of extracted frames.*ffmpeg"):
        data.load("ferv39k", tmp_path, clips="0_videos")
    listing = tmp_path / "4_setups" / "All_scenes" / "test_All.csv"
    text(listing, "A/Sad/0001 Bored")
    with pytest.raises(UserError, match="'Bored' is not a label"):
        data.load("ferv39k", tmp_path, "test")
    text(listing, "A/Sad/0001,Sad")
    with pytest.raises(UserError, match="lists no clips"):
        data.load("ferv39k", tmp_path, "test")
    listing.unlink()
    with pytest.raises(UserError, match=r"test_All\.csv is missing"):
        data.load("ferv39k", tmp_path, "test")
