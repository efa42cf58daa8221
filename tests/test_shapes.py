"""Views that show a face's shape alone: what is drawn of faces whose action units are known, and
that training and answering draw the same."""

from __future__ import annotations

import dataclasses
import itertools
import random
import statistics
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from helpers.run_files import training_log
from helpers.scripts import load_script, to_argv
from hypothesis import given
from hypothesis import strategies as st
from miniatures import dfew, face
from PIL import Image

from vlmface import label_texts, manifest
from vlmface.clip import model
from vlmface.clip.classifier import Classifier, ClassifierConfig
from vlmface.data import crop_cache, crops, detect, shapes
from vlmface.data.dataset_rows import to_dataset
from vlmface.data.row_images import open_images
from vlmface.data.rows import Rows
from vlmface.infer.clip import ClipModel
from vlmface.pipelines import context_ablation
from vlmface.synth import dataset as synth
from vlmface.synth import faces as synth_faces
from vlmface.synth.face_parameters import Face
from vlmface.synth.render import render

VIEWS = crops.parse_views(
    [
        {"size": 96, "view": "face", "box_source": "detector"},
        {"size": 96, "view": "landmarks", "box_source": "detector"},
        {"size": 96, "view": "face_parsing", "box_source": "detector"},
    ]
)


@given(st.integers(3, 12), st.integers(2, 12), st.randoms(use_true_random=False))
def test_edges_in_any_order_are_a_ring_and_a_line(
    around: int, along: int, chance: random.Random
) -> None:
    ring, line = list(range(around)), list(range(100, 100 + along))
    edges = [*itertools.pairwise([*ring, 0]), *itertools.pairwise(line)]
    edges = [chance.choice([(a, b), (b, a)]) for a, b in edges]
    chance.shuffle(edges)
    one, other = sorted(shapes.chain_edges(edges), key=min)
    assert other in (line, line[::-1])
    place = one.index(0)
    turned = one[place:] + one[:place]
    assert turned in (ring, [ring[0], *ring[:0:-1]])


def share(picture: Image.Image, colour: shapes.Colour) -> float:
    """Of the picture's pixels that are nearly of the colour."""
    near = np.abs(np.asarray(picture).astype(int) - colour).max(-1) < 40
    return float(near.mean())


def rendered(aus: dict[int, float], seed: int) -> Image.Image:
    """A person with action units of these strengths (0..1), seen from the front."""
    identity, look, _, _ = synth_faces.sample_identity(seed)
    view = synth_faces.sample_view(np.random.default_rng(seed))
    view = dataclasses.replace(view, yaw=0.0, pitch=0.0, roll=0.0, blur=0.0, noise=0.0)
    return Image.fromarray(render(Face(identity, look, aus, aus, view), 256).image)


def test_parts_move_as_the_action_units_say() -> None:
    shares: dict[str, list[tuple[float, float]]] = {"closed": [], "jaw": [], "eyes": []}
    for name, aus in (("closed", {}), ("jaw", {25: 1.0, 26: 0.9}), ("eyes", {43: 1.0})):
        with detect.Detector() as detector:
            for seed in range(5):
                mesh = detector.mesh(rendered(aus, seed))
                assert mesh is not None
                drawn = shapes.draw_parsing(mesh / 256, 128)
                shares[name].append((share(drawn, shapes.MOUTH), share(drawn, shapes.IRIS)))
    mouth = {name: statistics.mean(m for m, _ in found) for name, found in shares.items()}
    iris = {name: statistics.mean(i for _, i in found) for name, found in shares.items()}
    assert mouth["jaw"] > 3 * mouth["closed"]
    assert iris["eyes"] < 0.5 * iris["closed"]


def test_landmarks_lie_on_the_face(astronaut: Path) -> None:
    with detect.Detector() as detector, Image.open(astronaut) as picture:
        box = detector.face(picture)
        assert box is not None
        drawn = crops.render_view(
            picture, box, crops.View(128, 0.0, view="landmarks"), detector.mesh
        )
    white = np.argwhere(np.asarray(drawn)[..., 0] > 127)
    # The box spans the mesh, so that the face's edge touches the square above and below.
    assert white[:, 0].min() <= 4 and white[:, 0].max() >= 123
    assert 0.02 < len(white) / 128**2 < 0.25


