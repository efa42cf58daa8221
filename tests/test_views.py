"""What a model is shown of a row: views of its pictures, frames of its clip, and boxes that are
none."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from miniatures import face
from PIL import Image

from vlmface import prompts
from vlmface.data import crop_cache, crops, row_images
from vlmface.data.dataset_rows import to_dataset, with_still_images
from vlmface.data.rows import Rows
from vlmface.errors import UserError
from vlmface.utils.images import as_list

FACE, PERSON = [20.0, 10.0, 50.0, 40.0], [10.0, 5.0, 70.0, 95.0]
VIEWS = crops.parse_views(
    [{"size": 48, "margin": 0.0}, {"size": 64, "margin": 0.0, "view": "face_boxed"}]
)
BROKEN = {
    "empty": [20, 10, 20, 40],
    "turned round": [50, 40, 20, 10],
    "outside": [200, 200, 240, 240],
    "left of it": [-40, -40, -10, -10],
    "nan": [math.nan, 10, 50, 40],
    "infinite": [20, 10, math.inf, 40],
    "astronomic": [0, 0, 1e300, 1e300],
    "three numbers": [1, 2, 3],
    "words": ["a", "b", "c", "d"],
    "a word": "1234",
    "a number": 7,
    "nested": [[1], [2], [3], [4]],
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLMFACE_CACHE", str(tmp_path / "cache"))


def table(tmp_path, n, **columns):
    """n rows of random pictures of 120 x 100 pixels."""
    paths = [str(face(tmp_path / f"{k}.png", k, (120, 100))) for k in range(n)]
    rows = {"id": [f"x-{k}" for k in range(n)], "image": paths, **columns}
    return to_dataset(Rows(rows), "x", "train")


def clips(tmp_path, n, frames, **columns):
    paths = [
        [str(face(tmp_path / f"{k}-{i}.png", 10 * k + i, (120, 100))) for i in range(frames)]
        for k in range(n)
    ]
    rows = {"id": [f"c-{k}" for k in range(n)], "frames": paths, **columns}
    return to_dataset(Rows(rows), "x", "train")


def opened(row):
    return [np.asarray(one) for one in as_list(row_images.open_images(row))]


def cut(path, box, crop):
    return np.asarray(crops.render_view(Image.open(path), box, crop))


# --- settings -------------------------------------------------------------------------------------


def test_null_or_a_list_of_views():
    assert crops.parse_views(None) == () and crops.views_as_dicts(()) is None
    one = {"size": 96, "margin": 0.1, "box_source": "annotation", "view": "face"}
    for views in ([one], [one, one | {"view": "scene"}], [one | {"margin_px": 20}]):
        assert crops.views_as_dicts(crops.parse_views(views)) == views
    changes = [{"view": view} for view in ("face_boxed", "face_masked", "scene", "person")]
    changes += [{}, {"margin_px": 20}]
    folders = {crops.parse_views([one | change])[0].folder for change in changes}
    assert len(folders) == 6


def test_the_context_is_the_scene_without_the_face() -> None:
    picture = Image.new("RGB", (100, 100), (90, 160, 200))
    picture.paste((255, 255, 255), (40, 30, 60, 50))
    context, scene = crops.View(100, 0.0, view="face_masked"), crops.View(100, view="scene")
    seen = np.asarray(crops.render_view(picture, (40, 30, 60, 50), context)).astype(int)
    assert not seen[31:50, 41:60].any()
    outside = np.ones((100, 100), bool)
    outside[28:53, 38:63] = False
    whole = np.asarray(crops.render_view(picture, None, scene)).astype(int)
    assert np.array_equal(seen[outside], whole[outside])
    # Nobody knows where the face is: nothing can be taken out.
    assert np.array_equal(np.asarray(crops.render_view(picture, None, context)), whole)


def test_pixels_around_a_box() -> None:
    picture = Image.new("RGB", (100, 100))
    picture.paste((255, 255, 255), (40, 40, 60, 60))
    seen = crops.render_view(picture, (40, 40, 60, 60), crops.View(60, 0.0, margin_px=20))
    assert np.array_equal(np.asarray(seen), np.asarray(picture.crop((20, 20, 80, 80))))
    with pytest.raises(UserError, match="margin_px is -1"):
        crops.View(margin_px=-1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], r"views is \[\]: give a list of views"),
        ([{"size": 96}, 3], "give a list of views"),
        ("face", "give a list of views"),
        (
            [{"view": "scene", "box_source": "detector"}],
            "box_source is detector, but view is scene",
        ),
        ({"size": 96}, r"give a list of views, such as \[\{size"),
        ([{"view": "room"}], r"face \| face_boxed \| face_masked \| scene \| person"),
    ],
)
def test_views_that_cannot_be_read(values, said):
    with pytest.raises(UserError, match=said):
        crops.parse_views(values)


def test_prompt_and_views_must_speak_of_as_many_pictures():
    both, one = prompts.load("context_both"), prompts.load("context_face")
    prompts.check_images([both], 2, 1)
    prompts.check_images([both], 0, 2)
    prompts.check_images([one], 0, 1)
    with pytest.raises(UserError, match=r"context_both is about 2 .*1 would be shown.* no view"):
        prompts.check_images([both], 0, 1)
    with pytest.raises(UserError, match=r"context_face is about 1 .*8 would.* 2 views, .* 4"):
        prompts.check_images([one], 2, 4)


# --- one picture ----------------------------------------------------------------------------------


def test_the_scene_is_whole_and_the_person_is_cut_out():
    picture = Image.fromarray(np.full((100, 200, 3), 200, np.uint8))
    scene = np.asarray(crops.render_view(picture, FACE, crops.View(200, view="scene")))
    assert scene[:48].max() < 10 and scene[52:148].min() == 200  # bars, and no frame
    person = crops.View(90, margin=0.0, view="person")
    marked = np.zeros((100, 200, 3), np.uint8)
    marked[5:95, 10:70] = 255
    found = np.asarray(crops.render_view(Image.fromarray(marked), PERSON, person))
    assert found.shape == (90, 90, 3) and found[:, 16:74].min() == 255
    whole = np.asarray(crops.render_view(Image.fromarray(marked), None, person))
    scene = crops.render_view(Image.fromarray(marked), None, crops.View(90, view="scene"))
    np.testing.assert_array_equal(whole, np.asarray(scene))


@pytest.mark.parametrize("box", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("view", ["face", "face_boxed", "person"])
def test_a_box_that_cannot_be_one_is_none(box, view):
    picture = Image.fromarray(np.full((100, 120, 3), 200, np.uint8))
    assert crops.valid_box(box, picture.size) is None
    crop = crops.View(64, view=view)
    np.testing.assert_array_equal(
        np.asarray(crops.render_view(picture, box, crop)),
        np.asarray(crops.render_view(picture, None, crop)),
    )


def test_a_box_partly_in_the_picture_is_one():
    for box in ([-25, 20, 25, 70], [-500, -500, 900, 900], [119, 99, 300, 300], FACE):
        assert crops.valid_box(box, (120, 100)) == tuple(map(float, box))


def test_views_of_a_photograph(tmp_path):
    photograph = Image.open(face(tmp_path / "x.png", 0, (120, 100)))
    face_view, boxed = crops.image_views(photograph, FACE, VIEWS)
    np.testing.assert_array_equal(face_view, crops.render_view(photograph, FACE, VIEWS[0]))
    np.testing.assert_array_equal(boxed, crops.render_view(photograph, FACE, VIEWS[1]))
    still = crops.image_views(photograph, FACE, VIEWS, frames=3)
    assert [one.size for one in still] == [(48, 48)] * 3 + [(64, 64)] * 3
    assert crops.image_views(photograph, None, ()) is photograph
    person = crops.View(64, view="person")  # the face's box is not the person's
    np.testing.assert_array_equal(
        crops.image_views(photograph, FACE, [person]), crops.render_view(photograph, None, person)
    )


# --- rows -----------------------------------------------------------------------------------------


def test_every_view_of_a_row(tmp_path):
    rows = table(tmp_path, 3, face_box=[FACE, None, FACE])
    with pytest.warns(UserWarning, match=r"no face boxed in 1 of 3 pictures.*1\.png"):
        found = crop_cache.apply_views(rows, VIEWS, progress=False)
    assert found["face_found"] == [True, False, True] and found["face_box"] == [None] * 3
    for k, row in enumerate(found):
        assert len(row["images"]) == 2 and row["image"] == row["images"][0]
        box = rows["face_box"][k]
        for picture, crop in zip(opened(row), VIEWS, strict=True):
            np.testing.assert_array_equal(picture, cut(tmp_path / f"{k}.png", box, crop))
    assert not (opened(found[1])[1] == crops.BOX_COLOUR).all(-1).any()
    again = crop_cache.apply_views(
        found.remove_columns(["images", "face_found"]), (), progress=False
    )
    assert again["image"] == found["image"] and "images" not in again.column_names


def test_one_view_is_the_image_alone(tmp_path):
    rows = table(tmp_path, 2, face_box=[FACE, FACE])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = crop_cache.apply_views(rows, VIEWS[:1], progress=False)
    assert "images" not in found.column_names and found["face_found"] == [True, True]
    assert found["image"] == crop_cache.cache_view(rows, VIEWS[0], progress=False)["image"]
    plain = crop_cache.apply_views(rows, (), progress=False)
    assert plain["image"] == with_still_images(rows)["image"]
    assert not {"images", "face_found"} & set(plain.column_names)
    scene = crop_cache.apply_views(
        rows, crops.parse_views([{"view": "scene", "size": 32}]), progress=False
    )
    assert "face_found" not in scene.column_names  # nobody asked where the face is


def test_each_frame_has_its_own_face(tmp_path):
    boxes = [[FACE, None, PERSON], [None, None, None]]
    meta = [json.dumps({"face_boxes": own, "body_box": PERSON}) for own in boxes]
    rows = clips(tmp_path, 2, 3, meta=meta)
    person = crops.View(48, view="person")
    views = (*VIEWS, person)
    with pytest.warns(UserWarning, match="no face boxed in 4 of 6 pictures"):
        found = crop_cache.apply_views(rows, views, frames=3, progress=False)
    assert found["face_found"] == [True, False]
    for k, row in enumerate(found):
        expected = [
            cut(tmp_path / f"{k}-{i}.png", of(i), crop)
            for crop, of in (
                (VIEWS[0], lambda i, own=boxes[k]: own[i]),  # a person is no face
                (VIEWS[1], lambda i, own=boxes[k]: own[i] or PERSON),  # but is framed
                (person, lambda i: PERSON),
            )
            for i in range(3)
        ]
        np.testing.assert_array_equal(opened(row)[:3], expected[:3])
        np.testing.assert_array_equal(opened(row)[3:6], expected[3:6])
        np.testing.assert_array_equal(opened(row)[6:], expected[6:])
        assert row["image"] == row["images"][1] and row["frames"] is None
    middle = crop_cache.apply_views(rows, [crops.View(48, view="scene")], progress=False)
    scene = cut(tmp_path / "0-1.png", None, crops.View(48, view="scene"))
    np.testing.assert_array_equal(opened(middle[0])[0], scene)


def test_frames_without_views_and_clips_that_are_short(tmp_path):
    rows = clips(tmp_path, 1, 5)
    (row,) = crop_cache.apply_views(rows, (), frames=2, progress=False)
    assert [one["path"] for one in row["images"]] == [f"{tmp_path}/0-{i}.png" for i in (1, 3)]
    assert row["image"]["path"] == f"{tmp_path}/0-3.png"
    (row,) = crop_cache.apply_views(clips(tmp_path, 1, 1), (), frames=3, progress=False)
    assert [one["path"] for one in row["images"]] == [f"{tmp_path}/0-0.png"] * 3
    (row,) = crop_cache.apply_views(
        table(tmp_path, 1), (), frames=2, progress=False
    )  # stands still
    assert [one["path"] for one in row["images"]] == [f"{tmp_path}/0.png"] * 2
    for wrong in (0, -1, 1000):
        with pytest.raises(UserError, match=rf"num_frames is {wrong}: a model is shown 1 to 64"):
            crop_cache.apply_views(rows, (), frames=wrong)


@pytest.mark.parametrize("box", BROKEN.values(), ids=BROKEN)
def test_broken_boxes_are_counted_and_never_cut(tmp_path, box):
    meta = [json.dumps({"face_boxes": [box], "person_box": box})]
    rows = clips(tmp_path, 1, 1, meta=meta)
    with pytest.warns(UserWarning, match="no face boxed in 1 of 1"):
        found = crop_cache.apply_views(rows, VIEWS, progress=False)
    assert found["face_found"] == [False]
    for picture, crop in zip(opened(found[0]), VIEWS, strict=True):
        np.testing.assert_array_equal(picture, cut(tmp_path / "0-0.png", None, crop))


def test_boxes_for_another_number_of_frames_are_refused(tmp_path):
    rows = clips(tmp_path, 1, 3, meta=[json.dumps({"face_boxes": [FACE]})])
    with pytest.raises(UserError, match=r"c-0 has 1 face_boxes in its meta, but 3 pictures"):
        crop_cache.apply_views(rows, VIEWS, progress=False)


def test_a_set_that_boxes_people_only(tmp_path):
    rows = table(tmp_path, 1, meta=[json.dumps({"person_box": PERSON})])
    found = crop_cache.apply_views(rows, VIEWS, progress=False)
    assert found["face_found"] == [True]  # the best that is known of the face
    for picture, crop in zip(opened(found[0]), VIEWS, strict=True):
        np.testing.assert_array_equal(picture, cut(tmp_path / "0.png", PERSON, crop))
