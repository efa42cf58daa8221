"""Rendered scenes: the label is a function of face and object, and needs both; boxes are exact."""

from __future__ import annotations

import collections
import dataclasses
import io

import numpy as np
import pytest
from helpers.rendered import check_copy, check_pinned
from PIL import Image

from vlmface import data, facs
from vlmface.data.crops import View, render_view
from vlmface.label_spaces import SPACES
from vlmface.schema import FaceSample
from vlmface.synth import props, scenes, sharded_dataset
from vlmface.synth.scene_render import OBJECT, assemble, box, outlines, render_scene

SIZE = 192


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def drawn():
    return [scenes.draw(0, "train", 4 * i) for i in range(2000)]


# --- the label ------------------------------------------------------------------------------------


def test_the_label_is_this_table():
    table = {
        "relaxed": ("Neutrality", "Distraction"),
        "smiling": ("Enjoyment", "Distraction"),
        "frowning": ("Confusion", "Distraction"),
        "drowsy": ("Fatigue", "Fatigue"),
    }
    for state, (at_study, otherwise) in table.items():
        assert {scenes.label(state, thing) for thing in scenes.STUDY} == {at_study}
        assert {scenes.label(state, thing) for thing in scenes.DISTRACTING} == {otherwise}
    assert {word for pair in table.values() for word in pair} == set(SPACES["raer5"].labels)
    assert set(props.OBJECTS) == {*scenes.STUDY, *scenes.DISTRACTING}


def test_what_a_label_needs():
    assert {scenes.needs("drowsy", thing) for thing in props.OBJECTS} == {"face"}
    for state in ("relaxed", "smiling", "frowning"):
        assert {scenes.needs(state, thing) for thing in props.OBJECTS} == {"both"}


def test_bounds_by_hand():
    assert sum(scenes.CHANCES.values()) == pytest.approx(1)
    # Face: each state's likeliest label; of a drowsy face the label is certain.
    face = 0.16 + 0.16 + 0.16 + (0.08 + 0.08)
    # Object: at study one of three labels; with a distracting one Distraction.
    context = 0.16 + (0.12 + 0.12 + 0.12)
    assert scenes.bounds() == {
        "face_only": pytest.approx(face),
        "context_only": pytest.approx(context),
        "both": 1.0,
    }
    assert max(face, context) <= 0.65
    assert scenes.bounds("uar") == {
        "face_only": pytest.approx(0.8),
        "context_only": pytest.approx(0.4),
        "both": 1.0,
    }


def test_what_is_drawn_has_the_bounds(drawn):
    """The best constant answers to a face state, fitted to the draw itself, are not much better."""
    for seen, name in (
        (lambda s: s.state, "face_only"),
        (lambda s: s.scene.object, "context_only"),
        (lambda s: (s.state, s.scene.object), "both"),
    ):
        cells = collections.defaultdict(collections.Counter)
        for sample in drawn:
            cells[seen(sample)][sample.label] += 1
        reached = sum(max(cell.values()) for cell in cells.values()) / len(drawn)
        assert abs(reached - scenes.bounds()[name]) < 0.04, name
    counts = collections.Counter(s.label for s in drawn)
    assert counts["Distraction"] / len(drawn) == pytest.approx(0.36, abs=0.04)
    for word in ("Neutrality", "Enjoyment", "Confusion", "Fatigue"):
        assert counts[word] / len(drawn) == pytest.approx(0.16, abs=0.03)


def test_the_action_units_are_those_of_the_state(drawn):
    for sample in drawn:
        main = [units[0] for _, units in scenes.STATES[sample.state][:1]]
        others = {12, 4, 43} - set(main)
        assert all(sample.aus[au] >= scenes.LEAST for au in main)
        assert not others & set(sample.aus)
        assert set(sample.aus) <= set(facs.SYNTH_AUS)


