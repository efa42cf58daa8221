"""`vlmface data init` on the tables of OpenFace, py-feat and LibreFace, and on the files of FER2013
and FER+: what is written loads as what is written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from miniatures import face_tools, fer2013, ferplus, text

from vlmface import data
from vlmface.cli import main
from vlmface.data.tables.units import NO_UNIT


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(path: Path | str, *words: str) -> dict[str, Any]:
    """The YAML file that the command writes as out.yaml."""
    assert main(["data", "init", str(path), "--output", "out.yaml", "--overwrite", *words]) == 0
    content: dict[str, Any] = yaml.safe_load(Path("out.yaml").read_text(encoding="utf-8"))
    return content


def refused(capsys: pytest.CaptureFixture[str], path: Path | str, *words: str) -> str:
    assert main(["data", "init", str(path), "--output", "out.yaml", *words]) == 2
    assert not Path("out.yaml").exists()
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def loaded() -> dict[str, dict[str, Any]]:
    """{id: row} of all splits of out.yaml."""
    splits = data.dataset_module("out.yaml").present_splits(None)
    return {row["id"]: row for split in splits for row in data.load("out.yaml", split=split)}


def units(row: dict[str, Any]) -> dict[int, tuple[bool, float | None]]:
    return {unit["au"]: (unit["present"], unit["intensity"]) for unit in row["aus"]}


def test_openface_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The videos are found beside the tables; the AUs are the labels; a video is in one split."""
    processed = face_tools.write_openface_videos(folder)
    content = init(processed)
    printed = capsys.readouterr().out
    assert content["options"] == {"tool": "openface", "images": "videos", "au_labels": True}
    assert content["splits"]["by"] == "video" and content["prompt"] == "label"
    assert content["label_space"]["labels"] == [NO_UNIT, "AU1", "AU12", "AU28"]
    assert "5 of 5 named as their tables exist" in printed and "sft_labels" in printed
    rows = loaded()
    by_hand = data.load("table", processed, tool="openface", images=str(folder / "videos"))
    assert {row["id"]: row["aus"] for row in by_hand} == {i: r["aus"] for i, r in rows.items()}
    assert len(rows) == 20 and "table-v0/000003" not in rows  # success is 0
    assert units(rows["table-v0/000001#2"])[1] == (True, 2.0)  # the second face of a frame
    assert rows["table-v0/000001#2"]["context"] == ["AU1"]
    assert rows["table-v1/000001"]["context"] == [NO_UNIT]
    assert rows["table-v1/000002"]["context"] == ["AU12", "AU28"]
    videos = [
        {json.loads(meta)["video"] for meta in data.load("out.yaml", split=split)["meta"]}
        for split in ("train", "validation", "test")
    ]
    assert sum(map(len, videos)) == len(set.union(*videos)) == 5


def test_openface_of_one_video_is_split_by_frame(folder: Path) -> None:
    processed = face_tools.write_openface_videos(folder, videos=1, frames=12)
    assert init(processed / "v0.csv")["splits"]["by"] == "image"
    assert init(processed / "v0.csv", "--images", "videos")["options"]["images"] == "videos"


def test_openface_next_to_labels(folder: Path) -> None:
    table = face_tools.write_openface_with_labels(folder)
    content = init(table)
    assert content["options"] == {
        "tool": "openface",
        "columns": {"image": "picture", "subject": "person", "label": "state"},
        "images": "pictures",
    }
    assert content["prompt"] == "au_rationale" and content["splits"]["by"] == "subject"
    rows = loaded()
    assert len(rows) == 23 and "table-5.jpg" not in rows
    assert units(rows["table-1.jpg"]) == {4: (True, 3.5), 12: (False, 0.0)}
    assert units(rows["table-0.jpg"]) == {4: (False, 0.0), 12: (False, 2.0)}
    assert rows["table-1.jpg"]["context"] == ["bored"]


