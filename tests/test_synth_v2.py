"""Version 2 of the rendered faces: what is hidden is not annotated, and nothing else changes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from helpers.rendered import check_copy, check_pinned
from PIL import Image

from vlmface import benchmarks, data, facs
from vlmface.errors import UserError
from vlmface.label_spaces import EMOTIONS
from vlmface.rationale import rules
from vlmface.schema import AULabel, FaceSample
from vlmface.synth import dataset as version_1
from vlmface.synth import face_descriptions, pretrain_faces, sharded_dataset
from vlmface.synth.expressions import Expression, strength
from vlmface.synth.head import Identity
from vlmface.synth.v2 import beard, dataset, faces, glasses, hair_styles, visibility
from vlmface.synth.v2.layers import FRAME, Scalp
from vlmface.synth.v2.mesh import head_mesh
from vlmface.synth.v2.parameters import Beard, PhotoFace
from vlmface.synth.v2.people import AT_REST, MOST_AT_REST, sample_person
from vlmface.synth.v2.render import render

pytestmark = pytest.mark.usefixtures("cache")
ALL = dict.fromkeys(facs.SYNTH_V2_AUS, (True, True))
LEFT_HIDDEN = dict.fromkeys(facs.SYNTH_V2_AUS, (False, True))


def plain_face(yaw: float = 0.0, **look: object) -> PhotoFace:
    """An average person without hair and glasses, at rest, who is turned."""
    face = dataset.photo_face(dataset.draw(0, "test", 0))
    shaved = dataclasses.replace(face.look.hair, top=0.0, length=0.0, fringe=0.0)
    plain = {"hair": shaved, "glasses": None, "face_hair": None, "rest": {}} | look
    view = dataclasses.replace(
        face.view, yaw=yaw, pitch=0.0, roll=0.0, zoom=0.9, shift=(0.0, 0.0), gaze=(0.0, 0.0)
    )
    return PhotoFace(
        Identity(30, 0.5, 0.5, (0.3, 0.3, 0.4)),
        dataclasses.replace(face.look, **plain),
        {},
        {},
        view,
    )


def expression(left: dict[int, float], right: dict[int, float], emotion: str) -> Expression:
    """An expression by the intensities of its AUs on both sides, 0 for none."""
    aus = {au: max(left[au], right[au]) for au in left}
    drawn = ({au: strength(x) if x else 0.0 for au, x in side.items()} for side in (left, right))
    return Expression(emotion, aus, *drawn)


# --- visibility -----------------------------------------------------------------------------------


def test_of_a_face_from_the_front_all_is_seen_and_of_one_turned_away_the_near_side():
    assert set(render(plain_face(0), 32).visible.values()) == {(True, True)}
    for yaw, seen in ((60, (False, True)), (-60, (True, False))):
        assert set(render(plain_face(yaw), 32).visible.values()) == {seen}, yaw


@pytest.mark.parametrize("yaw", [15, 30, 45, 60])
def test_a_mirrored_face_mirrors_what_is_seen(yaw):
    one, other = render(plain_face(yaw), 32).shares, render(plain_face(-yaw), 32).shares
    assert np.abs(one - other[:, ::-1]).max() < 0.06
    assert (one[:, 1] >= one[:, 0] - 0.02).all(), "the near side shows at least as much"


def test_less_is_seen_the_further_a_head_is_turned():
    shares = [render(plain_face(yaw), 32).shares[:, 0].mean() for yaw in (0, 20, 40, 60)]
    assert shares[0] > 0.9 and shares == sorted(shares, reverse=True) and shares[-1] < 0.2


def test_hair_and_the_edge_of_the_picture_hide_brows():
    face = plain_face()
    fringe = hair_styles.draw_hair(np.random.default_rng(0), 30, female=True, african=False)[1]
    fringe = dataclasses.replace(fringe, top=0.2, sides=0.1, line=0.0, fringe=1.0, parting=None)
    over_brows = render(plain_face(hair=fringe), 32)
    brows = facs.SYNTH_V2_AUS.index(4)
    assert over_brows.shares[brows].mean() < render(face, 32).shares[brows].mean() - 0.2
    low = dataclasses.replace(face, view=dataclasses.replace(face.view, shift=(0.0, -0.5)))
    visible = render(low, 32).visible
    assert visible[1] == visible[2] == (False, False) and visible[17] == (True, True)


def test_hidden_units_are_not_annotated_and_never_absent():
    smile = expression({6: 3, 12: 4}, {6: 3, 12: 0}, "happiness")
    assert {label.au: label.intensity for label in visibility.annotate(smile, ALL)} == {
        au: smile.aus.get(au, 0.0) for au in facs.SYNTH_V2_AUS
    }
    # The smile is on the hidden left side: whether there is one cannot be told.
    seen = {label.au: label for label in visibility.annotate(smile, LEFT_HIDDEN)}
    assert seen.keys() == set(facs.SYNTH_V2_AUS) - {12, 46}
    assert seen[6] == AULabel(6, 3.0, True) and seen[9] == AULabel(9, 0.0, False)
    none = dict.fromkeys(facs.SYNTH_V2_AUS, (False, False))
    assert visibility.annotate(smile, none) == []
    assert visibility.sides_of(smile, LEFT_HIDDEN) == {"6": [None, 3.0], "12": [None, 0.0]}


def test_of_one_visible_side_the_intensity_is_that_of_this_side():
    uneven = expression({12: 2, 25: 3}, {12: 5, 25: 3}, "happiness")
    right_hidden = ALL | {12: (True, False)}
    by_au = {label.au: label.intensity for label in visibility.annotate(uneven, right_hidden)}
    assert by_au[12] == 2.0 and by_au[25] == 3.0
    by_au = {label.au: label.intensity for label in visibility.annotate(uneven, LEFT_HIDDEN)}
    assert by_au[12] == 5.0


def test_a_wink_needs_both_eyes():
    wink = expression({46: 4}, {46: 0}, "neutral")
    both = {label.au: label.present for label in visibility.annotate(wink, ALL)}
    assert both[46] and not both[43]
    open_eye = {label.au: label.present for label in visibility.annotate(wink, LEFT_HIDDEN)}
    assert 46 not in open_eye and open_eye[43] is False
    shut_eye = ALL | {46: (True, False), 43: (True, False)}
    assert {43, 46}.isdisjoint(label.au for label in visibility.annotate(wink, shut_eye))


def test_a_face_without_visible_evidence_has_no_emotion():
    sample = dataset.draw(0, "test", 0)
    smile = expression({6: 3, 12: 4}, {6: 3, 12: 4}, "happiness")
    sample = dataclasses.replace(sample, expression=smile)
    row = dataset.to_sample(sample, ALL, 0, "test", 0, None).validate()
    assert row.emotion == "happiness" and row.valence is not None and row.valence > 0
    hidden = ALL | {6: (False, False), 12: (False, False)}
    row = dataset.to_sample(sample, hidden, 0, "test", 0, None).validate()
    assert (row.emotion, row.valence, row.arousal) == (None, None, None)
    assert row.meta["hidden"] == {"left": [6, 12], "right": [6, 12]}
    assert {6, 12}.isdisjoint(row.annotated_aus())


# --- rows -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A cache folder with the first 64 test faces of 48 pixels."""
    folder = tmp_path_factory.mktemp("rendered")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLMFACE_CACHE", str(folder))
        data.load("synth_v2", split="test", n=64, size=48, progress=False)
    return folder