def test_nothing_else_tells_the_object(drawn):
    """Gaze, turn of the head and light are drawn alike with every object and in every state."""
    for seen in (lambda s: s.scene.object, lambda s: s.state):
        groups = collections.defaultdict(list)
        for sample in drawn:
            view = sample.scene.face.view
            groups[seen(sample)].append([view.gaze[1], view.pitch, view.yaw, view.key])
        spread = np.std([row for rows in groups.values() for row in rows], axis=0)
        for rows in groups.values():
            apart = np.mean(rows, axis=0) - np.mean([r for g in groups.values() for r in g], axis=0)
            assert (np.abs(apart) < 4 * spread / np.sqrt(len(rows))).all()


# --- the picture ----------------------------------------------------------------------------------


def test_drawing_is_deterministic_and_seeds_differ():
    first, again, other = (scenes.draw(seed, "train", 7) for seed in (0, 0, 1))
    assert first == again and first != other
    pictures = [render_scene(sample.scene, 64).jpeg for sample in (first, again, other)]
    assert pictures[0] == pictures[1] != pictures[2]


def test_this_version_still_draws_what_it_drew():
    drawn = [scenes.draw(0, "test", i) for i in range(50)]
    labels = repr([(s.state, s.scene.object, dict(s.aus)) for s in drawn])
    image = render_scene(scenes.draw(0, "test", 3).scene, 96).image
    check_pinned(PINNED, scenes.VERSION, labels, image)


PINNED = (
    1,
    "56d9df1e9f84",
    [[83, 132, 143, 137], [99, 122, 138, 121], [99, 68, 83, 107], [62, 76, 105, 65]],
)


def test_another_object_changes_nothing_but_itself_and_the_hands():
    sample = scenes.draw(0, "train", 5)
    pair = [dataclasses.replace(sample.scene, object=thing) for thing in ("book", "phone")]
    built = [assemble(scene) for scene in pair]
    assert (built[0].placed == built[1].placed).all()
    assert built[0].around == built[1].around
    images = [render_scene(scene, SIZE).image.astype(int) for scene in pair]
    line = outlines(pair[0], built[0], SIZE)["face"]
    x0, y0, x1, y1 = (int(v) for v in box(line, SIZE))
    apart = np.abs(images[0] - images[1])
    # JPEG blocks at the box's lower edge aside, faces are the same.
    assert apart[y0 : y1 - 16, x0:x1].max() <= 12
    assert apart.max() > 60


@pytest.mark.parametrize("thing", list(props.OBJECTS))
def test_the_object_is_seen_and_lies_in_its_box(thing):
    sample = scenes.draw(0, "validation", 9)
    scene = dataclasses.replace(sample.scene, object=thing)
    built = assemble(scene)
    part = render_scene(scene, 96, assembly=built).part
    rows, columns = np.nonzero(part == OBJECT)
    x0, y0, x1, y1 = box(outlines(scene, built, 96)["object"], 96)
    assert len(rows) >= 150 and np.ptp(rows) >= 10 and np.ptp(columns) >= 10
    assert x0 - 1 <= columns.min() and columns.max() + 1 <= x1 + 1
    assert y0 - 1 <= rows.min() and rows.max() + 1 <= y1 + 1


def test_boxes_hold_the_face_the_person_and_the_object(drawn):
    for sample in drawn[:60]:
        lines = outlines(sample.scene, assemble(sample.scene), SIZE)
        boxes = {name: box(line, SIZE) for name, line in lines.items()}
        for name, (x0, y0, x1, y1) in boxes.items():
            assert 0 <= x0 < x1 <= SIZE and 0 <= y0 < y1 <= SIZE
            inside = lines[name][(lines[name] >= 0).all(1) & (lines[name] <= SIZE).all(1)]
            assert (inside >= [x0 - 0.06, y0 - 0.06]).all()
            assert (inside <= [x1 + 0.06, y1 + 0.06]).all()
        face, person = boxes["face"], boxes["person"]
        assert lines["face"].min() > 0 and lines["face"].max() < SIZE  # never cut off
        assert person[0] <= face[0] and person[1] <= face[1] and face[3] <= person[3]
        assert 0.2 * SIZE < face[3] - face[1] < 0.4 * SIZE


