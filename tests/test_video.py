"""Frames of video files by what can be decoded; files that are cut off, damaged or hostile."""

from __future__ import annotations

import builtins
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import videos
from miniatures import face, mafw, raer
from PIL import Image

from vlmface import data
from vlmface.data import check, crop_cache, crops, video
from vlmface.data.clips import with_frames
from vlmface.errors import UserError


def numbers(images) -> list[int]:
    found = [videos.number_of(image) for image in images]
    assert all(abs(one - round(one)) < 0.3 for one in found), found
    return [round(one) for one in found]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLMFACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "videos"


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".webm", ".mkv"])
def test_middles_of_equal_segments(tmp_path, suffix):
    path = videos.write(tmp_path / f"clip{suffix}", 20)
    images = video.read_frames(path, 5)
    assert [(one.mode, one.size) for one in images] == [("RGB", (64, 48))] * 5
    assert numbers(images) == [2, 6, 10, 14, 18]
    assert numbers(video.read_frames(path, 1)) == [10]
    assert numbers(video.read_frames(path, 20)) == list(range(20))
    assert numbers(video.read_frames(path, 40)) == [i // 2 for i in range(40)]


def test_times_do_not_matter(tmp_path):
    """A variable frame rate: the second half of the frames fills a tenth of the time."""
    times = [10 * i for i in range(10)] + [100 + i for i in range(10)]
    path = videos.write(tmp_path / "clip.mkv", 20, times=times)
    assert numbers(video.read_frames(path, 5)) == [2, 6, 10, 14, 18]


def test_a_video_of_one_frame(tmp_path):
    path = videos.write(tmp_path / "clip.mp4", 1)
    assert numbers(video.read_frames(path, 16)) == [0] * 16


def red_corner(image: Image.Image) -> tuple[bool, bool]:
    """(is it at the bottom, is it at the right)."""
    pixels = np.asarray(image).astype(int)
    red = pixels[..., 0] - pixels[..., 1]
    rows, columns = np.nonzero(red > 100)
    return bool(rows.mean() > image.height / 2), bool(columns.mean() > image.width / 2)


@pytest.mark.parametrize(
    ("matrix", "size", "corner"),
    [
        ((1, 0, 0, 1), (64, 48), (False, False)),
        ((0, 1, -1, 0), (48, 64), (False, True)),  # a quarter turn to the right
        ((-1, 0, 0, -1), (64, 48), (True, True)),
        ((0, -1, 1, 0), (48, 64), (True, False)),
        ((-1, 0, 0, 1), (64, 48), (False, True)),  # mirrored
        ((1, 0, 0, -1), (64, 48), (True, False)),
    ],
)
def test_turned_as_the_file_says(tmp_path, matrix, size, corner):
    path = videos.turned(videos.write(tmp_path / "clip.mp4", 3), matrix)
    (image,) = video.read_frames(path, 1)
    assert image.size == size
    assert red_corner(image) == corner


# --- what is wrong with a file --------------------------------------------------------------------


def test_missing_empty_and_other_files(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 50)
    face(tmp_path / "picture.jpg", 0).rename(tmp_path / "picture.mp4")
    for name, message in (
        ("none.mp4", "does not exist"),
        (".", "is a folder"),
        ("empty.mp4", r"is empty \(0 bytes\)"),
        ("text.mp4", "is not a video that can be read"),
        ("picture.mp4", "is not a video that can be read"),
    ):
        with pytest.raises(UserError, match=message):
            video.read_frames(tmp_path / name, 16)
    with pytest.raises(UserError, match=r"num_frames=0: a clip needs at least one"):
        video.read_frames(videos.write(tmp_path / "clip.mp4", 2), 0)


@pytest.mark.parametrize(
    "playlist",
    ["ffconcat version 1.0\nfile clip.mkv\n", "#EXTM3U\n#EXTINF:1,\nclip.mkv\n#EXT-X-ENDLIST\n"],
)
def test_playlists_open_no_other_files(tmp_path, playlist):
    videos.write(tmp_path / "clip.mkv", 3)
    (tmp_path / "list.mp4").write_text(playlist)
    with pytest.raises(UserError, match="is not a video that can be read"):
        video.read_frames(tmp_path / "list.mp4", 16)


def test_sound_alone(tmp_path):
    path = videos.write(tmp_path / "song.mp4", 0, sound=True)
    with pytest.raises(UserError, match="has no pictures, only audio"):
        video.read_frames(path, 16)


def test_sound_beside_pictures_is_passed_over(tmp_path):
    path = videos.write(tmp_path / "clip.mp4", 20, sound=True)
    assert numbers(video.read_frames(path, 2)) == [5, 15]
    # A still, and a second of sound: complete, although its only picture ends early.
    path = videos.write(tmp_path / "still.mp4", 1, sound=True)
    assert numbers(video.read_frames(path, 2)) == [0, 0]


@pytest.mark.parametrize(
    ("suffix", "options"), [(".mp4", {"movflags": "faststart"}), (".webm", {}), (".mkv", {})]
)
def test_cut_off(tmp_path, suffix, options):
    whole = videos.write(tmp_path / f"whole{suffix}", 100, options=options).read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: int(0.6 * len(whole))])
    with pytest.raises(UserError, match=r"is cut off: its duration is 4\.0 s, but it ends"):
        video.read_frames(path, 16)
    path.write_bytes(whole[: int(0.97 * len(whole))])
    assert len(video.read_frames(path, 4)) == 4


