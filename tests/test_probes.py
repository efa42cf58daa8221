"""Pairs of faces differ in what their kind says, and in nothing else."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from vlmface import facs
from vlmface.errors import UserError
from vlmface.label_spaces import EMOTIONS
from vlmface.synth import counterfactual_pairs, dataset, faces
from vlmface.synth.expressions import compatible

# Kind -> the fields of (identity, look, view) and of the labels that may differ.
MAY_DIFFER = {
    "au": set(),
    "age": {
        "identity.age",
        "look.age",
        "look.hair_colour",
        "look.hair_style",
        "look.stubble",
        "look.beard",
        "age",
    },
    "gender": {
        "identity.female",
        "look.hair_style",
        "look.brow_thickness",
        "look.brow_arch",
        "look.lip_tint",
        "look.stubble",
        "look.beard",
        "gender",
    },
    "ancestry": {
        "identity.ancestry",
        "look.tone",
        "look.hair_colour",
        "look.hair_style",
        "look.eye_colour",
        "race",
    },
    "light": {"view.light", "view.key", "view.key_colour", "view.fill", "view.ambient"},
    "background": {"view.background", "view.background_seed", "view.noise_seed"},
    "pose": {"view.yaw", "view.pitch", "view.roll"},
}
ALWAYS_DIFFERS = {
    "au": set(),
    "age": {"identity.age", "look.age", "age"},
    "gender": {"identity.female", "gender"},
    "ancestry": {"identity.ancestry", "race"},
    "light": {"view.light"},
    "background": {"view.background", "view.background_seed"},
    "pose": {"view.yaw", "view.pitch", "view.roll"},
}


def differing(base, changed):
    """Names of the fields in which two drawn faces differ, expression and AU strengths aside."""
    found = {name for name in ("gender", "race", "age") if vars(base)[name] != vars(changed)[name]}
    for part in ("identity", "look", "view"):
        one, other = getattr(base.face, part), getattr(changed.face, part)
        found |= {
            f"{part}.{field.name}"
            for field in dataclasses.fields(one)
            if getattr(one, field.name) != getattr(other, field.name)
        }
    return found


def truth(sample):
    return {label.au: label for label in sample.aus}


def changed_pixels(pair):
    base, changed = (np.asarray(s.image).astype(int) for s in (pair.base, pair.changed))
    return np.abs(base - changed).max(2)


@pytest.mark.parametrize("kind", counterfactual_pairs.KINDS)
def test_a_pair_differs_in_its_kind_alone(kind):
    for index in range(40):
        base, changed, detail = counterfactual_pairs.draw(kind, index)
        assert base == dataset.draw(0, "test", index)
        found = differing(base, changed)
        assert ALWAYS_DIFFERS[kind] <= found <= MAY_DIFFER[kind]
        assert json.loads(json.dumps(detail)) == detail
        if kind != "au":
            assert changed.expression == base.expression
            assert (changed.face.left, changed.face.right) == (base.face.left, base.face.right)
            assert detail["from"] != detail["to"]


def test_an_au_pair_differs_in_one_au_and_keeps_the_strengths_of_the_others():
    for index in range(120):
        base, changed, detail = counterfactual_pairs.draw("au", index)
        au, (old, new) = detail["au"], (base.expression, changed.expression)
        assert set(old.aus) ^ set(new.aus) == {au}
        assert (au in new.aus) == (detail["change"] == "added")
        assert (old.aus | new.aus)[au] == detail["intensity"]
        for one, other in (
            (old.aus, new.aus),
            (base.face.left, changed.face.left),
            (base.face.right, changed.face.right),
        ):
            assert {**one, au: 0} == {**other, au: 0}
            assert set(one) ^ set(other) == {au}
        assert (new.left, new.right) == (changed.face.left, changed.face.right)
        if detail["change"] == "added":
            assert detail["intensity"] == counterfactual_pairs.CLEAR
            assert max(new.left[au], new.right[au]) > 0.5


def test_au_pairs_are_faces_that_the_generator_could_draw():
    for index in range(300):
        _, changed, _ = counterfactual_pairs.draw("au", index)
        aus = set(changed.expression.aus)
        assert not ({26, 27} & aus and 25 not in aus), "a dropped jaw parts the lips"
        parting = {25} if {26, 27} & aus else set()
        assert all(compatible(au, aus - {au} - parting) for au in aus - parting)


def test_the_record_says_what_the_rules_say_of_the_label():
    drawn = [counterfactual_pairs.draw("au", index) for index in range(300)]
    for base, changed, detail in drawn:
        old, new = base.expression, changed.expression
        assert detail["supported_before"] == facs.supports(old.aus, old.emotion)
        assert detail["supported_after"] == facs.supports(new.aus, old.emotion)
        assert detail["label_changed"] == (detail["supported_before"] != detail["supported_after"])
        lost = detail["supported_before"] and not detail["supported_after"]
        assert (new.emotion != old.emotion) == lost
        if lost:
            scores = facs.evidence(new.aus)
            assert [e for e in EMOTIONS if scores[e] >= max(scores.values()) - 1e-9] == [
                new.emotion
            ]
    # Half and half where the faces allow it, both ways.
    for key, value in (("label_changed", True), ("change", "added")):
        assert 0.4 < np.mean([detail[key] == value for *_, detail in drawn]) < 0.6


def test_a_group_pair_keeps_the_texture_of_the_skin_and_a_persons_own_group_changes_nothing():
    for seed in range(30):
        person = faces.sample_identity(seed)
        identity, look, gender, ancestry = person
        own = faces.Group(gender=gender, age=identity.age, ancestry=ancestry)
        assert faces.sample_identity(seed, own) == person
        for group in (faces.Group(gender="male"), faces.Group(age=9.0), faces.Group(age=70.0)):
            assert faces.sample_identity(seed, group)[1].texture_seed == look.texture_seed


def test_the_other_group_is_another_one():
    for index in range(60):
        base, changed, detail = counterfactual_pairs.draw("age", index)
        assert abs(changed.age - base.age) >= counterfactual_pairs.YEARS_APART
        assert changed.age_group != base.age_group
        assert detail == {"from": base.age, "to": changed.age}
        assert changed.age == changed.face.identity.age == changed.face.look.age
    assert {counterfactual_pairs.draw("gender", i)[2]["to"] for i in range(40)} == {
        "female",
        "male",
    }
    assert len({counterfactual_pairs.draw("ancestry", i)[2]["to"] for i in range(40)}) == 3


@pytest.mark.parametrize("kind", counterfactual_pairs.KINDS)
def test_records_are_valid_and_their_pictures_differ(kind):
    pairs = counterfactual_pairs.make(kind, 4)
    for index, pair in enumerate(pairs):
        base, changed = pair.base.validate(), pair.changed.validate()
        assert pair.kind == kind
        assert base.id == f"synth-0-test-{index:06d}" and changed.id == f"{base.id}-{kind}"
        assert base.subject == changed.subject
        assert base.image.mode == "RGB" and base.image.size == changed.image.size == (96, 96)
        assert (changed_pixels(pair) > 12).sum() >= 8
        before, after = truth(base), truth(changed)
        units = {au for au in before if before[au] != after[au]}
        assert units == ({pair.detail["au"]} if kind == "au" else set())
        affect = {"valence", "arousal"}  # follow from the units and the emotion
        same = {
            "au": {"aus", "emotion", *affect},
            "age": {"age", "age_group"},
            "gender": {"gender"},
            "ancestry": {"race"},
        }.get(kind, set())
        for field in dataclasses.fields(base):
            if field.name not in {"id", "image", "meta", *same}:
                assert getattr(base, field.name) == getattr(changed, field.name), field.name


def test_a_pair_follows_from_kind_seed_and_index():
    few, more = counterfactual_pairs.make("au", 2), counterfactual_pairs.make("au", 3)
    for one, other in zip(few, more, strict=False):
        assert one.detail == other.detail
        assert (
            changed_pixels(counterfactual_pairs.Pair(one.changed, other.changed, "", {})) == 0
        ).all()
        assert one.changed.to_row() | {"image": 0} == other.changed.to_row() | {"image": 0}
    for kind in counterfactual_pairs.KINDS:
        assert counterfactual_pairs.draw(kind, 5) == counterfactual_pairs.draw(kind, 5)
        assert (
            counterfactual_pairs.draw(kind, 5)[1] != counterfactual_pairs.draw(kind, 5, seed=1)[1]
        )
        assert (
            counterfactual_pairs.draw(kind, 5)[1]
            != counterfactual_pairs.draw(kind, 5, split="train")[1]
        )


def test_the_base_is_the_data_sets_row(tmp_path, monkeypatch):
    from vlmface import data

    monkeypatch.setenv("VLMFACE_CACHE", str(tmp_path))
    row = data.load("synth", split="test", n=2, progress=False)[1]
    base = counterfactual_pairs.make("light", 2)[1].base
    assert (np.asarray(row["image"].convert("RGB")) == np.asarray(base.image)).all()
    stored = {name: np.float32(getattr(base, name)).item() for name in ("valence", "arousal")}
    assert base.to_row() | stored | {"image": 0} == row | {"image": 0}


BLOCK = 16  # pixels: what JPEG codes together, where colours are stored at half the size


def grown(mask, pixels):
    for axis in (0, 1):
        shifts = range(-pixels, pixels + 1)
        mask = np.any([np.roll(mask, shift, axis) for shift in shifts], axis=0)
    return mask


def blocks_around(mask):
    """The pixels of all JPEG blocks that the mask reaches, blurred by the lens at 192 pixels, and
    those beside them, whose colours the decoder mixes with theirs."""
    size = len(mask) // BLOCK
    touched = grown(mask, 6).reshape(size, BLOCK, size, BLOCK).any((1, 3))
    return grown(touched.repeat(BLOCK, 0).repeat(BLOCK, 1), 2)


def parts(kind, index, size):
    from vlmface.synth.render import render

    return [render(face.face, size).part for face in counterfactual_pairs.draw(kind, index)[:2]]


def test_an_au_changes_the_head_and_not_the_background():
    size, outside = 192, 0
    for index, pair in enumerate(counterfactual_pairs.make("au", 4, size=size)):
        head = np.any([part != -1 for part in parts("au", index, size)], axis=0)
        beyond = ~blocks_around(head)
        assert (changed_pixels(pair)[beyond] == 0).all()
        outside += beyond.sum()
    assert outside > 4 * BLOCK**2


def test_a_background_changes_the_background_and_not_the_head():
    size, inside = 192, 0
    for index, pair in enumerate(counterfactual_pairs.make("background", 3, size=size)):
        head, other = parts("background", index, size)
        assert (head == other).all()
        within = ~blocks_around(head == -1)
        assert (changed_pixels(pair)[within] == 0).all()
        inside += within.sum()
    assert inside > 40 * BLOCK**2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            {"kind": "hair"},
            "unknown kind of pairs 'hair'.*au, age, gender, ancestry, light, background",
        ),
        ({"n": 0}, "1 to 10,000,000 faces, not 0"),
        ({"n": -3}, "not -3"),
        ({"split": "tests"}, "no split 'tests'"),
        ({"size": 5}, "32 to 1024 pixels, not 5"),
        ({"seed": -1}, "must not be negative, found -1"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(UserError, match=message):
        counterfactual_pairs.make(**{"kind": "au", "n": 1} | call)


def test_faces_that_were_drawn_before_are_not_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bases = [pair.base for pair in counterfactual_pairs.make("au", 3, size=32)]
    expected = counterfactual_pairs.make("light", 3, size=32)
    drawn: list[Any] = []
    real = counterfactual_pairs.render
    monkeypatch.setattr(counterfactual_pairs, "render", lambda *a: drawn.append(a) or real(*a))
    found = counterfactual_pairs.make("light", 3, size=32, bases=bases)
    assert len(drawn) == 3
    for one, other in zip(found, expected, strict=True):
        for face, same in ((one.base, other.base), (one.changed, other.changed)):
            assert face.id == same.id and face.image.tobytes() == same.image.tobytes()
