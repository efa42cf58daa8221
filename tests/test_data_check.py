"""`vlmface data check`: what is wrong with a copy is found, named, and decides the exit code."""

from __future__ import annotations

import json
import shutil

import pytest
from miniatures import ckplus, dfew, face, rafdb, text
from PIL import Image

from vlmface import data
from vlmface.cli import main
from vlmface.data import check
from vlmface.errors import UserError
from vlmface.utils import contact_sheet


def aligned(root, name):
    return root / "Image" / "aligned" / name


def run(name, root, splits=(), output=None, **options):
    return check.check(name, root, output, splits=splits, workers=2, options=options)


def test_a_whole_copy_passes_and_other_counts_are_marked(tmp_path, capsys):
    rafdb.write(tmp_path / "data")
    out = tmp_path / "out"
    assert main(["data", "check", "rafdb", str(tmp_path / "data"), "--output_dir", str(out)]) == 0
    said = capsys.readouterr().out
    assert "7 [12,271]" in said and "1 [1,290]" in said
    assert "warning: train: not as published (8): rows 7 (published 12,271)" in said
    report = json.loads((out / "check.json").read_text())
    assert report["errors"] == []
    train = report["splits"]["train"]
    assert train["labels"]["emotion"] == dict.fromkeys(
        ["anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"], 1
    )
    assert train["sizes"] == {k: [100, 100] for k in ("usual", "smallest", "largest")}
    with Image.open(out / "sheet.png") as drawn:  # seven classes, at most two faces of one
        assert drawn.size == (2 * contact_sheet.TILE, 7 * (contact_sheet.TILE + 44))


def test_broken_and_leaking_copies_fail_with_names(tmp_path, capsys):
    rafdb.write(tmp_path)
    aligned(tmp_path, "train_00006.jpg").unlink()
    aligned(tmp_path, "train_00002.jpg").write_bytes(b"")
    shutil.copy(aligned(tmp_path, "train_00003.jpg"), aligned(tmp_path, "test_0001.jpg"))
    shutil.copy(aligned(tmp_path, "train_00004.jpg"), aligned(tmp_path, "train_00005.jpg"))
    listing = tmp_path / "EmoLabel" / "list_patition_label.txt"
    text(listing, *listing.read_text().splitlines(), "train_00099 five")
    out = tmp_path / "out"
    assert main(["data", "check", "rafdb", str(tmp_path), "--output_dir", str(out)]) == 1
    report = json.loads((out / "check.json").read_text())
    assert report["unreadable"] == {
        "Image/aligned/train_00006.jpg": "missing",
        "Image/aligned/train_00002.jpg": "is empty (0 bytes): copy it again from its source, or "
        "give a JPEG, PNG, WebP, BMP, GIF or TIFF image",
    }
    missing, unreadable, shared = report["errors"]
    assert missing == "train: files missing (1 of 7): Image/aligned/train_00006.jpg"
    assert unreadable.startswith("train: files that cannot be read (1): Image/aligned/train_00002")
    assert shared == "train, test: pictures in both (1): rafdb-train_00003 = rafdb-test_0001"
    said = capsys.readouterr().out
    assert "warning: train: left out, malformed line (1): list_patition_label.txt:10" in said
    assert "occur again (1, under different labels 1): rafdb-train_00004 = rafdb-train_000" in said


def test_a_part_may_be_checked_alone_and_a_split_that_is_not_there_is_an_error(tmp_path):
    rafdb.write(tmp_path)
    listing = tmp_path / "EmoLabel" / "list_patition_label.txt"
    text(listing, *listing.read_text().splitlines()[:-2])
    report = run("rafdb", tmp_path)
    assert list(report["splits"]) == ["train"]
    assert report["errors"] == [
        "test cannot be read: rafdb has no rows in split 'test' with these options"
    ]
    assert run("rafdb", tmp_path, splits=["train"])["errors"] == []
    with pytest.raises(UserError, match="no rows in split 'test'"):
        run("rafdb", tmp_path, splits=["test"])