@pytest.fixture
def rows(rendered, monkeypatch):
    monkeypatch.setenv("VLMFACE_CACHE", str(rendered))
    loaded = data.load("synth_v2", split="test", n=64, size=48, progress=False)
    return [FaceSample.from_row(row).validate() for row in loaded]


def test_rows_are_valid_and_say_what_is_hidden(rows):
    for row in rows:
        hidden = {side: set(aus) for side, aus in row.meta["hidden"].items()}
        annotated = set(row.annotated_aus())
        assert annotated <= set(facs.SYNTH_V2_AUS)
        assert not annotated & hidden["left"] & hidden["right"]
        assert all(label.present == (label.intensity >= 1) for label in row.aus)
        for au, (left, right) in row.meta["sides"].items():
            assert (left is None) == (int(au) in hidden["left"])
            assert (right is None) == (int(au) in hidden["right"])
        assert abs(row.meta["yaw"]) <= faces.YAW and abs(row.meta["pitch"]) <= faces.PITCH
        assert row.subject.startswith("synth_v2-0-test-p")
        assert row.image.size == (48, 48)
    assert {row.emotion for row in rows} >= set(EMOTIONS)
    yaws = np.abs([row.meta["yaw"] for row in rows])
    shares = np.array([len(row.annotated_aus()) for row in rows]) / len(facs.SYNTH_V2_AUS)
    assert yaws.max() > 45 and (yaws < 12).mean() > 0.3
    assert shares[yaws < 12].mean() > 0.97 > shares[yaws > 40].mean()
    grey = [row for row in rows if row.meta["grey"]]
    assert 0.1 < len(grey) / len(rows) < 0.35
    for row in grey:
        assert np.ptp(np.asarray(row.image.convert("RGB"), int), axis=2).max() <= 2