@pytest.fixture
def astronaut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLMFACE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()).save(path)
    return path


def test_rows_photographs_and_answers_are_drawn_alike(astronaut: Path, tmp_path: Path) -> None:
    noise = str(face(tmp_path / "noise.png", 1, (120, 100)))
    rows = to_dataset(Rows({"id": ["a", "b"], "image": [str(astronaut), noise]}), "x", "train")
    with pytest.warns(UserWarning, match=r"no face found in 1 of 2 .* left black: .*noise\.png"):
        kept = crop_cache.apply_views(rows, VIEWS, progress=False)
    pictures = [open_images(row) for row in kept]
    with Image.open(astronaut) as one, Image.open(noise) as two:
        photographs = [one.convert("RGB"), two.convert("RGB")]
    again, _ = crops.render_views(photographs, None, VIEWS)
    for row, other in zip(pictures, again, strict=True):
        for drawn, cut in zip(row, other, strict=True):
            np.testing.assert_array_equal(np.asarray(drawn), np.asarray(cut))
    assert kept["face_found"] == [True, False]
    assert all(np.asarray(drawn).any() for drawn in pictures[0])
    assert not np.asarray(pictures[1][1]).any() and not np.asarray(pictures[1][2]).any()

    clip = model.load_clip(model.TINY)
    asked = label_texts.load("clip_signs")
    answering = ClipModel(Classifier(clip, asked, ClassifierConfig(num_views=3)).eval(), VIEWS)
    said = answering.predict(photographs)
    shown = answering.predict(pictures, preprocessed=True)
    for given_, drawn in zip(said, shown, strict=True):
        assert given_.probabilities == pytest.approx(drawn.probabilities, abs=1e-6)


def test_three_streams_of_clips_train(tmp_path: Path) -> None:
    """clip_finecliper_dfew on clips of DFEW's layout, whose frames are rendered faces."""
    dfew.write(tmp_path / "data")
    rows = synth.load("test", n=10)
    for number, folder in enumerate(sorted((tmp_path / "data" / "Clip").glob("*/*"))):
        for frame in folder.iterdir():
            rows[number]["image"].save(frame)
    words = {
        "config": "clip_finecliper_dfew",
        "base_model": "vlmface-clip-tiny",
        "dataset_root": tmp_path / "data",
        "dataset_options": "{fold: 1, num_frames: 4}",
        "num_frames": 2,
        "views": "[{size: 96}, {size: 96, view: landmarks}, {size: 96, view: face_parsing}]",
        "epochs": 1,
        "batch_size": 4,
        "dataloader_workers": 0,
        "logging_steps": 1,
        "output_dir": tmp_path / "run",
    }
    main = load_script("recipes/clip_finetune.py").main
    with pytest.warns(UserWarning, match="no face boxed"):  # DFEW's frames are faces
        assert main(to_argv(words)) == 0
    found, (asked,) = manifest.load(tmp_path / "run")
    assert [view.view for view in crops.parse_views(found.views)] == [
        "face",
        "landmarks",
        "face_parsing",
    ]
    assert found.clip_classifier is not None and asked.negative
    assert (
        found.clip_classifier["num_views"],
        found.clip_classifier["num_frames"],
        found.clip_classifier["image_tower"],
    ) == (3, 2, "adapters")
    log = training_log(tmp_path / "run")
    assert len(log) == 2 and all(np.isfinite(line["loss"]) for line in log)


def test_shapes_belong_to_the_face() -> None:
    assert not crops.mixes_face_and_scene(VIEWS)  # nothing is seen of what is around it
    scene = crops.View(view="scene")
    assert crops.mixes_face_and_scene((*VIEWS, scene))
    arms = context_ablation.split_views((*VIEWS, scene))
    assert arms["face"] == list(VIEWS) and arms["scene"] == [scene]
    assert crops.parse_views(crops.views_as_dicts(VIEWS)) == VIEWS
    assert len({view.folder for view in VIEWS}) == 3