def test_frames_of_clips_are_looked_at_and_clips_compared_as_wholes(tmp_path):
    dfew.write(tmp_path)
    report = run("dfew", tmp_path, **dfew.ARGUMENTS)
    assert report["errors"] == [] and report["duplicates"] == []
    frames = data.read("dfew", tmp_path, "train", **dfew.ARGUMENTS).columns["frames"]
    tested = data.read("dfew", tmp_path, "test", **dfew.ARGUMENTS).columns["frames"]
    shutil.copy(frames[0][0], frames[1][0])  # a frame in common is no duplicate
    for ours, theirs in zip(frames[2], tested[0], strict=True):
        shutil.copy(ours, theirs)
    report = run("dfew", tmp_path, **dfew.ARGUMENTS)
    assert len(report["duplicates"]) == 1 and "train, test: pictures in both (1)" in str(report)
    for frame in frames[3]:
        face(tmp_path / "other.png", 0).rename(frame)  # still a picture
    open(frames[4][1], "w").close()
    assert "train: files that cannot be read (1)" in str(run("dfew", tmp_path, **dfew.ARGUMENTS))


def test_subjects_in_two_splits_are_an_error_but_all_holds_the_others(tmp_path):
    ckplus.write(tmp_path / "ckplus")
    report = run("ckplus", tmp_path / "ckplus", **ckplus.ARGUMENTS)
    assert report["errors"] == [] and set(report["splits"]) == {"train", "test", "all"}
    for i in range(2):
        face(tmp_path / "table" / f"{i}.png", i)
    table = tmp_path / "table" / "faces.csv"
    text(table, "image,emotion,subject,split", "0.png,anger,Ann,train", "1.png,fear,Ann,test")
    report = run("table", table, splits=["train", "test"], split_column="split")
    assert report["errors"] == ["train, test: subjects in both (1): Ann"]


def test_pictures_inside_the_rows_are_looked_at_too(tmp_path):
    report = run("synth", None, splits=["test"], output=tmp_path, n=3)
    assert report["errors"] == [] and report["splits"]["test"]["files"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["check.json", "sheet.png"]


def test_a_mistyped_call_says_so_and_writes_nothing(tmp_path, capsys):
    out = ["--output_dir", str(tmp_path / "out")]
    rafdb.write(tmp_path / "data")
    for words, said in (
        (["rafdb", str(tmp_path / "gone")], "does not exist"),
        (["rafdbb"], "did you mean 'rafdb'"),
        (
            ["rafdb", str(tmp_path / "data"), "--dataset_options", "image=aligned"],
            "no option 'image'",
        ),
        (["rafdb", str(tmp_path / "data"), "--dataset_options", "images"], "written name=value"),
        (["rafdb", str(tmp_path / "data"), "--dataset_split", "dev"], "no split 'dev'"),
    ):
        assert main(["data", "check", *words, *out]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_of_the_command_line_get_the_type_that_the_data_set_asks_for():
    words = ["fold=2", "clips=01", "num_frames=8"]
    assert data.parse_options("dfew", words) == {"fold": 2, "clips": "01", "num_frames": 8}
    assert data.parse_options("rafdb", ["attributes=true"]) == {"attributes": True}
    with pytest.raises(UserError, match=r"option fold cannot be read from '\[1'"):
        data.parse_options("dfew", ["fold=[1"])


def test_a_sheet_keeps_shapes_leaves_gaps_and_shortens_captions(tmp_path):
    wide = contact_sheet.Tile(Image.new("RGB", (40, 20), "red"), "t" * 99, ("a", "b" * 99))
    drawn = contact_sheet.draw([wide, None, wide], columns=2)
    height = contact_sheet.TILE + 60
    assert drawn.size == (2 * contact_sheet.TILE, 2 * height)
    red = [drawn.getpixel((80, y)) == (255, 0, 0) for y in range(contact_sheet.TILE)]
    assert sum(red) == 80 and red[80]
    assert (
        not drawn.crop((contact_sheet.TILE, 0, 2 * contact_sheet.TILE, height))
        .convert("L")
        .point(lambda v: v < 255)
        .getbbox()
    )
    contact_sheet.write(tmp_path / "s.jpg", drawn)
    with pytest.raises(UserError, match=r"\.png or \.jpg"):
        contact_sheet.write(tmp_path / "s.txt", drawn)