def test_texts_name_only_what_can_be_seen(rows):
    rng = np.random.default_rng(0)
    for index, row in enumerate(rows):
        text = rules.describe(row.intensities())
        assert all(
            f"AU{au})" not in text
            for au in row.meta["hidden"]["left"]
            if au in row.meta["hidden"]["right"]
        )
        drawn = dataset.as_seen(dataset.draw(0, "test", index), row.aus)
        assert set(drawn.expression.aus) == set(row.present_aus())
        face_descriptions.question_and_answer(drawn, rng)


def test_a_check_of_the_data_finds_nothing(tmp_path, rendered, monkeypatch):
    monkeypatch.setenv("VLMFACE_CACHE", str(rendered))
    report = check_copy("synth_v2", tmp_path, {"n": 60, "size": 48})
    assert report["splits"]["test"]["rows"] == 60


def test_drawing_follows_from_seed_and_index_alone(cache, monkeypatch, tmp_path):
    render_split = dataclasses.replace(dataset.FACES_V2, shard=6).render_split
    one = render_split("test", 12, size=32, workers=1, progress=False)
    monkeypatch.setenv("VLMFACE_CACHE", str(tmp_path))
    two = render_split("test", 12, size=32, workers=2, progress=False)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    # Rows of other people in between do not matter: index 5 alone is index 5 after 4.
    alone = dataset.make_row(0, "test", 5, 32)
    dataset.make_row(0, "test", 90, 32)
    again = dataset.make_row(0, "test", 5, 32)
    assert alone == again != dataset.make_row(1, "test", 5, 32)


def test_people_are_in_one_split_of_one_set():
    people = {
        (name, seed, split): {
            sharded_dataset.seeds(seed, split, index)[1] for index in range(0, 400, 4)
        }
        for name in ("synth_v2",)
        for seed in (0, 1)
        for split in dataset.FACES_V2.default_n
    }
    everyone = [person for split in people.values() for person in split]
    assert len(set(everyone)) == len(everyone)
    first, second = sample_person(7), sample_person(8)
    assert first == sample_person(7) and first.identity != second.identity
    version_1_identity = version_1.draw(0, "test", 0).face.identity
    assert dataset.draw(0, "test", 0).face.identity != version_1_identity


def test_wrong_requests_are_refused():
    for call, message in (
        ({"split": "tests"}, "no split 'tests'.*train, validation, test"),
        ({"n": 0}, "1 to 10,000,000 faces, not 0"),
        ({"size": 5}, "32 to 1024 pixels, not 5"),
        ({"annotators": 2}, "has no option 'annotators'"),
        ({"root": "/somewhere"}, "rendered, not read"),
    ):
        with pytest.raises(UserError, match=message):
            data.load("synth_v2", **{"split": "test", "n": 3} | call)


def test_the_benchmark_scores_what_this_version_moves():
    assert tuple(benchmarks.load_benchmark("synth_v2").au_set) == facs.SYNTH_V2_AUS


