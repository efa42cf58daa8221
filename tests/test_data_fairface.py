"""FairFace: the owners' words, both margins, the validation split."""

from __future__ import annotations

import json

import pytest
from miniatures import fairface, text

from vlmface import data, label_spaces
from vlmface.errors import UserError


def test_every_label(tmp_path):
    fairface.write(tmp_path)
    for split, lines in (("train", fairface.TRAIN), ("validation", fairface.VALIDATION)):
        rows = data.load("fairface", tmp_path, split)
        for row, line in zip(rows, lines, strict=True):
            file, age, gender, race, service = line.split(",")
            assert row["id"] == "fairface-" + file.removesuffix(".jpg")
            assert (row["age_group"], row["race"]) == (age, race)
            assert row["gender"] == gender.lower()
            assert json.loads(row["meta"]) == {"service_test": service == "True"}
            assert row["age"] is None
    assert set(data.load("fairface", tmp_path)["race"]) == set(label_spaces.SPACES["race7"].labels)


def test_margins(tmp_path):
    fairface.write(tmp_path)
    assert data.load("fairface", tmp_path)[0]["image"].size == (56, 56)
    assert data.load("fairface", tmp_path, margin=1.25)[0]["image"].size == (80, 80)
    with pytest.raises(UserError, match=r"margin=0.5: FairFace has 0.25 and 1.25"):
        data.load("fairface", tmp_path, margin=0.5)
    (tmp_path / "fairface-img-margin025-trainval").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"fairface-img-margin025-trainval.*margin125"):
        data.load("fairface", tmp_path)


def test_images_unpacked_into_the_root(tmp_path):
    fairface.write(tmp_path)
    for part in ("train", "val"):
        (tmp_path / "fairface-img-margin025-trainval" / part).rename(tmp_path / part)
    (tmp_path / "fairface-img-margin025-trainval").rmdir()
    assert data.load("fairface", tmp_path, "validation")[1]["image"].size == (56, 56)


def test_what_is_wrong_with_a_copy_is_named(tmp_path):
    fairface.write(tmp_path)
    (tmp_path / "fairface-img-margin025-trainval" / "train" / "3.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 7 images.*train/3.jpg"):
        data.load("fairface", tmp_path)
    listing = tmp_path / "fairface_label_train.csv"
    text(listing, fairface.HEADER, "train/1.jpg,9-Mar,Male,White,True")  # saved by a spreadsheet
    with pytest.raises(UserError, match="'9-Mar' is not a label of age_group9"):
        data.load("fairface", tmp_path)
    text(listing, "file,age,gender,race", "train/1.jpg,3-9,Male,White")
    with pytest.raises(UserError, match=r"fairface_label_train.csv is not.*service_test"):
        data.load("fairface", tmp_path)
    listing.unlink()
    with pytest.raises(UserError, match="FairFace's labels"):
        data.load("fairface", tmp_path)
