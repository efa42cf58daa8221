"""Corruptions hurt more with their strength, alike at every size, and the same way every time."""

from __future__ import annotations

import io

import numpy as np
import pytest
from helpers.samples import picture as picture_of
from PIL import Image

from vlmface.data import corruptions as module
from vlmface.data.corruptions import NAMES, OCCLUSIONS, PARAMETERS, corrupt
from vlmface.errors import UserError
from vlmface.synth import dataset
from vlmface.synth.render import render


@pytest.fixture(scope="module")
def faces():
    return [Image.fromarray(render(dataset.draw(0, "test", i).face, 96).image) for i in (0, 4, 9)]


def difference(one, other):
    return np.abs(np.asarray(one, float) - np.asarray(other, float)).mean()


def test_every_corruption_has_five_strengths_and_a_function():
    assert {*module._CORRUPT, *module._OCCLUDE} == set(NAMES) and set(module._OCCLUDE) == {
        *OCCLUSIONS
    }
    assert all(len(numbers) == 5 for numbers in PARAMETERS.values())
    assert all(name in module.__doc__ for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_strength_0_changes_nothing(faces, name):
    untouched = corrupt(faces[0], name, 0, key="a")
    assert untouched is not faces[0]
    assert (np.asarray(untouched) == np.asarray(faces[0])).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_difference_grows_with_strength(faces, name):
    for face in faces:
        for key in ("a", "b"):
            grown = [difference(face, corrupt(face, name, s, key=key)) for s in range(6)]
            assert (np.diff(grown) > 0).all(), grown
            assert grown[1] > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_the_same_key_gives_the_same_picture_whatever_came_before(faces, name):
    before = np.asarray(faces[0]).copy()
    first = corrupt(faces[0], name, 3, key="synth-0-test-000001")
    corrupt(faces[1], name, 5, key="other")
    again = corrupt(faces[0], name, 3, key="synth-0-test-000001")
    assert (np.asarray(first) == np.asarray(again)).all()
    assert (np.asarray(faces[0]) == before).all(), "the picture that was given is altered"


@pytest.mark.parametrize("name", ["noise", "rotation", "mask", "hand"])
def test_the_key_decides_what_is_random(faces, name):
    drawn = {corrupt(faces[0], name, 3, key=f"face-{i}").tobytes() for i in range(12)}
    assert len(drawn) > 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (32, 32), (40, 25), (1024, 1024)])
def test_every_size_and_grey_pictures_work(name, mode, size):
    picture = picture_of(0, size).convert(mode)
    for strength in (1, 5):
        done = corrupt(picture, name, strength, key="a")
        assert (done.size, done.mode) == (size, "RGB")
    if size[0] >= 32:
        assert difference(picture.convert("RGB"), done) > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_and_its_enlargement_are_hurt_alike(faces, name):
    for face in faces:
        large = face.resize((224, 224), Image.Resampling.BICUBIC)
        for strength in (2, 4):
            one = corrupt(face, name, strength, key="a").resize(
                (224, 224), Image.Resampling.BICUBIC
            )
            other = corrupt(large, name, strength, key="a")
            hurt = difference(large, other)
            assert difference(one, other) < 0.4 * hurt + 1
            assert 0.6 < difference(large, one) / hurt < 1.6


def test_strength_5_leaves_something_to_see(faces):
    for name in NAMES:
        for face in faces:
            done = np.asarray(corrupt(face, name, 5, key="a").convert("L"), float)
            assert done.mean() > 12 and done.std() > 8


def test_jpeg_at_its_own_size_is_jpeg(faces):
    face = faces[0].resize((224, 224), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    face.save(buffer, "JPEG", quality=int(PARAMETERS["jpeg"][2][0]))
    done = corrupt(face, "jpeg", 3, key="a")
    assert (np.asarray(done) == np.asarray(Image.open(buffer).convert("RGB"))).all()


def test_occlusions_cover_the_part_of_the_face_that_they_name(faces):
    def covered(name, strength, **more):
        clean = np.asarray(faces[0], float)
        done = np.asarray(corrupt(faces[0], name, strength, key="a", **more), float)
        return np.abs(clean - done).max(2) > 3

    mask, glasses = covered("mask", 4), covered("glasses", 4)
    assert mask[66:84, 36:60].mean() > 0.95 and not mask[:36].any()
    assert glasses[36:46, 28:42].mean() > 0.95 and glasses[36:46, 54:68].mean() > 0.95
    assert not glasses[60:].any() and not glasses[:24].any()
    for strength in (1, 5):
        hand = covered("hand", strength)
        assert not hand[:10].any() and hand[60:].mean() > 0.08


@pytest.mark.parametrize("name", OCCLUSIONS)
def test_occlusions_go_where_the_face_is(name):
    scene = Image.new("RGB", (300, 200), (128, 160, 140))
    done = corrupt(scene, name, 5, key="a", box=[200, 20, 260, 100])
    changed = (np.asarray(done) != np.asarray(scene)).any(2)
    assert changed[20:100, 200:260].mean() > 0.2
    assert not changed[:, :150].any()
    outside = corrupt(scene, name, 5, key="a", box=[400.0, 20.0, 460.0, 100.0])
    assert outside.size == scene.size


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"name": "fog"}, "no corruption 'fog'.*blur, noise, jpeg, low_resolution"),
        ({"strength": 6}, "from 0 to 5, not 6"),
        ({"strength": -1}, "from 0 to 5, not -1"),
        ({"strength": 2.5}, "from 0 to 5, not 2.5"),
        ({"name": "mask", "box": [10, 10, 10, 30]}, r"x0 < x1 and y0 < y1, not \[10, 10, 10, 30\]"),
    ],
)
def test_bad_arguments_are_named(call, message):
    picture = Image.new("RGB", (32, 32))
    with pytest.raises(UserError, match=message):
        corrupt(**{"image": picture, "name": "blur", "strength": 1, "key": "a"} | call)
