"""The same picture gives the same answer in the command, Python, the gateway, the demo, and before
a served model."""

from __future__ import annotations

import asyncio
import base64
import csv
import io
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import skimage
from fastapi.testclient import TestClient
from helpers.fake_teacher import FakeTeacher, Reply
from helpers.samples import picture
from PIL import ExifTags, Image

from vlmface import data, manifest
from vlmface.cli import main
from vlmface.data import crops, detect
from vlmface.demo import batch, model_choices, tabs, views
from vlmface.demo.face_detection import FaceFinder
from vlmface.errors import UserError
from vlmface.infer import FaceReport, Predictor
from vlmface.infer.face_views import PORTRAIT, ViewSettings
from vlmface.serving.gateway.app import create_app
from vlmface.serving.gateway.settings import Settings
from vlmface.synth import dataset
from vlmface.synth.render import render

pytestmark = pytest.mark.skipif(
    detect.unavailable_reason() is not None, reason="vlmface[detect] is missing"
)
ASTRONAUT = Image.fromarray(skimage.data.astronaut())


def rotated() -> tuple[Image.Image, Image.Exif]:
    """Upright by its tag alone."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return ASTRONAUT.transpose(Image.Transpose.ROTATE_90), exif


def two_faces() -> Image.Image:
    both = Image.new("RGB", (1024, 512))
    both.paste(ASTRONAUT)
    both.paste(ASTRONAUT.resize((400, 400)), (600, 100))
    return both


def write(folder: Path) -> dict[str, Path]:
    """Photographs of a face in every kind of file."""
    image, exif = rotated()
    deep = np.asarray(ASTRONAUT.convert("L")).astype(np.uint16) * 257
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "plain.png": (ASTRONAUT, {}),
        "rotated.jpg": (image, {"exif": exif, "quality": 95}),
        "grey.png": (ASTRONAUT.convert("L"), {}),
        "clear.png": (ASTRONAUT.convert("RGBA"), {}),
        "palette.png": (ASTRONAUT.quantize(), {}),
        "deep.png": (Image.fromarray(deep), {}),
        "two.webp": (two_faces(), {"lossless": True}),
    }
    folder.mkdir(exist_ok=True)
    for name, (one, how) in made.items():
        one.save(folder / name, **how)
    return {name: folder / name for name in made}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def faceless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faceless") / "faceless.png"
    Image.new("RGB", (120, 90), (90, 140, 90)).save(path)
    return path


@pytest.fixture(scope="module", params=["run_dir", "clip_faces"])
def run(request: pytest.FixtureRequest) -> Path:
    """A vision-language model and a CLIP, both trained on rendered heads."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def predictor(run: Path) -> Iterator[Predictor]:
    with Predictor.load(run) as found:
        yield found


@pytest.fixture(scope="module")
def finder() -> Iterator[FaceFinder]:
    found = FaceFinder()
    yield found
    found.close()


# --- the doors, each as {"box", "face_found", "aus", "answers"} of the face -----------------------

Line = dict[str, Any]


def command(run: Path, *words: Any) -> list[Line]:
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.stdout", output)
        assert main(["predict", *map(str, words), "--model", str(run), "--json"]) == 0
    return [json.loads(line) for line in output.getvalue().splitlines()]


def gateway(predictor: Predictor, path: Path, **fields: Any) -> list[Line]:
    with TestClient(create_app(predictor, Settings())) as client:
        reply = client.post("/v1/analyze", files={"image": path.read_bytes()}, data=fields)
    assert reply.status_code == 200, reply.text
    return reply.json()["faces"]


def handler(build: Callable[[Any], None], demo: Any, name: str) -> Callable[..., Any]:
    """What the page calls."""
    gradio = pytest.importorskip("gradio")
    with gradio.Blocks() as page:
        build(demo)
    return next(e.fn for e in page.fns.values() if getattr(e.fn, "__name__", "") == name)


def demo_of(predictor: Predictor, finder: FaceFinder) -> Any:
    return SimpleNamespace(
        predictor=predictor,
        face_finder=finder,
        examples=[],
        concurrency=1,
        scene=None,
        choices=[],
        clip=None,
    )


