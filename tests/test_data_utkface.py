"""UTKFace: labels from names, the known malformed names, 0 is male."""

from __future__ import annotations

import pytest
from miniatures import face, utkface

from vlmface import data
from vlmface.data.adapters import utkface as adapter
from vlmface.errors import UserError

MEN = {1: "Asian", 61: "Indian", 24: "Black", 8: "White", 45: "Asian"}
WOMEN = {26: "White", 35: "Black", 90: "Others", 116: "White"}
EXPECTED = {age: ("male", race) for age, race in MEN.items()}
EXPECTED |= {age: ("female", race) for age, race in WOMEN.items()}


@pytest.mark.parametrize(
    ("folder", "suffix", "options"),
    [
        ("UTKFace", ".jpg.chip.jpg", {}),
        ("part2", ".jpg", {}),
        (".", ".jpg", {}),
        ("crop_part1", ".jpg.chip.jpg", {"images": "crop_part1"}),
    ],
)
def test_every_label_in_every_layout(tmp_path, folder, suffix, options):
    utkface.write(tmp_path, folder, suffix)
    options["test_list"] = str(tmp_path / "test.txt")
    train = data.load("utkface", tmp_path, **options)
    test = data.load("utkface", tmp_path, "test", **options)
    assert len(train) == 7
    assert sorted(test["id"]) == sorted(f"utkface-{stem}" for stem in utkface.TEST)
    found = {
        int(row["age"]): (row["gender"], row["race"]) for part in (train, test) for row in part
    }
    assert found == EXPECTED
    assert train["age_group"] == [None] * 7 and train["subject"] == [None] * 7
    assert train[0]["image"].filename.endswith(suffix)


def test_malformed_names_are_listed(tmp_path):
    utkface.write(tmp_path)
    face(tmp_path / "UTKFace" / "30_2_0_20170116184028385.jpg.chip.jpg", 0)
    face(tmp_path / "UTKFace" / "24_0_1_20170116220224658 .jpg.chip.jpg", 0)  # read all the same
    rows = adapter.read(tmp_path, "train")
    assert rows.skipped == {
        "name that is not age_gender_race_time": sorted(
            f"{stem}.jpg.chip.jpg" for stem in utkface.BAD
        ),
        "name with a unknown code of gender or race": ["30_2_0_20170116184028385.jpg.chip.jpg"],
    }
    both = rows.columns["id"] + adapter.read(tmp_path, "test").columns["id"]
    assert len(both) == 10 and "utkface-24_0_1_20170116220224658" in both


def test_what_is_wrong_with_a_copy_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no images: expected UTKFace's"):
        data.load("utkface", tmp_path)
    with pytest.raises(UserError, match=r"faces is missing"):
        data.load("utkface", tmp_path, images="faces")
    with pytest.raises(UserError, match=r"no split 'validation'.*hold_out"):
        data.load("utkface", tmp_path, "validation")
