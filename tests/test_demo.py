"""The demo: what its views show, its playground, and what its server lets through."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.demo import HOSTILE, chosen, head, likely, png, report_of
from PIL import Image

from vlmface import facs, label_texts
from vlmface.data import crops
from vlmface.demo import (
    batch,
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
from vlmface.infer.face_report import FaceReport
from vlmface.infer.prediction import Prediction

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


# --- regions --------------------------------------------------------------------------------------


def test_regions_lie_on_the_face_from_top_to_bottom() -> None:
    finder = pytest.importorskip("vlmface.demo.face_detection").FaceFinder()
    if finder.missing:
        pytest.skip(finder.missing)
    image = example_media.join_horizontally([head(0), head(4)])
    faces = finder.find(image).faces
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

    from vlmface.demo import clip_tab, tab_parts

    example, upload, clip = (tmp_path / name for name in ("fear.png", "old.png", "fear.mp4"))
    for path in (example, upload, clip):
        path.write_bytes(png(Image.new("RGB", (32, 32))))
    with gradio.Blocks() as page:
        image, *_ = tab_parts.picture_input([example])
        tab_parts.example_buttons(clip_tab._clip_upload(), [(clip, example)], "clip")
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
