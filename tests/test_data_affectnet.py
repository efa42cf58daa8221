"""AffectNet: the order of the emotions, codes from 0 and from 1, -2 for "not rated"."""

from __future__ import annotations

import numpy as np
import pytest
from miniatures import affectnet, text

from vlmface import data
from vlmface.data.adapters import affectnet as adapter
from vlmface.errors import UserError

WORDS = [
    "neutral",
    "happiness",
    "sadness",
    "surprise",
    "fear",
    "disgust",
    "anger",
    "contempt",
]


@pytest.mark.parametrize("images", adapter.IMAGES)
def test_every_label_of_the_official_lists(tmp_path, images):
    affectnet.write(tmp_path, images)
    rows = data.load("affectnet", tmp_path)
    assert rows["emotion"] == WORDS
    assert rows["id"][1] == f"affectnet-1/{1:056x}.jpg"
    assert rows["valence"] == pytest.approx([i / 10 - 0.4 for i in range(8)])
    assert rows["arousal"] == pytest.approx([0.5 - i / 10 for i in range(8)])
    assert rows["face_box"] == [[i, 2, i + 30, 42 - i] for i in range(8)]
    assert rows[3]["image"].size == (48, 48)


def test_a_list_without_a_header_keeps_its_first_row(tmp_path):
    affectnet.write(tmp_path)
    rows = data.load("affectnet", tmp_path, "validation")
    assert rows["emotion"] == ["anger", "contempt", "surprise"]


def test_what_is_skipped_is_listed(tmp_path):
    affectnet.write(tmp_path)
    eight = adapter.read(tmp_path, "train").skipped
    assert [len(v) for v in eight.values()] == [1, 1, 1]
    assert eight["expression 10, not among the 8 classes"] == [f"affectnet-1/{10:056x}.jpg"]
    seven = adapter.read(tmp_path, "train", classes=7)
    assert seven.skipped["expression 7, not among the 7 classes"] == [f"affectnet-1/{7:056x}.jpg"]
    assert list(seven.skipped)[1:] == [
        f"expression {i}, not among the 7 classes" for i in (8, 9, 10)
    ]
    assert data.load("affectnet", tmp_path, classes=7)["emotion"] == WORDS[:7]


def test_not_rated_is_null(tmp_path):
    affectnet.write(tmp_path)
    path = tmp_path / "Manually_Annotated_file_lists" / "validation.csv"
    line = path.read_text().splitlines()[0].rsplit(",", 2)[0]
    text(path, f"{line},-2,-2")
    rows = data.load("affectnet", tmp_path, "validation")
    assert (rows["valence"], rows["arousal"]) == ([None], [None])


def test_the_npy_layout_in_the_order_of_its_numbers(tmp_path):
    affectnet.write_npy(tmp_path)
    (tmp_path / "train_set" / "annotations" / "9_val.npy").unlink()
    (tmp_path / "train_set" / "annotations" / "10_exp.npy").unlink()
    rows = data.load("affectnet", tmp_path)
    assert rows["id"] == ["affectnet-train/9", "affectnet-train/100", "affectnet-train/101"]
    assert rows["emotion"] == ["happiness", "contempt", "sadness"]
    assert rows["valence"] == [None, pytest.approx(0.7), pytest.approx(0.2)]
    assert rows["arousal"] == [0.25, 0.25, None]
    assert adapter.read(tmp_path, "train").skipped == {"no _exp.npy": ["10"]}
    assert data.load("affectnet", tmp_path, "validation")["emotion"] == ["neutral", "fear"]


def test_the_sample_counts_from_one(tmp_path):
    affectnet.write_sample(tmp_path)
    for split in ("train", "validation"):
        rows = data.load("affectnet", tmp_path, split)
        assert rows["emotion"] == WORDS
    assert rows["id"][2] == "affectnet-val_class/class003/image0000003.jpg"
    assert data.load("affectnet", tmp_path, classes=7)["emotion"] == WORDS[:7]


def test_the_layout_can_be_said(tmp_path):
    affectnet.write(tmp_path)
    affectnet.write_sample(tmp_path)
    affectnet.write_npy(tmp_path)
    numbers = {k: len(data.load("affectnet", tmp_path, layout=k)) for k in ("npy", "sample")}
    assert numbers == {"npy": 4, "sample": 8}
    assert data.load("affectnet", tmp_path)["face_box"][0] is not None


def test_what_is_wrong_with_a_copy_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no layout of AffectNet.*train_set"):
        data.load("affectnet", tmp_path)
    affectnet.write(tmp_path)
    with pytest.raises(UserError, match="classes=6"):
        data.load("affectnet", tmp_path, classes=6)
    with pytest.raises(UserError, match="layout='kaggle'"):
        data.load("affectnet", tmp_path, layout="kaggle")
    (tmp_path / "Manually_Annotated_Images" / "1" / f"{4:056x}.jpg").unlink()
    with pytest.raises(UserError, match="1 of 8 images"):
        data.load("affectnet", tmp_path)
    path = tmp_path / "Manually_Annotated_file_lists" / "training.csv"
    lines = path.read_text().splitlines()
    text(path, *lines[:2], lines[2].rsplit(",", 3)[0] + ",11,0,0")
    with pytest.raises(UserError, match="no emotion code 11"):
        data.load("affectnet", tmp_path)
    text(path, *lines[:2], lines[2].rsplit(",", 3)[0] + ",happy,0,0")
    with pytest.raises(UserError, match=r"training.csv.*happy"):
        data.load("affectnet", tmp_path)
    text(path, *lines[:2], "1/x.jpg,1,2")
    with pytest.raises(UserError, match=r"training.csv.*columns"):
        data.load("affectnet", tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"training.csv is missing"):
        data.load("affectnet", tmp_path)


@pytest.mark.parametrize("content", [b"", b"7", np.arange(3)])
def test_a_broken_npy_file_is_named(tmp_path, content):
    affectnet.write_npy(tmp_path)
    path = tmp_path / "val_set" / "annotations" / "9_exp.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(UserError, match=r"9_exp.npy does not hold one number"):
        data.load("affectnet", tmp_path, "validation")
