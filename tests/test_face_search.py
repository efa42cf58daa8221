"""All faces of a picture: where is looked, what counts as one face, and what is confirmed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
from helpers.demo import head
from PIL import Image

from vlmface.data import crop_cache, crops, detect, face_search
from vlmface.data.dataset_rows import to_dataset
from vlmface.data.face_search import Candidate
from vlmface.data.rows import Rows

needs_detector = pytest.mark.skipif(
    detect.unavailable_reason() is not None, reason="vlmface[detect] is missing"
)
ASTRONAUT = Image.fromarray(skimage.data.astronaut())
# Side and place of the faces of `group`: (side, left, top).
GROUP = ((420, 20, 20), (160, 480, 30), (90, 680, 40), (70, 500, 300), (130, 620, 440))


def group() -> Image.Image:
    """People of several sizes in front of a wall of bricks."""
    scene = Image.fromarray(skimage.data.brick()).convert("RGB").resize((800, 600))
    for index, (side, left, top) in enumerate(GROUP):
        scene.paste(head(index, 256).resize((side, side)), (left, top))
    return scene


@pytest.fixture(scope="module")
def detector() -> Iterator[detect.Detector]:
    with detect.Detector() as opened:
        yield opened


# --- geometry -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(512, 512), (1000, 667), (6000, 8000), (9000, 500), (300, 40), (192, 192), (1, 1)]
)
def test_tiles_cover_a_picture_and_are_few(size: tuple[int, int]) -> None:
    tile_sizes: list[tuple[int, int]] = []

    def look(tile: Image.Image) -> list[Candidate]:
        tile_sizes.append(tile.size)
        return []

    face_search.find_candidates(Image.new("RGB", size), look)
    assert len(tile_sizes) <= 45 and all(max(tile) <= face_search.INPUT_SIDE for tile in tile_sizes)
    for side, overlap in face_search.tile_sides(size):
        small = tuple(round(length * face_search.INPUT_SIDE / side) for length in size)
        for length in small:
            starts = face_search._starts(length, overlap)
            assert starts[0] == 0 and starts[-1] + face_search.INPUT_SIDE >= length
            steps = np.diff(starts)
            assert (steps <= face_search.INPUT_SIDE * (1 - overlap) + 1).all()
    assert 0 < face_search.min_width(size) <= max(size)


def test_a_candidate_is_in_the_pixels_of_the_picture() -> None:
    picture = Image.new("RGB", (2000, 1000))
    picture.paste((255, 255, 255), (1500, 700, 1600, 800))

    def look(tile: Image.Image) -> list[Candidate]:
        ys, xs = np.nonzero(np.asarray(tile)[..., 0] > 128)
        if not len(xs):
            return []
        box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
        return [Candidate(box, 0.5 + len(xs) / 1e5, np.array([[box[0], box[1]]] * 4))]

    first, *_ = face_search.find_candidates(picture, look)
    assert np.abs(np.array(first.box) - (1500, 700, 1600, 800)).max() < 12
    assert np.abs(first.keypoints - (1500, 700)).max() < 12


@pytest.mark.parametrize(
    ("box", "same"),
    [
        ((0, 0, 100, 120), True),
        ((10, 15, 105, 130), True),
        ((30, 60, 60, 90), True),  # within it: a mouth
        ((60, 0, 160, 120), False),  # the cheek of the next person
        ((50, 80, 90, 200), False),
        ((100, 0, 200, 120), False),
    ],
)
def test_boxes_of_one_face_and_of_two_that_overlap(box: Any, same: bool) -> None:
    assert face_search.is_same((0, 0, 100, 120), box) is same
    assert face_search.is_same(box, (0, 0, 100, 120)) is same


@pytest.mark.parametrize("box", [(-900, -900, -800, -700), (90, 50, 4000, 3000), (5, 5, 5, 5)])
def test_crops_of_boxes_at_and_beyond_the_edge(box: Any) -> None:
    picture = Image.new("RGB", (120, 90), (10, 200, 30))
    for scale in face_search.CHECK_SCALES:
        crop, *_ = face_search._padded_square(picture, box, scale)
        assert crop.size == (face_search.INPUT_SIDE, face_search.INPUT_SIDE)
        assert (np.asarray(crop) == (10, 200, 30)).all()  # edge pixels repeated, nothing black


# --- the detector ---------------------------------------------------------------------------------


@needs_detector
def test_every_face_of_a_group_is_found_once(detector: detect.Detector) -> None:
    picture = group()
    search = detector.search(picture)
    assert len(search.boxes) == len(GROUP)
    for side, x, y in GROUP:
        inside = [x < a < c < x + side and y < b < d < y + side + 5 for a, b, c, d in search.boxes]
        assert inside.count(True) == 1
    areas = [(c - a) * (d - b) for a, b, c, d in search.boxes]
    assert areas == sorted(areas, reverse=True)
    quick = detector.search(picture, quick=True)
    np.testing.assert_array_equal(quick.meshes[0], search.meshes[0])


@needs_detector
def test_two_faces_that_overlap_are_two(detector: detect.Detector) -> None:
    left, top, right, bottom = map(round, detector.search(head(0)).boxes[0])
    behind = Image.new("RGB", (560, 420), (90, 110, 120))
    behind.paste(head(4), (60, 80))
    behind.paste(head(0).crop((left, top, right, bottom)), (60 + right - 40, 90 + top))
    assert len(detector.search(behind).boxes) == 2


@needs_detector
@pytest.mark.parametrize("name", ["coins", "clock", "colorwheel", "cell", "cat", "coffee", "grass"])
def test_objects_are_not_faces(detector: detect.Detector, name: str) -> None:
    picture = Image.fromarray(getattr(skimage.data, name)())
    assert detector.search(picture).meshes == []
    assert detector.search(picture, quick=True).meshes == []


@needs_detector
def test_an_empty_picture_has_nothing_to_say(detector: detect.Detector) -> None:
    nothing = detector.search(Image.new("RGB", (300, 200)))
    assert (nothing.meshes, nothing.unread, nothing.is_crowded) == ([], 0, False)


@needs_detector
def test_more_places_than_are_read(
    detector: detect.Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = detector.search(group())
    monkeypatch.setattr(face_search, "MAX_FACES", 3)
    crowded = detector.search(group())
    assert crowded.is_crowded and not plain.is_crowded
    assert 1 <= len(crowded.meshes) <= 4 and crowded.note != plain.note


# --- crops of data sets ---------------------------------------------------------------------------


@needs_detector
def test_crops_do_not_depend_on_the_search_where_a_face_was_found(
    detector: detect.Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crops that are in caches stay those of the detector."""
    small = Image.new("RGB", (2048, 1024))
    small.paste(ASTRONAUT.resize((700, 700)), (900, 200))  # found in a quarter of the picture
    monkeypatch.setattr(detector, "_search_tiles", lambda *_: pytest.fail("tiles were searched"))
    monkeypatch.setattr(detector, "_confirms", lambda *_: pytest.fail("a face was checked"))
    for picture in (ASTRONAUT, head(3), head(5).convert("L"), small):
        meshes = detector.meshes(picture)
        whole = detector._detect_once(picture.convert("RGB"))
        assert len(meshes) == 1 and bool(whole) is (picture is not small)
        if whole:
            np.testing.assert_array_equal(meshes[0], whole[0])
        assert detector.face(picture) == detect.bounding_box(meshes[0])


