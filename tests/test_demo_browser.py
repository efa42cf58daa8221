"""The demo as a real page in a real browser, by clicking."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.demo import HOSTILE, archive, head, png
from helpers.fake_teacher import FakeTeacher, Reply, TeacherRequest
from helpers.scripts import ROOT
from PIL import Image

from vlmface.demo import (
    batch,
    example_media,
)
from vlmface.synth import dataset

pytestmark = pytest.mark.browser


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
    chromium: Any, random_demo: Any, example_clip: Path, tmp_path: Path
) -> None:
    one = Visitor(chromium, random_demo, tmp_path)
    one.open("Clip")
    one.upload(("smile.mp4", example_clip.read_bytes()))
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
