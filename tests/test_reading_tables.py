"""Tables as people have them: headers, delimiters, words for a label, action units."""

from __future__ import annotations

import pytest
from helpers.tables import emotions, faces, failure, table
from miniatures.records import presence

from vlmface import data

pytestmark = pytest.mark.usefixtures("cache")


# --- tables: headers and delimiters ---------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "Image,Emotion\n0.png,happy\n1.png,sad\n",
        " image , emotion \n 0.png , happy \n1.png,sad\n",
        "image\xa0,\u200bemotion\n0.png,happy\n1.png,sad\n",
        "IMAGE;EMOTION;note\n0.png;happy;a,b,c,d\n1.png;sad;\n",
        "image|emotion\n0.png|happy\n1.png|sad\n",
        "sep=;\nimage;emotion\n0.png;happy\n1.png;sad\n",
        '"sep=,"\nimage,emotion\n0.png,happy\n1.png,sad\n',
        "image,emotion,\n0.png,happy,\n1.png,sad,\n",
        "image,emotion\n0.png,happy,\n1.png,sad,,\n",
        ",image,emotion,\n0,0.png,happy,x\n1,1.png,sad,y\n",
        'image,emotion,note\n0.png,happy,"two\nlines, ""quoted"""\n1.png,sad,\n',
        "image,emotion\r\n0.png,happy\n1.png,sad\r",
        "\n\nimage,emotion\n\n0.png,happy\n\n1.png,sad\n",
    ],
)
def test_tables_as_people_write_them(tmp_path, content):
    assert emotions(table(tmp_path, content)) == ["happiness", "sadness"]


def test_a_column_that_the_options_name_is_found_in_any_case(tmp_path):
    path = table(tmp_path, "Image,EMOTION,Valence,AU01_c\n0.png,happy,0.5,1\n1.png,sad,,0\n")
    rows = data.load("table", path, columns={"image": "IMAGE"}, aus={1: "au01_C"})
    assert rows["emotion"] == ["happiness", "sadness"] and rows["valence"] == [0.5, None]
    assert presence(rows) == [{1: True}, {1: False}]


def test_a_column_that_may_be_either_is_an_error(tmp_path):
    path = table(tmp_path, "image,Emotion,EMOTION\n0.png,happy,sad\n")
    assert "has the columns 'Emotion' and 'EMOTION', either of which may be" in failure(path)
    assert emotions(path, columns={"emotion": "EMOTION"}) == ["sadness"]
    assert "either of which" in failure(path, columns={"emotion": "emotion"})
    with pytest.warns(UserWarning, match="no column was read as a label"):
        rows = data.load("table", path, columns={"emotion": None})
    assert rows["emotion"] == [None]


def test_a_table_without_any_label_says_which_columns_it_has(tmp_path):
    path = table(tmp_path, "image,label\n0.png,happy\n")
    with pytest.warns(UserWarning, match=r"no column was read as a label, of \['label'\]"):
        assert emotions(path) == [None]
    assert emotions(path, columns={"emotion": "Label"}) == ["happiness"]


# --- tables: cells --------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["", " ", "nan", "NaN", "NA", "N/A", "None", "null", "<NA>", "-"])
def test_a_null_word_is_not_annotated_for_labels_and_numbers_alike(tmp_path, word):
    head = "image,emotion,valence,age,gender,race,rationale,AU1"
    path = table(
        tmp_path, f"{head}\n0.png,{','.join([word] * 7)}\n1.png,sad,0.5,20,m,White,Low,1\n"
    )
    rows = data.load("table", path, aus="AU*")
    for column in ("emotion", "valence", "age", "gender", "race", "rationale", "aus"):
        assert rows[column][0] is None and rows[column][1] is not None
    assert rows["rationale_source"] == ["none", "human"]


def test_a_name_that_looks_like_a_null_word_stays(tmp_path):
    path = table(tmp_path, "image,emotion,subject\n0.png,sad,NA\n1.png,sad,None\n2.png,sad,\n")
    assert data.load("table", path)["subject"] == ["NA", "None", None]
    path = table(tmp_path, "image,emotion\n0.png,none\n1.png,sad\n")
    assert emotions(path, labels={"none": "neutral"}) == ["neutral", "sadness"]
    faces(tmp_path / "f", "none/0.png")
    assert "'none', expected one of anger" in failure(tmp_path / "f")


@pytest.mark.parametrize("three", ["3", "3.0", "3.", " 3 ", "3e0", "+3", "03", "3.00"])
def test_numbers_as_text_are_numbers(tmp_path, three):
    path = table(tmp_path, f"image,emotion\n0.png,{three}\n1.png,\n2.png,6.0\n")
    for labels in (
        {0: "anger", 3: "happiness", 6: "neutral"},
        {"3": "happiness", "6": "neutral"},
        {3.0: "happiness", 6.0: "neutral"},
    ):
        assert emotions(path, labels=labels) == ["happiness", None, "neutral"]


def test_words_are_mapped_in_any_case_and_exact_ones_first(tmp_path):
    path = table(tmp_path, "image,emotion,split\n0.png,BORED,A\n1.png,a,A\n2.png,A,A\n")
    labels = {"bored": None, "a": "anger", "A": "fear"}
    rows = data.load("table", path, labels=labels, split_column="SPLIT", splits={"a": "train"})
    assert rows["emotion"] == [None, "anger", "fear"]


