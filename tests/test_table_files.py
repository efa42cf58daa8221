"""The files of tables: encodings, headers, workbooks, archives, shards, saved data sets."""

from __future__ import annotations

import gzip

import datasets
import pyarrow as pa
import pytest
from miniatures import face, text
from pyarrow import parquet

from vlmface import data
from vlmface.errors import UserError


@pytest.fixture
def faces(tmp_path):
    for number, name in enumerate(("a.jpg", "b.jpg", "ü.jpg")):
        face(tmp_path / name, number)
    return tmp_path


LINES = "image;emotion;valence\r\na.jpg;happy;0,5\r\nü.jpg;sad;-0,25\r\n"


@pytest.mark.parametrize(
    ("encoding", "given"),
    [
        ("utf-8-sig", None),
        ("utf-16", None),
        ("utf-8", None),
        ("cp1252", "cp1252"),
        ("utf-16-le", "utf-16-le"),
    ],
)
def test_encodings_semicolons_and_decimal_commas(faces, encoding, given):
    path = faces / "a.csv"
    path.write_bytes(LINES.encode(encoding))
    rows = data.load("table", path, decimal=",", encoding=given)
    assert rows["emotion"] == ["happiness", "sadness"] and rows["valence"] == [0.5, -0.25]
    assert rows["id"] == ["table-a.jpg", "table-ü.jpg"]
    with pytest.raises(UserError, match=r"line 2: 'valence' is '0,5', .*decimal=','"):
        data.load("table", path, encoding=given)


def test_a_decimal_comma_and_a_mark_for_thousands(faces):
    path = text(faces / "a.csv", "image;age", "a.jpg;1.234,5")
    with pytest.raises(UserError, match=r"'age' is '1\.234,5', expected a number"):
        data.load("table", path, decimal=",")


def test_an_encoding_that_is_unknown_or_wrong(faces):
    path = faces / "a.csv"
    path.write_bytes(LINES.encode("cp1252"))
    with pytest.raises(UserError, match="encoding='cp99' is unknown"):
        data.load("table", path, encoding="cp99")
    with pytest.raises(UserError, match="encoding='base64' is unknown"):
        data.load("table", path, encoding="base64")
    with pytest.raises(UserError, match="is not ASCII"):
        data.load("table", path, encoding="ascii")


def test_quoted_line_breaks_and_the_lines_of_errors(faces):
    path = faces / "a.csv"
    path.write_text(
        'image,rationale,age\na.jpg,"Low brows,\nwide eyes.",30\nb.jpg,"So ""flat"".",x\n',
        encoding="utf-8",
    )
    with pytest.raises(UserError, match="line 4: 'age' is 'x'"):
        data.load("table", path)
    rows = data.load("table", path, columns={"age": None})
    assert rows["rationale"] == ["Low brows,\nwide eyes.", 'So "flat".']


@pytest.mark.parametrize("quote", ["", '"'])
def test_lines_are_counted_alike_by_both_readers(faces, quote):
    path = text(faces / "a.csv", f"image,{quote}age{quote}", "a.jpg,30", "b.jpg,31", "ü.jpg,old")
    with pytest.raises(UserError, match="line 4: 'age' is 'old'"):
        data.load("table", path)


def test_gzip(faces):
    path = faces / "a.csv.gz"
    path.write_bytes(gzip.compress(LINES.encode("utf-8-sig")))
    assert data.load("table", path, decimal=",")["emotion"] == ["happiness", "sadness"]
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(UserError, match=r"a\.csv\.gz is not a whole gzip file"):
        data.load("table", path, decimal=",")


def test_a_list_without_a_header(faces):
    path = text(faces / "list.txt", "a.jpg\t3", "b.jpg\t1", "1\t2")
    options = {"header": False, "labels": {3: "fear", 1: "anger"}, "where": "`2` != 2"}
    rows = data.load("table", path, columns={"image": 1, "emotion": 2}, **options)
    assert rows["emotion"] == ["fear", "anger"]
    with pytest.raises(UserError, match=r"has no column 'image', only a\.jpg, 3: .*header=False"):
        data.load("table", path)


def test_names_that_the_header_repeats(faces):
    path = text(faces / "a.csv", "image,label,label,note", "a.jpg,happy,sad,x")
    columns = {"emotion": "label"}
    with pytest.raises(UserError, match=r"2 columns 'label': name one of 'label \(1\)', 'label"):
        data.load("table", path, columns=columns)
    assert data.load("table", path, columns={"emotion": "label (2)"})["emotion"] == ["sadness"]


