"""RAF-AU: codes with prefixes, null, trailing spaces, and the split that is ours."""

from __future__ import annotations

import json

import pytest
from miniatures import rafau, text

from vlmface import data
from vlmface.errors import UserError


def everything(root, **options) -> dict[str, dict[int, bool] | None]:
    """Stem -> AU -> presence, of both splits."""
    found = {}
    for split in ("train", "test"):
        rows = data.load("rafau", root, split, test_list=str(root / "test.txt"), **options)
        for row in rows:
            units = row["aus"]
            found[row["id"].removeprefix("rafau-")] = units and {
                unit["au"]: unit["present"] for unit in units
            }
    return found


def test_every_label(tmp_path):
    rafau.write(tmp_path)
    none = dict.fromkeys((1, 4, 12, 14, 19, 22, 23, 24, 25, 26), False)
    assert everything(tmp_path) == {
        "0001": none | {1: True, 4: True, 25: True},
        "0002": none | {12: True, 24: True},
        "0003": none,
        "0004": none | {25: True},
        "0005": none | {4: True, 22: True, 23: True, 19: True},
        "0006": none | {12: True, 26: True},
        "0007": none | {12: True, 14: True},
    }


def test_options_for_what_the_format_leaves_open(tmp_path):
    rafau.write(tmp_path)
    chosen = everything(tmp_path, aus=[4, 12, 14], null="unannotated", one_sided=False)
    assert chosen["0001"] == {4: True, 12: False, 14: False}
    assert chosen["0002"] == {4: False, 14: False}  # 12 on one side only
    assert chosen["0003"] is None
    assert chosen["0006"] == {4: False, 14: False}
    assert chosen["0007"] == {4: False, 12: True}
    rows = data.load(
        "rafau", tmp_path, "test", test_list=str(tmp_path / "test.txt"), images="original"
    )
    assert rows[0]["image"].size == (120, 90)
    assert json.loads(rows[0]["meta"]) == {"codes": "L12+R12+26+26"}


def test_the_drawn_split_is_a_partition_and_does_not_move(tmp_path):
    rafau.write(tmp_path)
    stems = [f"{i:04d}" for i in range(400)]
    text(tmp_path / "RAFAU_label.txt", *[f"{stem}.jpg 4" for stem in stems])
    train = data.read("rafau", tmp_path, "train").columns["id"]
    test = data.read("rafau", tmp_path, "test").columns["id"]
    assert sorted(train + test) == [f"rafau-{stem}" for stem in stems]
    assert 50 < len(test) < 110
    text(tmp_path / "RAFAU_label.txt", *[f"{stem}.jpg 4" for stem in stems[:200]])
    assert data.read("rafau", tmp_path, "test").columns["id"] == [
        i for i in test if i < "rafau-0200"
    ]


def test_what_is_wrong_with_a_copy_is_named(tmp_path):
    rafau.write(tmp_path)
    text(
        tmp_path / "RAFAU_label.txt", "0001.jpg 1+4", "0002.jpg 1+X4", "0003.jpg", "0004.jpg 99", ""
    )
    assert data.read("rafau", tmp_path, "train").skipped == {
        "malformed line": [
            "RAFAU_label.txt:2: 0002.jpg 1+X4",
            "RAFAU_label.txt:3: 0003.jpg",
            "RAFAU_label.txt:4: 0004.jpg 99",
        ],
    }
    with pytest.raises(UserError, match=r"names 2 test images.*first: 0006"):
        data.load("rafau", tmp_path, test_list=str(tmp_path / "test.txt"))
    with pytest.raises(UserError, match="'aligned' and 'original'"):
        data.load("rafau", tmp_path, images="cropped")
    with pytest.raises(UserError, match="'absent' or 'unannotated'"):
        data.load("rafau", tmp_path, null="neutral")
    (tmp_path / "RAFAU_label.txt").unlink()
    with pytest.raises(UserError, match="RAF-AU's list of codes"):
        data.load("rafau", tmp_path)
