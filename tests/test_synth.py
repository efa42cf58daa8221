"""Rendered faces: one seed, one face; splits share nobody; labels say what is drawn."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.rendered import check_pinned
from PIL import Image

from vlmface import data, facs
from vlmface.errors import UserError
from vlmface.label_spaces import EMOTIONS, SPACES
from vlmface.schema import FaceSample
from vlmface.synth import dataset, expressions, face_descriptions, geometry
from vlmface.synth.face_parameters import Face
from vlmface.synth.faces import sample_face
from vlmface.synth.head import AU_UNITS, Identity, head_model, unit_weights
from vlmface.synth.render import render

pytestmark = pytest.mark.usefixtures("cache")


def test_the_renderer_moves_every_au_that_is_labelled():
    assert set(AU_UNITS) == set(facs.SYNTH_V2_AUS)
    assert set(facs.SYNTH_AUS) == set(describe_units())
    model, identity = head_model(), Identity(30, 0.5, 0.5, (0.3, 0.3, 0.4))
    rest = model.neutral(identity)
    for au in facs.SYNTH_AUS:
        moved = np.abs(model.move(rest, unit_weights({au: 0.6})) - rest).max()
        assert 0.01 < moved < 0.6, f"AU{au} moves the skin by {moved:.3f} dm"


def describe_units():
    regions = [region for regions in face_descriptions.PLACES.values() for region in regions]
    return [au for au in facs.SYNTH_AUS if facs.AUS[au].region in regions]


@pytest.mark.parametrize("au", facs.SYNTH_AUS)
def test_every_au_changes_the_picture_at_its_faintest(au):
    """An AU at grade A must be visible: more than the picture's own noise."""
    face = dataset.draw(0, "test", 5).face
    strength = {au: 0.38}
    calm = render(Face(face.identity, face.look, {}, {}, face.view)).image.astype(int)
    moved = render(Face(face.identity, face.look, strength, strength, face.view)).image.astype(int)
    assert (np.abs(moved - calm).max(2) > 12).sum() >= 8


def test_a_face_at_rest_has_its_mouth_closed():
    for index in range(0, 40, 4):
        face = dataset.draw(0, "train", index).face
        rest = render(Face(face.identity, face.look, {}, {}, face.view))
        assert (rest.part >= 3).sum() - (rest.part >= 6).sum() <= 4, (
            f"teeth show at rest in face {index}"
        )


def test_drawing_is_deterministic_and_seeds_differ():
    first, again, other = (dataset.draw(s, "train", 7) for s in (0, 0, 1))
    assert first == again
    assert render(first.face).jpeg == render(again.face).jpeg
    assert first != other


def test_this_version_still_draws_what_it_drew():
    labels = repr([dataset.draw(0, "test", i).expression.aus for i in range(50)])
    image = render(dataset.draw(0, "test", 3).face).image
    check_pinned(PINNED, dataset.VERSION, labels, image)


PINNED = (
    2,
    "bcee8c498a42",
    [[140, 172, 184, 153], [143, 157, 170, 156], [138, 159, 190, 134], [121, 133, 170, 127]],
)


def test_splits_and_seeds_share_no_identity_and_no_face():
    rows = {
        (seed, split): [dataset.face_seeds(seed, split, i) for i in (0, 1, 5, 9_999_999)]
        for seed in (0, 1)
        for split in dataset.SPLITS
    }
    faces = [face for pairs in rows.values() for face, _ in pairs]
    people = [{person for _, person in pairs} for pairs in rows.values()]
    assert len(set(faces)) == len(faces)
    assert sum(map(len, people)) == len(set().union(*people))


