"""One's own tables and folders: foreign words, blank cells, splits that are not said."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from miniatures import face, table, text
from miniatures.records import write_lines
from pyarrow import parquet

from vlmface import data
from vlmface.errors import UserError


def aus(rows):
    return [
        None if row is None else {unit["au"]: (unit["present"], unit["intensity"]) for unit in row}
        for row in rows["aus"]
    ]


# --- tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t"), ("a.csv", "\t")]
)
def test_a_table_with_its_own_column_names_words_and_splits(tmp_path, name, delimiter):
    table.write(tmp_path)
    path = table.write_csv(tmp_path / name, delimiter)
    rows = data.load("table", path, **table.ARGUMENTS_CSV)
    assert rows["id"] == ["table-train/Angry/1.jpg", "table-train/Angry/2.PNG"]
    assert rows["emotion"] == ["anger", "happiness"]
    assert rows["subject"] == ["Smith, J." if delimiter == "," else "Smith", "p2"]
    assert rows["age"] == [31, None]
    assert rows["gender"] == ["Woman", "man"]  # the data's own words
    assert rows["aus"] == [None, None] and rows["rationale_source"] == ["none"] * 2
    assert rows[0]["image"].size == (48, 48)
    validation = data.load("table", path, "validation", **table.ARGUMENTS_CSV)
    assert (validation["emotion"], validation["age"]) == ([None], [40.5])
    test = data.load("table", path, "test", **table.ARGUMENTS_CSV)
    assert (test["emotion"], test["subject"], test["gender"]) == ([None], ["p2"], [None])


def test_action_units_as_presence_and_as_intensity(tmp_path):
    table.write(tmp_path)
    path = table.write_csv(tmp_path / "a.csv")
    options = {"columns": {"image": "file"}}
    absent, there = (False, None), (True, None)
    expected = [{1: there, 12: absent}, {12: there}, {1: absent}, None]
    for pattern in ("AU*_c", ["au01_c", "AU12_c"], {"AU1": "au01_c", "12": "AU12_c"}):
        assert aus(data.load("table", path, aus=pattern, **options)) == expected
    graded = data.load("table", path, aus="AU*_r", au_values="intensity", **options)
    assert aus(graded) == [{12: (False, pytest.approx(0.2))}, {12: (True, 3.5)}, None, None]
    low = data.load("table", path, aus="AU*_r", au_values="intensity", au_threshold=0.1, **options)
    assert aus(low)[0] == {12: (True, pytest.approx(0.2))}
    for wrong, message in {
        "AU12*": "fits 'AU12_c' and 'AU12_r', both of AU12",
        "AU99*": "fits no column of",
        "*": "fits the column 'file', which does not name one AU",
    }.items():
        with pytest.raises(UserError, match=message):
            data.load("table", path, aus=wrong, **options)
    with pytest.raises(UserError, match=r"line 2: 'AU12_r' is '0\.2', expected 0 or 1 \(intens"):
        data.load("table", path, aus="AU*_r", **options)
    with pytest.raises(UserError, match=r"has file,.*did you mean 'au01_c'"):
        data.load("table", path, aus={"AU12": "au1_c"}, **options)


def test_pandas_writes_booleans_and_floats(tmp_path):
    table.write(tmp_path)
    text(
        tmp_path / "a.csv",
        "image,emotion,AU4",
        "train/Angry/1.jpg,3.0,True",
        "train/Angry/2.PNG,3.0,False",
    )
    path = tmp_path / "frame.parquet"
    parquet.write_table(
        pa.table(
            {
                "image": ["train/Angry/1.jpg", "train/Angry/2.PNG"],
                "emotion": [3.0, None],
                "AU4": [True, False],
            }
        ),
        path,
    )
    rows = data.load("table", path, labels={"3": "fear"}, aus="AU*")
    assert rows["emotion"] == ["fear", None]
    assert aus(rows) == [{4: (True, None)}, {4: (False, None)}]
    rows = data.load("table", tmp_path / "a.csv", labels={"3.0": "fear"}, aus="AU*")
    assert aus(rows) == [{4: (True, None)}, {4: (False, None)}]


def test_json_lines_with_rationales_and_ids(tmp_path):
    table.write(tmp_path / "faces")
    write_lines(
        tmp_path / "a.jsonl",
        {"image": "train/Angry/1.jpg", "id": 1, "emotion": "furious", "rationale": "Low brows."},
        {"image": "train/Angry/1.jpg", "id": 2, "valence": -0.5, "rationale": " ", "race": "Black"},
        {"image": None, "id": 3, "emotion": "anger"},
    )
    rows = data.load(
        "table", tmp_path / "a.jsonl", images=str(tmp_path / "faces"), rationale_saw_label=True
    )
    assert rows["id"] == ["table-1", "table-2"]
    assert rows["emotion"] == ["anger", None] and rows["valence"] == [None, -0.5]
    assert rows["race"] == [None, "Black"]
    assert rows["rationale"] == ["Low brows.", None]
    assert rows["rationale_source"] == ["human", "none"] and rows["rationale_saw_label"] == [
        True,
        False,
    ]
    found = data.read("table", tmp_path / "a.jsonl", "train", images=str(tmp_path))
    assert found.skipped == {"no image": [f"{tmp_path / 'a.jsonl'}, line 3"]}


def test_parquet_with_pictures_inside(tmp_path):
    table.write(tmp_path)
    picture = (tmp_path / "test" / "fear" / "1.jpg").read_bytes()
    column = [{"bytes": picture, "path": "one.jpg"}, {"bytes": picture, "path": None}]
    path = tmp_path / "elsewhere.parquet"
    parquet.write_table(pa.table({"image": column, "emotion": ["fear", "sad"]}), path)
    rows = data.load("table", path)
    assert rows["id"] == ["table-one.jpg", "table-2"]
    assert rows["emotion"] == ["fear", "sadness"] and rows[1]["image"].size == (48, 48)


def test_an_absolute_path_may_be_given_and_one_that_leads_up_may_not(tmp_path):
    table.write(tmp_path / "faces")
    picture = tmp_path / "faces" / "val" / "Sad" / "5.jpg"
    path = text(tmp_path / "lists" / "a.csv", "image,emotion", f"{picture},sad")
    assert data.load("table", path)[0]["image"].size == (48, 48)
    for wrong in (
        "../faces/val/Sad/5.jpg",
        f"{tmp_path}/lists/../faces/val/Sad/5.jpg",
        "C:\\5.jpg",
    ):
        text(path, "image,emotion", f"{wrong},sad")
        with pytest.raises(UserError, match=r"a\.csv, line 2: 'image' is .*an absolute path or"):
            data.load("table", path)


def test_a_file_that_does_not_say_its_split_is_not_trained_and_tested_on(tmp_path):
    table.write(tmp_path)
    path = text(tmp_path / "a.csv", "image,emotion", "test/fear/6.jpg,fear")
    assert len(data.load("table", path)) == 1
    with pytest.raises(UserError, match=r"which rows are split 'test'.*split_column="):
        data.load("table", path, "test")
    assert len(data.load("table", path, "test", file_split="test")) == 1
    with pytest.raises(UserError, match="does not state which rows are split 'train'"):
        data.load("table", path, "train", file_split="test")


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ("a.jpg,grumpy,1,", {}, r"'emotion' is 'grumpy', .*labels=\{'grumpy': 'anger'\}"),
        ("a.jpg,3,1,", {}, r"'emotion' is '3', .*labels=\{'3': 'anger'\}"),
        ("a.jpg,unhappy,1,", {}, "'emotion' is 'unhappy'"),
        ("a.jpg,sad,young,", {}, "'age' is 'young', expected a number"),
        ('a.jpg,sad,"0,5",', {}, "'age' is '0,5', expected a number"),
        ("a.jpg,sad,1e999,", {}, "'age' is '1e999', expected a finite number"),
        ("a.jpg,sad,1,later", {"split_column": "part"}, r"'later', .* splits=\{'later': 'train'\}"),
        ("a.jpg,sad,1,", {"split_column": "part"}, "'part' is '', expected a text"),
        ("a.jpg,sad,1,train,x", {}, "5 cells, but the header has 4"),
        ('a.jpg,"sad"x,1,', {}, "',' expected after '\"'"),
        ("a.jpg,sad,2,", {"aus": {"AU1": "age"}}, "'age' is '2', expected 0 or 1"),
        ("a.jpg,sad,5.5,", {"aus": {"AU1": "age"}, "au_values": "intensity"}, "intensity from 0"),
    ],
)
def test_a_wrong_cell_is_named_with_its_line_and_value(tmp_path, line, options, message):
    face(tmp_path / "a.jpg", 1)
    path = text(tmp_path / "a.csv", "image,emotion,age,part", "a.jpg,sad,1,train", "", line)
    with pytest.raises(UserError, match=message) as error:
        data.load("table", path, **options)
    assert str(error.value).startswith(f"{path}, line 4: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"image": "fil"}}, r"names the column 'fil', .*did you mean 'file'\?"),
        ({"columns": {"picture": "file"}}, "columns='picture': use one of 'image', 'frames'"),
        ({"columns": {"emotion": "label"}}, "has no column 'image', only file, label"),
        ({"labels": {"bored": "boredom"}}, "labels maps 'bored' to 'boredom'"),
        ({"split_column": "fold"}, "split_column names the column 'fold'"),
        ({"splits": {"x": "dev"}, "split_column": "part"}, "splits='dev': use one of"),
        ({"au_values": "0/1"}, "au_values='0/1'"),
        ({"rationale_source": "me"}, "rationale_source='me'"),
        ({"au_threshold": 0}, "au_threshold=0: give an intensity above 0"),
        ({"images": "/nowhere"}, "images='/nowhere' is not a folder"),
    ],
)
def test_options_are_checked(tmp_path, options, message):
    path = table.write_csv(tmp_path / "a.csv")
    with pytest.raises(UserError, match=message):
        data.load("table", path, **({"columns": {"image": "file"}} | options))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "image,label\nä.jpg,x".encode("utf-16-le"), "byte 0 .*: this is UTF-16LE"),
        ("a.csv", b"image,label\n\xe4.jpg,x\n", "line 2: byte b'.xe4' is not UTF-8"),
        ("a.csv", b"", "needs a header"),
        (
            "a.csv",
            b"image,image\na,b\n",
            "2 columns 'image': name one of 'image ",
        ),
        ("a.csv", b"image,emotion\n", "has no rows"),
        ("a.parquet", b"no parquet", "is not a Parquet file"),
        ("a.doc", b"PK", r"is not a table that can be read: use one of \.csv, \.tsv"),
        ("a.jsonl", b'{"image": ["a.jpg"]}\n', r"line 1: 'image' is \['a\.jpg'\], expected a text"),
        ("a.jsonl", b'{"image": ' + b"9" * 5000 + b"}\n", "line 1: not JSON"),
        ("a.jsonl", b'{"image": "a.jpg", "age": ' + b"9" * 4000 + b"}\n", "a finite number"),
        ("a.jsonl", b"[]\n", r"line 1: found \[\], expected a record"),
    ],
)
def test_a_file_that_is_something_else_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        data.load("table", tmp_path / name)
    assert len(str(error.value)) < 400


def test_a_missing_image_is_named(tmp_path):
    path = table.write_csv(tmp_path / "a.csv")
    with pytest.raises(UserError, match=r"4 of 4 images.*train/Angry/1\.jpg"):
        data.load("table", path, columns={"image": "file"})


# --- folders --------------------------------------------------------------------------------------


def test_folders_named_by_label_below_splits(tmp_path):
    table.write(tmp_path)
    rows = data.load("table", tmp_path, labels={"bored": None})
    assert dict(zip(rows["id"], rows["emotion"], strict=True)) == {
        "table-train/Angry/1.jpg": "anger",
        "table-train/Angry/2.PNG": "anger",
        "table-train/bored/4.jpg": None,
        "table-train/happiness/deeper/3.webp": "happiness",
    }
    assert data.load("table", tmp_path, "validation")["emotion"] == ["sadness"]
    assert data.load("table", tmp_path, "test")["emotion"] == ["fear", "fear"]
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "train" / ".cache").mkdir()
    found = data.read("table", tmp_path, "train", labels={"bored": None})
    assert found.skipped == {
        "not in a label folder": ["notes.txt", "train/.cache"],
        "not a picture": ["train/Angry/Thumbs.db"],
    }


def test_folders_without_splits_are_one_split(tmp_path):
    table.write(tmp_path)
    faces = tmp_path / "test"
    assert data.load("table", faces)["emotion"] == ["fear", "fear"]
    assert len(data.load("table", faces, "test", file_split="test")) == 2
    with pytest.raises(UserError, match=r"which rows are split 'test'.*folders train"):
        data.load("table", faces, "test")


def test_what_is_wrong_with_a_folder_is_named(tmp_path):
    table.write(tmp_path)
    with pytest.raises(UserError, match=r"the folder name .*train/bored is 'bored', expected one"):
        data.load("table", tmp_path)
    with pytest.raises(UserError, match="which columns= does not apply to"):
        data.load("table", tmp_path, columns={"image": "file"})
    (tmp_path / "valid").mkdir()
    with pytest.raises(UserError, match="has 2 folders for split 'validation': its splits are"):
        data.load("table", tmp_path, "validation")
    (tmp_path / "empty" / "anger").mkdir(parents=True)
    with pytest.raises(UserError, match="empty holds no pictures in folders that are named by"):
        data.load("table", tmp_path / "empty")


def test_options_come_from_a_command_line(tmp_path):
    table.write(tmp_path)
    path = table.write_csv(tmp_path / "a.csv")
    options = json.loads(json.dumps(table.ARGUMENTS_CSV | {"aus": "*_c"}))
    rows = data.load("table", path, **options)
    assert rows["emotion"] == ["anger", "happiness"]
    assert aus(rows) == [{1: (True, None), 12: (False, None)}, {12: (True, None)}]
