"""Faces are cut out once: where, how, from which pictures, and that everybody sees the same."""

from __future__ import annotations

import json
import threading

import datasets
import numpy as np
import pytest
import skimage.data
from miniatures import face
from PIL import Image

from vlmface import benchmarks, data, manifest
from vlmface.cli import main
from vlmface.data import crop_cache, crops, detect
from vlmface.data.dataset_rows import to_dataset
from vlmface.data.row_images import open_row_image
from vlmface.data.rows import Rows
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.evaluate.run import compute_metrics
from vlmface.infer.local import LocalModel

BOX = [20.0, 30.0, 60.0, 80.0]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLMFACE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def astronaut(tmp_path):
    path = tmp_path / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()).save(path)
    return path


def table(tmp_path, n, boxes=None, **columns):
    """n rows of random pictures of 120 x 100 pixels."""
    paths = [str(face(tmp_path / f"{k}.png", k, (120, 100))) for k in range(n)]
    return to_dataset(
        Rows(
            {
                "id": [f"x-{k}" for k in range(n)],
                "image": paths,
                "face_box": boxes or [None] * n,
                **columns,
            }
        ),
        "x",
        "train",
    )


def opened(rows):
    return [np.asarray(open_row_image(image)) for image in rows["image"]]


def test_a_square_around_the_box_black_outside_of_the_picture():
    picture = Image.fromarray(np.full((100, 120, 3), 200, np.uint8))
    crop = crops.View(size=100, margin=0.0)
    assert np.asarray(crops.render_view(picture, [10, 20, 60, 70], crop)).min() == 200
    left = np.asarray(crops.render_view(picture, [-25, 20, 25, 70], crop))  # half of it outside
    assert left[:, :44].max() == 0 and left[:, 56:].min() == 200
    # A wide box becomes a square around its middle, with a margin of half its width.
    marked = np.zeros((300, 300, 3), np.uint8)
    marked[100:200, 100:200] = 255
    found = np.asarray(
        crops.render_view(
            Image.fromarray(marked), [100, 140, 200, 160], crops.View(size=200, margin=0.5)
        )
    )
    assert found[56:144, 56:144].min() == 255 and found[:44].max() == 0
    # 20 pixels of the picture on each side, however large the box: 100 + 40 become 280.
    wider = crops.View(size=280, margin=0.0, margin_px=20)
    square = np.zeros((300, 300, 3), np.uint8)
    square[100:200, 100:200] = 255
    found = np.asarray(crops.render_view(Image.fromarray(square), [100, 140, 200, 160], wider))
    assert found[48:232, 48:232].min() == 255 and found[:32].max() == 0
    assert wider.folder != crops.View(size=280, margin=0.0).folder
    whole = np.asarray(crops.render_view(picture, None, crops.View(size=120, margin=0.5)))
    assert whole[:10].max() == 0 and whole[10:110].min() == 200 and whole[110:].max() == 0


def test_a_frame_around_the_box_in_the_whole_picture():
    picture = Image.fromarray(np.full((100, 200, 3), 200, np.uint8))
    crop = crops.View(size=400, margin=0.1, view="face_boxed")
    boxed = np.asarray(crops.render_view(picture, [50, 20, 100, 70], crop))
    red = (boxed == crops.BOX_COLOUR).all(-1)
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    # Twice as large, with 5 pixels of margin, below 100 black rows.
    assert (columns[0], columns[-1]) == (90, 210) and (rows[0], rows[-1]) == (130, 250)
    assert red.sum() == 121**2 - 113**2  # 4 pixels wide
    assert (boxed[~red][:, 0] < 100).sum() == 200 * 400  # the bars, nothing else
    beyond = np.asarray(crops.render_view(picture, [-20, -20, 20, 20], crop))
    assert (beyond == crops.BOX_COLOUR).all(-1).any()
    plain = np.asarray(crops.render_view(picture, None, crop))
    assert not (plain == crops.BOX_COLOUR).all(-1).any()
    assert crop.folder != crops.View(size=400, margin=0.1).folder


def test_two_people_in_one_picture_are_two_rows(tmp_path):
    boxes = [[10.0, 10.0, 40.0, 40.0], [70.0, 30.0, 110.0, 80.0]]
    path = str(face(tmp_path / "both.png", 0, (120, 100)))
    rows = to_dataset(
        Rows({"id": ["left", "right"], "image": [path] * 2, "face_box": boxes}), "x", "train"
    )
    left, right = opened(
        crop_cache.cache_view(rows, crops.View(size=120, view="face_boxed"), progress=False)
    )
    for found, other in ((left, right), (right, left)):
        assert (found == crops.BOX_COLOUR).all(-1).any()
        assert (found != other).any()
    both = np.asarray(crops.render_view(Image.open(path), None, crops.View(size=120)))
    unmarked = ~((left == crops.BOX_COLOUR).all(-1) | (right == crops.BOX_COLOUR).all(-1))
    np.testing.assert_array_equal(left[unmarked], both[unmarked])