@needs_detector
def test_the_tiles_are_searched_where_no_face_was_found(detector: detect.Detector) -> None:
    wide = Image.fromarray(skimage.data.brick()).convert("RGB").resize((1600, 1200))
    wide.paste(head(2).resize((80, 80)), (1010, 730))
    assert detector._first_look(wide) == []
    left, top, right, bottom = detector.face(wide) or (0, 0, 0, 0)
    assert 1010 < left < right < 1090 and 730 < top < bottom < 815


@needs_detector
def test_only_pictures_without_a_face_are_searched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLMFACE_CACHE", str(tmp_path / "cache"))
    paths = [tmp_path / "face.png", tmp_path / "none.png"]
    head(0).save(paths[0])
    Image.new("RGB", (120, 100)).save(paths[1])
    rows = to_dataset(Rows({"id": ["a", "b"], "image": list(map(str, paths))}), "x", "train")
    view = crops.View(size=64, box_source="detector")

    def cached() -> list[str]:
        with pytest.warns(UserWarning, match="no face found in 1 of 2"):
            cached = crop_cache.cache_view(rows, view, progress=False)
        return [image["path"] for image in cached["image"]]

    first = cached()
    assert cached() == first
    with sqlite3.connect(view.folder / "index.sqlite") as index:  # as the first version wrote it
        index.execute("update faces set found = 0 where found < 0")
    face_again, none_again = cached()
    assert face_again == first[0] and none_again != first[1]
    assert cached() == [face_again, none_again]