def test_load_gives_valid_rows_of_the_schema(cache):
    rows = data.load("synth", split="validation", n=70, progress=False)
    assert len(rows) == 70
    for row in rows:
        sample = FaceSample.from_row(row).validate()
        assert sample.image.size == (96, 96)
        assert sample.annotated_aus() == facs.SYNTH_AUS
        assert all(label.present == (label.intensity >= 1) for label in sample.aus)
        assert sample.age_group in SPACES["age_group5"].labels
        assert sample.gender in SPACES["gender"].labels
    assert data.fingerprint(rows) == data.fingerprint(data.load("synth", split="validation", n=70))
    assert data.fingerprint(rows) != data.fingerprint(data.load("synth", split="validation", n=69))


def test_cached_equals_uncached(cache, monkeypatch, tmp_path):
    first = data.load("synth", split="test", n=64, progress=False)
    cached = data.load("synth", split="test", n=64, progress=False)
    monkeypatch.setenv("VLMFACE_CACHE", str(tmp_path / "other"))
    again = data.load("synth", split="test", n=64, progress=False)
    assert first.data.table == cached.data.table == again.data.table


@pytest.mark.slow
def test_rendering_killed_in_the_middle_goes_on(cache, monkeypatch, tmp_path):
    code = "from vlmface.synth.dataset import render_split; render_split('train', 512, workers=2)"
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ, start_new_session=True)
    folder = dataset.cache_folder(0, "train", 96)
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.parquet"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    assert 2 <= len(finished) < 8
    resumed = data.load("synth", split="train", n=512, progress=False)
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in finished.items()), "drawn twice"
    monkeypatch.setenv("VLMFACE_CACHE", str(tmp_path / "other"))
    assert resumed.data.table == data.load("synth", split="train", n=512, progress=False).data.table


def test_a_damaged_shard_is_named(cache):
    data.load("synth", split="test", n=10, progress=False)
    shard = next(dataset.cache_folder(0, "test", 96).glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match=r"000000\.parquet is damaged.*delete it"):
        data.load("synth", split="test", n=10)


REFUSED: dict[str, list[tuple[dict, str]]] = {
    "synth": [
        ({"split": "tests"}, "no split 'tests'.*train, validation, test"),
        ({"n": 0}, "1 to 10,000,000 faces, not 0"),
        ({"size": 5}, "32 to 1024 pixels, not 5"),
        ({"fold": 2}, "has no option 'fold'"),
    ],
    "synth_clips": [
        ({"split": "pretrain"}, "no split 'pretrain'.*train, validation, test"),
        ({"n": -1}, "1 to 10,000,000 clips, not -1"),
        ({"size": 513}, "32 to 512 pixels, not 513"),
        ({"num_frames": 15}, "16 to 64 frames, not 15"),
        ({"num_frames": 65}, "16 to 64 frames, not 65"),
    ],
    "synth_scenes": [
        ({"split": "pretrain"}, "no split 'pretrain'.*train, validation, test"),
        ({"n": 0}, "1 to 10,000,000 scenes, not 0"),
        ({"size": 63}, "64 to 1024 pixels, not 63"),
        ({"size": 1025}, "64 to 1024 pixels, not 1025"),
        ({"num_frames": 2}, "has no option 'num_frames'"),
    ],
}
REFUSED_BY_ALL = [
    ({"seed": -1}, "seed is -1, but must be a whole number at least 0"),
    ({"root": "/somewhere"}, "rendered, not read"),
]


@pytest.mark.parametrize(
    ("name", "call", "message"),
    [(name, *case) for name, cases in REFUSED.items() for case in (*cases, *REFUSED_BY_ALL)],
)
def test_bad_arguments_are_named(name, call, message):
    with pytest.raises(UserError, match=message):
        data.load(name, **{"split": "test", "n": 3} | call)


def test_an_unknown_data_set_gets_a_hint():
    with pytest.raises(UserError, match="did you mean 'synth'"):
        data.load("sinth")