@pytest.mark.parametrize("value", ['"0,5"', '"1,000"', "1_0", "50%", "1e999", "half", "True"])
def test_a_number_that_may_mean_two_things_is_refused(tmp_path, value):
    path = table(tmp_path, f"image,emotion,valence\n0.png,sad,{value}\n")
    message = failure(path)
    assert "line 2: 'valence' is" in message and "number" in message


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("F", "M"), ["female", "male"]),
        (("f", "m"), ["female", "male"]),
        (("w", "m"), ["female", "male"]),
        (("Woman", "man"), ["Woman", "man"]),
        (("girl", "BOY"), ["girl", "BOY"]),
    ],
)
def test_short_words_of_gender_are_known(tmp_path, words, expected):
    path = table(tmp_path, "image,gender\n0.png,{}\n1.png,{}\n".format(*words))
    rows = data.load("table", path)
    assert rows["gender"] == expected
    from vlmface import label_spaces
    from vlmface.schema import FaceSample

    space = label_spaces.space("gender")
    assert [FaceSample.from_row(row).labels(space) for row in rows.remove_columns("image")] == [
        ("female",),
        ("male",),
    ]


def test_other_words_of_people_are_mapped_or_refused(tmp_path):
    path = table(tmp_path, "image,gender,race,age_group\n0.png,0,Mixed,20-29\n1.png,1.0,White,\n")
    words = {"gender": {0: "male", 1: "female"}, "race": {"mixed": None}}
    rows = data.load("table", path, words=words)
    assert rows["gender"] == ["male", "female"] and rows["race"] == [None, "White"]
    assert rows["age_group"] == ["20-29", None]
    assert "line 2: 'gender' is '0', expected one of female, male: map it" in failure(path)
    message = failure(path, words={"gender": {0: "male", 1: "female"}})
    assert "'Mixed', expected one of " in message and "columns={'race': None}" in message
    rows = data.load("table", path, words={"gender": words["gender"]}, columns={"race": None})
    assert rows["race"] == [None, None]
    assert "words='sex': use one of 'gender'" in failure(path, words={"sex": {}})
    message = failure(path, words={"gender": {0: "masculine"}})
    assert "words maps 0 to 'masculine' for gender: use one of female, male" in message


def test_a_column_named_id_is_the_rows_and_id_in_capitals_may_be_a_persons(tmp_path):
    path = table(tmp_path, "image,emotion,ID\n0.png,sad,7\n1.png,happy,7\n")
    assert data.load("table", path)["id"] == ["table-0.png", "table-1.png"]
    assert data.load("table", path, columns={"subject": "id"})["subject"] == ["7", "7"]
    path = table(tmp_path, "image,emotion,id\n0.png,sad,7\n1.png,happy,8\n")
    assert data.load("table", path)["id"] == ["table-7", "table-8"]
    assert data.load("table", path, columns={"id": None})["id"] == ["table-0.png", "table-1.png"]


# --- tables: action units -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "option"),
    [("9", 9), ("999", [9, 999]), ("-1", [9, 999, -1]), ("-1.0", -1), ("9", 9.0)],
)
def test_a_code_for_not_annotated_is_an_option(tmp_path, code, option):
    path = table(tmp_path, f"image,AU1,AU4\n0.png,1,{code}\n1.png,0,1\n")
    rows = data.load("table", path, aus="AU*", au_missing=option)
    assert presence(rows) == [{1: True}, {1: False, 4: True}]
    assert "a code for not annotated: au_missing=9" in failure(path, aus="AU*")
    for values in ("intensity", "probability"):
        rows = data.load("table", path, aus="AU*", au_values=values, au_missing=option)
        assert presence(rows)[0] == {1: True}


FEX = "AU01,AU12,AU43,anger,input\n0.38,0.93,0.04,0.01,0.png\n0.1,0.5,0.6,0.0,1.png\n"


def test_probabilities_of_py_feat_are_not_intensities(tmp_path):
    path = table(tmp_path, FEX)
    options = {"aus": "AU*", "columns": {"image": "input"}}
    rows = data.load("table", path, au_values="probability", **options)
    assert presence(rows) == [{1: False, 12: True, 43: False}, {1: False, 12: True, 43: True}]
    assert {unit["intensity"] for row in rows["aus"] for unit in row} == {None}
    rows = data.load("table", path, au_values="probability", au_threshold=0.9, **options)
    assert presence(rows)[1] == {1: False, 12: False, 43: False}
    assert "au_values='probability'" in failure(path, **options)
    assert "which reads as probabilities" in failure(path, au_values="intensity", **options)
    rows = data.load("table", path, au_values="intensity", au_threshold=1.0, **options)
    assert presence(rows)[0] == {1: False, 12: False, 43: False}
    for threshold in (0, 1.5):
        message = failure(path, au_values="probability", au_threshold=threshold, **options)
        assert "give a probability above 0, up to 1" in message
    path = table(tmp_path, "AU1,image\n1.2,0.png\n")
    assert "a probability from 0 to 1" in failure(path, aus="AU*", au_values="probability")


OPENFACE = (
    "image, frame, face_id, timestamp, confidence, success, AU01_r, AU12_r, AU01_c, AU12_c\n"
    "0.png,1, 0, 0.0, 0.98, 1, 0.00, 1.20, 0.00, 1.00\n"
    "1.png,2, 0, 0.033, 0.00, 0, 0.00, 0.00, 0.00, 0.00\n"
)


@pytest.mark.parametrize("options", [{"aus": "AU*_r", "au_values": "intensity"}, {"aus": "AU*_c"}])
def test_a_frame_that_openface_lost_is_left_out_and_counted(tmp_path, options):
    path = table(tmp_path, OPENFACE)
    with pytest.warns(UserWarning, match=r"1 left out, OpenFace did not find the face .*line 3"):
        rows = data.load("table", path, **options)
    assert presence(rows) == [{1: False, 12: True}]
