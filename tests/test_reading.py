"""Data as people have it: encodings, line ends, spreadsheets' habits, other tools' texts and
names. What is unambiguous is read; anything else is one message, and nothing is lost silently."""

from __future__ import annotations

import codecs
import importlib
import json
import os
import re
import unicodedata
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers.tables import emotions, faces, failure, table, write
from miniatures import face, text
from miniatures.records import presence
from PIL import Image
from pyarrow import parquet

from vlmface import data
from vlmface.cli import main
from vlmface.data import check, sources, text_files
from vlmface.errors import UserError
from vlmface.train import text_only
from vlmface.utils.images import SUFFIXES, find_images, open_image

pytestmark = pytest.mark.usefixtures("cache")


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
    report = check.check("table", listed)
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
        ("splits=[train]", "splits is ['train'], but must be a mapping"),
        ("aus=3", "aus is 3, but must be text or a list"),
        ("aus=[1, 4]", "aus is [1, 4], but must be"),
        ("aus=*_c", "option aus cannot be read from '*_c'"),
        ("au_threshold=high", "au_threshold is 'high', but must be a number or null"),
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


def test_a_column_that_is_a_number_is_not_in_the_table(tmp_path, capsys):
    path = table(tmp_path, "image,AU1\n0.png,0\n")
    words = ["--dataset_options", "columns={image: 3}"]
    assert checked("table", path, *words, tmp_path=tmp_path) == 2
    assert "names the column 3, but" in capsys.readouterr().err


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
