"""CK+: labels that are floats, AUs that are seen but not graded, folds of people."""

from __future__ import annotations

import json

import pytest
from miniatures import ckplus, text

from vlmface import data
from vlmface.data.adapters import ckplus as adapter
from vlmface.errors import UserError
from vlmface.schema import FaceSample

LABELS = {
    "S005_001_00000011": "disgust",
    "S010_002_00000006": "surprise",
    "S011_001_00000005": "anger",
    "S026_003_00000008": "fear",
    "S050_002_00000002": "contempt",
    "S106_006_00000009": "sadness",
    "S138_005_00000010": "happiness",
}


def labels(rows) -> dict[str, str]:
    return {i.removeprefix("ckplus-"): e for i, e in zip(rows["id"], rows["emotion"], strict=True)}


@pytest.mark.parametrize("names", [("Emotion", "FACS"), ("Emotion_labels/Emotion", "labels/FACS")])
def test_the_peak_of_every_labelled_sequence(tmp_path, names):
    ckplus.write(tmp_path, *names)
    rows = data.load("ckplus", tmp_path, "all")
    assert labels(rows) == LABELS
    assert rows["subject"] == [stem[:4] for stem in LABELS]
    assert rows[0]["image"].size == (48, 48)
    assert data.read("ckplus", tmp_path, "all").skipped == {"no emotion label": ["S010/004"]}


def test_grade_zero_is_seen_but_not_graded(tmp_path):
    ckplus.write(tmp_path)
    rows = data.load("ckplus", tmp_path, "all").remove_columns("image")
    samples = {row["id"][-17:]: FaceSample.from_row(row).validate() for row in rows}
    disgust = samples["S005_001_00000011"]
    assert disgust.intensities() == {9: 5, 17: None}
    assert disgust.annotated_aus() == adapter.CODED
    absent = next(label for label in disgust.aus if label.au == 12)
    assert (absent.present, absent.intensity) == (False, 0)
    assert samples["S010_002_00000006"].intensities() == {1: 3, 2: 3, 5: None, 27: 4}
    happy = samples["S138_005_00000010"]  # AU 19 is not in the paper's table, but in this file
    assert happy.intensities() == {6: 4, 12: 5, 19: 1, 25: 3}
    assert 19 not in disgust.annotated_aus()
    sad = samples["S106_006_00000009"]
    assert sad.intensities() == {15: 3, 17: 4}
    assert sad.meta == {"other_codes": [64]}


def test_the_last_three_frames_have_the_label_but_only_the_peak_has_aus(tmp_path):
    ckplus.write(tmp_path)
    rows = data.load("ckplus", tmp_path, "all", frames="last3")
    assert len(rows) == 6 * 3 + 2
    shown = labels(rows)
    assert [shown[f"S005_001_000000{k:02d}"] for k in (9, 10, 11)] == ["disgust"] * 3
    assert "S005_001_00000008" not in shown
    coded = [i[-17:] for i, aus in zip(rows["id"], rows["aus"], strict=True) if aus is not None]
    assert coded == list(LABELS)


@pytest.mark.parametrize("frames", ["peak", "last3"])
def test_eight_classes_add_the_first_frame_as_neutral(tmp_path, frames):
    ckplus.write(tmp_path)
    rows = data.load("ckplus", tmp_path, "all", classes=8, frames=frames)
    shown = labels(rows)
    neutral = [stem for stem, word in shown.items() if word == "neutral"]
    assert neutral == [f"{stem[:9]}00000001" for stem in LABELS]
    assert {stem: shown[stem] for stem in LABELS} == LABELS
    assert rows["aus"][0] is None
    assert len(rows) == (14 if frames == "peak" else 6 * 4 + 2)


def test_sequences_without_an_emotion_have_aus(tmp_path):
    ckplus.write(tmp_path)
    rows = data.load("ckplus", tmp_path, "all", unlabelled=True, classes=8)
    row = rows.remove_columns("image").filter(lambda r: r["id"] == "ckplus-S010_004_00000007")[0]
    assert row["emotion"] is None
    assert FaceSample.from_row(row).intensities() == {4: 2}
    assert json.loads(row["meta"]) == {"other_codes": [54]}
    assert "ckplus-S010_004_00000001" not in rows["id"]


def test_the_folds_keep_people_apart_and_test_each_once(tmp_path):
    ckplus.write(tmp_path)
    tested = []
    for fold in (1, 2, 3):
        test = data.load("ckplus", tmp_path, "test", fold=fold, folds=3)
        train = data.load("ckplus", tmp_path, fold=fold, folds=3)
        assert not set(test["subject"]) & set(train["subject"])
        assert len(test) + len(train) == 7
        tested.append(test["subject"])
    assert tested == [["S005", "S026", "S138"], ["S010", "S050"], ["S011", "S106"]]


def test_a_copy_without_aus(tmp_path):
    ckplus.write(tmp_path)
    (tmp_path / "FACS").rename(tmp_path / "other")
    with pytest.raises(UserError, match=r"CK\+'s folder FACS"):
        data.load("ckplus", tmp_path, "all")
    rows = data.load("ckplus", tmp_path, "all", aus=False)
    assert labels(rows) == LABELS
    assert rows["aus"] == [None] * 7


def test_what_is_wrong_with_a_copy_is_named(tmp_path):
    with pytest.raises(UserError, match="cohn-kanade-images is missing"):
        data.load("ckplus", tmp_path)
    ckplus.write(tmp_path)
    with pytest.raises(UserError, match="frames='apex'"):
        data.load("ckplus", tmp_path, "all", frames="apex")
    with pytest.raises(UserError, match=r"folds=10.*7 in this copy"):
        data.load("ckplus", tmp_path)
    (tmp_path / "cohn-kanade-images/S005/001/S005_001_00000011.png").unlink()
    with pytest.raises(UserError, match=r"1 of 7 images.*S005_001_00000011"):
        data.load("ckplus", tmp_path, "all")
    for path in (tmp_path / "cohn-kanade-images/S005/001").glob("*.png"):
        path.unlink()
    assert data.read("ckplus", tmp_path, "all").skipped["no frames"] == ["S005/001"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("   9.0000000e+00", r"S005_001_00000011_emotion.txt: ckplus has no emotion code 9"),
        ("   2.5000000e+00", r"no emotion code 2.5"),
        ("disgust", "something else than numbers"),
        ("", "holds 0 codes"),
    ],
)
def test_a_malformed_label_is_named(tmp_path, line, message):
    ckplus.write(tmp_path)
    text(tmp_path / "Emotion/S005/001/S005_001_00000011_emotion.txt", line)
    with pytest.raises(UserError, match=message):
        data.load("ckplus", tmp_path, "all")


def test_a_malformed_coding_is_named(tmp_path):
    ckplus.write(tmp_path)
    text(tmp_path / "FACS/S005/001/S005_001_00000011_facs.txt", "   9.0000000e+00")
    with pytest.raises(UserError, match=r"_facs.txt: expected 2 numbers in each line"):
        data.load("ckplus", tmp_path, "all")
