"""`vlmface data init`: what is guessed for tables and folders, and what is refused."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.picture_folder import enter_folder, write_picture

from vlmface import data
from vlmface.cli import main
from vlmface.data.init.names import role_of

WORDS = ("Happy", "sad", "ANGRY")
Table = list[tuple[Any, ...]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with img/0.png to img/29.png."""
    return enter_folder(tmp_path, monkeypatch)


def rows(words: Sequence[Any] = WORDS, people: int = 8, n: int = 30) -> Table:
    return [(f"img/{i}.png", words[i % len(words)], f"S{i % people:02d}") for i in range(n)]


def write_csv(name: str, header: Iterable[str], cells: Table, delimiter: str = ",") -> Path:
    opener: Callable[..., Any] = gzip.open if name.endswith(".gz") else open
    with opener(name, "wt", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([tuple(header), *cells])
    return Path(name)


def init(path: Path | str, *words: str) -> dict[str, Any]:
    """The YAML file that the command writes."""
    assert main(["data", "init", str(path), "--output", "out.yaml", "--overwrite", *words]) == 0
    content: dict[str, Any] = yaml.safe_load(Path("out.yaml").read_text(encoding="utf-8"))
    for split in data.dataset_module("out.yaml").present_splits(None):
        assert len(data.load("out.yaml", split=split))
    return content


def refused(capsys: pytest.CaptureFixture[str], path: Path | str, *words: str) -> str:
    """The one sentence of a call that is refused; no file is written."""
    before = set(Path().rglob("*"))
    assert main(["data", "init", str(path), *words]) == 2
    assert set(Path().rglob("*")) == before
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


# --- tables of all kinds -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "header", "delimiter"),
    [
        ("a.csv", ("file_name", "Emotion", "participant"), ","),
        ("a.csv.gz", ("Bild", "Gefühl", "Versuchsperson"), ";"),
        ("a.tsv", ("ruta", "emoción", "sujeto"), "\t"),
        ("a.csv", ("图像", "表情", "被试"), ","),
    ],
)
def test_text_tables_and_column_names_of_many_languages(
    name: str, header: tuple[str, ...], delimiter: str
) -> None:
    content = init(write_csv(name, header, rows(), delimiter))
    columns = dict(zip(("image", "label", "subject"), header, strict=True))
    assert content["options"] == {"columns": columns}
    assert content["label_space"] == "emotion7" and content["prompt"] == "label"
    assert content["splits"] == {"by": "subject", "validation": 0.15, "test": 0.2, "seed": 0}
    people = [set(data.load("out.yaml", split=s)["subject"]) for s in ("train", "test")]
    assert not people[0] & people[1]


