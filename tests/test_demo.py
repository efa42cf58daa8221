"""The demo: its parts, then the real page in a real browser, by clicking."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_teacher import FakeTeacher, Reply, TeacherRequest
from PIL import Image
from samples import ROOT

from vlmface import facs, label_texts, prompts
from vlmface.data import crops
from vlmface.demo import (
    batch,
    clips,
    command,
    example_media,
    face_regions,
    model_choices,
    playground,
    security_middleware,
    views,
)
from vlmface.demo.face_detection import Face
from vlmface.errors import UserError
from vlmface.infer import Predictor
from vlmface.infer.face_report import FaceReport
from vlmface.infer.local import Prediction
from vlmface.infer.predictor import NO_PREDICTION
from vlmface.synth import clips as synth_clips
from vlmface.synth import dataset
from vlmface.synth.render import render

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> ${7*7} {{7*7}} \u202e"


def head(index: int, size: int = 256, split: str = "test") -> Image.Image:
    return Image.fromarray(render(dataset.draw(0, split, index).face, size).image)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def report_of(text: str, probabilities: dict[str, float] | None = None) -> FaceReport:
    answer = prompts.load("face_cot").parse(text)
    said = Prediction(text, answer, probabilities, 0.25, True)
    return FaceReport({"emotion": said}, {"emotion": "face_cot"}, (1.0, 2.0, 3.0, 4.0), True, None)


# --- words ----------------------------------------------------------------------------------------


def test_each_action_unit_of_a_text_is_marked_with_its_region() -> None:
    found = views.text_spans("The brows (AU4) and AU 12+25; AU99 is none.", denied=[4])
    assert "".join(span.text for span in found) == "The brows (AU4) and AU 12+25; AU99 is none."
    marked = [(piece.text, piece.aus, piece.regions, piece.denied) for piece in found if piece.aus]
    assert marked == [("AU4", (4,), "brow", True), ("AU 12+25", (12, 25), "mouth", False)]


@pytest.mark.parametrize("finished", [True, False])
def test_what_a_model_writes_is_never_markup(finished: bool) -> None:
    text = f"<think>{HOSTILE} the brows sink (AU4).</think>\n<answer>anger</answer>"
    shown = views.answer(report_of(text), "Face") if finished else views.writing(text, "Face")
    assert "<img" not in shown and "<script" not in shown and "\u202e" not in shown
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown
    assert 'data-regions="brow"' in shown


def test_names_of_files_and_models_are_never_markup() -> None:
    row = batch.Row(HOSTILE, problem=HOSTILE)
    for shown in (
        views.batch([row], 1, ["emotion"], {}),
        views.error(HOSTILE),
        views.header(HOSTILE, HOSTILE),
    ):
        assert "<img" not in shown and "<script" not in shown


def test_a_model_that_is_not_sure_says_so() -> None:
    text = "<think>AU4.</think>\n<answer>anger</answer>"
    even = dict.fromkeys(facs.PROTOTYPES, 1 / 8)
    sure = {**dict.fromkeys(facs.PROTOTYPES, 0.0), "anger": 1.0}
    assert "was not sure: no label" in views.answer(report_of(text, even), "")
    assert "but finds fear more likely" in views.answer(report_of(text, {**even, "fear": 0.4}), "")
    assert "was not sure" not in views.answer(report_of(text, sure), "")
    assert "gave no valid answer" in views.answer(report_of("No idea."), "")


def chosen(probabilities: dict[str, float], affect: dict[str, float] | None = None) -> FaceReport:
    """As a CLIP answers: a label, and nothing beside it."""
    answer = label_texts.load("clip_emotion").answer(probabilities)
    said = Prediction(answer.text_labels or "", answer, probabilities, 0.25, True, None, affect)
    return FaceReport({"emotion": said}, {"emotion": "clip_emotion"})


def likely(label: str, share: float = 0.65) -> dict[str, float]:
    return {**dict.fromkeys(facs.PROTOTYPES, (1 - share) / 7), label: share}


def test_of_a_model_that_writes_nothing_no_writing_is_spoken_of() -> None:
    shown = views.answer(chosen(likely("fear"), {"valence": -0.4, "arousal": 0.25}), "Face")
    assert "Generated text" not in shown and "required format" not in shown
    assert "Action units" not in shown
    assert "valence" in shown and "-0.40" in shown and "+0.25" in shown
    report = chosen(likely("fear"))
    rows = [batch.Row("a.png", 1, report), batch.Row("b.png", problem="no")]
    assert "action units" not in views.batch(rows, 2, ["emotion"], {}, show_rationale=False)
    assert "action units" in views.batch(rows, 2, ["emotion"], {}, show_rationale=True)
    image, face = head(0, 64), Face((0, 0, 30, 30))
    for show_rationale in (False, True):
        table = views.people(image, [face], [report], ["emotion"], show_rationale=show_rationale)
        assert ("rationale" in table) is show_rationale
    wrote = "<think>AU4.</think>\n<answer>fear</answer>"
    assert "Generated text" in views.answer(report_of(wrote), "")


def test_each_of_several_labels_is_marked() -> None:
    space = label_texts.load("clip_emotic").space
    shares = {label: 0.9 if number in (1, 3) else 0.1 for number, label in enumerate(space.labels)}
    answer = label_texts.load("clip_emotic").answer(shares)
    said = Prediction(answer.text_labels or "", answer, shares, 0.25, True)
    shown = views.answer(FaceReport({"emotions": said}, {"emotions": "clip_emotic"}), "")
    assert len(answer.labels) == 2 and shown.count("vf-bar main") == 2


@pytest.mark.parametrize(
    ("shows", "said"),
    [
        ((), "the model was not run"),
        (("face",), "the model was not run"),
        (("face", "face_masked"), "judged the scene alone"),
        (("scene",), None),
    ],
)
def test_without_a_face_it_is_said_what_was_judged(
    shows: tuple[str, ...], said: str | None
) -> None:
    parsed = crops.parse_views([{"view": show} for show in shows] or None)
    made = SimpleNamespace(views=parsed, frames=1, detector_warning=None)
    face_found = None if shows == ("scene",) else False
    report = replace(chosen(likely("fear")), face_found=face_found, views=parsed)
    notes = model_choices.no_face_notes(made, report)
    assert [said in note for note in notes] == [True] if said else notes == []
    assert (model_choices.describe_input(made) is None) is (len(shows) < 2)


# --- videos ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rendered clip that the demo offers: a grimace, and at the end a smile."""
    pytest.importorskip("av")
    path, icon = example_media.write_clip(tmp_path_factory.mktemp("example"))
    assert path.stat().st_size < 200_000 and icon.is_file()
    return path


