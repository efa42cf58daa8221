"""EMOTIC: the csv files and the mat file say the same; scales, boxes, several people an image."""

from __future__ import annotations

import json

import pytest
from miniatures import emotic

from vlmface import data, label_spaces
from vlmface.data.adapters import emotic as adapter
from vlmface.errors import UserError


@pytest.mark.parametrize("mat", [False, True])
def test_every_label(tmp_path, mat):
    emotic.write(tmp_path, mat)
    for split in adapter.SPLITS:
        people = emotic.PEOPLE["val" if split == "validation" else split]
        rows = data.load("emotic", tmp_path, split)
        for row, person in zip(rows, people, strict=True):
            folder, file, box, categories, vad, gender, age = person
            assert row["context"] == categories
            scaled = [(x - 5.5) / 4.5 for x in vad]
            assert [row["valence"], row["arousal"]] == pytest.approx(scaled[:2])
            meta = json.loads(row["meta"])
            assert meta["person_box"] == box and meta["dominance"] == pytest.approx(scaled[2])
            assert row["face_box"] is None and row["emotion"] is None
            assert (row["gender"], row["age_group"]) == (gender.lower(), age)
            assert row["image"].filename.endswith(f"emotic/{folder}/{file}")
    assert data.load("emotic", tmp_path)["id"] == [
        "emotic-mscoco-COCO_val2014_000000562243-1",
        "emotic-framesdb-frame_tm7bg50wghz2wg2k-1",
        "emotic-framesdb-frame_tm7bg50wghz2wg2k-2",
    ]


def test_the_ends_of_the_scale(tmp_path):
    emotic.write(tmp_path)
    row = data.load("emotic", tmp_path)[1]
    assert (row["valence"], row["arousal"]) == (1.0, -1.0)


def test_people_without_labels(tmp_path):
    emotic.write(tmp_path)
    path = tmp_path / "emotic_pre" / "train.csv"
    text = path.read_text().replace("[5.0, 3.0, 9.0]", "[nan, nan, nan]")
    path.write_text(text.replace("['Anticipation']", "[]").replace("Kid", ""))
    rows = data.load("emotic", tmp_path)
    assert rows["valence"][0] is None and rows["arousal"][0] is None
    assert json.loads(rows["meta"][0])["dominance"] is None
    assert rows["context"][0] == ["Disconnection", "Doubt/Confusion"]
    assert rows["context"][1] is None and rows["age_group"][2] is None


def test_labels_beyond_the_scale_are_counted(tmp_path):
    emotic.write(tmp_path)
    path = tmp_path / "emotic_pre" / "train.csv"
    path.write_text(path.read_text().replace("[10.0, 1.0, 4.0]", "[11.0, 1.0, 4.0]"))
    rows = adapter.read(tmp_path, "train")
    assert rows.skipped == {
        "valence, arousal or dominance beyond 1..10": [
            "framesdb/images/frame_tm7bg50wghz2wg2k.jpg, person 1"
        ]
    }
    assert rows.columns["id"][1] == "emotic-framesdb-frame_tm7bg50wghz2wg2k-2"  # as in the set


def test_the_26_categories():
    space = label_spaces.SPACES["emotic26"]
    assert len(space.labels) == 26 and space.field == "context"
    assert space.match("doubt / confusion") == "Doubt/Confusion"


def test_what_is_wrong_with_a_copy_is_named(tmp_path):
    emotic.write(tmp_path)
    with pytest.raises(UserError, match="nowhere is missing"):
        data.load("emotic", tmp_path, annotations="nowhere")
    assert len(data.load("emotic", tmp_path, annotations="emotic_pre")) == 3
    path = tmp_path / "emotic_pre" / "train.csv"
    original = path.read_text()
    path.write_text(original.replace("Disconnection", "Boredom"))
    with pytest.raises(UserError, match="'Boredom' is not a label of emotic26"):
        data.load("emotic", tmp_path)
    path.write_text(original.replace("[86, 8, 150, 110]", "[86, 8"))
    with pytest.raises(UserError, match=r"train.csv:2: BBox.*\[86, 8,"):
        data.load("emotic", tmp_path)
    (tmp_path / "emotic_pre").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"Annotations.mat is missing|Annotations is missing"):
        data.load("emotic", tmp_path)
    emotic.write(tmp_path, mat=True)
    assert len(data.load("emotic", tmp_path, annotations="Annotations/Annotations.mat")) == 3