def test_cached_equals_uncached_and_nothing_is_cut_twice(tmp_path, monkeypatch):
    rows = table(tmp_path, 5, [BOX, None, BOX, [-5.0, 0.0, 30.0, 30.0], BOX])
    crop = crops.View(size=64)
    monkeypatch.setattr(crop_cache, "IMAGES_PER_PACK", 2)
    found = crop_cache.cache_view(rows, crop, progress=False)
    expected = [
        np.asarray(crops.render_view(open_row_image({"path": path}), box, crop))
        for path, box in zip(
            [f"{tmp_path}/{k}.png" for k in range(5)], rows["face_box"], strict=True
        )
    ]
    np.testing.assert_array_equal(opened(found), expected)
    assert found["face_box"] == [None] * 5 and found["id"] == rows["id"]
    assert len(list(crop.folder.glob("*.npy"))) == 3

    def forbidden(*_):
        raise AssertionError("cut again")

    monkeypatch.setattr(crops, "render_view", forbidden)
    # The same content elsewhere, another order, some of them: all is there.
    (tmp_path / "copy").mkdir()
    for k in range(5):
        (tmp_path / "copy" / f"{k}.png").write_bytes((tmp_path / f"{k}.png").read_bytes())
    again = crop_cache.cache_view(
        table(tmp_path / "copy", 5, rows["face_box"]).select([4, 1]), crop, progress=False
    )
    np.testing.assert_array_equal(opened(again), [expected[4], expected[1]])


def test_other_content_boxes_and_ways_of_cutting_are_told_apart(tmp_path):
    rows = table(tmp_path, 1, [BOX])
    first = opened(crop_cache.cache_view(rows, crops.View(size=64), progress=False))[0]
    face(tmp_path / "0.png", 99, (120, 100))  # the file under that name has changed
    assert (
        opened(crop_cache.cache_view(rows, crops.View(size=64), progress=False))[0] != first
    ).any()
    wider = crop_cache.cache_view(rows, crops.View(size=64, margin=0.5), progress=False)
    other = crop_cache.cache_view(table(tmp_path, 1, [[0.0, 0.0, 50.0, 50.0]]), crops.View(size=64))
    assert (opened(wider)[0] != opened(other)[0]).any()
    assert len(list((tmp_path / "cache" / "crops").iterdir())) == 2


def test_what_was_cut_before_a_broken_picture_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(crop_cache, "IMAGES_PER_PACK", 2)
    rows = table(tmp_path, 20)
    whole = (tmp_path / "19.png").read_bytes()
    (tmp_path / "19.png").write_bytes(whole[:200])
    crop = crops.View(size=32)
    with pytest.raises(UserError, match=r"19\.png.* is damaged"):
        crop_cache.cache_view(rows, crop, progress=False)
    kept = set(crop.folder.glob("*.npy"))
    assert len(kept) == 8  # threads take eight pictures at a time
    (tmp_path / "19.png").write_bytes(whole)
    assert len(opened(crop_cache.cache_view(rows, crop, progress=False))) == 20
    assert kept < set(crop.folder.glob("*.npy"))
    with pytest.raises(UserError, match=r"cannot read .*3\.png"):
        (tmp_path / "3.png").unlink()
        crop_cache.cache_view(rows, crop, progress=False)


def test_two_processes_may_cut_the_same_faces(tmp_path):
    rows = table(tmp_path, 40)
    crop, found = crops.View(size=32), {}

    def work(name):
        found[name] = opened(crop_cache.cache_view(rows, crop, workers=1, progress=False))

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found["a"], found["b"])


def test_persons_frames_and_encoded_pictures(tmp_path):
    person = json.dumps({"person_box": BOX})
    rows = table(tmp_path, 2, meta=[person, "{}"])
    first, second = opened(crop_cache.cache_view(rows, crops.View(size=64), progress=False))
    crop = crops.View(size=64)
    pictures = [open_row_image({"path": f"{tmp_path}/{k}.png"}) for k in range(2)]
    np.testing.assert_array_equal(first, np.asarray(crops.render_view(pictures[0], BOX, crop)))
    np.testing.assert_array_equal(second, np.asarray(crops.render_view(pictures[1], None, crop)))
    paths = [str(tmp_path / f"{k}.png") for k in range(2)]
    clip = to_dataset(Rows({"id": ["c"], "frames": [paths]}), "x", "train")
    frames = crop_cache.cache_view(clip, crop, progress=False)[0]["frames"]
    assert len(frames) == 2
    np.testing.assert_array_equal(np.asarray(open_row_image(frames[1])), second)
    stored = to_dataset(
        Rows({"id": ["b"], "image": [(tmp_path / "1.png").read_bytes()]}), "x", "train"
    )
    np.testing.assert_array_equal(
        opened(crop_cache.cache_view(stored, crop, progress=False))[0], second
    )


