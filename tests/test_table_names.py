"""Pictures of a table by their names: patterns of names, ids, and titles above the header."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from vlmface import data
from vlmface.data.tables.cells import BadCellError
from vlmface.data.tables.file_index import FileIndex
from vlmface.data.tables.name_pattern import NamePattern
from vlmface.data.tables.titles import num_title_rows
from vlmface.errors import UserError


@pytest.mark.parametrize(
    ("pattern", "path", "fields"),
    [
        ("{subject}_{label}_*", "a/P03_happy_02.png", {"subject": "P03", "label": "happy"}),
        ("{subject}_{label}", "P03_very_happy.JPG", {"subject": "P03", "label": "very_happy"}),
        ("*-{label}.png", "x-y-sad.jpeg", {"label": "y-sad"}),
        ("{subject}/*", "C:\\faces\\anna\\1.png", {"subject": "anna"}),
        ("{subject}/*", "1.png", None),
        ("{subject}_*", "_1.png", None),
        ("{subject}(*)", "a(1).png", {"subject": "a"}),
    ],
)
def test_patterns_of_names(pattern: str, path: str, fields: dict[str, str] | None) -> None:
    assert NamePattern(pattern).match(path) == fields


@pytest.mark.parametrize(
    "pattern", ["", "*", "{who}_*", "{label}_{label}", "{label}*", "{label", "**"]
)
def test_patterns_that_say_nothing_or_several_things(pattern: str) -> None:
    with pytest.raises(UserError, match=r"use \{subject\} or \{label\} once each"):
        NamePattern(pattern)


def test_a_hostile_pattern_takes_no_time() -> None:
    pattern = NamePattern("*a" * 40 + "{label}b")
    start = time.perf_counter()
    assert pattern.match("a" * 250) is None
    assert time.perf_counter() - start < 1


def test_pictures_by_their_names(tmp_path: Path) -> None:
    for name in ("007.png", "a/1.PNG", "b/1.png", ".hidden/2.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    stems = FileIndex(tmp_path, stems=True)
    assert stems.find("7") == str(tmp_path / "007.png") and stems.find("0007") == stems.find("7")
    assert stems.find("D:\\x\\b\\1.jpg") == str(tmp_path / "b/1.png")
    assert stems.find("2") is None and stems.find("notes") is None
    with pytest.raises(BadCellError, match=r"one picture below .*, and not of a/1.PNG and b/1.png"):
        stems.find("1")
    names = FileIndex(tmp_path, stems=False)
    assert names.find("7") is None and names.find("007.PNG") == str(tmp_path / "007.png")


@pytest.mark.parametrize(
    ("rows", "number"),
    [
        ([["Study"], ["file", "label"], ["a.png", "x"]], 1),
        ([["Study", None, ""], ["by", "me", ""], ["file", "label", "who", "age"]], 2),
        ([["file", "label"], ["a.png", "x"]], 0),
        ([["file"], ["a.png"]], 0),
        ([["file", None, None, None], ["a.png", "x", "y", "z"]], 0),
        ([["", "file"], ["0", "a.png"]], 0),
        ([], 0),
    ],
)
def test_titles_above_the_header(rows: list[list[str | None]], number: int) -> None:
    assert num_title_rows(rows) == number


def test_raters_need_one_label_a_face(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("image,r1,r2\na.png,x,y\n")
    space = tmp_path / "s.yaml"
    space.write_text("{id: s, field: context, labels: [x, y], multi_label: true, source: s}")
    with pytest.raises(UserError, match="raters= counts votes for one label a face, but s has"):
        data.load(
            "table",
            table,
            raters="r*",
            label_field="context",
            label_space=str(space),
            missing="drop",
        )