def analysed(predictor: Predictor, finder: FaceFinder, path: Path) -> tuple[Line, str]:
    """(the report behind the page, the page) of the demo's first tab."""
    reports: list[FaceReport] = []

    def answer(report: FaceReport, *rest: Any, true: Any = views.answer) -> str:
        reports.append(report)
        return true(report, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(views, "answer", answer)
        *_, (_, _, html) = handler(tabs.analyse_tab, demo_of(predictor, finder), "start")(str(path))
    return reports[-1].as_dict(), html


def same(found: Line, expected: Line) -> None:
    assert found["face_found"] is expected["face_found"]
    assert found["box"] == expected["box"] and found["aus"] == expected["aus"]
    assert found["answers"].keys() == expected["answers"].keys()
    for task, said in expected["answers"].items():
        own = found["answers"][task]
        assert (own["label"], own["text"]) == (said["label"], said["text"])
        assert own["probabilities"] == pytest.approx(said["probabilities"], abs=1e-6)


# --- the same everywhere --------------------------------------------------------------------------


def test_a_photograph_is_the_same_through_every_door(
    run: Path, predictor: Predictor, finder: FaceFinder, photographs: dict[str, Path]
) -> None:
    lines = dict(zip(photographs, command(run, *photographs.values()), strict=True))
    for name, path in photographs.items():
        expected = lines[name]
        left, top, right, bottom = expected["box"]
        assert 160 < left < 200 and 50 < top < 90 and 260 < right < 290 and 160 < bottom < 200, name
        assert expected["face_found"] is True
        for source in (path, str(path), path.read_bytes(), Image.open(path)):
            same(predictor.predict(source).as_dict(), expected)
        same(predictor.predict([path])[0].as_dict(), expected)
        same(asyncio.run(predictor.apredict(path)).as_dict(), expected)
        *_, streamed = predictor.stream(path)
        assert isinstance(streamed, FaceReport)
        same(streamed.as_dict(), expected)
        (found,) = gateway(predictor, path)
        same(found, expected)
        report, html = analysed(predictor, finder, path)
        same(report, expected)
        assert "The face" in html or "Face 1 of 2" in html
        rows = batch.predict_item(batch.UploadedFile(name, path.read_bytes()), predictor, finder)
        assert [row.face for row in rows] == list(range(1, 3 if name == "two.webp" else 2))
        same(rows[0].report.as_dict(), expected)
    # What differs in its file alone has one answer.
    for name in ("clear.png",):
        same(lines[name], lines["plain.png"])
    same(lines["deep.png"], lines["grey.png"])


def test_a_server_is_sent_what_the_model_here_is_shown(
    run_dir: Path, photographs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        FakeTeacher(lambda asked: Reply("<think>AU12.</think>\n<answer>happiness</answer>")) as one,
        Predictor.load(run_dir) as here,
        Predictor.load(one.url, run_dir=run_dir) as there,
    ):
        names = list(photographs)
        report = there.predict([photographs[name] for name in names])[0]
        assert (report.emotion, report.aus, report.face_found) == ("happiness", (12,), True)
        for name, path in photographs.items():
            assert main(["predict", str(path), "--model", one.url, "--run_dir", str(run_dir)]) == 0
            (view,) = here.face_views(path)
            sent = Image.open(io.BytesIO(base64.b64decode(one.requests[-1].face.partition(",")[2])))
            assert (np.asarray(sent) == np.asarray(view.images)).all(), name
            first = one.requests[: len(names)]
            assert one.requests[-1].face in {asked.face for asked in first}, name
    assert "happiness" in capsys.readouterr().out


def test_arrays_and_tensors_are_answered_like_their_file(
    predictor: Predictor, photographs: dict[str, Path]
) -> None:
    import torch

    expected = predictor.predict(photographs["plain.png"]).as_dict()
    pixels = np.asarray(ASTRONAUT)
    for source in (pixels, pixels / 255, torch.from_numpy(pixels.copy()).permute(2, 0, 1)):
        same(predictor.predict(source).as_dict(), expected)
    for report in predictor.predict(np.stack([pixels, pixels])):
        same(report.as_dict(), expected)
    turned = Image.open(photographs["rotated.jpg"]).convert("RGB")
    same(
        predictor.predict(turned).as_dict(),
        predictor.predict(photographs["rotated.jpg"]).as_dict(),
    )


def test_all_faces_or_none(run: Path, predictor: Predictor, photographs: dict[str, Path]) -> None:
    path = photographs["two.webp"]
    (whole,) = command(run, path, "--faces", "none")
    assert whole["box"] is None and whole["face_found"] is None
    same(predictor.predict(path, faces="none").as_dict(), whole)
    same(gateway(predictor, path, faces="none")[0], whole)
    both = command(run, path, "--faces", "all")
    assert [line["face_found"] for line in both] == [True, True]
    assert both[0]["box"][0] < 300 and both[1]["box"][0] > 700
    for found in (predictor.predict(path, faces="all"), predictor.predict([path], faces="all")[0]):
        for report, line in zip(found, both, strict=True):
            same(report.as_dict(), line)
    for found, line in zip(gateway(predictor, path, faces="all"), both, strict=True):
        same(found, line)
        assert found["search_note"] == line["search_note"]
    same(command(run, path, "--faces", "largest")[0], both[0])
    left, top, right, bottom = next(iter(predictor.faces(path)))
    (boxed,) = command(run, path, "--box", left, top, right, bottom)
    same(boxed, both[0])


def test_every_door_says_which_faces_may_be_missed(
    run: Path,
    predictor: Predictor,
    finder: FaceFinder,
    photographs: dict[str, Path],
    faceless: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = photographs["two.webp"]
    with detect.Detector() as detector:
        note = detector.search(Image.open(path)).note
        none_note = detector.search(Image.open(faceless)).note
    assert {line["search_note"] for line in command(run, path, "--faces", "all")} == {note}
    assert [line["search_note"] for line in command(run, path, faceless)] == [None, none_note]
    assert gateway(predictor, path)[0]["search_note"] is None
    assert gateway(predictor, faceless)[0]["search_note"] == none_note
    capsys.readouterr()
    words = ["predict", str(path), str(faceless), "--model", str(run), "--faces", "all"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.count(note) == 1 and out.count(none_note) == 1
    assert main([*words, "--csv", str(tmp_path / "out.csv")]) == 0
    with open(tmp_path / "out.csv", encoding="utf-8-sig", newline="") as file:
        assert [row["search_note"] for row in csv.DictReader(file)] == [note, note, none_note]
    upload = batch.UploadedFile("two.webp", path.read_bytes())
    rows = batch.predict_item(upload, predictor, finder)
    assert {row.report.search_note for row in rows if row.report} == {note}
    demo = demo_of(predictor, finder)
    demo.scene = path
    for build, name in ((tabs.analyse_tab, "start"), (tabs.people_tab, "analyse_all")):
        page, *_ = next(iter(handler(build, demo, name)(str(path))))
        assert note in page


def test_a_face_of_several_is_named_in_the_text(
    run_dir: Path, photographs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(photographs["two.webp"]), "--model", str(run_dir), "--faces"]
    assert main([*words, "all"]) == 0
    out = capsys.readouterr().out
    assert "two.webp, face 1: " in out and "two.webp, face 2: " in out
    assert main([*words, "largest", "--box", "1", "1", "90", "90"]) == 2
    assert "--faces is largest: leave out one" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "biggest"])


# --- no face --------------------------------------------------------------------------------------


def test_without_a_face_no_door_has_a_label(
    run: Path,
    predictor: Predictor,
    finder: FaceFinder,
    faceless: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("the model was asked")

    for name in ("predict", "apredict", "stream"):
        monkeypatch.setattr(predictor.backend, name, refuse)
    *pieces, streamed = predictor.stream(faceless)
    assert pieces == []
    found = [
        *command(run, faceless),
        *command(run, faceless, "--faces", "all"),
        predictor.predict(faceless).as_dict(),
        predictor.predict([faceless], faces="all")[0][0].as_dict(),
        asyncio.run(predictor.apredict(faceless)).as_dict(),
        streamed.as_dict(),
        *gateway(predictor, faceless),
        *gateway(predictor, faceless, faces="all"),
        *(
            row.report.as_dict()
            for row in batch.predict_item(
                batch.UploadedFile("x", faceless.read_bytes()), predictor, finder
            )
        ),
    ]
    report, html = analysed(predictor, finder, faceless)
    for line in [*found, report]:
        assert (line["face_found"], line["box"], line["is_confident"]) == (False, None, False)
        assert line["aus"] == [] and line["rationale"] == "" and not line["scene_only"]
        for said in line["answers"].values():
            assert said["label"] is None and said["probabilities"] is None
    assert "no face found" in html and "No face was found, so the model was not run" in html
    assert " %" not in html and "not available" not in html and "vf-label" not in html
    for build, name in ((tabs.people_tab, "analyse_all"), (tabs.compare_tab, "compare")):
        choices = [model_choices.ModelChoice(predictor, p) for p in predictor.backend.prompts] * 2
        demo = demo_of(predictor, finder)
        demo.choices, demo.scene = choices, faceless
        *_, last = handler(build, demo, name)(str(faceless), *((0, 1) if name == "compare" else ()))
        assert "no face found" in last[-1] and "vf-label" not in last[-1]
    row = batch.Row("x.png", 0, predictor.predict(faceless))
    table = views.batch([row], 1, predictor.tasks, {})
    assert "no face found" in table and "no answer" not in table and "0 answers" in table
    (cells,) = csv.DictReader(io.StringIO(batch.as_csv([row], predictor.tasks)))
    assert cells["face_found"] == "no" and not any(cells[task] for task in predictor.tasks)
    assert main(["predict", str(faceless), "--model", str(run)]) == 0
    assert "faceless.png: no face found" in capsys.readouterr().out


def test_a_box_that_holds_nothing_has_no_label(predictor: Predictor) -> None:
    for box in ((600.0, 600.0, 700.0, 700.0), (9.0, 9.0, 9.0, 9.0), (float("nan"),) * 4):
        report = predictor.predict(ASTRONAUT, boxes=box)
        assert report.face_found is False and report.primary.answer.label is None
        json.loads(json.dumps(report.as_dict()), parse_constant=pytest.fail)


def test_a_server_is_not_asked_without_a_face(run_dir: Path, faceless: Path) -> None:
    with (
        FakeTeacher() as server,
        Predictor.load(server.url, run_dir=run_dir) as predictor,
    ):
        assert predictor.predict(faceless).face_found is False
        assert server.requests == []
        assert predictor.predict(faceless, faces="none").face_found is None
        assert len(server.requests) == 1


# --- no detector ----------------------------------------------------------------------------------


@pytest.fixture
def no_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise UserError("to find faces, pip install 'vlmface[detect]' (no module)")

    monkeypatch.setattr(detect, "Detector", missing)


@pytest.mark.usefixtures("no_detector")
def test_without_a_detector_a_sentence_says_so(
    run_dir: Path, photographs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = photographs["plain.png"]
    words = ["predict", str(path), "--model", str(run_dir), "--json"]
    assert main(words) == 0
    told = capsys.readouterr()
    line = json.loads(told.out)
    assert line["face_found"] is None and line["box"] is None
    assert told.err.startswith("note: faces are not detected (to find faces, pip install")
    assert len(told.err.splitlines()) == 1
    with Predictor.load(run_dir) as predictor:
        with pytest.warns(UserWarning, match="receives each picture as a whole") as warned:
            same(predictor.predict(path).as_dict(), line)
        assert warned[0].filename == __file__
        same(gateway(predictor, path)[0], line)
        finder = FaceFinder()
        report, html = analysed(predictor, finder, path)
        same(report, line)
        assert "The face detector is not installed" in html
        with pytest.raises(UserError, match="pip install"):
            predictor.predict(path, faces="largest")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            predictor.predict(path, faces="none")
            predictor.predict(path, boxes=(170, 60, 280, 190))
    assert main([*words, "--faces", "largest"]) == 2
    assert "pip install" in capsys.readouterr().err


# --- what a run is shown --------------------------------------------------------------------------


def test_a_rendered_head_is_shown_as_it_was_in_training(run: Path, predictor: Predictor) -> None:
    for index in range(0, 60, 6):
        head = Image.fromarray(render(dataset.draw(0, "test", index).face, 96).image)
        (view,) = predictor.face_views(head)
        assert view.face_found is True and view.box is not None
        pictures = view.images
        assert not isinstance(pictures, list)
        assert (np.asarray(pictures) == np.asarray(head)).all()


def test_a_face_in_a_photograph_is_cut_out(predictor: Predictor) -> None:
    (view,) = predictor.face_views(ASTRONAUT)
    expected = crops.render_view(ASTRONAUT, view.box, PORTRAIT)
    assert (np.asarray(view.images) == np.asarray(expected)).all()


def test_a_run_says_whether_it_was_trained_on_faces(
    run: Path, clip_views: Path, tmp_path: Path
) -> None:
    assert manifest.load(run)[0].faces == manifest.load(clip_views)[0].faces == "largest"
    scenes = {name for name in data.names() if not data.shows_faces(name)}
    assert scenes == {"caers", "emotic", "raer", "synth_scenes"}
    mixed = tmp_path / "mix.yaml"
    mixed.write_text("sources: [{dataset: synth}, {dataset: synth_scenes}]")
    assert not data.shows_faces(str(mixed))
    mixed.write_text("sources: [{dataset: synth}, {dataset: rafdb}]")
    assert data.shows_faces(str(mixed))
    parse = crops.parse_views
    for crop, of_faces, of_scenes in (
        (None, "largest", "none"),
        ([{"view": "face"}], "largest", "largest"),
        ([{"box_source": "detector"}], "largest", "largest"),
        ([{"view": "scene"}], "none", "none"),
        ([{"view": "person"}], "none", "none"),
        ([{"view": "face"}, {"view": "scene"}], "largest", "largest"),
        ([{"view": "face_boxed"}], "largest", "largest"),
    ):
        assert crops.default_faces(parse(crop), True) == of_faces
        assert crops.default_faces(parse(crop), False) == of_scenes


def test_a_manifest_that_says_something_else_is_refused(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    path = tmp_path / "run" / manifest.FILENAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "faces": "both"}))
    with pytest.raises(UserError, match="faces is 'both', expected none or largest"):
        manifest.load(tmp_path / "run")
    assert ViewSettings.from_manifest(None) == ViewSettings((), 1, "none")


def test_a_model_without_a_run_is_shown_pictures_as_they_are(base: Path) -> None:
    with Predictor.load(base, prompt="face_cot", max_new_tokens=4) as predictor:
        (view,) = predictor.face_views(ASTRONAUT)
        assert view.face_found is None and view.images is ASTRONAUT
        assert predictor.face_views(ASTRONAUT, faces="largest")[0].face_found is True


@pytest.mark.parametrize("several", [False, True])
def test_the_face_of_a_clip_is_looked_for(
    clip_frames: Path, clip_faces: Path, faceless: Path, several: bool
) -> None:
    with Predictor.load(clip_frames if several else clip_faces) as predictor:
        frames = [ASTRONAUT, Image.open(faceless), ASTRONAUT, ASTRONAUT, Image.open(faceless)]
        (view,) = predictor.face_views(frames)
        assert view.face_found is True and view.box is None
        boxes = [next(iter(predictor.faces(frame)), None) for frame in frames]
        given = predictor.clip_view(frames, boxes)
        for own, other in zip(
            *(v.images if several else [v.images] for v in (view, given)), strict=True
        ):
            assert (np.asarray(own) == np.asarray(other)).all()
        assert predictor.predict([[faceless] * 4])[0].face_found is False
        with pytest.raises(UserError, match="a clip is about one face"):
            predictor.predict([frames], faces="all")
        with pytest.raises(UserError, match="frame 2 of picture 1 is of type int"):
            predictor.predict([[ASTRONAUT, 3]])
        with pytest.raises(UserError, match="a clip without frames"):
            predictor.predict([[]])


def test_a_photograph_of_a_face_alone_is_not_cut(predictor: Predictor) -> None:
    ((left, top, right, bottom),) = predictor.faces(ASTRONAUT)
    side = max(right - left, bottom - top)
    tight = ASTRONAUT.crop((int(left), int(top), int(left + side), int(top + side)))
    (view,) = predictor.face_views(tight, box=(0, 0, *tight.size))
    assert view.images is not None and np.asarray(view.images).shape == (*tight.size[::-1], 3)


def test_a_picture_that_cannot_be_used_is_named(predictor: Predictor) -> None:
    with pytest.raises(UserError, match="picture 2 is of type NoneType"):
        predictor.predict([picture(1, (64, 64)), None])
    with pytest.raises(UserError, match="faces is 'some': use none, largest, all"):
        predictor.predict(ASTRONAUT, faces="some")
    with pytest.raises(UserError, match="faces is all, but there is a box"):
        predictor.predict(ASTRONAUT, boxes=(1, 1, 90, 90), faces="all")
    with pytest.raises(UserError, match="a stream is about one face"):
        next(predictor.stream(ASTRONAUT, faces="all"))