def test_workbooks(faces):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append([None])
    book.active.append(["image", "emotion", "age", None])
    book.active.append(["a.jpg", 3, 30.5, None])
    book.active.append([None, None, None, None])
    book.active.append(["b.jpg", None, "=1+1", None])  # a formula that nothing has computed
    path = faces / "a.xlsx"
    book.save(path)
    rows = data.load("table", path, labels={3: "fear"})
    assert rows["emotion"] == ["fear", None] and rows["age"] == [30.5, None]
    book.create_sheet("more").append(["image"])
    book.save(path)
    with pytest.raises(UserError, match=r"has 2 sheets with data: name one, sheet= \('Sheet', 'mo"):
        data.load("table", path)
    assert len(data.load("table", path, labels={3: "fear"}, sheet="Sheet")) == 2
    with pytest.raises(UserError, match=r"sheet='x': .* has Sheet, more"):
        data.load("table", path, sheet="x")
    with pytest.raises(UserError, match="row 3: 'emotion' is 3, expected one of anger"):
        data.load("table", path, sheet="Sheet")
    path.write_bytes(b"PK\3\4 no workbook")
    with pytest.raises(UserError, match="is not a workbook that can be read"):
        data.load("table", path)


def test_a_workbook_without_openpyxl_names_the_command(faces, monkeypatch):
    import sys

    (faces / "a.xlsx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UserError, match=r"pip install 'vlmface\[xlsx\]'"):
        data.load("table", faces / "a.xlsx")


def saved(faces) -> datasets.Dataset:
    """Two rows whose label is a number that has a name."""
    classes = datasets.ClassLabel(names=["sad", "happy", "bored"])
    features = datasets.Features({"image": datasets.Image(), "label": classes})
    images = [{"path": str(faces / "a.jpg"), "bytes": None}, str(faces / "b.jpg")]
    return datasets.Dataset.from_dict({"image": images, "label": [1, 0]}, features=features)


def test_shards_in_a_folder_and_the_names_of_their_numbers(faces):
    folder = faces / "hub" / "data"
    folder.mkdir(parents=True)
    for shard, part in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test-0000")):
        rows = saved(faces).select([shard % 2])
        rows.to_parquet(folder / f"{part}.parquet")
    (faces / "hub" / "README.md").write_text("a card")
    options = {"columns": {"emotion": "label"}}
    rows = data.load("table", faces / "hub", **options)
    assert rows["emotion"] == ["happiness", "sadness"] and rows[0]["image"].size == (48, 48)
    assert data.splits_of("table", faces / "hub", **options) == ("train", "test")
    assert len(data.load("table", faces / "hub", "test", **options)) == 1
    with pytest.raises(UserError, match="has no split 'validation': it has train, test"):
        data.load("table", faces / "hub", "validation", **options)
    parquet.write_table(pa.table({"image": ["a.jpg"]}), folder / "train-00002.parquet")
    with pytest.raises(UserError, match=r"has the column 'label', which .* lacks"):
        data.load("table", faces / "hub", **options)
    (folder / "other.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"some names state a split, but not 'other\.parquet'"):
        data.load("table", faces / "hub", **options)


def test_a_data_set_that_datasets_saved(faces):
    splits = datasets.DatasetDict(train=saved(faces), validation=saved(faces).select([0]))
    splits.save_to_disk(str(faces / "saved"))
    options = {"columns": {"emotion": "label"}}
    assert data.load("table", faces / "saved", **options)["emotion"] == ["happiness", "sadness"]
    rows = data.load("table", faces / "saved", "validation", **options)
    assert rows["emotion"] == ["happiness"]
    saved(faces).save_to_disk(str(faces / "one"))
    assert len(data.load("table", faces / "one", **options)) == 2
    (faces / "one" / "state.json").write_text("{}")
    with pytest.raises(UserError, match="is not a data set that `datasets` can read"):
        data.load("table", faces / "one", **options)


def test_a_name_of_the_hub_is_not_looked_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="run `hf download some-lab/faces --repo-type dataset"):
        data.load("table", "some-lab/faces")
    with pytest.raises(UserError, match=r"study/faces\.csv does not exist$"):
        data.load("table", "study/faces.csv")


def test_a_folder_of_csv_files_one_for_each_split(faces):
    text(faces / "lists" / "train.csv", "image,emotion", "a.jpg,happy")
    text(faces / "lists" / "test_labels.csv", "image,emotion", "b.jpg,sad", "b.jpg,?")
    options = {"images": str(faces)}
    assert data.load("table", faces / "lists", **options)["emotion"] == ["happiness"]
    with pytest.raises(UserError, match=r"test_labels\.csv, line 3: 'emotion' is '\?'"):
        data.load("table", faces / "lists", "test", **options)