class Nobody:
    """A finder that finds no face."""

    missing = None

    def find(self, image: Image.Image) -> list[Face]:
        return []


def test_a_video_becomes_frames_with_the_largest_face_of_each(example: Path) -> None:
    finder = pytest.importorskip("vlmface.demo.face_detection").FaceFinder()
    if finder.missing:
        pytest.skip(finder.missing)
    clip = clips.read_clip(example, 16, finder)
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


def test_large_frames_are_kept_small(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "MAX_SIDE", 64)
    clip = clips.read_clip(example, 5, Nobody())
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
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio")
    from gradio.components import video
    from gradio.data_classes import FileData

    from vlmface.demo import tabs

    monkeypatch.setattr(video, "FFmpeg", lambda *_, **__: pytest.fail("ffmpeg was started"))
    monkeypatch.setattr(
        video.processing_utils, "video_is_playable", lambda _: pytest.fail("it was read")
    )
    field = tabs._clip_upload()
    odd = tmp_path / "odd.avi"
    odd.write_bytes(b"anything")
    for path in (example, odd):
        assert field.preprocess(FileData(path=str(path))) == str(path)
        assert field.postprocess(str(path)).path == str(path)
    assert field.preprocess(None) is None and field.postprocess(None) is None
    assert not field.include_audio and sorted(tmp_path.iterdir()) == [odd]


def test_without_a_decoder_the_tab_says_what_to_install() -> None:
    gradio = pytest.importorskip("gradio")
    from vlmface.demo import tabs

    with gradio.Blocks() as page:
        tabs.clip_tab(SimpleNamespace(clip=None, predictor=None))
    (said,) = (block for block in page.blocks.values() if isinstance(block, gradio.HTML))
    assert "pip install 'vlmface[video]'" in said.value


