"""FaceSample: validation, AU queries and the way to `datasets` rows and back."""

from __future__ import annotations

import dataclasses
from typing import Any

import datasets
import pytest
from PIL import Image

from vlmface import label_spaces, schema
from vlmface.errors import UserError
from vlmface.schema import AULabel, FaceSample

FULL = FaceSample(
    id="a/1",
    dataset="mine",
    split="train",
    subject="s1",
    image=Image.new("RGB", (20, 16), (9, 8, 7)),
    face_box=[1, 2, 15, 14],
    emotion="anger",
    label_votes={"anger": 7, "bored": 0.5, "unknown": 1},
    valence=-0.5,
    arousal=0.25,
    aus=[AULabel(12, 0, False), AULabel(4, 2.5, True), AULabel(7, None, True)],
    age=31,
    age_group="20-39",
    gender="female",
    race="East Asian",
    context=["street"],
    rationale="The brows are lowered (AU4).",
    rationale_source="rules",
    rationale_saw_label=True,
    meta={"yaw": 3.5, "tags": ["ä", None]},
)
EMPTY = FaceSample("b", "mine")


def test_round_trip_through_datasets() -> None:
    rows = [FULL.to_row(), EMPTY.to_row()]
    table = datasets.Dataset.from_list(rows, features=schema.features())
    full, empty = (FaceSample.from_row(row) for row in table)
    assert full.image.convert("RGB").getpixel((0, 0)) == (9, 8, 7)
    assert dataclasses.replace(full, image=FULL.image) == FULL
    assert empty == EMPTY
    assert list(table.features) == [field.name for field in dataclasses.fields(FaceSample)]


def test_from_row_ignores_other_columns_and_fills_missing_ones() -> None:
    sample = FaceSample.from_row({"id": "x", "dataset": "d", "length": 3})
    assert sample == FaceSample("x", "d")


def test_none_is_not_absent() -> None:
    assert EMPTY.annotated_aus() == EMPTY.present_aus() == ()
    assert FULL.annotated_aus() == (4, 7, 12)
    assert FULL.present_aus() == (4, 7)
    assert FULL.present_aus(threshold=3) == (7,)  # 7 is not graded: its presence stands
    assert FULL.present_aus(threshold=2.5) == (4, 7)
    assert FULL.intensities() == {4: 2.5, 7: None}


def test_valid_samples() -> None:
    assert FULL.validate() is FULL
    assert EMPTY.validate() is EMPTY


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "'id' is ''"),
        ({"dataset": None}, "'dataset' is None"),
        ({"split": 3}, "'split' is 3"),
        ({"frames": [FULL.image]}, "an image or frames"),
        ({"face_box": [5, 5, 2, 9]}, r"'face_box' is \[5, 5, 2, 9\].*x0 < x1"),
        ({"face_box": [1, 2, 3]}, "'face_box'"),
        ({"emotion": "happy"}, "'emotion' is 'happy'.*anger, contempt, .*happiness"),
        ({"label_votes": {" ": 1}}, "'label_votes' is .*allowed: {word: finite number >= 0}"),
        ({"label_votes": {"anger": -1}}, "'label_votes'"),
        ({"label_votes": {"anger": float("nan")}}, "'label_votes'"),
        ({"label_votes": {"anger": float("inf")}}, "'label_votes'"),
        ({"valence": 1.5}, "'valence' is 1.5.*from -1 to 1"),
        ({"arousal": float("nan")}, "'arousal' is nan"),
        ({"age": -3}, "'age' is -3"),
        ({"aus": [AULabel(3, 1, True)]}, r"'aus' is AULabel\(au=3.*AU numbers"),
        ({"aus": [AULabel(4, 9, True)]}, "'aus' is .*from 0 to 5"),
        ({"aus": [AULabel(4, 0, True)]}, "present with intensity 0"),
        ({"aus": [AULabel(4, 1, True), AULabel(4, 0, False)]}, "each AU once"),
        ({"rationale_source": "gpt"}, "human, rules, teacher, model, none"),
        ({"rationale": None}, "'none' exactly where there is no rationale"),
        ({"rationale_source": "none"}, "'none' exactly where there is no rationale"),
    ],
)
def test_invalid_samples(changes: dict[str, Any], message: str) -> None:
    sample = dataclasses.replace(FULL, **changes)
    with pytest.raises(UserError, match=message) as error:
        sample.validate()
    assert f"sample {sample.id!r}" in str(error.value)


def test_several_labels_come_in_the_order_of_their_space() -> None:
    emotic = label_spaces.space("emotic26")
    person = FaceSample(id="x", dataset="d", context=["peace", "Anger", "Confusion", "doubt"])
    assert person.labels(emotic) == ("Anger", "Doubt/Confusion", "Peace")
    assert person.label(emotic) is None
    assert FaceSample(id="x", dataset="d", context=["Doubt"]).label(emotic) == "Doubt/Confusion"
    assert FaceSample(id="x", dataset="d").labels(emotic) == ()
    aged = FaceSample(id="x", dataset="d", age=44.0, emotion="fear")
    assert aged.labels(label_spaces.space("age_group5")) == ("40-59",)
    assert aged.labels(label_spaces.space("emotion8")) == ("fear",)
    assert aged.labels(label_spaces.space("gender")) == ()