def test_expressions_are_possible_varied_and_probable():
    rng = np.random.default_rng(0)
    drawn = [expressions.sample_expression(rng) for _ in range(3000)]
    shares = {au: np.mean([au in e.aus for e in drawn]) for au in facs.SYNTH_AUS}
    assert min(shares.values()) > 0.03, shares
    assert {e.emotion for e in drawn} == set(EMOTIONS)
    supported = np.mean([facs.supports(e.aus, e.emotion) for e in drawn])
    assert 0.9 < supported < 1, "the label should be probable, not certain"
    for expression in drawn:
        aus = set(expression.aus)
        assert all(1 <= grade <= 5 for grade in expression.aus.values())
        assert not ({26, 27} & aus and 25 not in aus), "a dropped jaw parts the lips"
        assert not {12, 15} <= aus and not {5, 43} <= aus and not {26, 27} <= aus
        for au in aus:  # a trace is drawn, an absent unit is not
            assert max(expression.left[au], expression.right[au]) > 0.3


def test_valence_and_arousal_follow_emotion_and_strength():
    affect, place = expressions.affect, expressions.CIRCUMPLEX
    assert set(place) == set(EMOTIONS) and place["neutral"] == (0, 0)
    assert affect("happiness", {6: 5, 12: 5}) == place["happiness"]
    faint, strong = affect("happiness", {6: 1, 12: 1}), affect("happiness", {6: 4, 12: 4})
    assert strong == pytest.approx([4 * x for x in faint], abs=2e-4)
    # (4 + 2) / 2 of 5: the unit that says nothing (28) and the one that is absent do not count.
    assert affect("anger", {4: 4, 7: 2, 28: 5, 10: 0}) == pytest.approx((-0.306, 0.354))
    assert affect("fear", {34: 5}) == affect("neutral", {43: 5}) == (0, 0)
    for index in range(40):
        drawn = dataset.draw(0, "train", index)
        row = dataset.to_sample(drawn, 0, "train", index, None).validate()
        assert (row.valence, row.arousal) == affect(row.emotion, drawn.expression.aus)


def test_a_given_emotion_is_drawn():
    rng = np.random.default_rng(3)
    for emotion in EMOTIONS:
        assert expressions.sample_expression(rng, emotion).emotion == emotion


def test_descriptions_name_no_au_and_no_emotion():
    rng = np.random.default_rng(0)
    space = SPACES["emotion8"]
    words = {word.lower() for word in (*space.labels, *space.aliases)}
    for index in range(300):
        text = " ".join(
            face_descriptions.question_and_answer(dataset.draw(0, "pretrain", index), rng)
        ).lower()
        assert not words & set(text.replace(".", "").replace(",", "").split())
        assert "au" not in text.replace(".", "").split()


def test_geometry_is_what_the_picture_shows():
    face = dataset.draw(0, "pretrain", 11).face
    known = geometry.known_geometry(render(face), face.view, 8)
    vertices, mirror = geometry.landmark_vertices()
    assert (mirror[mirror] == np.arange(len(mirror))).all()
    template = head_model().template[vertices]
    assert np.abs(template[mirror] * [-1, 1, 1] - template).max() < 0.03
    assert np.abs(known["parts"].sum(-1) - 1).max() < 1e-5
    assert np.abs(known["points"]).max() < 1.2
    still = Face(face.identity, face.look, {}, {}, face.view)
    gaze_only = geometry.known_geometry(render(still), still.view, 8)
    assert np.abs(gaze_only["shift"]).max() <= np.abs(known["shift"]).max()


def test_sheet_is_a_picture_of_n_faces(tmp_path):
    from vlmface.cli import main

    path = tmp_path / "sheet.png"
    assert main(["synth", "--n", "10", "--sheet", str(path), "--dataset_split", "test"]) == 0
    with Image.open(path) as sheet:
        assert sheet.size[0] >= 4 * 160
    assert main(["synth", "--n", "10", "--sheet", str(tmp_path / "sheet.txt")]) == 2


def test_jpeg_is_the_image():
    sample = sample_face(3, 4)
    drawn = render(sample.face)
    assert (np.asarray(Image.open(io.BytesIO(drawn.jpeg)).convert("RGB")) == drawn.image).all()
