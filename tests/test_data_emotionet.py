"""EmotioNet: quotes around names, 999 is unknown, images found by name, dead URLs."""

from __future__ import annotations

import pytest
from miniatures import emotionet, text

from vlmface import data
from vlmface.data.adapters import emotionet as adapter
from vlmface.errors import UserError


def present(row: dict) -> dict[int, bool] | None:
    return row["aus"] and {unit["au"]: unit["present"] for unit in row["aus"]}


def test_every_label(tmp_path):
    emotionet.write(tmp_path)
    listed = {"test_list": str(tmp_path / "test.txt")}
    rows = data.load("emotionet", tmp_path, **listed)
    assert len(rows) == 10 and rows["id"][0] == "emotionet-N_0000000005_00001"
    none = {au: False for au in adapter.AUS if au != 43}
    for row in rows:
        i = int(row["id"][-5:])
        assert present(row) == none | {12: True, 25: i % 2 == 0}
        assert row["image"].filename.endswith(f"N_0000000005/N_0000000005_{i:05d}.jpg")
    test = data.load("emotionet", tmp_path, "test", **listed)
    assert test["id"] == ["emotionet-N_0000000005_00003", "emotionet-N_0000000005_00012"]
    assert present(test[0]) is None
    assert present(test[1])[25] is True


def test_other_aus_and_other_headers(tmp_path):
    emotionet.write(tmp_path)
    path = tmp_path / "EmotioNet_FACS_aws_2020_24600.csv"
    header, *lines = path.read_text().splitlines()
    text(tmp_path / "other.csv", header.replace("'AU ", '"AU').replace("'", '"'), *lines[:2], ",,")
    with pytest.raises(UserError, match=r"one csv file.*found: EmotioNet_FACS.*other.csv"):
        data.load("emotionet", tmp_path)
    with pytest.raises(UserError, match=r"other.csv is not the csv file"):
        data.load("emotionet", tmp_path, labels="other.csv")
    empty = "," * (len(emotionet.UNITS) + 1)
    text(tmp_path / "other.csv", header.replace("'AU ", '"AU').replace("'", '"'), *lines[:2], empty)
    rows = data.read("emotionet", tmp_path, "train", labels="other.csv", aus=[3, 12])
    more = data.read("emotionet", tmp_path, "test", labels="other.csv", aus=[3, 12])
    assert len(rows) + len(more) == 2
    assert rows.skipped == {"line without a URL": ["line 4"]}


def test_images_that_were_not_downloaded(tmp_path):
    emotionet.write(tmp_path)
    listed = {"test_list": str(tmp_path / "test.txt")}
    (tmp_path / "images" / "N_0000000005" / "N_0000000005_00005.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 10 images.*N_0000000005_00005"):
        data.load("emotionet", tmp_path, **listed)
    with pytest.warns(UserWarning, match="1 rows without an image"):
        assert len(data.load("emotionet", tmp_path, missing="drop", **listed)) == 9


def test_what_is_wrong_with_a_copy_is_named(tmp_path):
    emotionet.write(tmp_path)
    with pytest.raises(UserError, match=r"no column 'AU 7'.*URL, URL orig, AU 1"):
        data.load("emotionet", tmp_path, aus=[7])
    with pytest.raises(UserError, match="code 999 for AU43, expected 0, 1 or 9 "):
        data.load("emotionet", tmp_path, unknown=9)
    with pytest.raises(UserError, match="imgs is missing"):
        data.load("emotionet", tmp_path, images="imgs")
    path = tmp_path / "EmotioNet_FACS_aws_2020_24600.csv"
    path.write_text(path.read_text().replace(",999", ",?"))
    with pytest.raises(UserError, match=r"column of AU1 .* is not a number"):
        data.load("emotionet", tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"found: none.*save an xlsx list as csv"):
        data.load("emotionet", tmp_path)
