"""Rows of videos: clips between times or frames, single frames, lists and patterns of frames."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import videos
from miniatures import face, text
from miniatures.records import write_lines
from PIL import Image

from vlmface import data
from vlmface.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VLMFACE_CACHE", str(tmp_path / "cache"))
    # 20 frames of 25 a second, but the last ten come one second later than they should.
    times = [*range(10), *range(35, 45)]
    videos.write(tmp_path / "talk.mp4", 20, times=times)
    for number in range(1, 13):
        Image.fromarray(videos.picture(number)).save(face(tmp_path / "shot" / f"{number}.png", 1))
    return tmp_path


def frame_numbers(clip):
    return [round(videos.number_of(frame.convert("RGB"))) for frame in clip]


def test_clips_between_times(folder):
    path = text(
        folder / "a.csv",
        "video,start,end,emotion",
        "talk.mp4,0,0.2,sad",
        "talk.mp4,1.0,,fear",  # the first frame after the gap comes at 1.4 s
        "talk.mp4,,,anger",
    )
    rows = data.load("table", path, num_frames=5)
    assert [frame_numbers(row["frames"]) for row in rows] == [
        [0, 1, 2, 3, 4],
        [11, 13, 15, 17, 19],
        [2, 6, 10, 14, 18],
    ]
    assert rows["id"] == ["table-talk.mp4@0-0.2", "table-talk.mp4@1-", "table-talk.mp4"]
    assert rows["image"] == [None] * 3 and rows["emotion"] == ["sadness", "fear", "anger"]


def test_clips_that_the_video_does_not_have_are_counted(folder):
    path = text(
        folder / "a.csv",
        "video,start,end,emotion",
        "talk.mp4,0,1,sad",
        "talk.mp4,0.5,1.2,sad",  # inside the gap
        "talk.mp4,0,9,sad",
        "talk.mp4,1,0.5,sad",
    )
    assert len(data.load("table", path, num_frames=2)) == 1
    found = data.read("table", path, num_frames=2)
    assert [place.partition(":")[0][-6:] for place in next(iter(found.skipped.values()))] == [
        "line 3",
        "line 4",
        "line 5",
    ]
    with pytest.raises(UserError, match=r"line 2: there is no video and no folder .*other\.mp4"):
        data.load("table", text(path, "video,emotion", "other.mp4,sad"))


def test_clips_between_frame_numbers_of_a_video_and_of_a_folder(folder):
    path = text(folder / "a.csv", "video,start,end,emotion", "talk.mp4,3,5,sad", "shot,1,12,fear")
    rows = data.load("table", path, num_frames=3, time_unit="frames", first_frame=1)
    assert [frame_numbers(row["frames"]) for row in rows] == [[2, 3, 4], [3, 7, 11]]
    found = data.read("table", path, num_frames=3)
    assert "which have no times" in found.skipped["a video that cannot be decoded"][0]


def test_single_frames_are_found_by_number(folder):
    path = text(
        folder / "a.csv",
        "video,frame,emotion",
        "talk.mp4,4,sad",
        "talk.mp4,19,fear",
        "talk.mp4,20,sad",
    )
    rows = data.load("table", path)
    assert frame_numbers(rows["image"]) == [4, 19]
    assert rows["id"] == ["table-talk.mp4/000004", "table-talk.mp4/000019"]
    assert data.read("table", path).skipped == {"no picture of the frame": [f"{path}, line 4"]}
    again = data.load("table", path, first_frame=1)
    assert frame_numbers(again["image"]) == [3, 18, 19]
    with pytest.raises(UserError, match=r"'frame' is '4\.5', expected a whole number"):
        data.load("table", text(path, "video,frame,emotion", "talk.mp4,4.5,sad"))


def test_each_row_of_a_video_that_cannot_be_decoded_is_counted(folder):
    (folder / "broken.mp4").write_bytes(b"no video")
    lines = ["broken.mp4,1,sad", "talk.mp4,1,sad", "broken.mp4,2,sad"]
    path = text(folder / "a.csv", "video,frame,emotion", *lines)
    assert len(data.load("table", path)) == 1
    for table in (path, text(folder / "b.csv", "video,emotion", "broken.mp4,sad", "talk.mp4,sad")):
        (reason, places), *_ = data.read("table", table, num_frames=2).skipped.items()
        assert reason == "a video that cannot be decoded"
        assert [place.startswith(f"{table}, line") for place in places] == [True] * len(places)
    assert len(data.read("table", path).skipped[reason]) == 2


def test_lists_and_patterns_of_frames(folder):
    path = folder / "a.jsonl"
    files = ["shot/1.png", "shot/11.png"]
    write_lines(
        path,
        {"frames": files, "emotion": "sad"},
        {"frames": "shot/1*.png", "emotion": "fear"},
        {"frames": "shot", "emotion": "anger"},
        {"frames": '["shot/5.png"]', "emotion": "joy"},
        {"frames": "none/*.png", "emotion": "joy"},
    )
    rows = data.load("table", path, num_frames=4)
    assert [frame_numbers(row["frames"]) for row in rows] == [
        [1, 1, 11, 11],
        [1, 10, 11, 12],
        [2, 5, 8, 11],
        [5, 5, 5, 5],
    ]
    assert data.read("table", path).skipped == {"no frames": [f"{path}, line 5"]}
    with pytest.raises(UserError, match=r"line 2: the frame .*shot/99\.png is missing"):
        data.load("table", text(folder / "b.csv", "frames,emotion", "shot/1.png;shot/99.png,sad"))
    with pytest.raises(UserError, match="expected an absolute path or one inside"):
        data.load("table", text(folder / "b.csv", "frames,emotion", "../shot/*.png,sad"))


def test_columns_next_to_a_picture_are_notes(folder):
    face(folder / "a.jpg", 1)
    path = text(folder / "a.csv", "image,video,frames,frame,emotion", "a.jpg,talk,300,7,sad")
    rows = data.load("table", path)
    assert rows[0]["image"].size == (48, 48) and rows["frames"] == [None]
    assert rows["id"] == ["table-a.jpg"]


def test_openface_and_pyfeat_of_a_video(folder):
    from miniatures import face_tools

    units = (0.4, 3.2, 0, 1, 0)
    rows = [(frame, 0, 1, 10, units) for frame in (1, 5)]
    table = text(folder / "talk.csv", *face_tools.openface_rows(*rows))
    openface = data.load("table", table, tool="openface")
    assert frame_numbers(openface["image"]) == [0, 4]
    inputs = ("talk.mp4",) * 4
    pyfeat = data.load("table", face_tools.write_pyfeat(folder, inputs), tool="pyfeat")
    assert frame_numbers(pyfeat["image"]) == [0, 0, 1]


def test_the_cache_of_frames_follows_the_content(folder):
    path = text(folder / "a.csv", "video,frame,emotion", "talk.mp4,4,sad")
    first = data.load("table", path)[0]["image"]
    videos.write(folder / "talk.mp4", 4)
    with pytest.raises(UserError, match="table has no rows"):
        data.load("table", path)
    videos.write(folder / "talk.mp4", 20)
    assert np.abs(np.asarray(data.load("table", path)[0]["image"]) - np.asarray(first)).max() < 99
