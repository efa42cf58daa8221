"""Data as people have it: encodings, line ends, spreadsheets' habits, other tools' tables and
names. What is unambiguous is read; anything else is one message, and nothing is lost silently."""

from __future__ import annotations

import codecs
import importlib
import io
import json
import os
import re
import struct
import unicodedata
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from miniatures import face, text
from PIL import Image
from pyarrow import parquet

from vlmface import data
from vlmface.cli import main
from vlmface.data import check, decodable, sources, text_files
from vlmface.errors import UserError
from vlmface.train import text_only
from vlmface.utils import contact_sheet
from vlmface.utils.images import SUFFIXES, find_images, open_image


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMFACE_CACHE", str(tmp_path_factory.mktemp("cache")))


def faces(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        face(folder / name, number)


def write(path: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def table(folder: Path, content: str | bytes, name: str = "t.csv", encoding: str = "utf-8") -> Path:
    faces(folder, "0.png", "1.png", "2.png")
    return write(folder / name, content, encoding)


def emotions(path: Path, **options) -> list[str | None]:
    return data.load("table", path, **options)["emotion"][:]


def presence(rows) -> list[dict[int, bool] | None]:
    return [row and {unit["au"]: unit["present"] for unit in row} for row in rows["aus"]]


def failure(path: Path, name: str = "table", **options) -> str:
    with pytest.raises(UserError) as caught:
        data.load(name, path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def checked(*words: object, tmp_path: Path) -> int:
    return main(["data", "check", *map(str, words), "--output_dir", str(tmp_path / "check")])


# --- encodings and line ends ----------------------------------------------------------------------

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-marked", "utf-16-be-marked", "utf-32"]


def encoded(content: str, encoding: str) -> bytes:
    if encoding.endswith("-marked"):
        return ("\ufeff" + content).encode(encoding.removesuffix("-marked"))
    return content.encode(encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_encoding_with_a_mark_and_every_line_end_is_read(tmp_path, encoding, end):
    lines = ["image,emotion,subject", "0.png,happy,Zoë", '"1.png","sad","a\u2028b\x85c"', ""]
    path = table(tmp_path, encoded(end.join(lines), encoding))
    rows = data.load("table", path)
    assert rows["emotion"] == ["happiness", "sadness"]
    assert rows["subject"] == ["Zoë", "a\u2028b\x85c"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("gap", [" ", "\t", "   ", " \t "])
def test_a_list_of_a_data_set_loses_no_row(tmp_path, encoding, gap):
    names = ["train_00001", "train_00002", "test_0001"]
    faces(tmp_path / "Image" / "aligned", *(f"{name}_aligned.jpg" for name in names))
    codes = ("5", "4.0", "4")
    lines = [f"{name}.jpg{gap}{code}\r\n" for name, code in zip(names, codes, strict=True)]
    write(tmp_path / "EmoLabel/list_patition_label.txt", encoded("".join(lines), encoding))
    assert data.load("rafdb", tmp_path)["emotion"] == ["sadness", "happiness"]
    assert data.load("rafdb", tmp_path, "test")["emotion"] == ["happiness"]


AFFECTNET = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,"
    "valence,arousal"
)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("head", "code"),
    [
        (AFFECTNET, "1"),
        (AFFECTNET.upper().replace(",", " , "), "1.0"),
        (AFFECTNET.replace(",", ";"), " 1 "),
        (None, "1"),
    ],
)
def test_a_csv_of_a_data_set_is_read_as_spreadsheets_save_it(tmp_path, encoding, head, code):
    faces(tmp_path / "Manually_Annotated_Images" / "1", "a.jpg", "b.jpg")
    mark = ";" if head and ";" in head else ","
    lines = [
        mark.join(["1/a.jpg", "0", "0", "50", "50", '"1;2"', code, "0.5", "0.1"]),
        mark.join(["1/b.jpg", "0", "0", "50", "50", '"1;2"', "6", "-0.5", "0.1"]),
    ]
    content = encoded("\n".join(([head] if head else []) + lines), encoding)
    write(tmp_path / "Manually_Annotated_file_lists" / "training.csv", content)
    rows = data.load("affectnet", tmp_path)
    assert rows["emotion"] == ["happiness", "anger"]
    assert rows["face_box"][0] == [0, 0, 50, 50] and rows["valence"] == [0.5, -0.5]


def test_a_csv_of_a_data_set_with_half_a_code_is_refused(tmp_path):
    faces(tmp_path / "Manually_Annotated_Images" / "1", "a.jpg")
    line = "1/a.jpg,0,0,50,50,1,1.5,0,0"
    text(tmp_path / "Manually_Annotated_file_lists" / "training.csv", AFFECTNET, line)
    assert "invalid value '1.5'" in failure(tmp_path, "affectnet")


FOLDERS = {"caers", "jaffe", "sfew", "rationales"}  # sets without a text file
READ = [name for name in data.names() if not name.startswith("synth") and name not in FOLDERS]


@pytest.mark.parametrize("name", READ)
def test_every_data_set_reads_its_texts_in_every_encoding(name, tmp_path):
    module = importlib.import_module(f"miniatures.{name}")
    module.write(tmp_path)
    split = getattr(module, "SPLIT", data.dataset_module(name).SPLITS[0])

    def read() -> list[dict]:
        rows = data.load(name, tmp_path, split, **module.ARGUMENTS)
        return rows.remove_columns(["image", "frames"]).to_list()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = read()
        endings = {".txt", ".csv", ".tsv", ".json", ".jsonl"}
        files = [file for file in tmp_path.rglob("*") if file.suffix in endings and file.is_file()]
        originals = {file: file.read_text("utf-8") for file in files}
        for encoding in ("utf-8-sig", "utf-16", "utf-32-be-marked"):
            for file, content in originals.items():
                file.write_bytes(encoded(content.replace("\n", "\r\n"), encoding))
            assert read() == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"image,emotion\n\xe4.png,\n",
            r"line 2: byte b'\xe4' is not UTF-8 (offset 14; no byte",
        ),
        (b"image,emotion\n\xe4.png,\n", "UTF-8 was tried): save the file as UTF-8, for example"),
        ("image,emotion\n0.png,happy\n".encode("utf-16-le"), "this is UTF-16LE without a byte"),
        ("image,emotion\n0.png,happy\n".encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8 t.csv"),
        ("ä,emotion\n".encode("utf-16-le"), "byte 0 at offset 1: this is UTF-16LE"),
        (codecs.BOM_UTF16_LE + b"i\0m", "its byte order mark states UTF-16-LE"),
        (b"image,emotion\n0.png,ha\0ppy\n", "byte 0 at offset 22 does not occur in text"),
        (b"\x1f\x8b\x08" + bytes(20), "is compressed with gzip: unpack it with `gunzip`"),
        (b"PK\3\4\x14\0" + bytes(20), "or a spreadsheet (xlsx)"),
        (b"PAR1\0\x15" + bytes(20), "is a Parquet file: give its name the ending .parquet"),
        (b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull` there"),
        (b"", "needs a header"),
        (b"\xef\xbb\xbf", "needs a header"),
        (b"\n\n", "needs a header"),
        (b"0.png,happy\n1.png,sad\n", "has no column 'image', only 0.png, happy"),
        (b"image,emotion\n", "has no rows"),
    ],
)
def test_what_cannot_be_read_is_one_message_with_the_fix(tmp_path, content, message):
    assert message in failure(table(tmp_path, content))


def test_the_same_messages_come_from_data_sets_and_from_arrow(tmp_path):
    path = write(
        tmp_path / "EmoLabel/list_patition_label.txt", b"train_1.jpg 5\ntrain_\xff.jpg 4\n"
    )
    assert f"{path}, line 2: byte b'\\xff' is not UTF-8" in failure(tmp_path, "rafdb")
    path = tmp_path / "Manually_Annotated_file_lists" / "training.csv"
    write(path, f"{AFFECTNET}\n1/ä.jpg,0,0,5,5,1,1,0,0\n", "latin-1")
    assert f"{path}, line 2: byte b'\\xe4' is not UTF-8" in failure(tmp_path, "affectnet")
    write(path, f"{AFFECTNET}\n", "utf-16-le")
    assert "this is UTF-16LE without" in failure(tmp_path, "affectnet")


def test_a_wrong_byte_beyond_the_first_block_is_still_named(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_BLOCK", 7)
    path = write(tmp_path / "a.csv", "ä,b\n" * 5 + "€\n")
    assert text_files.open_utf8(path) == path
    write(path, "ä,b\n".encode() * 5 + b"\xe2\x82")
    with pytest.raises(UserError, match=r"line 6: byte .* \(offset 25; no"):
        text_files.open_utf8(path)


def test_files_that_were_joined_keep_no_marks(tmp_path):
    part = codecs.BOM_UTF8 + b"train_0000%d.jpg %d\n"
    faces(tmp_path / "Image" / "aligned", "train_00001_aligned.jpg", "train_00002_aligned.jpg")
    write(tmp_path / "EmoLabel/list_patition_label.txt", part % (1, 5) + part % (2, 4))
    assert data.load("rafdb", tmp_path)["emotion"] == ["sadness", "happiness"]
    half = "image,emotion\n0.png,happy\n"
    joined = table(tmp_path, half.encode("utf-8-sig") * 2)
    assert "t.csv, line 3 repeats the header" in failure(joined)


def test_names_that_begin_as_archives_do_are_text(tmp_path):
    for name in ("PAR1_001", "BZh_001"):
        (tmp_path / "a.txt").write_text(f"{name}.jpg 5\n")
        assert text_files.read_lines(tmp_path / "a.txt") == [f"{name}.jpg 5"]


def test_a_pipe_is_no_table_and_no_picture(tmp_path):
    for name in ("t.csv", "pipe.png"):
        os.mkfifo(tmp_path / name)
    assert "is not a regular file" in failure(tmp_path / "t.csv")
    with pytest.raises(OSError, match="is not a regular file"):
        sources.read_content(str(tmp_path / "pipe.png"))
    with pytest.raises(OSError, match="is not a regular file"):
        sources.read_content("/dev/zero")
    listed = text(tmp_path / "pipes.csv", "image,emotion", "pipe.png,sad", "/dev/zero,sad")
    report = check.check("table", listed, progress=False)
    assert list(report["unreadable"]) == ["pipe.png", "/dev/zero"]


def test_no_data_set_decodes_text_on_its_own():
    """What it reads itself is binary: the npy files of AffectNet."""
    own = re.compile(r"\.read_text\(|splitlines\(|\bopen\((?!.*\"rb\")")
    folder = Path(data.__file__).parent / "adapters"
    sources = {file.name: file.read_text(encoding="utf-8") for file in folder.glob("*.py")}
    assert len(sources) > 30
    assert [name for name, source in sources.items() if own.search(source)] == []


# --- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("between", ["\u2028", "\x85", "\x1c", "\x0b", "\x0c", "\u2029"])
def test_text_data_keeps_the_separators_inside_its_texts(tmp_path, encoding, between):
    answer = f"One line.{between}Second line."
    record = {"question": "Say it.", "answer": answer}
    lines = [json.dumps(record, ensure_ascii=False), json.dumps(record)]
    path = write(tmp_path / "a.jsonl", encoded("\r\n".join(lines) + "\r\n", encoding))
    assert text_only.read_questions(path) == [("Say it.", answer)] * 2


@pytest.mark.parametrize("name", ["a.JSONL", "a.Jsonl", "a.ndjson"])
def test_json_lines_by_any_name(tmp_path, name):
    records = '[{"image": "0.png", "emotion": "happy"}, {"image": "1.png", "emotion": "sad"}]'
    assert emotions(table(tmp_path, records, "a.json")) == ["happiness", "sadness"]
    lines = '{"image":"0.png","emotion":"happy"}\n{"Image":null,"image":"1.png","emotion":"sad"}\n'
    assert emotions(table(tmp_path, lines, name)) == ["happiness", "sadness"]


TALK = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "Happy."}]
ROLES = [{"from": "user", "value": "<image>What?"}, {"from": "assistant", "value": "Happy."}]
MESSAGES = [
    {"role": "system", "content": "Look."},
    {"role": "user", "content": "<image>What?"},
    {"role": "assistant", "content": "Happy."},
]
PARTS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Happy."}]},
]


@pytest.mark.parametrize(
    "record",
    [
        {"id": "a", "image": "0.png", "conversations": TALK},
        {"conversations": TALK, "images": ["0.png"]},
        {"image": "0.png", "images": ["0.png"], "conversations": TALK},
        {"id": "0", "image": "0.png", "conversations": ROLES},
        {"messages": MESSAGES, "images": ["0.png"]},
        {"messages": PARTS, "image": ["0.png"]},
        {"conversations": TALK, "images": "sub\\0.png"},
        {
            "image": "0.png",
            "conversations": [turn | {"from": turn["from"].upper()} for turn in TALK],
        },
        {
            "messages": [
                PARTS[0]
                | {"content": [{"type": "image", "image": "0.png"}, PARTS[0]["content"][1]]},
                PARTS[1],
            ]
        },
    ],
)
@pytest.mark.parametrize("name", ["a.json", "lines.json", "a.JSONL"])
def test_conversations_of_other_tools(tmp_path, record, name, capsys):
    faces(tmp_path / "images", "0.png", "sub/0.png")
    lines = "\n".join([json.dumps(record)] * 2)
    path = write(tmp_path / name, f"[{json.dumps(record)}]" if name == "a.json" else lines)
    words = ["llava_json", path, "--dataset_options", f"images={tmp_path / 'images'}"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert name != "a.json" or checked(*words, tmp_path=tmp_path) == 0
        row = data.load("llava_json", path, images=str(tmp_path / "images"))[0]
    assert row["rationale"] == "Happy." and json.loads(row["meta"])["prompt"] == "What?"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": "0.png", "images": ["1.png"]}, "'images' is ['1.png'], expected the same as"),
        ({"images": ["0.png"], "conversations": [{"from": "narrator", "value": "x"}]}, "the roles"),
        ({"image": "/elsewhere/0.png"}, "inside the image folder"),
        ({"image": "C:\\0.png"}, "(see the option images)"),
    ],
)
def test_what_is_wrong_with_a_conversation_is_named(tmp_path, fields, message):
    path = write(tmp_path / "a.json", json.dumps([{"conversations": TALK} | fields]))
    assert message in failure(path, "llava_json")


def test_an_absolute_path_may_lie_in_the_image_folder(tmp_path):
    faces(tmp_path, "0.png")
    record = {"image": str(tmp_path / "0.png"), "conversations": TALK}
    path = write(tmp_path / "a.json", json.dumps([record]))
    assert data.load("llava_json", path)[0]["image"].size == (48, 48)


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
    assert "'none', which is not one of anger" in failure(tmp_path / "f")


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
    assert "line 2: 'gender' is '0', which is not one of female, male: map it" in failure(path)
    message = failure(path, words={"gender": {0: "male", 1: "female"}})
    assert "'Mixed', which is not one of " in message and "columns={'race': None}" in message
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
        assert "give a probability above 0 and up to 1" in message
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


# --- paths ----------------------------------------------------------------------------------------


def test_windows_separators_are_read(tmp_path):
    faces(tmp_path, "imgs/0.png", "imgs/deep er/1.png")
    path = text(tmp_path / "t.csv", "image,emotion", "imgs\\0.png,happy", "imgs/deep er\\1.png,sad")
    rows = data.load("table", path)
    assert rows["emotion"] == ["happiness", "sadness"]
    assert rows["id"] == ["table-imgs/0.png", "table-imgs/deep er/1.png"]
    text(path, "image,emotion", "imgs\\..\\..\\0.png,happy")
    assert "an absolute path or one inside" in failure(path)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_an_accent_in_another_unicode_form_is_the_same_name(tmp_path, forms):
    listed, stored = (unicodedata.normalize(form, "é/José.png") for form in forms)
    faces(tmp_path, stored)
    path = text(tmp_path / "t.csv", "image,emotion", f"{listed},happy")
    with pytest.warns(UserWarning, match="1 image paths differ from the files' names"):
        rows = data.load("table", path)
    assert rows[0]["image"].size == (48, 48) and rows["id"] == [f"table-{listed}"]
    with pytest.warns(UserWarning, match="1 image paths differ"):
        assert checked("table", path, tmp_path=tmp_path) == 0


def test_letter_case_is_read_where_one_file_fits_and_named_where_several_do(tmp_path):
    faces(tmp_path, "Faces/A.PNG", "B.png", "b.PNG")
    path = text(tmp_path / "t.csv", "image,emotion", "faces/a.png,happy", "b.PNG,sad")
    with pytest.warns(UserWarning, match=r"1 image paths differ.*'.*Faces/A\.PNG'"):
        rows = data.load("table", path)
    assert [row["image"].size for row in rows] == [(48, 48)] * 2
    text(path, "image,emotion", "b.png,happy", "B.png,sad", "c.png,sad")
    message = failure(path)
    assert message.startswith("2 of 3 images of table, split 'train', are missing, the first: ")
    assert "B.png, " in message and "b.PNG, which differ in letter case" in message
    with pytest.warns(UserWarning, match="2 rows without an image file are left out"):
        assert emotions(path, missing="drop") == ["sadness"]


def test_a_name_that_is_not_unicode_is_one_message(tmp_path):
    faces(tmp_path, "anger/0.png")
    os.rename(tmp_path / "anger/0.png", os.fsencode(tmp_path / "anger") + b"/\xff.png")
    assert "is not Unicode text: rename the file" in failure(tmp_path)


@pytest.mark.parametrize(
    "name", ["a.jfif", "b.jpe", "c.JPEG", "d.JPE", "e.webp", "f.GIF", "g.avif"]
)
def test_every_name_of_an_image_is_taken_everywhere(tmp_path, name, capsys):
    assert Path(name).suffix.lower() in SUFFIXES
    file = tmp_path / "anger" / name
    face(tmp_path / "anger" / "x.png", 1)
    kind = {".webp": "WEBP", ".gif": "GIF", ".avif": "AVIF"}.get(file.suffix.lower(), "JPEG")
    Image.open(tmp_path / "anger" / "x.png").save(file, kind)
    write(tmp_path / "anger" / "noext", b"x")
    with pytest.warns(UserWarning, match=r"1 files are left out.*the first: anger/noext"):
        assert find_images(tmp_path) == [file, tmp_path / "anger" / "x.png"]
    with pytest.warns(UserWarning, match=r"1 left out, not a picture: anger/noext"):
        assert len(data.load("table", tmp_path)) == 2
    faces(tmp_path / "sfew" / "Train" / "Angry", "x.png")
    (tmp_path / "sfew" / "Train" / "Angry" / name).write_bytes(file.read_bytes())
    assert len(data.load("sfew", tmp_path / "sfew")) == 2


def test_archives_take_images_of_every_name(tmp_path):
    batch = pytest.importorskip("vlmface.demo.batch")
    names = ["a.jfif", "b.JPE", "c.webp", "d.GIF", "e.avif"]
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for name in names:
            archive.write(face(tmp_path / "x.png", 1), name)
    items = batch.read_files([tmp_path / "faces.zip"])
    assert [item.name for item in items] == names
    assert {open_image(item.data).size for item in items} == {(48, 48)}


# --- who is who -----------------------------------------------------------------------------------


def stored(tmp_path: Path, image: list, name: str = "t.parquet") -> Path:
    faces(tmp_path, "0.png", "1.png")
    parquet.write_table(pa.table({"image": image, "label": [3, 0][: len(image)]}), tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("one name", ["table-image.png-1", "table-image.png-2"]),
        ("no name", ["table-1", "table-2"]),
        ("bytes", ["table-1", "table-2"]),
        ("names", ["table-a.png", "table-b.png"]),
        ("paths", ["table-0.png", "table-1.png"]),
        ("a path and bytes", ["table-0.png", "table-2"]),
    ],
)
def test_parquet_rows_are_told_apart_by_their_pictures(tmp_path, kind, expected):
    faces(tmp_path, "0.png", "1.png")
    raw = [(tmp_path / f"{k}.png").read_bytes() for k in (0, 1)]
    image = {
        "one name": [{"bytes": raw[0], "path": "image.png"}] * 2,
        "no name": [{"bytes": picture, "path": None} for picture in raw],
        "bytes": raw,
        "names": [{"bytes": raw[0], "path": "a.png"}, {"bytes": raw[1], "path": "b.png"}],
        "paths": [{"bytes": None, "path": "0.png"}, {"bytes": None, "path": "1.png"}],
        "a path and bytes": [{"bytes": None, "path": "0.png"}, {"bytes": raw[1], "path": None}],
    }[kind]
    path = stored(tmp_path, image)
    rows = data.load(
        "table", path, columns={"emotion": "label"}, labels={0: "anger", 3: "happiness"}
    )
    assert rows["emotion"] == ["happiness", "anger"] and rows["id"] == expected
    assert [row["image"].size for row in rows] == [(48, 48)] * 2


def test_one_part_of_a_parquet_table_says_so(tmp_path):
    path = stored(tmp_path, ["0.png", "1.png"], "train-00000-of-00002.parquet")
    with pytest.warns(UserWarning, match="is part 1 of 2: the other parts are not read"):
        data.load("table", path, columns={"emotion": "label"}, labels={0: "anger", 3: "fear"})


def test_a_mixture_of_tables_whose_pictures_have_the_same_names(tmp_path):
    for name in ("own", "other"):
        faces(tmp_path / name / "imgs", "0.png", "1.png")
        text(tmp_path / name / "t.csv", "image,emotion", "imgs/0.png,sad", "imgs/1.png,happy")
    path = tmp_path / "mix.yaml"
    path.write_text(
        "sources: [{dataset: table, root: own/t.csv}, {dataset: table, root: other/t.csv}]"
    )
    rows = data.load(path)
    assert sorted(rows["id"]) == [
        "table-imgs/0.png",
        "table-imgs/0.png@2",
        "table-imgs/1.png",
        "table-imgs/1.png@2",
    ]
    assert data.fingerprint(rows) == data.fingerprint(data.load(path))
    (tmp_path / "link").symlink_to(tmp_path / "own")
    for again in ("own/t.csv", "link/t.csv"):
        path.write_text(
            f"sources: [{{dataset: table, root: own/t.csv}}, {{dataset: table, root: {again}}}]"
        )
        assert "2 rows come from two of its sources" in failure(path, str(path))


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("labels=[anger, disgust]", "labels is ['anger', 'disgust'], but must be a mapping"),
        ("labels={0: 3}", "labels is {0: 3}, but must be a mapping"),
        ("columns=image", "columns is 'image', but must be a mapping {name: value} or null"),
        ("columns={image: 3}", "but must be a mapping"),
        ("splits=[train]", "splits is ['train'], but must be a mapping"),
        ("aus=3", "aus is 3, but must be text or a list"),
        ("aus=[1, 4]", "aus is [1, 4], but must be"),
        ("aus=*_c", "option aus cannot be read from '*_c'"),
        ("au_threshold=high", "au_threshold is 'high', but must be a number or null"),
        ("au_missing=nine", "au_missing is 'nine', but must be a number"),
        ("rationale_saw_label=3", "rationale_saw_label is 3, but must be true or false"),
        ("root=x", "has no option 'root'"),
        ("workers=2", "has no option 'workers'"),
    ],
)
def test_an_option_of_the_wrong_shape_is_one_line(tmp_path, option, message, capsys):
    faces(tmp_path, "0/1.png", "1/1.png")
    assert checked("table", tmp_path, "--dataset_options", option, tmp_path=tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_options_of_every_shape_are_checked_and_hashed(tmp_path, capsys):
    faces(tmp_path, "0/1.png", "1/1.png", "a.png")
    folders = ["table", tmp_path, "--dataset_options", "labels={0: anger, 1: disgust}"]
    (tmp_path / "a.png").rename(tmp_path / "0" / "a.png")
    assert checked(*folders, tmp_path=tmp_path) == 0
    path = text(tmp_path / "t.csv", "file_name,Expression,part", "0/1.png,happy,x", "1/1.png,sad,y")
    columns = "columns={image: file_name, emotion: Expression}"
    assert checked("table", path, "--dataset_options", columns, tmp_path=tmp_path) == 0
    splits = ["split_column=part", "splits={x: train, y: test}"]
    assert checked("table", path, "--dataset_options", columns, *splits, tmp_path=tmp_path) == 0
    report = json.loads((tmp_path / "check" / "check.json").read_text())
    assert set(report["splits"]) == {"train", "test"}


def test_options_of_every_data_set_reach_the_commands(tmp_path):
    words = ["missing=drop", "broken=drop", "n=3", "file_split=test"]
    options = data.parse_options("table", words)
    assert options == {"missing": "drop", "broken": "drop", "n": 3, "file_split": "test"}
    assert checked("table", tmp_path, "--dataset_options", "missing=drop", tmp_path=tmp_path) == 2


def test_data_check_asks_for_the_splits_that_there_are(tmp_path, capsys):
    path = table(tmp_path, "image,emotion,AU1,AU4\n0.png,sad,1,1\n1.png,happy,0,0\n")
    assert checked("table", path, "--dataset_options", "aus=AU*", tmp_path=tmp_path) == 0
    assert checked("table", path, "--dataset_split", "test", tmp_path=tmp_path) == 2
    faces(tmp_path / "folders", "train/anger/0.png", "val/anger/1.png")
    assert data.splits_of("table", tmp_path / "folders") == ("train", "validation")
    assert data.splits_of("rafdb", None) == ("train", "test")


def test_a_number_of_numpy_is_a_number(tmp_path):
    path = table(tmp_path, "image,AU1\n0.png,0.9\n")
    options = {"aus": "AU*", "au_values": "probability"}
    rows = data.load("table", path, au_threshold=np.float32(0.8), au_missing=np.int64(9), **options)
    assert presence(rows) == [{1: True}]


# --- pictures -------------------------------------------------------------------------------------

RAMP = np.tile(np.linspace(0, 1, 64), (32, 1))


def opened(array: np.ndarray, path: Path, **options) -> np.ndarray:
    Image.fromarray(array).save(path, **options)
    return np.asarray(open_image(path))[..., 0].astype(float)


@pytest.mark.parametrize(
    ("array", "name"),
    [
        ((RAMP * 255).astype(np.int32), "a.tif"),
        ((RAMP * 255).astype(np.uint16), "a.png"),
        ((RAMP * 65535).astype(np.uint16), "a.png"),
        ((RAMP * 65535).astype(np.uint16), "a.tif"),
        ((RAMP * 65535).astype(np.int32), "a.tif"),
        ((RAMP * (2**31 - 1)).astype(np.int32), "a.tif"),
        (((RAMP - 0.5) * 1000).astype(np.int32), "a.tif"),
        (RAMP.astype(np.float32), "a.tif"),
        ((RAMP * 252).astype(np.float32), "a.tif"),
        ((RAMP * 1e6).astype(np.float32), "a.tif"),
    ],
)
def test_deep_pictures_are_scaled_by_what_they_hold(tmp_path, array, name):
    assert np.abs(opened(array, tmp_path / name) - RAMP * 255).max() <= 1.5


@pytest.mark.parametrize("bits", [10, 12])
def test_a_picture_of_a_few_bits_in_sixteen_is_stretched_aloud(tmp_path, bits):
    array = (RAMP * (2**bits - 1)).astype(np.uint16)
    with pytest.warns(UserWarning, match=f"is read as one of {bits} bits"):
        assert np.abs(opened(array, tmp_path / "a.png") - RAMP * 255).max() <= 1


def tiff(array: np.ndarray, tag: int, value: int) -> bytes:
    """A TIFF in which a tag of one short number is set to a value."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "TIFF")
    raw = bytearray(buffer.getvalue())
    entry = raw.index(struct.pack("<HHI", tag, 3, 1))
    raw[entry + 8 : entry + 12] = struct.pack("<I", value)
    return bytes(raw)


def test_unsigned_numbers_and_white_is_zero_of_a_tiff():
    large = (RAMP * (2**32 - 1)).astype(np.uint32).view(np.int32)
    unsigned = np.asarray(open_image(tiff(large, 339, 1)))[..., 0]
    assert np.abs(unsigned - RAMP * 255).max() <= 1
    negative = tiff((RAMP * 65535).astype(np.uint16), 262, 0)
    assert np.abs(np.asarray(open_image(negative))[..., 0] - (1 - RAMP) * 255).max() <= 1


def deep_colour(top: int) -> bytes:
    """A PNG of 16 bits a colour, whose brightest is `top`."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    pixels = np.repeat((RAMP * top)[..., None], 3, 2).astype(">u2")
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    size = struct.pack(">IIBBBBB", 64, 32, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def test_deep_colour_that_turns_black_says_so():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.asarray(open_image(deep_colour(65535))).max() == 255
    with pytest.warns(UserWarning, match="it is nearly black"):
        open_image(deep_colour(4095))


def broken_table(tmp_path: Path) -> Path:
    path = table(tmp_path, "image,emotion\n0.png,happy\n1.png,sad\n2.png,fear\n")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    return path


def test_a_broken_picture_can_be_left_out_or_found_before_the_run(tmp_path):
    path = broken_table(tmp_path)
    assert len(data.load("table", path)) == 3
    with pytest.warns(UserWarning, match=r"1 of 3 rows .* are left out, the first: '.*1\.png'"):
        rows = data.load("table", path, broken="drop")
    assert rows["emotion"] == ["happiness", "fear"]
    assert "1 of 3 rows have a picture that cannot be decoded" in failure(path, broken="error")
    assert "broken='no': use 'keep', 'error' or 'drop'" in failure(path, broken="no")
    assert "1.png" in str(check.check("table", path, progress=False)["errors"])
    mixture = tmp_path / "mix.yaml"
    mixture.write_text("sources: [{dataset: table, root: t.csv, options: {broken: drop}}]")
    with pytest.warns(UserWarning, match="1 of 3 rows"):
        assert len(data.load(mixture)) == 2
    mixture.write_text("sources: [{dataset: table, root: t.csv}]")
    with pytest.warns(UserWarning, match="1 of 3 rows"):
        assert len(data.load(mixture, broken="drop")) == 2
    for name in ("0.png", "2.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.warns(UserWarning, match="3 of 3 rows"):
        assert "no row is left" in failure(path, broken="drop")


def test_a_picture_that_was_decoded_is_not_decoded_again_until_it_changes(tmp_path, monkeypatch):
    opened: list[str] = []

    def note(source: str) -> Image.Image:
        opened.append(Path(source).name)
        return open_image(source)

    monkeypatch.setattr(decodable, "open_image", note)
    path = broken_table(tmp_path)
    with pytest.warns(UserWarning, match="1 of 3 rows"):
        data.load("table", path, broken="drop")
    assert sorted(opened) == ["0.png", "1.png", "2.png"]
    opened.clear()
    face(tmp_path / "2.png", 9, (50, 40))
    with pytest.warns(UserWarning, match="1 of 3 rows"):
        data.load("table", path, broken="drop")
    assert sorted(opened) == ["1.png", "2.png"]


def test_a_clip_with_a_broken_frame_is_left_out(tmp_path):
    from miniatures import dfew

    dfew.write(tmp_path)
    rows = data.load("dfew", tmp_path, **dfew.ARGUMENTS)
    frame = rows.with_format("arrow")[:]["frames"][0].as_py()[0]["path"]
    Path(frame).write_bytes(b"\xff\xd8\xff")
    with pytest.warns(UserWarning, match=f"1 of {len(rows)} rows"):
        left = data.load("dfew", tmp_path, broken="drop", **dfew.ARGUMENTS)
    assert left["id"][:] == rows["id"][1:]


def test_training_on_a_broken_picture_names_the_way_out(tmp_path):
    from vlmface.data.row_images import open_row_image

    path = broken_table(tmp_path)
    with pytest.raises(
        UserError, match=r"1\.png.* is damaged.*--dataset_options '\{broken: drop\}'"
    ):
        open_row_image({"bytes": None, "path": str(path.parent / "1.png")})


def test_a_caption_of_any_length_is_fitted_at_once():
    tile = Image.new("RGB", (20, 20))
    drawn = contact_sheet.draw(
        [contact_sheet.Tile(tile, "x" * 200_000 + "end", ("two\nlines " * 20_000, "ok"))]
    )
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG")
    font = contact_sheet.ImageFont.load_default(11)
    short = contact_sheet._fit("a" * 500 + "z", font)
    assert short.startswith("a") and short.endswith("z") and "…" in short
    assert font.getlength(short) <= contact_sheet.TILE - 8 < font.getlength("a" + short)
    assert contact_sheet._fit("short", font) == "short"