def test_of_a_clip_it_is_said_where_no_face_was_and_where_many_were(clip_frames: Path) -> None:
    pytest.importorskip("gradio")
    from vlmface.demo import tabs

    frames = [head(0, 64)] * 4
    face = Face((5, 5, 50, 60))
    with Predictor.load(clip_frames) as predictor:
        demo = SimpleNamespace(predictor=predictor, face_finder=Nobody())
        said = tabs._clip_answer(
            demo, clips.Clip(frames, [face, None, face, face], has_several_faces=True)
        )
        assert "No face was found in 1 of 4 frames" in said and "Several faces" in said
        assert "The clip, 4 frames" in said
        said = tabs._clip_answer(demo, clips.Clip(frames, [face] * 4))
        assert "No face" not in said and "Several faces" not in said
        empty = [Image.new("RGB", (64, 64), "green")] * 4
        said = tabs._clip_answer(demo, clips.Clip(empty, [None] * 4))
        assert "No face was found, so the model was not run" in said and "no face found" in said
        predictor.__dict__["detector_warning"] = "faces are not detected"
        said = tabs._clip_answer(demo, clips.Clip(empty, [None] * 4))
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


# --- regions --------------------------------------------------------------------------------------


def test_regions_lie_on_the_face_from_top_to_bottom() -> None:
    finder = pytest.importorskip("vlmface.demo.face_detection").FaceFinder()
    if finder.missing:
        pytest.skip(finder.missing)
    image = example_media.join_horizontally([head(0), head(4)])
    faces = finder.find(image)
    finder.close()
    assert [face.box[0] > 256 for face in faces] == [False, True]  # from left to right
    for face in faces:
        assert set(face.regions) == set(facs.REGIONS)
        left, top, right, bottom = face.box
        middles = {}
        for region, outlines in face.regions.items():
            points = np.concatenate([np.array(outline) for outline in outlines])
            assert points[:, 0].min() > left - 0.05 * (right - left)
            assert points[:, 0].max() < right + 0.05 * (right - left)
            assert points[:, 1].max() < bottom + 0.05 * (bottom - top)
            middles[region] = points[:, 1].mean()
        order = ("brow", "eye", "nose", "mouth", "chin")
        assert [middles[region] for region in order] == sorted(middles[r] for r in order)


def test_an_outline_becomes_a_closed_path() -> None:
    assert face_regions.svg_path([(0, 0), (2, 0), (2, 2)]) == (
        "M1.0 1.0 Q0.0 0.0 1.0 0.0 Q2.0 0.0 2.0 1.0 Q2.0 2.0 1.0 1.0 Z"
    )


# --- archives -------------------------------------------------------------------------------------


def archive(path: Path, files: dict[str, bytes], **changes: Any) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            for field, value in changes.items():
                setattr(entry, field, value)
            packed.writestr(entry, data)
    return path


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


# --- the playground -------------------------------------------------------------------------------


def test_the_playground_draws_what_the_sliders_say() -> None:
    rest = np.asarray(playground.render_head(playground.Scene(3, {})), np.int16)
    smile = np.asarray(playground.render_head(playground.Scene(3, {12: 5})), np.int16)
    moved = np.abs(smile - rest).max(-1) > 40
    rows = np.nonzero(moved.any(1))[0]
    assert moved.sum() > 200 and np.median(rows) > playground.SIZE * 0.55  # in the lower face
    assert (np.asarray(playground.render_head(playground.Scene(3, {}))) == rest).all()


def test_a_dropped_jaw_parts_the_lips() -> None:
    assert playground.drawn_aus({26: 3, 12: 0, 4: 0.4}) == {25: 3, 26: 3}
    assert playground.drawn_aus({26: 3, 25: 1}) == {25: 1, 26: 3}
    assert playground.incompatible_aus({25: 3, 26: 3}) == []
    assert playground.incompatible_aus({12: 3, 15: 3}) == [12, 15]


def test_what_was_followed() -> None:
    said = report_of("<think>AU12 and AU4.</think>\n<answer>happiness</answer>")
    found = playground.compare_aus({6: 3, 12: 2}, said)
    assert (found.matched, found.missed, found.extra) == ([12], [6], [4])
    for emotion in facs.PROTOTYPES:
        assert playground.supported_emotions(playground.prototype(emotion, 3)) == [emotion]


