"""BAH: transcripts with commas that are not quoted, frames `frame-9.jpg` before `frame-10.jpg`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from miniatures import bah, text

from vlmface import data
from vlmface.errors import UserError


def test_labels_transcripts_and_people(tmp_path):
    bah.write(tmp_path)
    rows = data.load("bah", tmp_path, **bah.ARGUMENTS)
    assert rows["context"] == [["With A-H"], ["No A-H"], ["No A-H"]]
    assert rows["emotion"] == [None] * 3
    assert rows["subject"] == ["82711", "82711", "82729"]
    assert rows["id"][1] == "bah-82711_Question_2_2024-11-18 16-09-44_Video"
    said = [json.loads(meta)["transcript"] for meta in rows["meta"]]
    assert said == ["Well, I, um, sleep.", "", '"No".']
    assert len(rows[0]["frames"]) == 4
    assert data.load("bah", tmp_path, "validation")["context"] == [["With A-H"]]
    assert data.load("bah", tmp_path, "test")["context"] == [["No A-H"]]


def test_frames_are_taken_by_number(tmp_path):
    bah.write(tmp_path)
    rows = data.dataset_module("bah").read(tmp_path, "train", num_frames=4)
    assert [Path(frame).name for frame in rows.columns["frames"][0]] == [
        "frame-1.jpg",
        "frame-4.jpg",
        "frame-7.jpg",
        "frame-10.jpg",
    ]


def test_other_names_of_the_folders(tmp_path):
    bah.write(tmp_path)
    (tmp_path / "split").rename(tmp_path / "lists")
    (tmp_path / "cropped-aligned-faces").rename(tmp_path / "crops")
    with pytest.raises(UserError, match="BAH's lists of videos not found"):
        data.load("bah", tmp_path)
    with pytest.raises(UserError, match=r"no folder of extracted frames.*clips=.*ffmpeg"):
        data.load("bah", tmp_path, lists="lists")
    assert len(data.load("bah", tmp_path, lists="lists", clips="crops")) == 3


def test_what_is_wrong_is_named(tmp_path):
    bah.write(tmp_path)
    listing = tmp_path / "split" / "train.txt"
    text(listing, *bah.TRAIN, "Videos/1/Visite_1/without.mp4")
    rows = data.dataset_module("bah").read(tmp_path, "train")
    assert rows.skipped == {"malformed line": ["train.txt:4: Videos/1/Visite_1/without.mp4"]}
    text(listing, "Videos/82711/Visite_1/a.mp4,2,what")
    with pytest.raises(UserError, match=r"label '2', expected 0 \(No A-H\) or 1 \(With A-H\)"):
        data.load("bah", tmp_path)
    text(listing, "a.mp4,1,what")
    with pytest.raises(UserError, match=r"'a\.mp4', expected Videos/PERSON"):
        data.load("bah", tmp_path)
