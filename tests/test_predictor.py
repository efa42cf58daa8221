"""One way to ask, whoever answers: a model in this process, and a server."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fake_teacher import FakeTeacher, Reply, TeacherRequest
from helpers.samples import picture
from PIL import Image

from vlmface import prompts
from vlmface.answers import Answer
from vlmface.cli import main
from vlmface.errors import UserError
from vlmface.infer import Predictor, loops
from vlmface.infer.batcher import DynamicBatcher, QueueFullError
from vlmface.infer.endpoint import NoAnswerError
from vlmface.infer.face_report import FaceReport
from vlmface.infer.face_views import ViewSettings
from vlmface.infer.local import LocalModel
from vlmface.infer.prediction import Prediction

PICTURES = [picture(seed, (40 + seed, 40)) for seed in range(5)]


def texts(reports: list[FaceReport]) -> list[str]:
    return [report.primary.text for report in reports]


@pytest.fixture(scope="module")
def local(run_dir: Path) -> Iterator[Predictor]:
    with Predictor.load(run_dir) as predictor:
        predictor.view_settings = ViewSettings()  # the pictures here show no faces
        yield predictor


@pytest.fixture(scope="module")
def behind(run_dir: Path) -> Iterator[FakeTeacher]:
    """A server behind which the same run answers, also piece by piece."""
    model, one_at_a_time = LocalModel.load(run_dir), threading.Lock()

    def behave(asked: TeacherRequest) -> Reply:
        image = Image.open(io.BytesIO(base64.b64decode(asked.face.partition(",")[2])))
        with one_at_a_time:
            (found,) = model.predict([image], probabilities=False)
        if not asked.body.get("stream"):
            return Reply(found.text)
        pieces = [found.text[i : i + 7] for i in range(0, len(found.text), 7)]
        events = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
        events += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}]
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        return Reply(body=("".join(lines) + "data: [DONE]\n\n").encode())

    with FakeTeacher(behave) as server:
        yield server


@pytest.fixture(scope="module")
def served(behind: FakeTeacher, run_dir: Path) -> Iterator[Predictor]:
    with Predictor.load(behind.url, run_dir=run_dir) as predictor:
        predictor.view_settings = ViewSettings()
        yield predictor


# --- whoever answers ------------------------------------------------------------------------------


def test_a_report_says_what_the_model_said(local: Predictor, run_dir: Path) -> None:
    assert local.tasks == ("emotion",) and local.name == run_dir.name
    expected = LocalModel.load(run_dir).predict(PICTURES)
    for report, said in zip(local.predict(PICTURES), expected, strict=True):
        assert (report.emotion, report.aus, report.rationale, report.status) == (
            said.answer.label,
            said.answer.aus,
            said.answer.rationale,
            said.answer.status,
        )
        assert report.probabilities == pytest.approx(said.probabilities, abs=1e-5)
        assert (
            report.limitations == local.limitations
            and report.box is None
            and report.face_found is None
        )
        line = json.loads(json.dumps(report.as_dict()))
        assert line["answers"]["emotion"]["text"] == said.text
        assert line["answers"]["emotion"]["prompt"] == "face_cot"


def test_of_a_clip_each_frame_has_a_box_of_its_own(
    clip_faces: Path, clip_frames: Path, local: Predictor
) -> None:
    frames = [picture(seed, (64, 48)) for seed in range(8)]
    boxes = [(i, 2, i + 30, 34) if i != 4 else None for i in range(8)]
    with Predictor.load(clip_faces) as one, Predictor.load(clip_frames) as four:
        assert (one.frames, four.frames) == (1, 4)
        view = four.clip_view(frames, boxes)
        shown = view.images
        assert view.face_found is True and isinstance(shown, list) and len(shown) == 4
        for image, i in zip(shown, (1, 3, 5, 7), strict=True):
            (alone,) = one.face_views(frames[i], box=boxes[i])
            assert image.tobytes() == alone.images.tobytes()  # type: ignore[union-attr]
        report = four.predict_clip(frames, boxes)
        expected = four.backend.predict(four.prompts_by_task["emotion"], [view], 1)[0]
        assert report.probabilities == expected.probabilities
        assert (report.face_found, report.box) == (True, None)
        # One frame is the middle one, and it has no face here.
        assert one.predict_clip(frames, boxes).face_found is False
        assert one.clip_view(frames[:7], boxes[:7]).face_found is True
        with pytest.raises(UserError, match="a clip without frames"):
            four.clip_view([], [])
    (middle,) = local.predict([PICTURES[2]], boxes=[(2, 2, 30, 30)])
    clip = local.predict_clip(PICTURES, [(2, 2, 30, 30)] * 5)
    assert clip.primary.text == middle.primary.text


@pytest.mark.parametrize("who", ["local", "served"])
def test_many_at_once_get_what_one_gets(who: str, request: pytest.FixtureRequest) -> None:
    predictor: Predictor = request.getfixturevalue(who)
    expected = texts(request.getfixturevalue("local").predict(PICTURES))

    async def together() -> list[FaceReport]:
        return await asyncio.gather(*map(predictor.apredict, PICTURES))

    assert texts(predictor.predict(PICTURES)) == expected
    assert texts(asyncio.run(together())) == expected
    assert texts(asyncio.run(together())) == expected  # in another event loop


@pytest.mark.parametrize("who", ["local", "served"])
def test_a_streamed_answer_grows_to_the_whole(who: str, request: pytest.FixtureRequest) -> None:
    predictor: Predictor = request.getfixturevalue(who)
    *pieces, report = predictor.stream(PICTURES[0])
    assert isinstance(report, FaceReport)
    said = [piece for piece in pieces if isinstance(piece, str)]
    assert len(said) == len(pieces) > 1 and said[-1] == report.primary.text
    assert all(b.startswith(a) for a, b in itertools.pairwise(said))
    (whole,) = predictor.predict(PICTURES[:1])
    assert report.primary.text == whole.primary.text
    assert report.probabilities == pytest.approx(whole.probabilities)


def test_only_a_model_in_this_process_tells_probabilities(
    local: Predictor, served: Predictor
) -> None:
    assert local.predict(PICTURES[:1])[0].probabilities is not None
    (report,) = served.predict(PICTURES[:1])
    assert report.probabilities is None
    assert report.is_confident == (report.emotion is not None)


def test_a_face_is_cut_out_of_its_picture(local: Predictor) -> None:
    scene = Image.new("RGB", (300, 200), "gray")
    face = picture(3, (80, 80))
    scene.paste(face, (100, 60))
    (report,) = local.predict([scene], boxes=[(100, 60, 180, 140)])
    assert report.box == (100, 60, 180, 140) and report.face_found is True
    (view,) = local.face_views(scene, box=(100, 60, 180, 140))
    assert isinstance(view.images, Image.Image)
    assert view.images.width == view.images.height == 224
    assert texts([report]) == texts(local.predict([view.images]))


def test_what_was_not_trained_is_not_asked(local: Predictor) -> None:
    with pytest.raises(UserError, match="was not trained to answer gender: choose from emotion"):
        local.predict(PICTURES, ["gender"])
    with pytest.raises(UserError, match="tasks is empty"):
        local.predict(PICTURES, [])


def test_what_is_about_a_server_is_refused_elsewhere(run_dir: Path, behind: FakeTeacher) -> None:
    with pytest.raises(UserError, match=r"served_model_name is lora, but .* is not the URL"):
        Predictor.load(run_dir, served_model_name="lora")
    with pytest.raises(UserError, match="give --run_dir, the folder of the run that it serves"):
        Predictor.load(behind.url)
    with pytest.raises(UserError, match="was trained with prompt face_cot"):
        Predictor.load(behind.url, run_dir=run_dir, prompt="expllm")


def test_a_server_that_does_not_answer(run_dir: Path) -> None:
    replies = iter([Reply(body=b"data: {}\n\n"), Reply(status=503, body=b"full")])
    with (
        FakeTeacher(lambda asked: next(replies)) as server,
        Predictor.load(server.url, run_dir=run_dir, attempts=1) as predictor,
    ):
        with pytest.raises(NoAnswerError, match="unreadable reply"):
            list(predictor.stream(PICTURES[0], faces="none"))
        with pytest.raises(NoAnswerError, match="HTTP 503 full"):
            list(predictor.stream(PICTURES[0], faces="none"))


# --- what is asked, in any form -------------------------------------------------------------------


def test_one_picture_has_a_report_and_many_have_a_list(local: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    PICTURES[0].save(path)
    expected = texts(local.predict(PICTURES[:1]))
    for single in (PICTURES[0], path, str(path), path.read_bytes(), np.asarray(PICTURES[0])):
        assert texts([local.predict(single)]) == expected
    for several in ([path], (str(path),), iter([path]), np.asarray(PICTURES[0])[None]):
        assert texts(local.predict(several)) == expected
    assert local.predict([]) == []
    with pytest.raises(UserError, match="pictures are of type int"):
        local.predict(3)  # type: ignore[call-overload]


def test_more_pictures_than_are_open_at_once_keep_their_order(
    local: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlmface.infer import predictor

    expected = texts(local.predict(PICTURES))
    monkeypatch.setattr(predictor, "MAX_OPEN_IMAGES", 2)
    assert texts(local.predict(PICTURES)) == expected


@pytest.mark.parametrize("tasks", ["emotion", ["emotion"], ("emotion",), iter(["emotion"]), None])
def test_tasks_are_a_text_or_several(local: Predictor, tasks: Any) -> None:
    (report,) = local.predict(PICTURES[:1], tasks)
    assert list(report.answers) == ["emotion"]


@pytest.mark.parametrize("wrong", ["gender", ["emotion", "gender"], [3], "emotion,gender", ""])
def test_tasks_of_another_run_are_one_message(local: Predictor, wrong: Any) -> None:
    with pytest.raises(UserError, match="was not trained to answer"):
        local.predict(PICTURES[:1], wrong)


@pytest.mark.parametrize(
    "box",
    [
        [2, 3, 30, 34],
        (2.0, 3.0, 30.0, 34.0),
        np.array([2, 3, 30, 34], np.float32),
        np.array([2, 3, 30, 34], np.int64),
        torch.tensor([2.0, 3, 30, 34]),
    ],
)
def test_a_box_of_any_kind_is_reported_as_numbers(local: Predictor, box: Any) -> None:
    reports = [
        local.predict(PICTURES[0], boxes=box),
        local.predict(PICTURES[0], boxes=[box]),
        *local.predict(PICTURES[:2], boxes=[box, None])[:1],
        asyncio.run(local.apredict(PICTURES[0], box=box)),
        list(local.stream(PICTURES[0], box=box))[-1],
    ]
    for report in reports:
        line = json.loads(json.dumps(report.as_dict()))
        assert line["box"] == [2.0, 3.0, 30.0, 34.0] and line["face_found"] is True
        assert texts([report]) == texts(reports[:1])
    stacked = np.array([[2, 3, 30, 34]] * 2, np.float32)
    assert [r.box for r in local.predict(PICTURES[:2], boxes=stacked)] == [(2, 3, 30, 34)] * 2


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([[1, 2, 3], None], "box 1 is"),
        ([(1, 2, 30, 30)], "1 boxes for 2"),
        (7, "boxes is 7"),
        ([None, "face"], "box 2 is 'face'"),
        ([[1, 2, 30, 30]] * 3, "3 boxes for 2"),
        ([np.zeros((3, 3)), None], "box 1 is array"),
    ],
)
def test_boxes_that_are_none_are_one_message(local: Predictor, boxes: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        local.predict(PICTURES[:2], boxes=boxes)
    assert "\n" not in str(error.value)


# --- loops, streams, closing ----------------------------------------------------------------------


@pytest.mark.parametrize("who", ["local", "served"])
def test_it_works_inside_a_running_loop(
    who: str, request: pytest.FixtureRequest, behind: FakeTeacher, run_dir: Path
) -> None:
    predictor: Predictor = request.getfixturevalue(who)
    expected = texts(request.getfixturevalue("local").predict(PICTURES[:2]))

    async def notebook() -> list[str]:
        assert texts(predictor.predict(PICTURES[:2])) == expected
        *_, last = predictor.stream(PICTURES[0])
        with Predictor.load(behind.url, run_dir=run_dir) as another:  # asks which model is served
            another.view_settings = ViewSettings()
            assert texts(another.predict(PICTURES[:2])) == expected
        return texts([last, await predictor.apredict(PICTURES[1])])  # type: ignore[list-item]

    assert asyncio.run(notebook()) == expected


def test_a_coroutine_is_run_wherever_it_is_called() -> None:
    async def inner() -> int:
        await asyncio.sleep(0)
        return 3

    async def outer() -> int:
        return loops.run_sync(inner())

    assert loops.run_sync(inner()) == asyncio.run(outer()) == 3


@pytest.mark.parametrize("where", ["local", "served"])
def test_a_half_read_stream_holds_up_nobody(
    where: str, run_dir: Path, behind: FakeTeacher, local: Predictor
) -> None:
    words = {} if where == "local" else {"run_dir": run_dir, "concurrency": 1, "timeout_s": 20.0}
    model = run_dir if where == "local" else behind.url
    expected = texts(local.predict(PICTURES[:1]))
    with Predictor.load(model, **words) as predictor:
        predictor.view_settings = ViewSettings()
        halves = [predictor.stream(PICTURES[i]) for i in range(3)]
        for half in halves:
            next(half)
        began = time.monotonic()
        assert texts([predictor.predict(PICTURES[0])]) == expected
        assert time.monotonic() - began < 15
        *_, last = halves[0]  # who comes back has the rest
        assert texts([last]) == expected  # type: ignore[list-item]
        del halves[1]
        assert texts([predictor.predict(PICTURES[0])]) == expected


@pytest.mark.parametrize("where", ["local", "served"])
def test_closing_twice_is_nothing_and_use_after_it_is_one_message(
    where: str, run_dir: Path, behind: FakeTeacher
) -> None:
    words = {} if where == "local" else {"run_dir": run_dir}
    predictor = Predictor.load(run_dir if where == "local" else behind.url, **words)  # type: ignore[arg-type]
    with predictor:
        half = predictor.stream(PICTURES[0], faces="none")
        next(half)
        predictor.close()
    predictor.close()
    uses: list[Any] = [
        lambda: predictor.predict(PICTURES),
        lambda: predictor.predict([]),
        lambda: list(predictor.stream(PICTURES[0])),
        lambda: predictor.faces(PICTURES[0]),
        lambda: asyncio.run(predictor.apredict(PICTURES[0])),
        lambda: predictor.predict_clip(PICTURES, [None] * 5),
        lambda: predictor.__enter__(),
    ]
    for use in uses:
        with pytest.raises(UserError, match=r"the predictor of .* is closed: load it again"):
            use()
    began = time.monotonic()
    with contextlib.suppress(UserError):  # the rest, or that it was closed
        list(half)
    assert time.monotonic() - began < 15


# --- those who wait together ----------------------------------------------------------------------


def test_who_waits_while_it_is_busy_is_answered_together() -> None:
    batches: list[tuple[str, list[int]]] = []
    begun, go_on = threading.Event(), threading.Event()

    def work(kind: str, jobs: list[int]) -> list[int]:
        batches.append((kind, jobs))
        begun.set()
        go_on.wait(10)
        return [job * 10 for job in jobs]

    batcher = DynamicBatcher(work, batch_size=3, max_queue=5)
    first = batcher.submit("a", 0)
    begun.wait(10)
    rest = [batcher.submit(kind, n) for n, kind in enumerate("aabab", 1)]
    with pytest.raises(QueueFullError, match="5 wait already"):
        batcher.submit("a", 6)
    rest[1].cancel()
    go_on.set()
    batcher.close()
    assert batches == [("a", [0]), ("a", [1, 4]), ("b", [3, 5])]
    assert first.result() == 0
    assert [one.result() for one in (rest[0], *rest[2:])] == [10, 30, 40, 50]
    with pytest.raises(QueueFullError, match="shutting down"):
        batcher.submit("a", 7)


def test_an_error_reaches_those_whom_it_concerns() -> None:
    def work(kind: str, jobs: list[int]) -> list[int]:
        if kind == "bad":
            raise UserError("no")
        return jobs

    batcher = DynamicBatcher(work, batch_size=4, max_queue=9)
    bad, good = batcher.submit("bad", 1), batcher.submit("good", 2)
    with pytest.raises(UserError, match="no"):
        bad.result(10)
    assert good.result(10) == 2
    batcher.close()


def test_one_bad_job_does_not_spoil_its_batch() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work(kind: str, jobs: list[int]) -> list[int]:
        begun.set()
        go_on.wait(10)
        return [10 // job for job in jobs]

    batcher = DynamicBatcher(work, batch_size=4, max_queue=9)
    batcher.submit("x", 1)
    begun.wait(10)
    jobs = [batcher.submit("x", n) for n in (2, 0, 5)]
    go_on.set()
    assert (jobs[0].result(10), jobs[2].result(10)) == (5, 2)
    with pytest.raises(ZeroDivisionError):
        jobs[1].result(10)
    batcher.close()


def test_who_hangs_up_while_waiting_costs_nothing() -> None:
    done: list[int] = []

    def work(kind: str, jobs: list[int]) -> list[int]:
        time.sleep(0.05)
        done.extend(jobs)
        return jobs

    batcher = DynamicBatcher(work, batch_size=1, max_queue=9)

    async def ask() -> None:
        tasks = [asyncio.create_task(batcher.submit_async("x", n)) for n in range(3)]
        await asyncio.sleep(0.02)
        tasks[1].cancel()
        assert await tasks[2] == 2

    asyncio.run(ask())
    batcher.close()
    assert done == [0, 2]


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for seed in range(2):
        picture(seed).save(tmp_path / f"{seed}.png")
    (tmp_path / "text.jpg").write_text("not an image")
    return [str(tmp_path / name) for name in ("0.png", "text.jpg", "missing.png", "1.png")]


class Fake:
    """A backend that knows the answer."""

    prompts = (prompts.load("face_cot"),)

    def predict(self, prompt: Any, images: Any, batch_size: int) -> list[Prediction]:
        answer = Answer("anger", (4,), "strict", "The brows are lowered (AU4).")
        likely = {"anger": 0.75, "fear": 0.25}
        return [Prediction("text", answer, likely, 0.1, True) for _ in images]

    def close(self) -> None:
        pass


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Predictor(Fake(), limitations="rendered faces only")  # type: ignore[arg-type]
    monkeypatch.setattr(Predictor, "load", lambda *a, **k: found)


@pytest.mark.usefixtures("loaded")
def test_a_bad_file_does_not_stop_the_others(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", *files, "--model", "run", "--json"]) == 2
    found = capsys.readouterr()
    errors = found.err.splitlines()
    assert len(errors) == 2
    assert all(line.startswith("error: ") for line in errors)
    assert "text.jpg" in errors[0] + errors[1] and "missing.png" in errors[0] + errors[1]
    reports = [json.loads(line) for line in found.out.splitlines()]
    assert [Path(a["image"]).name for a in reports] == ["0.png", "1.png"]
    said = reports[0]["answers"]["emotion"]
    assert said["label"] == "anger" and said["probabilities"] == {"anger": 0.75, "fear": 0.25}
    assert reports[0]["aus"] == [{"au": 4, "name": "brow lowerer", "region": "brow"}]
    assert reports[0]["limitations"] == "rendered faces only"


@pytest.mark.usefixtures("loaded")
def test_people_get_text_and_the_note(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", files[0], files[3], "--model", "run"]) == 0
    out = capsys.readouterr().out
    assert "0.png: anger" in out and "AU4" in out and "anger 0.75" in out
    assert out.splitlines()[-1] == "note: rendered faces only"


def test_a_server_is_asked_by_the_command(
    behind: FakeTeacher,
    run_dir: Path,
    files: list[str],
    local: Predictor,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--model", behind.url, "--run_dir", str(run_dir), "--json", "--faces", "none"]
    assert main(["predict", files[0], *words]) == 0
    said = json.loads(capsys.readouterr().out)["answers"]["emotion"]["text"]
    assert said == texts(local.predict([Image.open(files[0])]))[0]
