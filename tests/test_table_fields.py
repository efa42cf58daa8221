"""Action units, boxes and own words in the columns of a table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from miniatures import face, text
from miniatures.records import write_lines

from vlmface import data
from vlmface.data.tables.boxes import parse_box
from vlmface.data.tables.cells import BadCellError
from vlmface.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for number in range(6):
        face(tmp_path / f"{number}.jpg", number, (100, 80))
    return tmp_path


def units(rows):
    return [
        None if row is None else {unit["au"]: (unit["present"], unit["intensity"]) for unit in row}
        for row in rows["aus"]
    ]


# --- action units ---------------------------------------------------------------------------------


def test_codes_for_not_annotated(folder):
    path = text(
        folder / "a.csv",
        "image,AU1,au_02,AU04_c",
        "0.jpg,1,9,0",
        "1.jpg,999,-1,1",
        "2.jpg,,NaN,X",
        "3.jpg,1.0,0,n/a",
    )
    rows = data.load("table", path, aus="au*", au_missing=[9, 999, -1, "x"])
    yes, no = (True, None), (False, None)
    assert units(rows) == [{1: yes, 4: no}, {4: yes}, None, {1: yes, 2: no}]
    with pytest.raises(UserError, match=r"line 2: 'au_02' is '9', expected 0 or 1.*au_missing=9"):
        data.load("table", path, aus="au*", au_missing=[999, -1, "X"])
    with pytest.raises(UserError, match="line 4: 'AU04_c' is 'X', expected 0 or 1"):
        data.load("table", path, aus="au*", au_missing=[9, 999, -1])


def test_intensities_in_letters(folder):
    path = text(folder / "a.csv", "image,AU1,AU2", "0.jpg,A,0", "1.jpg,e,2.5", "2.jpg,9,C")
    rows = data.load("table", path, aus="AU*", au_values="intensity", au_missing=9)
    assert units(rows) == [
        {1: (True, 1), 2: (False, 0)},
        {1: (True, 5), 2: (True, 2.5)},
        {2: (True, 3)},
    ]
    strict = data.load(
        "table", path, aus="AU*", au_values="intensity", au_missing=9, au_threshold=2
    )
    assert units(strict)[0][1] == (False, 1)
    text(path, "image,AU1", "0.jpg,F")
    with pytest.raises(UserError, match="'AU1' is 'F', expected an intensity from 0 to 5, or A to"):
        data.load("table", path, aus="AU*", au_values="intensity")


def test_left_and_right_sides_are_one_action_unit(folder):
    path = text(
        folder / "a.csv",
        "image,AU 12 (left),AU 12 (right),AUL14,AUR14",
        "0.jpg,0,1,0,0",
        "1.jpg,,0,1,",
        "2.jpg,,,,0",
    )
    rows = data.load("table", path, aus="au*")
    yes, no = (True, None), (False, None)
    assert units(rows) == [{12: yes, 14: no}, {12: no, 14: yes}, {14: no}]
    named = data.load("table", path, aus={"AU12": ["AU 12 (left)", "AU 12 (right)"]})
    assert units(named) == [{12: yes}, {12: no}, None]
    text(path, "image,AU12_left,AU12_smile", "0.jpg,0,1")
    with pytest.raises(UserError, match="fits 'AU12_left' and 'AU12_smile', both of AU12"):
        data.load("table", path, aus="AU*")


def test_presence_and_intensity_next_to_each_other(folder):
    path = text(folder / "a.csv", "image,AU4_c,AU4_r,AU9_r", "0.jpg,1,0,2", "1.jpg,0,0.7,0.5")
    rows = data.load("table", path, aus="*_c", au_intensities="*_r")
    assert units(rows) == [
        {4: (True, None), 9: (True, 2)},
        {4: (False, pytest.approx(0.7)), 9: (False, 0.5)},
    ]
    with pytest.raises(UserError, match="au_intensities= is for columns next to those of presence"):
        data.load("table", path, au_intensities="*_r")
    with pytest.raises(UserError, match="au_intensities= is for columns next to those of presence"):
        data.load("table", path, aus="*_c", au_intensities="*_r", au_values="intensity")


# --- boxes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "cells", "options"),
    [
        ("l,t,r,b", "10,20,50,60", {}),
        ("l,t,w,h", "10,20,40,40", {"box_format": "xywh"}),
        ("x,y,w,h", "30,40,40,40", {"box_format": "cxcywh"}),
        ("l,t,r,b", "0.1,0.25,0.5,0.75", {"box_units": "relative"}),
        ("x,y,w,h", "0.3,0.5,0.4,0.5", {"box_units": "relative", "box_format": "cxcywh"}),
    ],
)
def test_formats_of_boxes_in_four_columns(folder, columns, cells, options):
    path = text(folder / "a.csv", f"image,{columns},emotion", f"0.jpg,{cells},sad", "1.jpg,,,,,sad")
    names = {"face_box": columns.split(",")}
    rows = data.load("table", path, columns=names, **options)
    assert rows["face_box"][0] == pytest.approx([10, 20, 50, 60], abs=1e-4)
    assert rows["face_box"][1] is None


@pytest.mark.parametrize(
    "cell",
    ["10 20 50 60", '"[10, 20.0, 50, 60]"', '"10,20,50,60"', "10;20;50;60", '"(10, 20, 50, 60)"'],
)
def test_boxes_in_one_column(folder, cell):
    path = text(folder / "a.csv", "image,face_box,emotion", f"0.jpg,{cell},sad", "1.jpg,,sad")
    if ";" in cell:
        path.write_text(path.read_text().replace(",", "\t"))
    assert data.load("table", path)["face_box"] == [[10, 20, 50, 60], None]


def test_boxes_in_json_lines_and_two_faces_of_one_picture(folder):
    path = folder / "a.jsonl"
    write_lines(
        path,
        {"image": "0.jpg", "face_box": [1, 2, 3, 4.5], "emotion": "sad"},
        {"image": "0.jpg", "face_box": [11, 2, 13, 4], "emotion": "fear"},
    )
    rows = data.load("table", path)
    assert rows["id"] == ["table-0.jpg", "table-0.jpg#2"]
    assert rows["face_box"][0] == [1, 2, 3, 4.5]


def test_boxes_that_reach_out_of_their_picture(folder):
    path = text(folder / "a.csv", "image,face_box,emotion", "0.jpg,-5 10 120 60,sad")
    assert data.load("table", path)["face_box"] == [[-5, 10, 120, 60]]
    assert data.load("table", path, box_outside="clip")["face_box"] == [[0, 10, 100, 60]]
    with pytest.raises(UserError, match=r"line 2: 'face_box' is '-5 10 120 60', expected a box"):
        data.load("table", path, box_outside="error")
    text(path, "image,face_box,emotion", "0.jpg,-0.1 0.5 0.5 1.1,sad")
    options = {"box_units": "relative", "box_outside": "clip"}
    assert data.load("table", path, **options)["face_box"] == [[0, 40, 50, 80]]


@pytest.mark.parametrize(
    ("cell", "options", "message"),
    [
        ("10 20 5 60", {}, r"expected a box with an area.*box_format='xyxy'"),
        ("10 20 5", {}, "expected four numbers"),
        ("10 20 5 inf", {}, "expected four numbers"),
        ("a b c d", {}, "expected four numbers"),
        ("10 20 50 60", {"box_units": "relative"}, "expected shares of the picture's sides"),
        ("200 10 300 60", {"box_outside": "clip"}, "expected a box with an area inside its pict"),
    ],
)
def test_wrong_boxes_are_named_with_their_line(folder, cell, options, message):
    path = text(
        folder / "a.csv", "image,face_box,emotion", "0.jpg,1 1 2 2,sad", f"1.jpg,{cell},sad"
    )
    if options.get("box_units"):
        text(path, "image,face_box,emotion", "0.jpg,.1 .1 .2 .2,sad", f"1.jpg,{cell},sad")
    with pytest.raises(UserError, match=message) as error:
        data.load("table", path, **options)
    assert str(error.value).startswith(f"{path}, line 3: 'face_box' is")


def test_a_missing_picture_is_counted_and_its_box_not_measured(folder):
    path = text(
        folder / "a.csv", "image,face_box,emotion", "0.jpg,0 0 .5 .5,sad", "9.jpg,0 0 .5 .5,sad"
    )
    with pytest.warns(UserWarning, match="1 rows without an image file"):
        rows = data.load("table", path, box_units="relative", missing="drop")
    assert rows["face_box"] == [[0, 0, 50, 40]]
    with pytest.raises(UserError, match=r"1 of 2 images .*9\.jpg"):
        data.load("table", path, box_units="relative")


def test_zeros_stand_for_no_box_and_a_missing_side_is_an_error(folder):
    path = text(folder / "a.csv", "image,x,y,w,h,emotion", "0.jpg,0,0,0,0,sad", "1.jpg,1,2,3,4,sad")
    options = {"columns": {"face_box": ["x", "y", "w", "h"]}, "box_format": "xywh"}
    with pytest.warns(UserWarning, match="1 rows have no face box"):
        assert data.load("table", path, **options)["face_box"] == [None, [1, 2, 4, 6]]
    text(path, "image,x,y,w,h,emotion", "0.jpg,1,,3,4,sad")
    with pytest.raises(UserError, match="line 2: the face box is 1, , 3, 4, expected four numbers"):
        data.load("table", path, **options)


@given(st.text(max_size=30))
def test_any_text_is_a_box_or_one_error(cell):
    try:
        box = parse_box(cell)
    except BadCellError:
        return
    assert box is None or len(box) == 4


# --- own words ------------------------------------------------------------------------------------


def test_own_words_keep_their_spelling(folder):
    path = text(
        folder / "a.csv",
        "image,state",
        "0.jpg,Bored",
        "1.jpg,bored;Very Keen",
        '2.jpg,"[""a|b""]"',
        "3.jpg,-",
    )
    rows = data.load("table", path, columns={"context": "state"})
    assert rows["context"] == [["Bored"], ["bored", "Very Keen"], ["a|b"], None]
    options = {"label_field": "context", "labels": {"bored": "tired", "a|b": None}}
    rows = data.load("table", path, columns={"context": "state"}, **options)
    assert rows["context"] == [["tired"], ["tired", "Very Keen"], None, None]


def test_label_folders_of_own_words(tmp_path):
    for number, name in enumerate(("engaged/1.jpg", "Bored/2.jpg", "unclear/3.jpg")):
        face(tmp_path / name, number)
    with pytest.raises(UserError, match=r"'Bored', expected one of anger.*label_field='context'"):
        data.load("table", tmp_path)
    rows = data.load("table", tmp_path, label_field="context", labels={"unclear": None})
    assert dict(zip(rows["id"], rows["context"], strict=True)) == {
        "table-Bored/2.jpg": ["Bored"],
        "table-engaged/1.jpg": ["engaged"],
        "table-unclear/3.jpg": None,
    }