def test_the_cut_out_face_shows_nothing_of_the_object(drawn):
    for sample in drawn[:120]:
        lines = outlines(sample.scene, assemble(sample.scene), SIZE)
        (x0, y0), (x1, y1) = lines["face"].min(0), lines["face"].max(0)
        half = max(x1 - x0, y1 - y0) * (1 + 2 * View().margin) / 2
        apart = np.abs(lines["object"] - [(x0 + x1) / 2, (y0 + y1) / 2]).max(1)
        assert apart.min() > half, (sample.scene.object, apart.min() - half)


def test_face_box_is_brow_to_chin_where_skin_is():
    sample = scenes.draw(0, "train", 2)
    built = assemble(sample.scene)
    x0, y0, x1, y1 = (round(v) for v in box(outlines(sample.scene, built, SIZE)["face"], SIZE))
    part = render_scene(sample.scene, SIZE, assembly=built).part
    inside = part[y0:y1, x0:x1]
    assert np.isin(inside, range(8)).mean() > 0.7  # head; its corners are not
    eyes = np.argwhere((part == 1) | (part == 2))
    assert len(eyes) > 4
    assert ((eyes > [y0, x0]) & (eyes < [y1, x1])).all()


# --- the data set ---------------------------------------------------------------------------------


def test_rows_are_valid_and_say_what_was_drawn(cache):
    rows = data.load("synth_scenes", split="validation", n=16, size=64, progress=False)
    assert len(rows) == 16
    for index, row in enumerate(rows):
        sample = FaceSample.from_row(row).validate()
        truth = scenes.draw(0, "validation", index)
        meta = sample.meta
        assert sample.image.size == (64, 64)
        assert sample.context == [truth.label] == [sample.label(SPACES["raer5"])]
        assert truth.label == scenes.label(meta["face_state"], meta["object"])
        assert meta["needs"] == scenes.needs(meta["face_state"], meta["object"])
        assert sample.annotated_aus() == facs.SYNTH_AUS
        assert sample.intensities() == dict(truth.aus)
        assert sample.emotion == scenes.EMOTIONS.get(truth.state)
        assert (sample.valence is None) == (sample.emotion is None)
        assert len(meta["person_box"]) == len(meta["object_box"]) == 4
        assert render_view(sample.image, sample.face_box, View(32)).size == (32, 32)
    assert len(set(rows["subject"])) == 4


def test_splits_share_nobody_also_with_the_faces():
    people = {
        split: {scenes.draw(0, split, i).scene.face.look.texture_seed for i in range(0, 80, 4)}
        for split in scenes.SCENES.default_n
    }
    assert len(set().union(*people.values())) == sum(map(len, people.values()))
    assert (
        sharded_dataset.names("synth", 0, "test", 9)["subject"]
        == (sharded_dataset.names("synth_scenes", 0, "test", 9)["subject"])
    )


def test_cached_equals_uncached_and_an_interrupted_render_goes_on(cache, monkeypatch, tmp_path):
    whole = data.load("synth_scenes", split="test", n=20, size=64, progress=False)
    folder = scenes.SCENES.cache_folder(0, "test", 64)
    first, second = sorted(folder.glob("*.parquet"))
    kept = first.stat().st_mtime_ns
    second.unlink()  # as if the process had been stopped before it was renamed
    (folder / ".000001.parquet.tmp").write_bytes(b"half of it")
    again = data.load("synth_scenes", split="test", n=20, size=64, progress=False)
    assert again.data.table == whole.data.table
    assert first.stat().st_mtime_ns == kept, "drawn twice"


def test_a_copy_can_be_checked(tmp_path):
    report = check_copy("synth_scenes", tmp_path, {"n": 8, "size": 64})
    assert report["warnings"] == []
    assert sum(report["splits"]["test"]["labels"]["context"].values()) == 8


def test_jpeg_is_the_image():
    drawn = render_scene(scenes.draw(0, "train", 3).scene, 64)
    assert (np.asarray(Image.open(io.BytesIO(drawn.jpeg)).convert("RGB")) == drawn.image).all()