def test_wrong_settings_and_a_deleted_cache(tmp_path):
    wrong = {
        "size is 3": {"size": 3},
        "margin is 9": {"margin": 9},
        "margin_px is -1": {"margin_px": -1},
        "did you mean 'size'": {"sise": 64},
        "annotation": {"box_source": "x"},
    }
    for said, values in wrong.items():
        with pytest.raises(UserError, match=said):
            crops.parse_views([values])
    rows = crop_cache.cache_view(table(tmp_path, 1), crops.View(size=32), progress=False)
    for file in crops.View(size=32).folder.glob("*.npy"):
        file.unlink()
    with pytest.raises(UserError, match="delete that folder"):
        opened(rows)


# --- the detector ---------------------------------------------------------------------------------


def test_the_detector_finds_the_face_of_a_photograph(astronaut):
    with detect.Detector() as detector, Image.open(astronaut) as picture:
        (x0, y0, x1, y1) = detector.face(picture)
        assert 160 < x0 < 200 and 50 < y0 < 90 and 260 < x1 < 290 and 160 < y1 < 200
        assert detector.face(picture, [150, 40, 300, 220]) is not None
        assert detector.face(picture, [300, 300, 500, 500]) is None  # the suit
        assert detector.face(picture, [600, 600, 700, 700]) is None  # outside
        twice = Image.new("RGB", (1024, 512))
        twice.paste(picture)
        twice.paste(picture.resize((400, 400)), (600, 100))
        assert len(detector.faces(twice)) == 2  # too small for one look at all of it
        assert detector.face(twice)[0] < 300  # the larger one
        assert detector.face(twice, [730, 150, 820, 250])[0] > 700  # the one in the box


def test_pictures_without_a_face_are_taken_whole_and_counted(tmp_path, astronaut):
    noise = str(face(tmp_path / "noise.png", 1, (120, 100)))
    rows = to_dataset(Rows({"id": ["a", "b"], "image": [str(astronaut), noise]}), "x", "train")
    crop = crops.View(size=96, box_source="detector")
    with pytest.warns(UserWarning, match=r"no face found in 1 of 2 pictures.*noise\.png"):
        found = opened(crop_cache.cache_view(rows, crop, progress=False))
    with detect.Detector() as detector, Image.open(astronaut) as picture:
        expected = crops.render_view(picture, detector.face(picture), crop)
    np.testing.assert_array_equal(found[0], np.asarray(expected))
    with pytest.warns(UserWarning, match="no face found in 1 of 2"):  # from the cache, too
        crop_cache.cache_view(rows, crop, progress=False)


# --- everybody sees the same ----------------------------------------------------------------------


