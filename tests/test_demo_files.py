"""Videos and archives that are uploaded to the demo."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.demo import HOSTILE, archive, chosen, head, likely, report_of
from PIL import Image

from vlmface import facs
from vlmface.demo import (
    batch,
    clips,
    example_media,
    views,
)
from vlmface.demo.face_detection import Face, FoundFaces
from vlmface.errors import UserError
from vlmface.infer import Predictor
from vlmface.infer.face_report import FaceReport
from vlmface.infer.prediction import NO_PREDICTION
from vlmface.synth import clips as synth_clips
from vlmface.synth.render import render

# --- videos ---------------------------------------------------------------------------------------


class Nobody:
    """A finder that finds no face."""

    missing = None

    def find(self, image: Image.Image) -> FoundFaces:
        return FoundFaces()

    find_quickly = find


def test_a_video_becomes_frames_with_the_largest_face_of_each(example_clip: Path) -> None:
    finder = pytest.importorskip("vlmface.demo.face_detection").FaceFinder()
    if finder.missing:
        pytest.skip(finder.missing)
    clip = clips.read_clip(example_clip, 16, finder)
    finder.close()
    assert len(clip.frames) == 16 and clip.frames_without_face == [] and not clip.has_several_faces
    assert clips.middle_frame(clip) == 8
    # The frames that were rendered: the grimace, the face at rest, the smile.
    drawn = synth_clips.faces(synth_clips.draw(0, "test", example_media._CLIP, 16))
    pictures = {i: np.asarray(render(drawn[i], 256).image, int) for i in (2, 8, 13)}
    for i in pictures:
        seen = np.asarray(clip.frames[i], int)
        off = {k: np.abs(seen - one).mean() for k, one in pictures.items()}
        assert min(off, key=off.__getitem__) == i, off


def test_large_frames_are_kept_small(example_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "MAX_SIDE", 64)
    clip = clips.read_clip(example_clip, 5, Nobody())
    assert [frame.size for frame in clip.frames] == [(64, 64)] * 5
    assert clip.boxes == [None] * 5 and clip.frames_without_face == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no video", "This file is not a video that can be read"),
        (b"", "This file is empty"),
        (b"#EXTM3U\nfile:///etc/passwd\n", "This file is not a video"),
        (None, "has been deleted"),
    ],
)
def test_what_is_no_video_is_said_without_its_place(
    content: bytes | None, said: str, tmp_path: Path
) -> None:
    pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        clips.read_clip(path, 16, Nobody())
    assert said in views.error(str(error.value)) or said in str(error.value)
    assert str(tmp_path) not in str(error.value)


def test_gradio_hands_videos_on_as_they_came(
    example_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio")
    from gradio.components import video
    from gradio.data_classes import FileData

    from vlmface.demo import clip_tab

    monkeypatch.setattr(video, "FFmpeg", lambda *_, **__: pytest.fail("ffmpeg was started"))
    monkeypatch.setattr(
        video.processing_utils, "video_is_playable", lambda _: pytest.fail("it was read")
    )
    field = clip_tab._clip_upload()
    odd = tmp_path / "odd.avi"
    odd.write_bytes(b"anything")
    for path in (example_clip, odd):
        assert field.preprocess(FileData(path=str(path))) == str(path)
        assert field.postprocess(str(path)).path == str(path)
    assert field.preprocess(None) is None and field.postprocess(None) is None
    assert not field.include_audio and sorted(tmp_path.iterdir()) == [odd]


def test_without_a_decoder_the_tab_says_what_to_install() -> None:
    gradio = pytest.importorskip("gradio")
    from vlmface.demo import clip_tab

    with gradio.Blocks() as page:
        clip_tab.clip_tab(SimpleNamespace(clip=None, predictor=None))
    (said,) = (block for block in page.blocks.values() if isinstance(block, gradio.HTML))
    assert "pip install 'vlmface[video]'" in said.value


def test_of_a_clip_it_is_said_where_no_face_was_and_where_many_were(clip_frames: Path) -> None:
    pytest.importorskip("gradio")
    from vlmface.demo import clip_tab

    frames = [head(0, 64)] * 4
    face = Face((5, 5, 50, 60))
    with Predictor.load(clip_frames) as predictor:
        demo = SimpleNamespace(predictor=predictor, face_finder=Nobody())
        said = clip_tab._clip_answer(
            demo, clips.Clip(frames, [face, None, face, face], has_several_faces=True)
        )
        assert "No face was found in 1 of 4 frames" in said and "Several faces" in said
        assert "The clip, 4 frames" in said
        said = clip_tab._clip_answer(demo, clips.Clip(frames, [face] * 4))
        assert "No face" not in said and "Several faces" not in said
        empty = [Image.new("RGB", (64, 64), "green")] * 4
        said = clip_tab._clip_answer(demo, clips.Clip(empty, [None] * 4))
        assert "No face was found, so the model was not run" in said and "no face found" in said
        predictor.__dict__["detector_warning"] = "faces are not detected"
        said = clip_tab._clip_answer(demo, clips.Clip(empty, [None] * 4))
        assert "the model received uncropped frames" in said


def test_a_timeline_has_a_row_for_each_label_and_a_column_for_each_frame() -> None:
    frames, faces = [head(0, 64)] * 3, [Face((0, 0, 30, 30)), None, Face((0, 0, 30, 30))]
    said = [chosen(likely(label)) for label in ("fear", "fear", "anger")]
    shown = views.timeline(frames, faces, said)
    assert shown.count('<th scope="row">') == 8 and shown.count("<td") == 24
    assert shown.count('class="main"') == 3 and "--p: 0.65" in shown
    assert "<b>fear</b> in 2, <b>anger</b> in 1 of 3 frames" in " ".join(shown.split())
    assert "No face was found in number 2" in shown
    text = f"<think>{HOSTILE}</think>\n<answer>fear</answer>"
    silent = views.timeline(frames, faces, [report_of(text), report_of("?"), report_of(text)])
    unseen = FaceReport({"emotion": NO_PREDICTION}, {"emotion": "clip_emotion"}, None, False)
    mixed = views.timeline(frames, faces, [unseen, chosen(likely("fear")), unseen])
    assert mixed.count('<th scope="row">') == 8 and mixed.count('class="main"') == 1
    assert silent.count("<td") == 3 and ">label<" in silent and "<script" not in silent
    assert "no valid answer in any" in views.timeline(frames[:1], faces[:1], [report_of("?")])


# --- archives -------------------------------------------------------------------------------------


def test_of_the_names_in_an_archive_only_the_last_part_counts(tmp_path: Path) -> None:
    names = ["../../etc/passwd.png", "/abs/a.png", "c:\\win\\b.png", "d/", "__MACOSX/x", "e/.hid"]
    items = batch.read_files([archive(tmp_path / "a.zip", dict.fromkeys(names, b"x"))])
    assert [item.name for item in items] == ["passwd.png", "a.png", "b.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.zip",
        {"p.png": b"/etc/passwd"},
        create_system=3,
        external_attr=(stat.S_IFLNK | 0o777) << 16,
    )
    (item,) = batch.read_files([path])
    assert item.problem and "link" in item.problem and not item.data


def test_bombs_are_refused_by_their_headers(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(batch, "MAX_TOTAL_BYTES", 1000)
    path = archive(tmp_path / "a.zip", {f"{i}.png": bytes(600) for i in range(3)})
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(UserError, match=r"a\.zip unpacks to 0 MiB, more than"):
        batch.read_files([path])


def test_a_large_entry_is_a_row_that_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(batch, "MAX_FILE_BYTES", 100)
    path = archive(tmp_path / "a.zip", {"large.png": bytes(101), "fine.png": bytes(100)})
    large, fine = batch.read_files([path])
    assert large.problem and "too large" in large.problem and not large.data
    assert fine.problem is None and len(fine.data) == 100


def test_what_comes_out_counts_not_what_headers_say(tmp_path: Path, monkeypatch: Any) -> None:
    path = archive(tmp_path / "a.zip", {"liar.png": bytes(5000)})
    data = path.read_bytes()
    at = data.rindex(b"PK\1\2")
    path.write_bytes(data[: at + 24] + (10).to_bytes(4, "little") + data[at + 28 :])
    (item,) = batch.read_files([path])
    assert len(item.data) <= 10 and item.problem
    monkeypatch.setattr(batch, "MAX_TOTAL_BYTES", 5000)
    files = [tmp_path / "1.png", tmp_path / "2.png"]
    for file in files:
        file.write_bytes(bytes(3000))
    with pytest.raises(UserError, match="more than"):
        batch.read_files(files)


def test_a_file_that_is_gone_and_one_packed_unusually_are_rows(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as packed:
        packed.writestr("lzma.png", b"x")
    unusual, gone = batch.read_files([tmp_path / "a.zip", tmp_path / "gone.png"])
    assert unusual.problem and "unusual" in unusual.problem
    assert gone.problem and "has been deleted" in gone.problem


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(batch.MAX_FILES + 1)]
    with pytest.raises(UserError, match=r"holds 201 files, the limit is 200"):
        batch.read_files([archive(tmp_path / "a.zip", dict.fromkeys(names, b""))])
    with pytest.raises(UserError, match="lists too many files"):
        long = {f"{i}{'x' * 60000}.png": b"" for i in range(20)}  # 1.2 MB of names
        batch.read_files([archive(tmp_path / "b.zip", long)])


@pytest.mark.parametrize("content", [b"PK\3\4 and then nothing", b"PK\5\6", b"text", b""])
def test_what_is_no_archive_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.zip is not a zip archive"):
        batch.read_files([tmp_path / "a.zip"])


def test_encrypted_and_damaged_entries_are_rows(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"a.png": bytes(range(256)) * 9, "b.png": b"fine"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1  # the first entry's flag in the directory
    path.write_bytes(data)
    encrypted, fine = batch.read_files([path])
    assert encrypted.problem and "encrypted" in encrypted.problem and fine.data == b"fine"
    path = archive(tmp_path / "c.zip", {"a.png": os.urandom(3000)})
    data = bytearray(path.read_bytes())
    data[300:400] = bytes(100)
    path.write_bytes(data)
    (damaged,) = batch.read_files([path])
    assert damaged.problem and "cannot be unpacked" in damaged.problem


def test_rows_as_csv_and_json() -> None:
    likely = {**dict.fromkeys(facs.PROTOTYPES, 0.05), "anger": 0.65}
    text = "<think>=1+1, the brows sink (AU4).</think>\n<answer>anger</answer>"
    rows = [batch.Row("=cmd|.png", 2, report_of(text, likely)), batch.Row("b.png", problem="no")]
    first, second = csv.DictReader(io.StringIO(batch.as_csv(rows, ["emotion"])))
    assert first["file"] == "'=cmd|.png" and first["rationale"].startswith("'=1+1")
    names = ("face", "emotion", "emotion_probability", "is_confident")
    assert [first[name] for name in names] == ["2", "anger", "0.6500", "yes"]
    assert (first["left"], first["bottom"], first["action_units"]) == ("1", "4", "AU4")
    assert second["file"] == "b.png" and second["problem"] == "no" and second["emotion"] == ""
    told, problem = json.loads(batch.as_json(rows))
    assert told["file"] == "=cmd|.png" and told["answers"]["emotion"]["label"] == "anger"
    assert problem == {"file": "b.png", "problem": "no"}
