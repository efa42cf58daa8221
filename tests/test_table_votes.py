"""Votes, one-hot columns, probabilities and soft labels: the label and `label_votes`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from miniatures import face, text
from miniatures.records import write_lines

from vlmface import data, label_spaces
from vlmface.data.tables.cells import BadCellError
from vlmface.data.tables.labels import LabelWords
from vlmface.data.tables.options import TableOptions
from vlmface.data.tables.votes import majority, parse_votes
from vlmface.errors import UserError
from vlmface.label_votes import distribution


@pytest.fixture
def folder(tmp_path):
    for number in range(6):
        face(tmp_path / f"{number}.jpg", number)
    return tmp_path


def test_counts_of_votes_with_words_that_are_no_emotions(folder):
    path = text(
        folder / "votes.csv",
        "image,Happiness,sad,Joy,unknown,NF",
        "0.jpg,3,4,2,0,1",  # happiness and joy are one label
        "1.jpg,4,4,0,0,0",
        "2.jpg,1,0,0,9,0",
        "3.jpg,0,0,0,0,0",
        "4.jpg,,,,,",
        "5.jpg,1,,,,",
    )
    with pytest.warns(UserWarning, match="1 have tied votes; 2 have no votes; 1 have most"):
        rows = data.load("table", path, votes=["Happiness", "sad", "Joy", "unknown", "NF"])
    assert rows["emotion"] == ["happiness", None, None, None, None, "happiness"]
    votes = [None if cell is None else json.loads(cell) for cell in rows["label_votes"]]
    assert votes[0] == {"Happiness": 3, "sad": 4, "Joy": 2, "unknown": 0, "NF": 1}
    assert votes[4] is None and votes[5] == {"Happiness": 1}
    shares = distribution(votes[0], label_spaces.space("emotion8"))
    assert shares.probabilities["happiness"] == pytest.approx(5 / 9)
    assert shares.outside == pytest.approx(0.1)


def test_one_hot_columns_of_own_words(folder):
    path = text(folder / "a.csv", "image,is_bored,is_keen", "0.jpg,0,1", "1.jpg,1,0", "2.jpg,1,1")
    options = {"votes": {"bored": "is_bored", "keen": "is_keen"}, "label_field": "context"}
    with pytest.warns(UserWarning, match="rows without a label: 1 have tied votes"):
        rows = data.load("table", path, **options)
    assert rows["context"] == [["keen"], ["bored"], None] and rows["emotion"] == [None] * 3
    assert json.loads(rows["label_votes"][2]) == {"bored": 1, "keen": 1}


def test_a_label_column_wins_over_the_votes(folder):
    path = text(folder / "a.csv", "image,emotion,p_sad,p_fear", "0.jpg,fear,0.9,0.1")
    rows = data.load("table", path, votes={"sad": "p_sad", "fear": "p_fear"})
    assert rows["emotion"] == ["fear"]
    assert json.loads(rows["label_votes"][0]) == {"sad": 0.9, "fear": 0.1}


@pytest.mark.parametrize(
    "cell", ['"{""anger"": 0.3, ""fear"": 0.7}"', "anger:0.3;fear:0.7", '"anger = .3, fear=0.7"']
)
def test_soft_labels_in_one_column(folder, cell):
    path = text(folder / "a.csv", "image,label_votes", f"0.jpg,{cell}", "1.jpg,", "2.jpg,sad:1")
    with pytest.warns(UserWarning, match="1 have no votes"):
        rows = data.load("table", path)
    assert rows["emotion"] == ["fear", None, "sadness"]
    assert json.loads(rows["label_votes"][0]) == {"anger": 0.3, "fear": 0.7}
    assert rows["label_votes"][1] is None


def test_soft_labels_in_json_lines(folder):
    path = folder / "a.jsonl"
    soft = {"anger": 0.3, "fear": 0.7, "sad": None}
    write_lines(path, {"image": "0.jpg", "soft": soft}, {"image": "1.jpg", "soft": None})
    rows = data.load("table", path, columns={"label_votes": "soft"})
    assert rows["emotion"] == ["fear", None]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("anger:-1", "votes >= 0 such as"),
        ("anger:nan", "votes >= 0 such as"),
        ("anger 0.3", "votes >= 0 such as"),
        ("{broken", "votes >= 0 such as"),
        ("anger:1;anger:2", "each word occurs once"),
        ('{"anger": 1, "anger": 2}', "each word occurs once"),
        ('{"anger": "x"}', "votes >= 0 such as"),
        ([1], "votes >= 0 such as"),
    ],
)
def test_soft_labels_that_cannot_be_read(cell, message):
    with pytest.raises(BadCellError, match=message):
        parse_votes(cell)


@given(st.text(max_size=30))
def test_any_text_is_votes_or_one_error(cell):
    try:
        votes = parse_votes(cell)
    except BadCellError:
        return
    assert votes is None or all(n >= 0 for n in votes.values())


@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=9))
def test_the_majority_is_that_of_the_distribution(counts):
    words = ["Happy", "joy", "fear"]
    labels = majority(words, np.array(counts, float), LabelWords(TableOptions()), "x")
    space = label_spaces.space("emotion8")
    assert labels == [
        distribution(dict(zip(words, row, strict=True)), space).majority() for row in counts
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"votes": "p_*"}, "line 3: 'p_fear' is '-0.1', expected votes or a probability >= 0"),
        ({"votes": "q_*"}, r"votes='q_\*' fits no column"),
        ({"votes": "p_*", "columns": {"label_votes": "soft"}}, "both hold votes: leave one out"),
    ],
)
def test_errors(folder, options, message):
    path = text(folder / "a.csv", "image,p_sad,p_fear,soft", "0.jpg,1,0,", "1.jpg,1,-0.1,")
    with pytest.raises(UserError, match=message):
        data.load("table", path, **options)