def test_a_recipe_that_cuts_faces_out_is_evaluated_and_asked_in_the_same_way(
    tmp_path, sft_cot, astronaut, capsys
):
    run = tmp_path / "run"
    crop = {"size": 48, "margin": 0.1, "box_source": "detector"}
    assert sft_cot(run, "--views", json.dumps([crop]), "--epochs", "1") == 0
    assert manifest.load(run)[0].views == [{**crop, "view": "face"}]
    lines = answering.read_lines(run / "predictions.jsonl")
    benchmark = benchmarks.load_benchmark("synth")
    raw = benchmarks.load_rows(benchmark, None, 8)
    predictor = LocalModel.load(run)
    answers = predictor.predict(answering.images_of(raw))  # cuts them itself
    assert [answer.text for answer in answers] == [line["text"] for line in lines]
    faces = benchmarks.load_rows(benchmark, None, 8, crops.parse_views([crop]))
    again = predictor.predict(answering.images_of(faces), preprocessed=True)
    assert [answer.text for answer in again] == [line["text"] for line in lines]
    capsys.readouterr()
    faceless = face(tmp_path / "faceless.png", 3, (64, 64))
    assert main(["predict", str(astronaut), str(faceless), "--model", str(run), "--json"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["face_found"] for line in said] == [True, False]


@pytest.mark.parametrize("scoring", ["generate", "both"])
def test_rows_without_a_face_are_not_answered(tmp_path, run_dir, monkeypatch, scoring):
    benchmark = benchmarks.load_benchmark("synth")
    loaded = benchmarks.load_rows(benchmark, None, 3)
    noise = {"path": str(face(tmp_path / "noise.png", 1, (120, 100))), "bytes": None}
    images = [noise, *loaded.cast_column("image", datasets.Image(decode=False))["image"][1:]]
    rows = crop_cache._with_columns(loaded, {"image": images})
    views = crops.parse_views([{"size": 96, "box_source": "detector"}])
    with pytest.warns(UserWarning, match="no face found in 1 of 3"):
        rows = crop_cache.apply_views(rows, views, progress=False)
    model = LocalModel.load(run_dir)
    batches = []
    true = model.predict
    monkeypatch.setattr(model, "predict", lambda i, **k: (batches.append(len(i)), true(i, **k))[1])
    monkeypatch.setattr(model, "with_prompt", lambda _: model)
    whole = answering.answer(model, rows, benchmark, batch_size=8, scoring=scoring)
    assert batches == [3] and whole[0]["text"]  # a model of whole pictures
    model.views = views
    lines = answering.answer(model, rows, benchmark, batch_size=8, scoring=scoring)
    assert batches == [3, 2] and [line["face_found"] for line in lines] == [False, True, True]
    faceless = lines[0]
    assert (faceless["text"], faceless["label"], faceless["probabilities"]) == ("", None, None)
    assert [line["text"] for line in lines[1:]] == [line["text"] for line in whole[1:]]
    scores = compute_metrics(lines, benchmark, model.prompts, model="run", scoring=scoring)
    assert scores["n"] == 3
    readings = scores["emotion"].get("readings", {})
    assert ("likelihood" in readings) is (scoring == "both")


def test_one_person_of_several_is_asked_about(tmp_path, sft_cot, astronaut, capsys, monkeypatch):
    run, box = tmp_path / "run", ["170", "60", "280", "190"]
    words = ["--views", "[{size: 64, view: face_boxed}]", "--prompt", "facescan_boxed_emotion"]
    assert sft_cot(run, *words, "--epochs", "1") == 0
    capsys.readouterr()
    seen = []
    monkeypatch.setattr(
        LocalModel,
        "_generate",
        lambda self, images, *how, true=LocalModel._generate: (
            seen.extend(images),
            true(self, images, *how),
        )[1],
    )
    command = ["predict", str(astronaut), "--model", str(run), "--json"]
    assert main([*command, "--box", *box]) == 0
    expected = crops.render_view(
        Image.open(astronaut), [*map(float, box)], crops.View(64, view="face_boxed")
    )
    np.testing.assert_array_equal(np.asarray(seen[0]), np.asarray(expected))
    assert (np.asarray(expected) == crops.BOX_COLOUR).all(-1).any()
    (said,) = capsys.readouterr().out.splitlines()
    assert json.loads(said)["answers"]["emotion"]["prompt"] == "facescan_boxed_emotion"
    assert main([*command, "--box", *box[::-1]]) == 2
    assert "expected left top right bottom" in capsys.readouterr().err
    assert main(["predict", str(astronaut), *command[1:], "--box", *box]) == 2
    assert "one image, but there are 2" in capsys.readouterr().err


def test_a_model_of_whole_pictures_knows_no_box(run_dir):
    with pytest.raises(UserError, match="trained on full images"):
        LocalModel.load(run_dir).predict([Image.new("RGB", (50, 50))], boxes=[BOX])


def test_the_command_fills_the_cache_and_draws_it(tmp_path, capsys):
    from miniatures import rafdb

    rafdb.write(tmp_path / "data")
    words = ["data", "crop", "rafdb", str(tmp_path / "data"), "--size", "64", "--margin", "0.1"]
    assert main([*words, "--sheet", str(tmp_path / "faces.png")]) == 0
    said = capsys.readouterr().out
    assert "rafdb, train: 7 rows" in said
    assert (
        """--views '[{"size": 64, "margin": 0.1, "box_source": "annotation", "view": "face"}]'"""
        in said
    )
    assert (tmp_path / "faces-train.png").exists() and (tmp_path / "faces-test.png").exists()
    rows = data.load("rafdb", tmp_path / "data")
    assert opened(crop_cache.cache_view(rows, crops.View(64, 0.1), progress=False))[0].shape == (
        64,
        64,
        3,
    )


def test_a_long_strip_is_no_large_square():
    """A square around it would have 10 gigapixels."""
    strip = Image.new("RGB", (100_000, 20), "white")
    face = np.asarray(crops.render_view(strip, None, crops.View(64)).convert("L"))
    assert face.shape == (64, 64) and face.max() < 64 and face.min() == 0
    end = crops.render_view(strip, (99_900, 0, 99_920, 20), crops.View(64, margin=0))
    assert (np.asarray(end) == 255).all()
