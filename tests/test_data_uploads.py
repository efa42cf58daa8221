"""Copies of RAF-DB, AffectNet and FER2013 as people upload them: other folders, the same faces."""

from __future__ import annotations

import json

import pytest
from miniatures import face, fer2013, rafdb, text

from vlmface import data
from vlmface.errors import UserError


def write_rafdb(root, inside="DATASET"):
    """The faces of the official miniature in folders 1 to 7."""
    lines = [f"train_{i:05d}_aligned.jpg,{code}" for i, code in enumerate(rafdb.CODES, 1)]
    for number, line in enumerate(lines):
        name, code = line.split(",")
        face(root / inside / "train" / code / name, number, (100, 100))
    face(root / inside / "test" / "6" / "test_0001_aligned.jpg", 9, (100, 100))
    return lines


@pytest.mark.parametrize("inside", ["", "DATASET"])
@pytest.mark.parametrize("listed", [True, False])
def test_rafdb_has_the_ids_and_labels_of_the_official_copy(tmp_path, inside, listed):
    rafdb.write(tmp_path / "official", "_aligned")
    lines = write_rafdb(tmp_path / "upload", inside)
    if listed:
        text(tmp_path / "upload" / "train_labels.csv", "image,label", *lines)
        text(tmp_path / "upload" / "test_labels.csv", "image,label", "test_0001_aligned.jpg,6")
    official = data.load("rafdb", tmp_path / "official")
    rows = data.load("rafdb", tmp_path / "upload")
    assert dict(zip(rows["id"], rows["emotion"], strict=True)) == dict(
        zip(official["id"], official["emotion"], strict=True)
    )
    test = data.load("rafdb", tmp_path / "upload", "test")
    assert (test["id"], test["emotion"]) == (["rafdb-test_0001"], ["anger"])


def test_rafdb_that_counts_from_zero_or_disagrees_with_its_list_is_refused(tmp_path):
    lines = write_rafdb(tmp_path)
    text(tmp_path / "train_labels.csv", "image,label", *lines[:-1], lines[-1].replace(",7", ",6"))
    with pytest.raises(UserError, match=r"1 of 7 images .*/6/train_00007_aligned\.jpg"):
        data.load("rafdb", tmp_path)
    (tmp_path / "train_labels.csv").unlink()
    face(tmp_path / "DATASET" / "train" / "0" / "x.jpg", 1)
    with pytest.raises(UserError, match="has the folders 0 to 7, but rafdb counts from 1"):
        data.load("rafdb", tmp_path)


def write_affectnet(root, names, part="train"):
    for number, name in enumerate(names):
        face(root / part / name / f"image{number:07d}.jpg", number)


def test_affectnet_in_folders_of_numbers_or_words(tmp_path):
    write_affectnet(tmp_path / "numbers", ("0", "3", "7", "9"))
    rows = data.load("affectnet", tmp_path / "numbers")
    assert rows["emotion"] == ["neutral", "surprise", "contempt"]
    found = data.read("affectnet", tmp_path / "numbers", classes=7)
    assert found.columns["emotion"] == ["neutral", "surprise"]
    assert found.skipped == {
        "class 9, which is not an emotion": ["9/image0000003.jpg"],
        "contempt, not among the 7 classes": ["affectnet-train/image0000002"],
    }
    write_affectnet(tmp_path / "words", ("Anger", "happy"), "Train")
    write_affectnet(tmp_path / "words", ("sad",), "Test")
    assert data.load("affectnet", tmp_path / "words")["emotion"] == ["anger", "happiness"]
    assert data.load("affectnet", tmp_path / "words", "validation")["emotion"] == ["sadness"]
    write_affectnet(tmp_path / "shifted", ("1", "2", "8"))
    with pytest.raises(UserError, match="has the folders 1 to 8, but affectnet counts from 0"):
        data.load("affectnet", tmp_path / "shifted")


def test_affectnet_with_labels_that_differ_from_the_folders(tmp_path):
    for number, name in enumerate(("anger/image0.jpg", "fear/image1.jpg")):
        face(tmp_path / name, number)
    text(
        tmp_path / "labels.csv",
        ",pth,label,relFCs",
        "0,anger/image0.jpg,surprise,0.873142",
        "1,fear/image1.jpg,fear,0.9",
    )
    rows = data.load("affectnet", tmp_path)
    assert rows["emotion"] == ["surprise", "fear"]
    assert json.loads(rows["meta"][0])["relFCs"] == pytest.approx(0.873142)
    with pytest.raises(UserError, match=r"lists training rows only; data\.hold_out"):
        data.load("affectnet", tmp_path, "validation")


def test_fer2013_with_spaces_before_the_names_of_its_columns(tmp_path):
    fer2013.write(tmp_path / "official")
    lines = [line.split(",") for line in fer2013.lines()]
    swapped = [f"{code},{usage},{pixels}" for code, pixels, usage in lines]
    text(tmp_path / "upload" / "icml_face_data.csv", "emotion, Usage, pixels", *swapped)
    official = data.load("fer2013", tmp_path / "official", "test")
    rows = data.load("fer2013", tmp_path / "upload", "test")
    assert rows["emotion"] == official["emotion"] and rows["id"] == official["id"]
    assert rows[0]["image"].tobytes() == official[0]["image"].tobytes()


def test_fer2013_in_numbered_folders_is_refused(tmp_path):
    face(tmp_path / "train" / "4" / "Training_1.jpg", 1)
    with pytest.raises(UserError, match="'4' is not a label"):
        data.load("fer2013", tmp_path)