# --- the door and the command ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "is_open"),
    [
        ("/", True),
        ("/config", True),
        ("/assets/a.js", True),
        ("/gradio_api/queue/data", True),
        ("/gradio_api/file=/tmp/x.png", True),
        ("/gradio_api/file=https://example.org/x", False),
        ("/gradio_api/file=HTTP://example.org/x", False),
        ("/gradio_api/proxy=https://a.b/", False),
        ("/static/img/logo.svg", True),
        ("/static/ffmpeg/ffmpeg-core.wasm", False),
        ("/gradio_api/info", False),
        ("/gradio_api/openapi.json", False),
        ("/docs", False),
        ("/gradio_api/run/predict", False),
        ("/gradio_api/vibe-edit", False),
        ("/monitoring", False),
        ("/gradio_api/call/start", False),
        ("/login", False),
    ],
)
def test_only_the_page_and_its_events_are_open(path: str, is_open: bool) -> None:
    testclient = pytest.importorskip("starlette.testclient")

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"in"})

    answer = testclient.TestClient(security_middleware.RouteAllowlist(inside, "/tmp/up")).get(path)
    assert answer.status_code == (200 if is_open else 404)
    assert "default-src 'self'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/tmp/up/a/b.png", 200),
        (None, 200),
        ("/etc/passwd", 403),
        ("/tmp/up/../x.png", 403),
        ("/tmp/upper/x.png", 403),
        ("https://example.org/x.png", 403),
        (["/tmp/up/a"], 403),
    ],
)
def test_events_name_uploads_alone(path: Any, status: int) -> None:
    testclient = pytest.importorskip("starlette.testclient")

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        assert json.loads(message["body"])["data"][0][0]["path"] == path
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"in"})

    client = testclient.TestClient(security_middleware.RouteAllowlist(inside, "/tmp/up"))
    event = {"data": [[{"path": path}], "/etc/passwd"], "fn_index": 0}
    assert client.post("/gradio_api/queue/join", json=event).status_code == status
    for content in (b"no json", b"[" * 10**5, b" " * (2**20 + 1) + b"{}"):
        assert client.post("/gradio_api/queue/join", content=content).status_code == 403


def test_examples_outlive_old_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    gradio = pytest.importorskip("gradio")
    from gradio.route_utils import delete_files_created_by_app

    from vlmface.demo import tabs

    example, upload, clip = (tmp_path / name for name in ("fear.png", "old.png", "fear.mp4"))
    for path in (example, upload, clip):
        path.write_bytes(png(Image.new("RGB", (32, 32))))
    with gradio.Blocks() as page:
        image, *_ = tabs._picture_input([example])
        tabs._examples(tabs._clip_upload(), [(clip, example)], "clip")
    for path in (example, upload, clip):
        image.temp_files.add(str(path))
    delete_files_created_by_app(page, 0)
    assert example.exists() and clip.exists() and not upload.exists()


def test_without_a_finished_run_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"recipes/sft_cot\.py.*--model RUN.*vlmface-tiny"):
        command.main([])


# --- the page in a browser ------------------------------------------------------------------------

CHROMIUM = os.environ.get("VLMFACE_CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")


def serve(model: Path | str, folder: Path, *words: str) -> Iterator[SimpleNamespace]:
    """The real app in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "demo.log"
    environment = {
        **os.environ,
        "TMPDIR": str(folder),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, ROOT / "app/demo.py", "--model", model, "--port", str(port), *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
        )
    try:
        until = time.monotonic() + 180
        while "the demo is at" not in log.read_text():
            if process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"the demo did not start:\n{log.read_text()}")
            time.sleep(0.2)
        yield SimpleNamespace(url=f"http://127.0.0.1:{port}", folder=folder, log=log)
    finally:
        process.terminate()
        process.wait(timeout=30)
    assert not list(folder.glob("vlmface-demo-*")), "uploads outlive the demo"
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="module")
def random_demo(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The demo of a model that has hardly learnt anything."""
    yield from serve(run_dir, tmp_path_factory.mktemp("random_demo"))