# --- what is drawn --------------------------------------------------------------------------------


# Faces of the test split: turned, with a beard, turned away and grey, with glasses.
PINNED: dict[int, list[list[int]]] = {
    1: [[50, 94, 117, 127], [21, 122, 148, 128], [48, 83, 159, 129], [95, 106, 143, 142]],
    7: [[86, 196, 179, 54], [109, 165, 158, 104], [130, 166, 179, 119], [85, 134, 133, 86]],
    21: [[150, 58, 102, 181], [77, 53, 202, 159], [148, 194, 208, 175], [208, 191, 182, 184]],
    34: [[140, 96, 64, 145], [128, 139, 117, 119], [120, 138, 99, 124], [118, 127, 106, 138]],
}
# The visible share of the surface of AU 1 and of AU 12 in them, left and right.
PINNED_SHARES = {
    1: [[0.90, 1.0], [0.08, 0.98]],
    7: [[1.0, 0.97], [0.94, 0.90]],
    21: [[0.33, 1.0], [0.0, 0.99]],
    34: [[0.81, 0.95], [1.0, 0.40]],
}


def test_this_version_still_draws_what_it_drew():
    labels = repr([dataset.draw(0, "test", i).expression for i in range(50)])
    of_units = [facs.SYNTH_V2_AUS.index(au) for au in (1, 12)]
    for index, means in PINNED.items():
        rendered = render(dataset.photo_face(dataset.draw(0, "test", index)))
        check_pinned((1, "b7ed6215c24a", means), dataset.VERSION, labels, rendered.image)
        shares = rendered.shares[of_units]
        assert np.abs(shares - PINNED_SHARES[index]).max() < 0.05, shares.tolist()


def test_people_differ_more_at_rest_than_those_of_version_1():
    def spread(identities):
        names = ("eyebrows-trans", "eye-height2", "mouth-angles", "mouth-upperlip-height")
        ends = (("-up", "-down"), ("-incr", "-decr"), ("-up", "-down"), ("-incr", "-decr"))
        values = [
            [i.shapes.get(n + a, 0) - i.shapes.get(n + b, 0) for i in identities]
            for n, (a, b) in zip(names, ends, strict=True)
        ]
        return np.std(values, axis=1)

    new = [sample_person(seed) for seed in range(120)]
    old = [version_1.draw(0, "train", 4 * k).face.identity for k in range(120)]
    assert (spread([person.identity for person in new]) > 1.2 * spread(old)).all()
    for person in new:
        assert set(person.look.rest) == {
            unit.format(side)
            for unit in AT_REST
            for side in (("Left", "Right") if "{}" in unit else ("",))
        }
        assert max(abs(value) for value in person.look.rest.values()) <= MOST_AT_REST
    asymmetry = [p.look.rest["mouthSmileLeft"] - p.look.rest["mouthSmileRight"] for p in new]
    assert 0.01 < np.std(asymmetry) < 0.1


def test_sides_differ_as_often_as_in_life():
    rng = np.random.default_rng(0)
    drawn = [faces.sample_expression(rng) for _ in range(2000)]
    with_smile = [e for e in drawn if 12 in e.aus]
    ratio = [min(e.left[12], e.right[12]) / max(e.left[12], e.right[12]) for e in with_smile]
    assert 0.05 < np.mean(np.array(ratio) < 0.3) < 0.16
    assert 0.85 < np.median(ratio) < 0.99, "most sides differ a little"
    contempt = [e for e in drawn if e.emotion == "contempt"]
    sided = [min(e.left[14], e.right[14]) < 0.3 * max(e.left[14], e.right[14]) for e in contempt]
    assert 0.65 < np.mean(sided) < 0.85
    winks = [e for e in drawn if 46 in e.aus]
    assert 0.01 < len(winks) / len(drawn) < 0.06
    assert all(min(e.left[46], e.right[46]) == 0 and 43 not in e.aus for e in winks)
    for e in drawn:
        assert all(1 <= grade <= 5 for grade in e.aus.values())
        assert all(max(e.left[au], e.right[au]) > 0.35 for au in e.aus)


