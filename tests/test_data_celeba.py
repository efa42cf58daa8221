"""CelebA: attributes by their names, the owners' splits, people."""

from __future__ import annotations

import json

import pytest
from miniatures import celeba, text

from vlmface import data
from vlmface.data.adapters import celeba as adapter
from vlmface.errors import UserError


def test_every_label(tmp_path):
    celeba.write(tmp_path)
    for number, split in enumerate(adapter.SPLITS):
        rows = data.load("celeba", tmp_path, split)
        members = [i for i, part in enumerate(celeba.PARTS) if part == number]
        for row, i in zip(rows, members, strict=True):
            assert row["id"] == f"celeba-{i + 1:06d}"
            assert row["image"].filename.endswith(f"{i + 1:06d}.jpg")
            assert row["gender"] == ("male" if "Male" in celeba.HAS[i] else "female")
            assert row["subject"] == str(celeba.PEOPLE[i])
            assert set(json.loads(row["meta"])["attributes"]) == set(celeba.HAS[i])
            assert row["age"] is None and row["emotion"] is None


def test_a_flat_copy_without_people(tmp_path):
    celeba.write(tmp_path)
    for path in (
        "Anno/list_attr_celeba.txt",
        "Eval/list_eval_partition.txt",
        "Img/img_align_celeba",
    ):
        (tmp_path / path).rename(tmp_path / path.split("/")[1])
    (tmp_path / "Anno" / "identity_CelebA.txt").unlink()
    rows = data.load("celeba", tmp_path, "test")
    assert rows["id"] == ["celeba-000006", "celeba-000007"]
    assert rows["gender"] == ["male", "male"] and rows["subject"] == [None, None]


def test_an_image_that_is_in_no_split_is_counted(tmp_path):
    celeba.write(tmp_path)
    path = tmp_path / "Eval" / "list_eval_partition.txt"
    text(path, *path.read_text().splitlines()[1:])
    rows = adapter.read(tmp_path, "train")
    assert rows.skipped == {"image in no split": ["000001.jpg"]}
    assert rows.columns["id"] == ["celeba-000002", "celeba-000003", "celeba-000004"]
    assert rows.columns["subject"].to_pylist() == ["2937", "8692", "2880"]


def test_what_is_wrong_with_a_copy_is_named(tmp_path):
    celeba.write(tmp_path)
    listing = tmp_path / "Anno" / "list_attr_celeba.txt"
    lines = listing.read_text().splitlines()
    text(listing, *lines[:2], lines[2].replace(" 1", " 2"), *lines[3:])
    with pytest.raises(UserError, match=r"000001.jpg has Smiling 2, expected -1 or 1"):
        data.load("celeba", tmp_path)
    text(listing, *lines[:2], lines[2][:-3])
    with pytest.raises(UserError, match=r"list_attr_celeba.txt is not.*41 columns"):
        data.load("celeba", tmp_path)
    text(listing, *lines[1:])
    with pytest.raises(UserError, match=r"its second line, found: 000001.jpg"):
        data.load("celeba", tmp_path)
    listing.unlink()
    with pytest.raises(UserError, match="CelebA's attributes"):
        data.load("celeba", tmp_path)