@pytest.fixture(scope="module")
def demo(memorised: Path, run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The demo of a model that knows eight faces, beside one that knows none."""
    yield from serve(memorised, tmp_path_factory.mktemp("demo"), "--compare", str(run_dir))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium was found: install it, or name it in VLMFACE_CHROMIUM")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--use-fake-device-for-media-stream"]
        )
        yield browser
        browser.close()


class Visitor:
    """Somebody at the page. No request may leave this machine, no script may fail."""

    def __init__(self, browser: Any, demo: Any, pictures: Path, **options: Any) -> None:
        self.demo, self.pictures = demo, pictures
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page = context.new_page()
        self.page.set_default_timeout(30_000)
        self.requests: list[str] = []
        self.failed: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.failed.append(str(error)))
        self.page.goto(demo.url)
        self.open("Analyse")

    def open(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()
        self.panel = self.page.locator("[role=tabpanel]:visible")
        self.panel.locator(".vf-tab").wait_for()

    def upload(self, *files: tuple[str, bytes]) -> None:
        paths = []
        for name, data in files:
            paths.append(self.pictures / name)
            paths[-1].write_bytes(data)
        self.panel.locator("input[type=file]").first.set_input_files(paths)

    def answer(self, number: int = 0) -> Any:
        found = self.panel.locator(".vf-answer:not(.vf-writing)").nth(number)
        found.wait_for()
        return found

    def picture(self, name: str) -> None:
        """Keep what is seen, for people."""
        folder = Path(os.environ.get("VLMFACE_SCREENSHOTS") or self.pictures)
        folder.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=folder / f"{name}.png", full_page=True)

    def leave(self, failed: int = 0) -> None:
        allowed = (f"{self.demo.url}/", "data:", "blob:")
        assert [url for url in self.requests if not url.startswith(allowed)] == []
        assert len(self.failed) == failed, self.failed
        self.page.context.close()


@pytest.fixture
def visitor(chromium: Any, demo: Any, tmp_path: Path) -> Iterator[Visitor]:
    one = Visitor(chromium, demo, tmp_path)
    yield one
    one.leave()


def wide(page: Any) -> int:
    return page.evaluate("document.documentElement.scrollWidth")


def contrast(locator: Any) -> float:
    """WCAG's contrast of an element's text against what is painted behind it."""
    return locator.evaluate("""element => {
      const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
      const light = ([r, g, b]) => { const f = (v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
        return .2126 * f(r) + .7152 * f(g) + .0722 * f(b); };
      let behind = element, paint;
      do { paint = numbers(getComputedStyle(behind).backgroundColor); behind = behind.parentElement; }
      while (behind && paint.length > 3 && paint[3] === 0);
      const [a, b] = [light(numbers(getComputedStyle(element).color)), light(paint)].sort((x, y) => y - x);
      return (a + .05) / (b + .05);
    }""")  # noqa: E501


def test_an_uploaded_face_is_answered(chromium: Any, random_demo: Any, tmp_path: Path) -> None:
    one = Visitor(chromium, random_demo, tmp_path)
    assert "Trained on rendered faces only" in one.page.locator(".vf-limits").inner_text()
    one.upload(("face.png", png(head(0))))
    text = one.answer().inner_text()
    assert "The face" in text and "Generated text" in text
    assert one.panel.locator(".vf-picture .vf-face.chosen .vf-region").count() >= 7
    one.picture("analyse_random")
    one.leave()


def test_a_video_is_answered_by_its_middle_frame_and_frame_by_frame(
    chromium: Any, random_demo: Any, example: Path, tmp_path: Path
) -> None:
    one = Visitor(chromium, random_demo, tmp_path)
    one.open("Clip")
    one.upload(("smile.mp4", example.read_bytes()))
    assert "The middle one of 16 frames" in one.answer().inner_text()
    assert one.panel.locator(".vf-frame").count() == 16
    assert one.panel.locator(".vf-frame.seen").inner_text().strip() == "9"
    one.picture("clip_random")
    one.panel.get_by_role("button", name="Analyse each frame").click()
    line = one.panel.locator(".vf-timeline")
    line.wait_for()
    assert line.locator("tbody tr").count() == 8 and line.locator("tbody td").count() == 128
    one.picture("clip_each_random")
    one.panel.get_by_role("button", name="Another clip").click()
    one.panel.locator(".vf-upload").wait_for()
    assert line.count() == 0
    one.upload(("broken.mp4", b"no video"))
    problem = one.panel.locator(".vf-problem")
    problem.wait_for()
    assert "is not a video that can be read" in problem.inner_text()
    assert "vlmface-demo" not in problem.inner_text()  # the folder that it lies in
    assert one.panel.locator("button[aria-label^='Trim video']:visible").count() == 0
    assert one.panel.get_by_label("Clear").is_visible()
    assert one.page.locator(".toast-body").count() == 0
    one.picture("clip_broken")
    one.leave()


def test_a_file_outside_the_demo_cannot_be_read(random_demo: Any, run_dir: Path) -> None:
    import httpx2

    files = [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]
    event = {"data": [files], "fn_index": 0, "session_hash": "x"}
    answer = httpx2.post(f"{random_demo.url}/gradio_api/queue/join", json=event)
    assert answer.status_code == 403, answer.text

    outside = [Path("/etc/passwd"), ROOT / "pyproject.toml", run_dir / "vlmface.json"]
    outside += [random_demo.log, Path("pyproject.toml")]
    for path in outside:
        for asked in (f"file={path}", f"file=/tmp/../{path}", f"file/{path}"):
            answer = httpx2.get(f"{random_demo.url}/gradio_api/{asked}")
            assert answer.status_code in (403, 404), (asked, answer.status_code)
    shown = httpx2.get(random_demo.url)
    assert (
        shown.status_code == 200 and "frame-ancestors" in shown.headers["content-security-policy"]
    )


def test_a_narrow_window_in_the_dark(chromium: Any, random_demo: Any, tmp_path: Path) -> None:
    view = {"viewport": {"width": 375, "height": 720}, "color_scheme": "dark"}
    one = Visitor(chromium, random_demo, tmp_path, **view)
    one.upload(("face.png", png(head(0))))
    one.answer()
    one.picture("narrow_dark_analyse")
    assert one.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 20, 24)"
    for name in ("Several people", "Clip", "Batch", "Synth playground", "About", "Analyse"):
        one.open(name)
        assert wide(one.page) <= 375, name
    one.leave()


@pytest.mark.slow
def test_a_model_of_clips_is_shown_its_frames(
    chromium: Any, clip_frames: Path, tmp_path: Path
) -> None:
    for demo in serve(clip_frames, tmp_path):
        one = Visitor(chromium, demo, tmp_path)
        assert "action unit" not in one.panel.locator(".vf-intro").inner_text()
        one.panel.locator(".vf-thumbnails button").first.click()
        assert "a static clip of 4 frames" in one.answer().inner_text()
        one.open("Clip")
        one.panel.locator(".vf-thumbnails button").first.click()
        assert "The clip, 4 frames" in one.answer().inner_text()
        assert one.panel.locator(".vf-frame.seen").count() == 4
        assert not one.panel.get_by_role("button", name="Analyse each frame").is_visible()
        one.picture("clip_of_four")
        one.leave()


@pytest.mark.slow
def test_a_model_of_several_views_shows_what_it_was_shown(
    chromium: Any, clip_views: Path, tmp_path: Path
) -> None:
    for demo in serve(clip_views, tmp_path):
        one = Visitor(chromium, demo, tmp_path)
        one.panel.locator(".vf-thumbnails button").first.click()
        assert "the cropped face and the whole picture with" in one.answer().inner_text()
        assert one.panel.locator(".vf-views img").count() == 2
        one.picture("analyse_views")
        one.panel.get_by_role("button", name="Another picture").click()
        one.panel.locator(".vf-answer").wait_for(state="detached")
        field = np.full((200, 300, 3), (90, 140, 90), np.uint8)
        one.upload(("field.png", png(Image.fromarray(field))))
        assert "judged the scene alone" in one.answer().inner_text()
        one.open("Several people")
        one.panel.locator(".vf-thumbnails button").first.click()
        one.panel.locator(".vf-table tbody tr").nth(2).wait_for()
        assert "action units" not in one.panel.inner_text()
        one.leave()


@pytest.mark.slow
def test_a_clip_is_recorded_without_sound(chromium: Any, clip_faces: Path, tmp_path: Path) -> None:
    for demo in serve(clip_faces, tmp_path):
        one = Visitor(chromium, demo, tmp_path, permissions=["camera"])
        one.open("Clip")
        one.panel.get_by_label("Capture from camera").click()
        one.panel.get_by_text("Click to Access Webcam").click()
        one.panel.get_by_role("button", name="Record").click()
        one.page.wait_for_timeout(1500)
        one.panel.get_by_text("Stop").click()
        assert "No face was found" in one.answer().inner_text()
        assert one.panel.locator(".vf-frame").count() == 16
        one.picture("clip_recorded")
        one.leave()


@pytest.mark.slow
def test_a_face_that_the_model_knows(visitor: Visitor) -> None:
    truth = dataset.draw(0, "train", 0).expression
    visitor.upload(("known.png", png(head(0, 96, "train"))))
    answer = visitor.answer()
    visitor.picture("analyse_known")
    assert truth.emotion in answer.locator(".vf-label").inner_text()
    assert answer.locator(".vf-bar").count() == 8
    for au in truth.aus:
        assert answer.locator(".vf-units").get_by_text(f"AU{au}", exact=True).count() == 1
    unit = answer.locator(".vf-words .vf-au").first
    shown = visitor.panel.locator(".vf-region.on")
    assert shown.count() == 0
    region = unit.get_attribute("data-regions")
    for point, leave in (
        (unit.hover, lambda: visitor.page.mouse.move(0, 0)),
        (unit.focus, lambda: visitor.page.keyboard.press("Tab")),
    ):
        point()
        assert {one.get_attribute("data-region") for one in shown.all()} == {region}
        leave()
    visitor.panel.get_by_role("button", name="Another picture").click()
    visitor.panel.locator(".vf-upload").wait_for()
    assert visitor.panel.locator(".vf-picture").count() == 0


@pytest.mark.slow
def test_of_three_faces_one_is_chosen_by_mouse_and_by_keyboard(visitor: Visitor) -> None:
    scene = example_media.join_horizontally([head(i) for i in (0, 4, 8)])
    visitor.upload(("three.png", png(scene)))
    visitor.answer()
    frames = visitor.panel.locator(".vf-face")
    assert frames.count() == 3
    frames.nth(0).click(position={"x": 40, "y": 60})
    visitor.panel.get_by_text("Face 1 of 3").wait_for()
    visitor.panel.get_by_role("radio", name="Face 1").focus()
    visitor.page.keyboard.press("ArrowRight")
    visitor.panel.get_by_text("Face 2 of 3").wait_for()
    visitor.answer()
    assert visitor.panel.locator(".vf-face.chosen").get_attribute("data-face") == "1"
    visitor.picture("three_faces")
    visitor.open("Several people")
    visitor.upload(("three.png", png(scene)))
    visitor.panel.locator(".vf-table tbody tr").nth(2).wait_for()
    assert visitor.panel.locator(".vf-table tbody tr").count() == 3
    visitor.picture("several_people")


@pytest.mark.slow
@pytest.mark.parametrize("tab", ["Analyse", "Several people"])
def test_what_cannot_be_answered_is_said_in_words(visitor: Visitor, tab: str) -> None:
    visitor.open(tab)
    visitor.upload(("broken.jpg", b"\xff\xd8\xff\xe0 and then nothing"))
    problem = visitor.panel.locator(".vf-problem")
    problem.wait_for()
    assert "damaged or cut off" in problem.inner_text()
    assert "Traceback" not in visitor.page.locator("body").inner_text()
    visitor.picture(f"corrupt_{tab}")
    visitor.panel.get_by_label("Clear").or_(visitor.panel.get_by_label("Remove")).first.click()
    field = np.full((200, 300, 3), (90, 140, 90), np.uint8)
    visitor.upload(("field.png", png(Image.fromarray(field))))
    assert "No face was found" in visitor.answer().inner_text()
    visitor.picture(f"no_face_{tab}")


@pytest.mark.slow
def test_a_refused_webcam_is_said_and_harms_nothing(
    chromium: Any, demo: Any, tmp_path: Path
) -> None:
    one = Visitor(chromium, demo, tmp_path)
    one.panel.get_by_label("Capture from camera").click()
    one.panel.get_by_text("Click to Access Webcam").click()
    said = one.panel.locator(".vf-camera")
    said.wait_for()
    assert "does not let this page use the webcam" in said.inner_text()
    one.picture("webcam_refused")
    one.panel.get_by_label("Upload file").click()
    one.upload(("face.png", png(head(0))))
    one.answer()
    one.leave(failed=1)  # Gradio's own unhandled refusal


@pytest.mark.slow
def test_what_a_server_writes_is_shown_as_text_and_its_silence_in_words(
    chromium: Any, run_dir: Path, tmp_path: Path
) -> None:
    text = f"<think>{HOSTILE} The lip corners rise (AU12).</think>\n<answer>happiness</answer>"

    def behave(asked: TeacherRequest) -> Reply:
        if len(server.requests) > 1:
            return Reply("", status=500)
        pieces = [text[at : at + 9] for at in range(0, len(text), 9)]
        events = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
        events.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        return Reply(body="".join(f"data: {json.dumps(one)}\n\n" for one in events).encode())

    with FakeTeacher(behave) as server:
        for demo in serve(server.url, tmp_path, "--run_dir", str(run_dir)):
            one = Visitor(chromium, demo, tmp_path)
            one.page.on("dialog", lambda _: pytest.fail("a script of the model's text ran"))
            one.panel.locator(".vf-thumbnails button").first.click()
            words = one.answer().locator(".vf-words")
            assert "<img src=x onerror=alert(1)><script>" in words.inner_text()
            assert "${7*7} {{7*7}}" in words.inner_text()
            assert words.locator("img, script").count() == 0
            assert one.panel.get_by_text("Label probabilities are not available").count() == 1
            one.picture("hostile_text")
            one.panel.locator(".vf-thumbnails button").nth(1).click()
            problem = one.panel.locator(".vf-problem")
            problem.wait_for()
            assert "The model's server gave no answer" in problem.inner_text()
            one.leave()


@pytest.mark.slow
def test_two_models_side_by_side(visitor: Visitor) -> None:
    visitor.open("Compare")
    visitor.panel.locator(".vf-thumbnails button").first.click()
    visitor.answer(1)
    assert visitor.panel.locator(".vf-answer").count() == 2
    visitor.picture("compare")


@pytest.mark.slow
def test_a_batch_becomes_a_table_and_files(visitor: Visitor, tmp_path: Path) -> None:
    path = archive(
        tmp_path / "pictures.zip",
        {
            "deep/one.png": png(head(0)),
            HOSTILE.replace("/", "") + ".png": b"no picture",
            "none.png": png(Image.new("RGB", (64, 64))),
        },
    )
    visitor.open("Batch")
    visitor.upload(("pictures.zip", path.read_bytes()), ("two.png", png(head(4))))
    visitor.panel.locator(".vf-files tr.file").nth(1).wait_for()
    visitor.panel.get_by_role("button", name="Analyse all").click()
    table = visitor.panel.locator(".vf-table")
    table.wait_for()
    assert table.locator("tbody tr").count() == 4
    assert "${7*7} {{7*7}}" in table.inner_text() and "holds text" in table.inner_text()
    assert table.locator("img").count() == 0
    visitor.picture("batch")
    with visitor.page.expect_download() as download:
        visitor.panel.get_by_role("link", name="Download CSV").click()
    table_file = Path(download.value.path()).read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(table_file)))
    assert [row["file"] for row in rows if not row["problem"]] == ["one.png", "none.png", "two.png"]
    assert [row["face"] for row in rows] == ["1", "", "", "1"]
    link = visitor.panel.get_by_role("link", name="Download JSON").get_attribute("href")
    assert len(json.loads(base64.b64decode(link.partition(",")[2]))) == 4


@pytest.mark.slow
def test_a_hostile_archive_is_refused_in_words(visitor: Visitor, tmp_path: Path) -> None:
    zeros = bytes(batch.MAX_FILE_BYTES)
    bomb = archive(tmp_path / "b.zip", {f"{i}.png": zeros for i in range(11)})
    visitor.open("Batch")
    visitor.upload(("bomb.zip", bomb.read_bytes()))
    visitor.panel.locator(".vf-files tr.file").wait_for()
    visitor.panel.get_by_role("button", name="Analyse all").click()
    problem = visitor.panel.locator(".vf-problem")
    problem.wait_for()
    assert "unpacks to 275 MiB, more than the 256 MiB" in problem.inner_text()
    visitor.picture("bomb")


@pytest.mark.slow
def test_a_slider_moves_the_head_and_the_model_is_asked(visitor: Visitor) -> None:
    visitor.open("Synth playground")
    go = visitor.panel.get_by_role("button", name="Render and analyse")
    go.click()
    visitor.answer(1)
    picture = visitor.panel.locator(".vf-picture image")
    rest = picture.get_attribute("href")
    slider = visitor.panel.get_by_label("number input for AU12 lip corner puller")
    slider.fill("4")
    slider.press("Tab")
    go.click()
    visitor.panel.locator(".vf-drawn").get_by_text("lip corner puller").wait_for()
    visitor.answer(1)
    assert picture.get_attribute("href") != rest
    assert visitor.panel.locator(".vf-truth tbody tr").count() == 1
    visitor.panel.get_by_text("evidence of happiness").wait_for()
    visitor.picture("playground")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(chromium: Any, demo: Any, tmp_path: Path, scheme: str) -> None:
    one = Visitor(chromium, demo, tmp_path, color_scheme=scheme)
    one.panel.locator(".vf-thumbnails button").first.click()
    answer = one.answer()
    one.picture(f"analyse_{scheme}")
    seen = [
        one.page.locator(".vf-limits"),
        one.page.locator(".vf-over").first,
        one.page.get_by_role("tab", name="Analyse"),
        one.page.get_by_role("tab", name="About"),
        one.panel.locator(".vf-intro"),
        one.panel.locator(".vf-thumbnails button").first,
        answer.locator(".vf-label"),
        answer.locator(".vf-bar").first,
        answer.locator(".vf-meta"),
        answer.locator("summary"),
    ]
    for element in seen:
        assert contrast(element) >= 4.5, element.inner_text()
    one.open("About")
    one.picture(f"about_{scheme}")
    assert contrast(one.panel.locator("dt").first) >= 4.5
    one.leave()
