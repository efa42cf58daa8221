"""The filter of rows: its grammar, nulls, numbers and texts, and its errors."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from miniatures import face, text

from vlmface import data
from vlmface.data.tables.table import Part, Table
from vlmface.data.tables.where import rows_where
from vlmface.errors import UserError

COLUMNS = {
    "confidence": pa.array(["0.9", "0.8", "", "1e0", "NaN"]),
    "label": pa.array(["happy", "none", "other", None, "it's"]),
    "AU 12 (left)": pa.array([1, 0, None, 1, 0]),
    "ok": ["True", False, None, 1, "0"],
}


def table_of(columns):
    n = len(next(iter(columns.values())))
    return Table("faces.csv", columns, [Part("faces.csv", "line", np.arange(2, n + 2))], {})


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("confidence > 0.8", [0, 3]),
        ("CONFIDENCE >= .8", [0, 1, 3]),
        ("not confidence > 0.8", [1]),  # neither the empty cell nor NaN
        ("confidence = 1", [3]),
        ("confidence is null", [2, 4]),
        ("confidence is not null and confidence < 0.95", [0, 1]),
        ("label != 'happy'", [2, 4]),  # "none" means not annotated
        ('label == "it\'s"', [4]),
        ("label in ('happy', 'other')", [0, 2]),
        ("label not in ('happy', 'other')", [4]),
        ("label is null or `AU 12 (left)` == 1", [0, 1, 3]),
        ("ok == 1", [0, 3]),
        ("ok != 1", [1, 4]),
        ("not (label = 'happy' or confidence <= 0.8)", []),
        ("confidence > 0.5 or label = 'happy' and confidence > 0.95", [0, 1, 3]),
        ("(confidence > 0.5 or label = 'happy') and confidence > 0.95", [3]),
        ("confidence in (0.8, 1)", [1, 3]),
        ("not not label = 'happy'", [0]),
        ("confidence > -1e3", [0, 1, 3]),
        ("label < 'i'", [0]),
    ],
)
def test_conditions(condition, kept):
    assert np.flatnonzero(rows_where(table_of(COLUMNS), condition)).tolist() == kept


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (
            "confidenc > 1",
            r"character 1: faces.csv has no column 'confidenc', only confidence, lab",
        ),
        ("confidence >", "character 13: expected a number or a text in quotes, found the end"),
        ("confidence > high", "character 14: expected a number or a text in quotes, found 'high'"),
        ("label > 3", r"character 9: 3 is a number, but faces.csv, line 2: 'label' is 'happy', ex"),
        ("confidence > 1 label", "character 16: expected and, or, or the end, found 'label'"),
        ("(confidence > 1", r"character 16: expected \), found the end"),
        ("confidence in 3", r"character 15: expected \( and a list"),
        ("confidence is 3", "character 15: expected null, found '3'"),
        ("confidence not 3", "character 16: expected in, found '3'"),
        ("", "character 1: expected the name of a column, found the end"),
        ("__import__('os')", r"character 1: faces.csv has no column '__import__'"),
        ("confidence > 1; 3", "character 15: ';' is not part of a condition"),
        ("confidence > 3px", "character 14: '3' is not part of a condition"),
        ("(" * 60 + "confidence > 1" + ")" * 60, "at most 50 brackets inside one another"),
    ],
)
def test_errors_name_the_place(condition, message):
    with pytest.raises(UserError, match=message):
        rows_where(table_of(COLUMNS), condition)


@given(
    st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=1, max_size=20),
    st.floats(-5, 5),
    st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
)
def test_a_comparison_is_that_of_python_and_null_fulfils_neither_it_nor_its_negation(
    cells, bound, operator
):
    table = table_of({"x": pa.array(cells, pa.float64())})
    condition = f"x {operator} {bound!r}"
    expected = [
        cell is not None and eval(f"cell {operator} bound", {"cell": cell, "bound": bound})
        for cell in cells
    ]
    mask = rows_where(table, condition)
    assert mask.tolist() == expected
    negated = rows_where(table, f"not ({condition})")
    known = [cell is not None for cell in cells]
    assert (mask ^ negated).tolist() == known
    assert not (mask & negated).any()


@given(st.text(max_size=40))
def test_any_text_is_a_condition_or_one_message(condition):
    try:
        assert rows_where(table_of(COLUMNS), condition).shape == (5,)
    except UserError as error:
        assert "where=" in str(error)


def test_rows_that_are_filtered_are_counted_and_never_parsed(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        face(tmp_path / name, 1)
    path = text(
        tmp_path / "a.csv", "image,emotion,confidence", "a.jpg,happy,0.9", "b.jpg,??,0.2", ",?,0.1"
    )
    assert data.load("table", path, where="confidence > 0.5")["emotion"] == ["happiness"]
    found = data.read("table", path, where="confidence > 0.5")
    assert found.skipped == {"not where confidence > 0.5": ["line 3", "line 4"]}
