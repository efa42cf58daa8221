"""JAFFE: labels in file names, folds that keep a person on one side."""

from __future__ import annotations

import pytest
from miniatures import face, jaffe

from vlmface import data
from vlmface.data.adapters import jaffe as adapter
from vlmface.errors import UserError

CODES = ("AN", "DI", "FE", "HA", "NE", "SA", "SU")
EMOTIONS = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
WORDS = dict(zip(CODES, EMOTIONS, strict=True))


def test_every_label(tmp_path):
    jaffe.write(tmp_path)
    rows = data.load("jaffe", tmp_path, "all")
    assert sorted(rows["id"]) == sorted(f"jaffe-{name}" for name in jaffe.NAMES)
    for row in rows.remove_columns("image"):
        subject, expression, _ = row["id"].removeprefix("jaffe-").split(".")
        assert (row["subject"], row["emotion"]) == (subject, WORDS[expression[:2]])
    assert rows[0]["image"].size == (64, 64)


def test_each_subject_is_left_out_once(tmp_path):
    jaffe.write(tmp_path)
    for fold, subject in enumerate(("KA", "KL", "YM"), 1):
        test = data.load("jaffe", tmp_path, "test", fold=fold, folds=3)
        train = data.load("jaffe", tmp_path, fold=fold, folds=3)
        assert set(test["subject"]) == {subject}
        assert subject not in train["subject"]
        assert len(test) + len(train) == len(jaffe.NAMES)


def test_what_is_wrong_with_a_copy_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no images named.*KA.AN1.39"):
        data.load("jaffe", tmp_path)
    jaffe.write(tmp_path)
    with pytest.raises(UserError, match=r"fold=1 of folds=10.*3 in this copy"):
        data.load("jaffe", tmp_path)
    with pytest.raises(UserError, match="fold=0 of folds=3"):
        data.load("jaffe", tmp_path, fold=0, folds=3)
    face(tmp_path / "jaffe" / "KA_angry.png", 1)
    assert adapter.read(tmp_path, "all").skipped == {
        "name unlike KA.AN1.39.tiff": ["jaffe/KA_angry.png"]
    }
    face(tmp_path / "jaffe" / "KA.XX1.50.tiff", 1)
    with pytest.raises(UserError, match="no expression 'XX'"):
        data.load("jaffe", tmp_path)


def test_a_second_copy_of_an_image_is_an_error(tmp_path):
    jaffe.write(tmp_path)
    face(tmp_path / "cropped" / "KA.AN1.0.tiff", 1)
    with pytest.raises(UserError, match=r"'jaffe-KA\.AN1\.0' occurs more than once"):
        data.load("jaffe", tmp_path, "all")
