"""FEA-20K: stages that repeat images, rows that are marked as not valid, AUs that are only listed
where they are present, reasoning inside tags."""

from __future__ import annotations

import json

import pytest
from miniatures import fea20k, text
from miniatures.records import presence, write_lines

from vlmface import data, prompts
from vlmface.errors import UserError
from vlmface.schema import FaceSample

IDS = ["FABA-001", "FABA-002", "FABA-004", "FABA-005", "FER2013-001", "FER2013-002"]


def test_stage_1_alone_is_the_training_set_and_only_what_is_said_is_annotated(tmp_path):
    fea20k.write(tmp_path)
    rows = data.load("fea20k", tmp_path)
    assert rows["id"] == [f"fea20k-{name}" for name in IDS]
    assert rows["emotion"] == ["anger", "happiness", None, None, "surprise", "happiness"]
    assert presence(rows) == [{4: True, 23: True}, {12: True}, None, {6: True}, None, None]
    assert rows["rationale"] == [
        "The brows are drawn together (AU4).",
        "The lip corners are pulled up.",
        *["The brows are drawn together (AU4)."] * 3,
        None,
    ]
    assert rows["rationale_source"] == ["teacher"] * 5 + ["none"]
    assert rows["rationale_saw_label"] == [True] * 5 + [False]
    meta = [json.loads(row) for row in rows["meta"]]
    assert [m["labels"] for m in meta] == [
        ["anger"],
        ["happiness"],
        ["anger", "disgust"],
        ["Confusion"],
        ["surprise"],
        ["Happy"],
    ]
    assert [m["answer"] for m in meta] == ["anger", None, "anger", "anger", "anger", None]
    assert meta[0] == {
        "answer": "anger",
        "labels": ["anger"],
        "prompt": "What is the emotion of this face?",
        "source": "FABA",
        "source_info": {"number": 1},
    }
    assert meta[5]["prompt"] == ""
    test = data.load("fea20k", tmp_path, "test")
    assert (test["emotion"], presence(test)) == (["neutral"], [{43: True}])


def test_what_is_skipped_is_listed(tmp_path):
    fea20k.write(tmp_path)
    rows = data.dataset_module("fea20k").read(tmp_path, "train")
    assert rows.skipped == {
        "marked as not valid": [f"{tmp_path / 'FABA-Train-stage1.jsonl'}, line 3"],
        "not one image": [f"{tmp_path / 'FER2013-Train-stage1.jsonl'}, line 3"],
    }


def test_an_au_set_makes_the_rest_absent_only_where_aus_were_coded(tmp_path):
    fea20k.write(tmp_path)
    rows = data.load("fea20k", tmp_path, au_set=["AU4", 12])
    assert presence(rows) == [
        {4: True, 12: False, 23: True},
        {4: False, 12: True},
        {4: False, 12: False},
        {4: False, 6: True, 12: False},
        None,
        None,
    ]
    with pytest.raises(UserError, match="'AU99' is not a known action unit"):
        data.load("fea20k", tmp_path, au_set="AU99")


def test_the_rationale_fits_the_prompt_that_puts_tags_around_it(tmp_path):
    fea20k.write(tmp_path)
    sample = FaceSample.from_row(data.load("fea20k", tmp_path)[0])
    assert prompts.load("facial_r1").target(sample) == fea20k.THINK


def test_files_and_image_folders_can_be_named(tmp_path):
    fea20k.write(tmp_path / "jsonl")
    (tmp_path / "jsonl" / "FABA").rename(tmp_path / "FABA")
    lines = tmp_path / "jsonl" / "FABA-Train-stage2.jsonl"
    for files in ("FABA*stage2.jsonl", ["FABA-Train-stage2.jsonl"]):
        rows = data.load("fea20k", lines.parent, images=str(tmp_path), files=files)
        assert len(rows) == 4
    write_lines(lines, fea20k.record(1, "FABA", image="1.jpg"))
    folders = {"FABA": str(tmp_path / "FABA")}
    assert len(data.load("fea20k", lines.parent, images=folders, files=lines.name)) == 1
    with pytest.raises(UserError, match=r"'dataset' is 'FER2013', expected one that images= has"):
        data.load("fea20k", lines.parent, files="FER*", images=folders)
    with pytest.raises(UserError, match=r"has no file X\.jsonl .*it holds FABA-Test\.jsonl"):
        data.load("fea20k", lines.parent, files="X.jsonl")
    with pytest.raises(UserError, match="give names or patterns"):
        data.load("fea20k", lines.parent, files="/X.jsonl")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": "/etc/passwd"}, "'image' is '/etc/passwd', expected a path inside"),
        ({"image": ["a/../../b.jpg"]}, "inside the image folder"),
        ({"image": {"path": "a.jpg"}}, "'image' is .*a list of texts"),
        ({"labels": ["angry face"]}, "'labels' is 'angry face', expected one of anger"),
        ({"labels": "anger"}, "'labels' is 'anger', expected a list"),
        ({"AUs": ["AU4", "AU99"]}, "'AUs': 'AU99' is not a known action unit"),
        ({"AUs": [4]}, r"'AUs' is \[4\], expected a list of texts"),
        ({"dataset": None}, "'dataset' is None, expected a text"),
        ({"id": ["x"]}, r"'id' is \['x'\]"),
        ({"description": {"text": "x"}}, "'description' is"),
    ],
)
def test_a_wrong_record_is_named_with_its_file_and_line(tmp_path, fields, message):
    fea20k.write(tmp_path)
    path = tmp_path / "FABA-Train-stage1.jsonl"
    write_lines(path, fea20k.FABA[0], fea20k.record(2, "FABA") | fields)
    with pytest.raises(UserError, match=message) as error:
        data.load("fea20k", tmp_path, files=path.name)
    assert str(error.value).startswith(f"{path}, line 2: ")


def test_lines_are_counted_as_an_editor_counts_them(tmp_path):
    path = tmp_path / "a.jsonl"
    text(path, '{"x": "one\u2028two"}', "", "[1]")
    with pytest.raises(UserError, match=r"a\.jsonl, line 3: found \[1\], expected a record"):
        data.load("fea20k", tmp_path, files="a.jsonl")
    path.write_bytes(b"{}\n{}\n{\xff}\n")
    with pytest.raises(UserError, match="line 3: byte"):
        data.load("fea20k", tmp_path, files="a.jsonl")