def test_glasses_are_before_the_skin_and_on_the_nose():
    worn = 0
    for seed in range(60):
        person = sample_person(seed)
        if person.look.glasses is None:
            continue
        worn += 1
        face = dataclasses.replace(plain_face(), identity=person.identity, look=person.look)
        mesh = head_mesh(face)
        scalp = Scalp(mesh.moved, mesh.attributes[: len(mesh.moved), 3:6], face)
        fit = glasses.Fit(scalp, person.look.glasses)
        assert (mesh.kind == FRAME).any()
        for side in (1, -1):
            rim = fit.rim(side)
            skin = mesh.moved[glasses.upper_face()]
            near = np.square(rim[:, None, :2] - skin[None, :, :2]).sum(-1)
            behind = skin[near.argmin(1), 2]
            assert (rim[:, 2] > behind)[near.min(1) < 0.05**2].all(), seed
        assert 0 < fit.z - fit.middle[2] < 0.75, seed
    assert 10 < worn < 35


def test_beards_leave_lips_and_eyes_free():
    mesh = head_mesh(plain_face(face_hair=Beard(1.0, 0.05, 1.0, 1.0, 1.0)))
    template = mesh.attributes[: len(mesh.moved), :3]
    lips = mesh.attributes[: len(mesh.moved), 6]
    grown = beard.area(template, lips, Beard(1.0, 0.05, 1.0, 1.0, 1.0))
    assert grown[lips > 0.95].max() < 0.1 and grown[template[:, 1] > 7.3].max() == 0
    assert grown[(template[:, 1] > 6.2) & (template[:, 1] < 6.4) & (template[:, 2] > 1.3)].min() > 0


@pytest.mark.parametrize("index", range(0, 40, 4))
def test_pictures_are_exposed(index):
    picture = render(dataset.photo_face(dataset.draw(0, "train", index)), 48).image
    assert 25 < picture.mean() < 225 and picture.std() > 8
    assert (picture.min(2) > 250).mean() < 0.5


def test_pretrain_faces_of_two_sets_alternate(monkeypatch):
    monkeypatch.setattr(pretrain_faces, "SHARD", 4)
    for name, start in (("synth", 0), ("synth_v2", 0)):
        path = pretrain_faces.shard_paths(name, 4, 48, 4)[start]
        pretrain_faces._make_shard(path, name, range(4), 48, 4)
    loaded = pretrain_faces.load(["synth", "synth_v2"], 7, 48, 4)
    assert len(loaded.samples) == len(loaded.geometry["pose"]) == 7
    assert loaded.samples[2].face == version_1.draw(0, "pretrain", 1).face
    assert loaded.samples[3].face == dataset.draw(0, "pretrain", 1).face
    for i, sample in enumerate(loaded.samples):
        assert loaded.geometry["pose"][i, 0] == pytest.approx(sample.face.view.yaw / 10)
    assert "intensities" not in loaded.geometry


# --- all of the way -------------------------------------------------------------------------------


def test_a_sheet_is_drawn(tmp_path, rendered, monkeypatch):
    from vlmface.cli import main

    monkeypatch.setenv("VLMFACE_CACHE", str(rendered))
    path = tmp_path / "sheet.png"
    argv = ["synth", "--dataset", "synth_v2", "--n", "6", "--size", "48", "--sheet", str(path)]
    assert main([*argv, "--dataset_split", "test"]) == 0
    with Image.open(path) as sheet:
        assert sheet.size[0] >= 3 * 160


@pytest.mark.slow
def test_a_model_is_trained_and_scored_on_it(tmp_path, sft_cot):
    run = tmp_path / "run"
    argv = ["--dataset", "synth_v2", "--benchmark", "synth_v2", "--n_eval", "16"]
    assert sft_cot(run, *argv) == 0
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    annotated = [len(line["truth"]["annotated_aus"]) for line in lines]
    assert len(lines) == 16 and min(annotated) < len(facs.SYNTH_V2_AUS)
    after = json.loads((run / "metrics.json").read_text())["after"]
    assert after["n"] == 16 and 0 <= after["au"]["f1_macro"] <= 1
