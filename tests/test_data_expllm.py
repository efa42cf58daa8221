"""Exp-CoT: 24 values that are not FACS numbers, pairs of sides, headings in four spellings, and a
conclusion that would stand beside the answer."""

from __future__ import annotations

import json

import pytest
from miniatures import expllm
from miniatures.records import write_json

from vlmface import data, prompts
from vlmface.errors import UserError
from vlmface.schema import FaceSample

PARTS = (
    "**Key Observations:** The brows are low.\n**Overall Emotional Interpretation:** "
    "This points to pain."
)


def present(row):
    return {unit["au"]: round(unit["intensity"], 3) for unit in row if unit["present"]}


def test_each_value_becomes_the_facs_unit_that_it_means(tmp_path):
    expllm.write(tmp_path)
    rows = data.load("expllm", tmp_path)
    assert rows["id"][0] == "expllm-train_00001_aligned"
    assert rows["emotion"] == ["sadness", "happiness", "fear", "anger"]
    assert [present(row) for row in rows["aus"]] == [
        {4: 3.5, 28: 1.5, 16: 1.25},
        {12: 5.0},
        {1: 2.5, 2: 2.5},
        {},
    ]
    # Lids that are closed by 0.19 have an intensity, but are below grade A.
    closed = next(unit for unit in rows["aus"][1] if unit["au"] == 43)
    assert (round(closed["intensity"], 3), closed["present"]) == (0.95, False)
    coded = {1, 2, 4, 5, 9, 10, 12, 16, 17, 18, 20, 26, 28, 29, 30, 34, 43}
    assert all({unit["au"] for unit in row} == coded for row in rows["aus"])
    assert json.loads(rows["meta"][0])["au"] == expllm.TRAIN[0]["au"]


def test_every_position_has_one_meaning():
    units = data.dataset_module("expllm").UNITS
    used = sorted(at for au, places in units.items() if au != 2 for at in places)
    assert used == list(range(24)) and units[1] == units[2]


def test_the_rationale_is_the_description_without_its_conclusion(tmp_path):
    expllm.write(tmp_path)
    rows = data.load("expllm", tmp_path)
    assert rows["rationale"] == [PARTS, PARTS, PARTS, "No headings, only prose."]
    meta = [json.loads(row) for row in rows["meta"]]
    assert [m["conclusion"] for m in meta] == ["Together, they express **sadness**."] * 3 + [None]
    assert set(rows["rationale_source"]) == {"teacher"} and set(rows["rationale_saw_label"]) == {
        True
    }
    for row in rows:
        for name in ("expllm", "expllm_words", "face_cot"):  # raises if it cannot be read
            prompts.load(name).target(FaceSample.from_row(row))
    sample = FaceSample.from_row(rows[0])
    assert prompts.load("expllm").target(sample) == f"{PARTS}\n**Conclusion:** sadness"


def test_test_faces_and_affectnet(tmp_path):
    expllm.write(tmp_path)
    test = data.load("expllm", tmp_path, "test")
    assert (test["emotion"], test["rationale"]) == (["neutral"], [PARTS])
    assert present(test["aus"][0]) == {10: 2.0}
    written = tmp_path / "rafdb_emo_au_val_mini_description.json"
    written.rename(tmp_path / "rafdb_emo_au_valid_mini_description.json")
    assert data.load("expllm", tmp_path, "test")["id"] == ["expllm-test_0001_aligned"]
    sample = data.load("expllm", tmp_path, "test", part="affectnet")
    assert sample["emotion"] == ["contempt", "happiness"]
    assert sample["id"][0] == "expllm-val_class/class008/image8"
    with pytest.raises(UserError, match=r"Affectnet_kaggle_train.*is missing: expected Exp-CoT"):
        data.load("expllm", tmp_path, part="affectnet")


def test_the_threshold_is_an_intensity(tmp_path):
    expllm.write(tmp_path)
    rows = data.load("expllm", tmp_path, threshold=0.5)
    assert present(rows["aus"][1]) == {43: 0.95, 12: 5.0}
    with pytest.raises(UserError, match="threshold=0: give an intensity above 0"):
        data.load("expllm", tmp_path, threshold=0)
    with pytest.raises(UserError, match="part='ck'"):
        data.load("expllm", tmp_path, part="ck")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"au": [0.0] * 23}, "'au' is .*24 numbers from 0 to 1"),
        ({"au": [0.0] * 23 + [1.5]}, "'au' is"),
        ({"au": [0.0] * 23 + [float("nan")]}, "'au' is"),
        ({"au": [0.0] * 23 + [10**200]}, "'au' is"),
        ({"au": [0.0] * 23 + [True]}, "'au' is"),
        ({"au": {"AU1": 0.5}}, "'au' is {'AU1': 0.5}"),
        ({"emo": "Sorrowfully"}, "'emo' is 'Sorrowfully', expected one of anger"),
        ({"emo": 8}, "'emo' is 8, expected an emotion or a code of rafdb"),
        ({"emo": 10**40}, "'emo' is 1000"),
        ({"emo": -1}, "'emo' is -1"),
        ({"emo": None}, "'emo' is None"),
        ({"file_name": "../train_00001_aligned.jpg"}, "inside the image folder"),
        ({"file_name": "/train_00001_aligned.jpg"}, "inside the image folder"),
        ({"description": ["x"]}, "'description' is"),
    ],
)
def test_a_wrong_record_is_named_with_its_file_and_number(tmp_path, fields, message):
    expllm.write(tmp_path)
    path = tmp_path / "rafdb_emo_au_train_mini_description.json"
    write_json(path, [expllm.TRAIN[0], expllm.TRAIN[1] | fields])
    with pytest.raises(UserError, match=message) as error:
        data.load("expllm", tmp_path)
    assert str(error.value).startswith(f"{path}, record 2: ")