def test_openface_without_its_videos(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    processed = face_tools.write_openface_videos(folder)
    (folder / "videos").rename(folder.parent / f"{folder.name}-gone")
    assert "no video, picture or folder of frames is named as the table, 'v0'" in refused(
        capsys, processed
    )


def test_pyfeat(folder: Path) -> None:
    """Its emotions are votes, unless a column holds other labels."""
    table = face_tools.write_pyfeat_pictures(folder)
    content = init(table)
    assert content["options"] == {"tool": "pyfeat", "images": "faces"}
    assert (content["label_space"], content["prompt"]) == ("emotion7", "au_rationale")
    rows = loaded()
    assert len(rows) == 16 and "table-16.jpg" not in rows
    assert rows["table-0.jpg"]["emotion"] == "anger" and rows["table-0.jpg#2"]["face_box"]
    assert rows["table-0.jpg#2"]["emotion"] == "happiness"
    assert units(rows["table-0.jpg"]) == {1: (False, None), 4: (True, None), 12: (True, None)}
    assert rows["table-0.jpg"]["face_box"] == [5, 5, 25, 30]
    lines = table.read_text().splitlines()
    words = ["state", *("calm" if i % 3 else "tense" for i in range(len(lines) - 1))]
    text(table, *(f"{line},{word}" for line, word in zip(lines, words, strict=True)))
    content = init(table)
    assert content["options"]["columns"] == {"label": "state"}
    row = loaded()["table-0.jpg"]
    assert (row["context"], row["emotion"], row["label_votes"]) == (["tense"], None, None)


def test_libreface(folder: Path) -> None:
    table = face_tools.write_libreface_pictures(folder)
    content = init(table)
    assert content["options"] == {"tool": "libreface"}
    assert (content["label_space"], content["prompt"]) == ("emotion7", "au_rationale")
    rows = loaded()
    assert len(rows) == 16
    row = rows["table-faces/1.png"]
    assert row["emotion"] == "sadness"
    assert units(row) == {1: (True, pytest.approx(0.8)), 12: (False, None), 25: (False, 0.0)}
    lines = table.read_text().splitlines()
    words = ["mood", *("calm" if i % 3 else "tense" for i in range(len(lines) - 1))]
    text(table, *(f"{line},{word}" for line, word in zip(lines, words, strict=True)))
    content = init(table)
    assert content["options"]["columns"] == {"label": "mood", "emotion": None}
    assert content["label_space"]["labels"] == ["calm", "tense"]
    assert loaded()["table-faces/1.png"]["emotion"] is None


def test_action_units_of_a_plain_table_are_labels_if_there_are_no_others(folder: Path) -> None:
    lines = ["image,person,AU01,AU12"]
    lines += [f"faces/{i}.png,P{i % 7:02d},{i % 2},{9 if i == 3 else i % 3 % 2}" for i in range(16)]
    face_tools.write_libreface_pictures(folder)
    content = init(text(folder / "coded.csv", *lines))
    assert content["options"]["au_missing"] == [9] and content["options"]["au_labels"] is True
    rows = loaded()
    assert rows["table-faces/3.png"]["context"] == ["AU1"]  # AU12 was not coded there
    assert rows["table-faces/0.png"]["context"] == [NO_UNIT]


# --- files of known data sets --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fer2013.csv", "copy of fer.csv"])
def test_fer2013(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fer2013.write(folder)
    table = (folder / "fer2013.csv").rename(folder / name)
    assert "leave --label out" in refused(capsys, table, "--label", "emotion")
    content = init(table)
    assert content == {
        "dataset": "fer2013",
        "root": name,
        "label_space": "emotion7",
        "prompt": "label",
    }
    rows = {split: data.load("out.yaml", split=split) for split in ("train", "validation", "test")}
    assert [len(part) for part in rows.values()] == [10, 2, 3]
    assert rows["test"]["emotion"] == ["sadness", "anger", "disgust"]
    assert rows["test"][0]["image"].size == (48, 48)


def test_fer2013_with_a_face_that_is_cut_off(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text(folder / "fer2013.csv", "emotion, pixels, Usage", "3,1 2 3,Training")
    assert "line 2: 3 pixels, expected 48 x 48" in refused(capsys, "fer2013.csv")


def test_ferplus(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ferplus.write_votes(folder / "fer")
    assert "no faces" in refused(capsys, "fer/fer2013new.csv")
    ferplus.write(folder / "fer")
    for path in ("fer", "fer/fer2013new.csv"):
        content = init(path)
        assert content["dataset"] == "ferplus" and content["root"] == "fer/fer2013new.csv"
        rows = loaded()
        assert rows["ferplus-0000008"]["emotion"] == "contempt" and len(rows) == 9
        assert "ferplus-0000001" not in rows  # a tie
    Path("three.yaml").write_text(
        "{id: three, field: emotion, labels: [good, bad, none of both], aliases: "
        "{good: [happiness], bad: [anger, contempt, disgust, fear, sadness], none of both: "
        "[neutral, surprise]}, source: s}"
    )
    assert init("fer", "--label-space", "three.yaml")["label_space"] == "three.yaml"


# --- the commands that are printed ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["openface", "fer2013"])
def test_the_printed_commands(
    kind: str, folder: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "openface":
        path = face_tools.write_openface_videos(folder / "study")
    else:
        fer2013.write(folder / "study")
        path = folder / "study" / "fer2013.csv"
    assert main(["data", "init", str(path)]) == 0
    printed = capsys.readouterr().out
    commands = [line.split()[1:] for line in printed.splitlines() if line.startswith("  vlmface")]
    assert [words[0] for words in commands] == ["data", "train", "eval"]
    small = ["--base_model", str(base), "--epochs", "1", "--cache_features", "false"]
    for words in commands:
        more = small if words[0] == "train" else []
        assert main([*words, *more]) == 0, capsys.readouterr()
    scores = json.loads(next(Path("runs").rglob("eval/*/metrics.json")).read_text())
    block = scores["labels"] if kind == "openface" else scores["emotion"]
    assert block["n"] == scores["n"] > 0