def test_other_kinds_of_tables(folder: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    records = [dict(zip(("path", "state", "pid"), row, strict=True)) for row in rows(("a", "b"))]
    Path("a.json").write_text(json.dumps(records))
    Path("b.jsonl").write_text("\n".join(map(json.dumps, records)))
    parquet.write_table(pa.Table.from_pylist(records), "c.parquet")
    for name in ("a.json", "b.jsonl", "c.parquet"):
        content = init(name)
        assert content["label_space"]["labels"] == ["a", "b"]
        assert content["options"]["columns"]["subject"] == "pid"


def test_a_workbook(folder: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in [("image", "state", "id"), *rows(("bored", "engaged"))]:
        book.active.append(row)
    book.save("study.xlsx")
    content = init("study.xlsx")  # an id that repeats is a person's
    assert content["options"]["columns"] == {
        "image": "image",
        "subject": "id",
        "label": "state",
        "id": None,
    }


def test_a_list_without_a_header_and_one_that_is_not_a_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("list.txt").write_text("".join(f"{name},{word}\n" for name, word, _ in rows()))
    content = init("list.txt")
    assert content["options"]["header"] is False
    assert content["splits"]["by"] == "image"
    Path("list.txt").write_text("".join(f"{name} {word}\n" for name, word, _ in rows()))
    assert "put a comma or a tab between the columns" in refused(capsys, "list.txt")


def test_parquet_shards_and_data_sets_that_were_saved(folder: Path) -> None:
    import datasets

    paths = [str(folder / f"img/{i}.png") for i in range(30)]
    saved = datasets.Dataset.from_dict({"image": paths, "label": [i % 2 for i in range(30)]})
    saved = saved.cast_column("label", datasets.ClassLabel(names=["bored", "engaged"]))
    saved = saved.cast_column("image", datasets.Image())
    saved.save_to_disk("saved")
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk("both")
    Path("shards").mkdir()
    for k in range(2):
        shard = saved.select(range(15 * k, 15 * k + 15))
        shard.to_parquet(f"shards/train-{k:05d}-of-00002.parquet")
    for name in ("saved", "shards"):
        content = init(name)
        assert content["label_space"]["labels"] == ["bored", "engaged"]
        assert content["splits"]["test"] == 0.2
    assert "test" not in init("both")["splits"]


def test_folders_named_by_label(capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        for label in ("angry", "happy"):
            for i in range(6):
                write_picture(
                    Path(f"kaggle/archive/{split}/{label}/{i}.jpg"), i + (split == "val") * 9
                )
    content = init("kaggle")
    assert content["root"] == "kaggle/archive" and content["label_space"] == "emotion7"
    assert content["splits"] == {"by": "image", "test": 0.2, "seed": 0}
    for label in ("1", "2"):
        for i in range(8):
            write_picture(Path(f"coded/{label}/{i}.jpg"), i)
    assert "the labels are numbers (1, 2)" in refused(capsys, "coded")
    assert init("coded", "--labels", "rafdb")["options"] == {
        "labels": {"1": "surprise", "2": "fear"}
    }
    Path("empty").mkdir()
    assert "holds no table and no pictures in folders" in refused(capsys, "empty")


# --- columns -------------------------------------------------------------------------------------


def test_pictures_are_found_in_subfolders_or_in_the_folder_that_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = write_csv("t.csv", ("name", "label"), [(f"{i}.png", "ab"[i % 2]) for i in range(30)])
    assert init(table)["options"]["images"] == "img"
    Path("img").rename("far")
    Path("near").mkdir()
    table = table.rename("near/t.csv")
    assert init(table, "--images", "far")["options"]["images"] == "far"
    assert "name the folder that the paths start from, --images" in refused(capsys, table)


def test_a_split_column_votes_boxes_and_action_units() -> None:
    header = ("file", "label", "Usage")
    usage = ("Training", "Training", "PublicTest", "PrivateTest")
    cells = [(f"img/{i}.png", "ab"[i // 4 % 2], usage[i % 4]) for i in range(28)]
    content = init(write_csv("usage.csv", header, cells))
    assert content["splits"]["column"] == "Usage" and "test" not in content["splits"]
    header = ("file", "happy", "sad", "angry", "x", "y", "w", "h", "AU01_r", "AU12_r")
    cells = [
        (f"img/{i}.png", i % 3 == 0, i % 3 == 1, i % 3 == 2, 1, 1, 9, 9, i % 6 / 2, 9)
        for i in range(30)
    ]
    content = init(write_csv("votes.csv", header, cells))
    options = content["options"]
    assert options["votes"] == ["happy", "sad", "angry"] and content["prompt"] == "au_rationale"
    assert options["columns"]["face_box"] == ["x", "y", "w", "h"]
    assert options["box_format"] == "xywh" and options["au_values"] == "intensity"
    assert options["aus"] == {"AU1": "AU01_r", "AU12": "AU12_r"} and options["au_missing"] == [9]
    row = data.load("out.yaml")[0]
    assert row["face_box"] == [1, 1, 10, 10] and {unit["au"] for unit in row["aus"]} == {1}


def test_guesses_can_be_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    header = ("file", "first", "second", "Alter", "who")
    cells = [(f"img/{i}.png", "ab"[i % 2], "xyz"[i % 3], 20 + i, i % 9) for i in range(30)]
    table = write_csv("t.csv", header, cells)
    assert "'first', 'second' may all hold the label: name one" in refused(capsys, table)
    content = init(table, "--label", "second", "--subject", "WHO", "--age", "none")
    assert content["options"]["columns"] == {"image": "file", "subject": "who", "label": "second"}
    assert init(table, "--label", "first")["options"]["columns"]["age"] == "Alter"
    content = init(table, "--label", "first", "--subject", "who", "--split-by", "image")
    assert content["splits"]["by"] == "image"
    assert "did you mean 'first'" in refused(capsys, table, "--label", "frst")


def test_columns_that_would_be_misread_are_left_out() -> None:
    header = ("image", "label", "valence", "emotion", "race", "id")
    cells = [(f"img/{i}.png", "ab"[i % 2], i % 9, f"note {i}", "?", 7) for i in range(30)]
    columns = init(write_csv("t.csv", header, cells), "--label", "label")["options"]["columns"]
    assert {name for name, column in columns.items() if column is None} == {
        "valence",
        "emotion",
        "race",
        "id",
    }


@pytest.mark.parametrize(
    ("name", "role"),
    [("Image_Path", "image"), ("ÉMOTION", "label"), ("participant-ID", "subject"), ("foo", None)],
)
def test_names_are_compared_without_case_accents_and_punctuation(name: str, role: str) -> None:
    assert role_of(name) == role


# --- labels --------------------------------------------------------------------------------------


def test_spellings_are_one_label_and_the_most_frequent_is_kept() -> None:
    words = ("müde", "Müde", "müde ", "MU\u0308DE", "wach", "WACH", "wach", "Wach!")
    content = init(write_csv("t.csv", ("file", "Zustand"), [r[:2] for r in rows(words)]))
    assert content["label_space"]["labels"] == ["müde", "wach"]
    assert set(data.load("out.yaml")["context"][0]) <= {"müde", "wach"}


def test_numbers_need_a_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    table = write_csv("n.csv", ("file", "label"), [row[:2] for row in rows((0, 1, 2))])
    error = refused(capsys, table)
    assert "the labels are numbers (0, 1, 2): say what they mean, --labels 0=anger" in error
    content = init(table, "--labels", "0=bored", "1=engaged", "2=null")
    assert content["label_space"]["labels"] == ["bored", "engaged"]
    assert init(table, "--labels", "fer2013")["label_space"] == "emotion7"


def test_a_scale_and_lists_of_labels(capsys: pytest.CaptureFixture[str]) -> None:
    table = write_csv("n.csv", ("file", "label"), [row[:2] for row in rows((0, 1, 2))])
    meaning = ("--labels", "0=low", "1=medium", "2=high")
    content = init(table, *meaning, "--ordered", "low", "medium", "high")
    assert content["label_space"]["labels"] == ["low", "medium", "high"]
    assert content["label_space"]["ordered"] is True
    assert "must name each label once" in refused(capsys, table, *meaning, "--ordered", "low")
    lists = ("happy; surprised", "sad", "sad;angry", "happy")
    content = init(write_csv("m.csv", ("file", "label"), [row[:2] for row in rows(lists)]))
    assert content["label_space"]["multi_label"] is True
    assert content["label_space"]["labels"] == ["angry", "happy", "sad", "surprised"]
    Path("own.yaml").write_text("{id: own, field: context, labels: [low, medium, high], source: s}")
    content = init(table, *meaning, "--label-space", "own.yaml")
    assert content["label_space"] == "own.yaml"


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "words", "message"),
    [
        (rows()[:5], (), "t.csv has 5 rows with a label, too few to train on some and to test"),
        (rows(("bored",)), (), "all rows have the label 'bored', but a model needs two at least"),
        ([*rows(("a", "b"))[:-1], ("img/29.png", "typo", "S01")], (), "line 31: the label 'typo'"),
        ([("img/0.png", "a", ""), *rows(("a", "b"))[1:]], (), "line 2: 'person' is empty"),
        (rows(("", "")), (), "no column was recognised as the label"),
        ([("gone/1.png", "a", "b")] * 20, (), "no file of column 'file' exists"),
        ([("1", "a", "b")] * 20, (), "no column holds names of picture files"),
        (rows(), ("--subject", "nobody"), "--subject names the column 'nobody'"),
        (rows(), ("--labels", "x"), "--labels 'x' is not WORD=LABEL"),
        (rows(), ("--labels", "calm=happy"), "maps 'calm', but the labels are Happy, sad, ANGRY"),
        (rows(), ("--label-space", "gender"), "'Happy' is not a label of gender"),
    ],
)
def test_one_sentence_for_what_cannot_be_used(
    cells: Table, words: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_csv("t.csv", ("file", "state", "person"), cells)
    assert message in refused(capsys, table, *words)


def test_a_label_of_one_person_is_left_out_by_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [*rows(("a", "b"))[:28], ("img/28.png", "c", "S01"), ("img/29.png", "c", "S01")]
    table = write_csv("t.csv", ("file", "state", "person"), cells)
    error = refused(capsys, table)
    assert "pictures of a single person (S01)" in error and "--labels c=null" in error
    content = init(table, "--labels", "c=null")
    assert content["label_space"]["labels"] == ["a", "b"]


def test_a_file_is_replaced_only_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    table = write_csv("t.csv", ("file", "state", "person"), rows(("a", "b")))
    assert main(["data", "init", "t.csv"]) == 0
    printed = capsys.readouterr().out
    for command in ("data check t.yaml", "train sft_labels --dataset t.yaml", "eval run"):
        assert f"  vlmface {command}" in printed
    assert "30 of 30 files exist" in printed and "8 people" in printed
    assert "t.yaml exists already: pass --overwrite" in refused(capsys, table)
    assert main(["data", "init", "t.csv", "--overwrite"]) == 0