def test_index_that_is_cut_off(tmp_path):
    whole = videos.write(tmp_path / "whole.mp4", 100).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is not a video that can be read"):
        video.read_frames(tmp_path / "cut.mp4", 16)


def test_damaged(tmp_path):
    path = videos.write(tmp_path / "clip.mp4", 100, options={"movflags": "faststart"})
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 8
    for i in range(start, start + (len(content) - start) // 2):
        content[i] ^= 0x5A
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"packets cannot be decoded|no frame that can be decoded"):
        video.read_frames(path, 16)


def test_every_cut_and_flip_gives_frames_or_one_kind_of_error(tmp_path):
    path = tmp_path / "hostile.mp4"
    whole = videos.write(tmp_path / "clip.mp4", 6, options={"movflags": "faststart"}).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(60):
        content = bytearray(whole)
        if trial % 2:
            del content[int(rng.integers(len(content))) :]
        else:
            for i in rng.integers(len(content), size=1 + trial):
                content[i] = int(rng.integers(256))
        path.write_bytes(content)
        try:
            assert len(video.read_frames(path, 4)) == 4
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
    assert 20 < refused < 60


def test_limits(tmp_path, monkeypatch):
    path = videos.write(tmp_path / "clip.mp4", 20)
    monkeypatch.setattr(video, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(UserError, match="is 64 x 48 pixels, the limit is"):
        video.read_frames(path, 16)
    monkeypatch.undo()
    monkeypatch.setattr(video, "MAX_FRAMES", 19)
    with pytest.raises(UserError, match=r"too long: more than 19 frames of 64 x 48 pixels"):
        video.read_frames(path, 16)
    monkeypatch.undo()
    monkeypatch.setattr(video, "MAX_DECODED", 64 * 48 * 10)
    with pytest.raises(UserError, match="too long: more than 10 frames"):
        video.read_frames(path, 16)
    monkeypatch.undo()
    small = videos.write(tmp_path / "small.avi", 2, size=(16, 8))
    with pytest.raises(UserError, match="is 16 x 8 pixels, too small"):
        video.read_frames(small, 16)


def test_without_pyav(tmp_path, monkeypatch):
    path = videos.write(tmp_path / "clip.mp4", 2)
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "av":
            raise ImportError("No module named 'av'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"pip install 'vlmface\[video\]'"):
        video.read_frames(path, 16)
    with pytest.raises(UserError, match=r"pip install 'vlmface\[video\]'"):
        with_frames({"id": ["a"]}, [tmp_path / "clip"], 2)


# --- data sets whose clips are files --------------------------------------------------------------


def test_videos_beside_folders(tmp_path, cache):
    clips = tmp_path / "clips"
    for number in range(1, 4):
        face(clips / "a" / f"{number}.jpg", number)
    (clips / "none").mkdir()
    videos.write(clips / "b.mp4", 8)
    videos.write(clips / "c.avi", 8)
    (clips / "d.webm").write_bytes(b"broken")
    places = [clips / name for name in ("a", "b", "c", "d", "none", "missing")]
    rows = with_frames({"id": list("abcdnm")}, places, 4)
    assert rows.columns["id"] == ["a", "b", "c"]
    assert {reason: len(what) for reason, what in rows.skipped.items()} == {
        "a video that cannot be decoded": 1,
        "no folder of frames": 1,
        "no frames in the folder": 1,
    }
    assert "d.webm' is not a video" in rows.skipped["a video that cannot be decoded"][0]
    own, first, second = rows.columns["frames"]
    assert [Path(one).name for one in own] == ["1.jpg", "2.jpg", "2.jpg", "3.jpg"]
    for paths in (first, second):
        assert numbers(map(Image.open, paths)) == [1, 3, 5, 7]
        assert all(Path(one).is_relative_to(cache) for one in paths)
    with pytest.raises(UserError, match=r"none of the 1 clips has frames, .*not a video"):
        with_frames({"id": ["d"]}, [clips / "d"], 4)


def test_decoded_once_whatever_its_name_and_again_when_it_changes(tmp_path, cache, monkeypatch):
    path = videos.write(tmp_path / "a.mp4", 8)
    (first,) = video.extract_frames([path], 2)
    with monkeypatch.context() as patch:
        patch.setattr(video, "_decoded", None)  # it would fail
        assert video.extract_frames([path], 2) == [first]
        copy = tmp_path / "elsewhere" / "b.mp4"
        copy.parent.mkdir()
        shutil.copy(path, copy)
        assert video.extract_frames([copy], 2) == [first]
    assert video.extract_frames([path], 4)[0] != first
    time.sleep(0.01)
    videos.write(path, 16)
    assert video.extract_frames([path], 2)[0] != first


def test_interrupted_extraction_goes_on(tmp_path, cache, monkeypatch):
    paths = [videos.write(tmp_path / f"{i}.mp4", 6 + i) for i in range(3)]
    real = video._image
    calls = []

    def dies(frame, path):
        calls.append(path)
        if len(calls) == 6:
            raise RuntimeError("killed")
        return real(frame, path)

    with monkeypatch.context() as patch:
        patch.setattr(video, "_image", dies)
        with pytest.raises(RuntimeError, match="killed"):
            video.extract_frames(paths, 4, workers=1)
    place = cache / f"v{video.VERSION}-4"
    whole = [folder for folder in place.iterdir() if folder.name != "known"]
    assert len(whole) == 1 and len(list(whole[0].iterdir())) == 4
    found = video.extract_frames(paths, 4)
    assert [len(one) for one in found] == [4, 4, 4]
    assert all(Path(file).is_file() for one in found for file in one)


def test_mafw_as_its_owners_ship_it(tmp_path):
    mafw.write(tmp_path)
    shutil.rmtree(tmp_path / "data")
    for number in (101, 102):
        videos.write(tmp_path / "clips" / f"{number:05d}.mp4", 10)
    rows = data.load("mafw", tmp_path, "test", num_frames=2)
    assert rows["id"] == ["mafw-00101", "mafw-00102"]
    assert numbers(rows[1]["frames"]) == [2, 7]


# --- folders of frames that are not as they should be ---------------------------------------------


def test_missing_numbers_one_frame_and_mixed_sizes(tmp_path):
    for number in (1, 2, 7, 30):
        face(tmp_path / "gaps" / f"{number}.jpg", number)
    face(tmp_path / "one" / "5.png", 5)
    for number, size in enumerate(((48, 48), (64, 40), (20, 90))):
        face(tmp_path / "mixed" / f"{number}.png", number, size=size)
    places = [tmp_path / name for name in ("gaps", "one", "mixed")]
    rows = with_frames({"id": ["a", "b", "c"]}, places, 4)
    names = [[Path(frame).stem for frame in clip] for clip in rows.columns["frames"]]
    assert names == [["1", "2", "7", "30"], ["5"] * 4, ["0", "1", "1", "2"]]


def test_a_damaged_frame_is_named_and_counted(tmp_path):
    root = tmp_path / "RAER"
    raer.write(root)
    broken = root / "train" / "Confusion" / "001" / "4.jpg"
    broken.write_bytes(broken.read_bytes()[:60])
    rows = data.load("raer", root, num_frames=4, faces=None, bodies=None)
    with pytest.raises(UserError, match=r"Confusion/001/4\.jpg' is damaged"):
        crop_cache.apply_views(rows, (crops.View(size=32, view="scene"),), 4, progress=False)
    report = check.check("raer", root, options={"num_frames": 4, "faces": None, "bodies": None})
    assert "4.jpg" in check.format_report(report)
