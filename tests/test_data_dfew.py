"""DFEW: labels from 1, folds, frames in the order of their numbers, clips without frames."""

from __future__ import annotations

from pathlib import Path

import pytest
from miniatures import dfew, face, text

from vlmface import data
from vlmface.data.clips import images_in_order
from vlmface.data.video import segment_midpoints
from vlmface.errors import UserError


def frame_names(rows, clip=0):
    return [Path(frame).name for frame in rows.columns["frames"][clip]]


def test_labels_and_frames(tmp_path):
    dfew.write(tmp_path)
    rows = data.load("dfew", tmp_path, **dfew.ARGUMENTS)
    assert rows["id"][0] == "dfew-00001"
    labels = "happiness sadness neutral anger surprise disgust fear"
    assert " ".join(rows["emotion"]) == labels
    assert rows[0]["image"] is None
    assert [frame.size for frame in rows[0]["frames"]] == [(48, 48)] * 4
    test = data.load("dfew", tmp_path, "test")
    assert test["id"] == ["dfew-00011", "dfew-00012", "dfew-10013"]
    assert test["emotion"] == ["anger", "fear", "neutral"]
    assert len(test[0]["frames"]) == 16


def test_frames_are_taken_by_number_and_not_by_text(tmp_path):
    dfew.write(tmp_path)
    read = data.dataset_module("dfew").read
    assert frame_names(read(tmp_path, "train", num_frames=12)) == [f"{i}.jpg" for i in range(1, 13)]
    assert frame_names(read(tmp_path, "train", num_frames=4)) == [
        "2.jpg",
        "5.jpg",
        "8.jpg",
        "11.jpg",
    ]
    assert frame_names(read(tmp_path, "train", num_frames=1)) == ["7.jpg"]
    # A short clip repeats frames, so that every clip has the same number.
    assert frame_names(read(tmp_path, "train", num_frames=24))[:5] == [
        f"{i}.jpg" for i in (1, 1, 2, 2, 3)
    ]


def test_the_order_of_names(tmp_path):
    for name in ("frame-10.jpg", "frame-9.JPG", "frame-0.png", "._frame-1.jpg", "notes.txt"):
        face(tmp_path / name, 0) if name[-3:] != "txt" else text(tmp_path / name)
    assert images_in_order(tmp_path) == ["frame-0.png", "frame-9.JPG", "frame-10.jpg"]
    assert images_in_order(tmp_path / "none") is None
    assert segment_midpoints(16, 16) == list(range(16))
    assert segment_midpoints(33, 16)[0] == 1
    assert segment_midpoints(33, 16)[-1] == 31
    assert segment_midpoints(1, 3) == [0, 0, 0]


def test_face_crops_are_preferred_and_another_copy_can_be_named(tmp_path):
    dfew.write(tmp_path)
    dfew.clip(tmp_path / "Clip" / "jpg_256" / "00011", ["00001.jpg"])
    read = data.dataset_module("dfew").read
    assert frame_names(read(tmp_path, "test", num_frames=1)) == ["7.jpg"]
    rows = read(tmp_path, "test", num_frames=1, clips="Clip/jpg_256")
    assert rows.columns["id"] == ["dfew-00011"]
    assert frame_names(rows) == ["00001.jpg"]
    assert [Path(p).name for p in rows.skipped["no folder of frames"]] == ["00012", "10013"]


def test_clips_without_frames_are_counted(tmp_path):
    dfew.write(tmp_path)
    folder = tmp_path / "Clip" / "clip_224x224_16f"
    (folder / "00002").rename(tmp_path / "moved")
    for frame in (folder / "00003").iterdir():
        frame.unlink()
    rows = data.dataset_module("dfew").read(tmp_path, "train", num_frames=2)
    assert rows.skipped == {
        "no folder of frames": [str(folder / "00002")],
        "no frames in the folder": [str(folder / "00003")],
    }
    assert rows.columns["emotion"].to_pylist() == [
        "happiness",
        "anger",
        "surprise",
        "disgust",
        "fear",
    ]


def test_what_is_wrong_is_named(tmp_path):
    dfew.write(tmp_path)
    with pytest.raises(UserError, match=r"fold=6.*1 to 5"):
        data.load("dfew", tmp_path, fold=6)
    with pytest.raises(UserError, match=r"DFEW's labels not found.*set_2\.csv"):
        data.load("dfew", tmp_path, fold=2)
    with pytest.raises(UserError, match="num_frames is 0, but must be a whole number at least 1"):
        data.load("dfew", tmp_path, num_frames=0)
    with pytest.raises(UserError, match=r"no folder of extracted frames.*clips=.*ffmpeg -i clip"):
        data.load("dfew", tmp_path, clips="Clip/other")
    (tmp_path / "Clip" / "empty").mkdir()
    with pytest.raises(UserError, match=r"none of the 7 clips.*ffmpeg -i 00001\.mp4"):
        data.load("dfew", tmp_path, clips="Clip/empty")
    labels = tmp_path / "EmoLabel_DataSplit" / "train(single-labeled)" / "set_1.csv"
    text(labels, "video_name,label", "1,0")
    with pytest.raises(UserError, match="dfew has no emotion code 0"):
        data.load("dfew", tmp_path)
