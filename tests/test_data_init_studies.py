"""`vlmface data init` on tables and folders as laboratories keep them: several raters, marks of 0
and 1, people in the names of files, titles above the header, ids instead of paths."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.picture_folder import enter_folder, write_picture

from vlmface import data
from vlmface.cli import main
from vlmface.utils import files

WORDS = ("happy", "sad", "angry")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with img/0.png to img/29.png."""
    return enter_folder(tmp_path, monkeypatch)


def write(
    name: str,
    header: Iterable[str],
    cells: Iterable[Sequence[Any]],
    delimiter: str = ",",
    encoding: str = "utf-8",
) -> Path:
    with open(name, "w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows([tuple(header), *cells])
    return Path(name)


def init(path: Path | str, *words: str) -> dict[str, Any]:
    """The YAML file that the command writes as out.yaml."""
    assert main(["data", "init", str(path), "--output", "out.yaml", "--overwrite", *words]) == 0
    content: dict[str, Any] = yaml.safe_load(Path("out.yaml").read_text(encoding="utf-8"))
    return content


def refused(capsys: pytest.CaptureFixture[str], path: Path | str, *words: str) -> str:
    capsys.readouterr()
    assert main(["data", "init", str(path), "--output", "refused.yaml", *words]) == 2
    assert not Path("refused.yaml").exists()
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def loaded() -> list[dict[str, Any]]:
    """The rows of all splits of out.yaml, in the order of their ids."""
    splits = data.dataset_module("out.yaml").present_splits(None)
    rows = [row for split in splits for row in data.load("out.yaml", split=split)]
    return sorted(rows, key=lambda row: row["id"])


# --- several raters -------------------------------------------------------------------------------


def test_a_column_for_each_rater(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [
        (f"img/{i}.png", WORDS[i % 3], WORDS[i % 3].upper(), WORDS[(i + 1) % 3], f"S{i % 8}")
        for i in range(30)
    ]
    table = write("t.csv", ("file", "Rater 1", "rater_2", "rater3", "person"), cells)
    content = init(table)
    assert content["options"]["raters"] == ["Rater 1", "rater_2", "rater3"]
    assert content["label_space"] == "emotion7"
    table = write("t.csv", ("file", "Anna", "Ben", "Carl", "person"), cells)
    assert "name them all, --raters Anna Ben Carl" in refused(capsys, table)
    content = init(table, "--raters", "Anna", "Ben", "Carl")
    assert content["options"]["raters"] == ["Anna", "Ben", "Carl"]
    row = next(row for row in loaded() if row["id"] == "table-img/0.png")
    assert row["emotion"] == "happiness"
    assert yaml.safe_load(row["label_votes"]) == {"happiness": 2, "sadness": 1, "anger": 0}


def test_a_row_for_each_rating_is_a_vote_and_its_rater_is_not_the_person_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cells = [
        (f"img/{i}.png", f"V{k}", "ab"[(i + (k == 0)) % 2], i / 10)
        for i in range(30)
        for k in range(5)
    ]
    table = write("t.csv", ("file", "participant", "answer", "valence"), cells)
    content = init(table)
    assert content["options"]["votes_in_rows"] is True
    assert "subject" not in content["options"]["columns"]
    assert content["splits"]["by"] == "image"
    rows = loaded()
    assert len(rows) == 30 and {row["context"][0] for row in rows} == {"a", "b"}
    assert all(sorted(yaml.safe_load(row["label_votes"]).values()) == [1, 4] for row in rows)
    assert "names who rated the picture" in refused(capsys, table, "--subject", "participant")
    cells = [(*row[:3], f"P{int(row[0][4:-4]) % 8}") for row in cells]
    table = write("t.csv", ("file", "participant", "answer", "actor"), cells)
    content = init(table)
    assert content["options"]["columns"]["subject"] == "actor"
    assert content["splits"]["by"] == "subject"


# --- a column for each label ----------------------------------------------------------------------


def test_columns_of_0_and_1(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(f"img/{i}.png", *(int(i % 3 == k) for k in range(3)), f"S{i % 8}") for i in range(30)]
    content = init(write("t.csv", ("file", "offen", "zu", "unklar", "VP"), rows))
    assert content["options"]["votes"] == ["offen", "zu", "unklar"]
    assert {tuple(row["context"]) for row in loaded()} == {("offen",), ("zu",), ("unklar",)}
    both = [(*row[:2], 1, *row[3:]) for row in rows]
    table = write("t.csv", ("file", "offen", "zu", "unklar", "VP"), both)
    assert "--label-columns offen zu unklar" in refused(capsys, table)
    content = init(table, "--label-columns", "offen", "zu", "unklar")
    assert content["label_space"]["multi_label"] is True
    assert loaded()[0]["context"] == ["offen", "zu"]
    content = init(write("t.csv", ("file", "happy", "sad", "angry", "VP"), both))
    assert content["label_space"]["multi_label"] is True
    assert loaded()[0]["context"] == ["happy", "sad"]


# --- names of files -------------------------------------------------------------------------------


def test_people_in_the_names_of_files() -> None:
    names = [f"P{i % 8:02d}_{WORDS[i % 3]}_{i:02d}.png" for i in range(30)]
    for i, name in enumerate(names):
        write_picture(Path("named") / name, i)
        write_picture(Path("folders") / WORDS[i % 3] / name, i)
    content = init(
        write("t.csv", ("file", "label"), [(n, WORDS[i % 3]) for i, n in enumerate(names)])
    )
    assert content["options"]["name_pattern"] == "{subject}_*"
    assert content["splits"]["by"] == "subject"
    assert loaded()[0]["subject"] == "P00"
    content = init("folders")
    assert content["options"] == {"name_pattern": "{subject}_*"}
    assert content["splits"]["by"] == "subject" and len({r["subject"] for r in loaded()}) == 8
    assert init("folders", "--subject", "none")["splits"]["by"] == "image"


def test_labels_in_the_names_of_files(capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(30):
        write_picture(Path(f"flat/P{i % 8}_{WORDS[i % 3]}_{i}.png"), i)
    assert "--name-pattern '{subject}_{label}_*'" in refused(capsys, "flat")
    content = init("flat", "--name-pattern", "{subject}_{label}_*")
    assert content["label_space"] == "emotion7" and content["splits"]["by"] == "subject"
    assert {row["emotion"] for row in loaded()} == {"happiness", "sadness", "anger"}
    assert "does not fit name_pattern" in refused(capsys, "flat", "--name-pattern", "{label}-*")


# --- where pictures are ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "kind"),
    [("{}", "stem"), ("{}.JPG", "stem"), ("C:\\Users\\me\\faces\\{}.png", "name")],
)
def test_pictures_are_found_by_their_names_alone(cell: str, kind: str) -> None:
    cells = [(cell.format(i), WORDS[i % 3], f"S{i % 8}") for i in range(30)]
    content = init(write("t.csv", ("StimulusID" if cell == "{}" else "path", "label", "VP"), cells))
    assert content["options"]["find_images"] == kind
    assert loaded()[0]["id"] == "table-img/0.png"


def test_names_alone_do_not_confuse_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    """A relative path is not that of a picture in another folder, unless that folder is named; and
    two paths are not the same picture."""
    cells = [(f"other/{i}.png", WORDS[i % 3], f"S{i % 8}") for i in range(30)]
    table = write("t.csv", ("file", "label", "person"), cells)
    assert "no file of column 'file' exists" in refused(capsys, table)
    assert init(table, "--images", "img")["options"]["find_images"] == "name"
    cells[1] = ("another/0.png", *cells[1][1:])
    table = write("t.csv", ("file", "label", "person"), cells)
    assert "another picture than 'other/0.png'" in refused(capsys, table, "--images", "img")
    for i in range(30):
        write_picture(Path(f"img/again/{i}.png"), i)
    assert "and not of 0.png and again/0.png" in refused(capsys, table, "--images", "img")


def test_missing_pictures_are_left_out_where_the_file_says_so() -> None:
    cells = [(f"img/{i + 3}.png", WORDS[i % 3], f"S{i % 8}") for i in range(30)]
    table = write("t.csv", ("file", "label", "person"), cells)
    init(table)
    assert main(["data", "check", "out.yaml"]) == 1
    with Path("out.yaml").open("a") as file:
        file.write("missing: drop\n")
    with pytest.warns(UserWarning, match="without an image file are left out"):
        assert len(loaded()) == 27
    assert main(["data", "check", "out.yaml"]) == 0


def test_files_of_systems_and_empty_folders_are_not_labels() -> None:
    for i in range(12):
        write_picture(Path(f"faces/{WORDS[i % 2]}/{i}.png"), i)
    for junk in ("happy/._0.png", "__MACOSX/happy/._1.png", "happy/Thumbs.db", ".DS_Store"):
        Path("faces", junk).parent.mkdir(parents=True, exist_ok=True)
        Path("faces", junk).write_bytes(b"\0")
    Path("faces/leer").mkdir()
    content = init("faces")
    assert content["label_space"] == "emotion7" and len(loaded()) == 12


# --- tables of spreadsheets -----------------------------------------------------------------------


def test_titles_sheets_and_encodings(capsys: pytest.CaptureFixture[str]) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    cells = [(f"img/{i}.png", ("müde", "wach")[i % 2], f"S{i % 8}") for i in range(30)]
    book = openpyxl.Workbook()
    book.active.append(["Studie 2024", "Dr. X"])
    sheet = book.create_sheet("Daten")
    for row in [("Ratings",), (), ("Bild", "Zustand", "VP"), *cells]:
        sheet.append(row)
    book.save("study.xlsx")
    with pytest.warns(UserWarning, match="the header is in row 3"):
        content = init("study.xlsx")
    assert content["options"]["sheet"] == "Daten"
    with pytest.warns(UserWarning, match="the header is in row 3"):
        assert init("study.xlsx", "--sheet", "Daten") == content
    table = write("t.csv", ("Bild", "Zustand", "VP"), cells, ";", "cp1252")
    assert "cp1252: 'img/0.png;müde;S0'" in refused(capsys, table)
    assert init(table, "--encoding", "cp1252")["label_space"]["labels"] == ["müde", "wach"]
    text = table.read_text(encoding="cp1252")
    for title in ("Ratings\n", "Ratings;;\n\n", "Ratings;;\n;;\n", ";;\nRatings;;\nDr. X;;\n;;\n"):
        table.write_text(title + text, encoding="utf-8")
        with pytest.warns(UserWarning, match="the header is in line"):
            assert init(table)["label_space"]["labels"] == ["müde", "wach"]


def test_decimal_commas_of_affect() -> None:
    cells = [(f"img/{i}.png", "ab"[i % 2], f"{i / 30:.2f}".replace(".", ",")) for i in range(30)]
    content = init(write("t.csv", ("Bild", "Zustand", "Valenz"), cells, ";"))
    assert content["options"]["decimal"] == ","
    assert content["options"]["columns"]["valence"] == "Valenz"
    assert max(row["valence"] for row in loaded()) == pytest.approx(0.97)


# --- labels ---------------------------------------------------------------------------------------


def test_typing_errors_are_named_together(capsys: pytest.CaptureFixture[str]) -> None:
    words = [WORDS[i % 3] for i in range(30)]
    words[4], words[6] = "hapy", "sadd"
    cells = [(f"img/{i}.png", word, f"S{i % 8}") for i, word in enumerate(words)]
    table = write("t.csv", ("file", "label", "person"), cells)
    error = refused(capsys, table)
    assert "'hapy' (line 6), 'sadd' (line 8)" in error and "--labels hapy=happy sadd=sad" in error
    assert init(table, "--labels", "hapy=happy", "sadd=sad")["label_space"] == "emotion7"


def test_numbers_as_a_scale_or_with_a_codebook(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [(f"img/{i}.png", i % 3 + 1, f"S{i % 8}") for i in range(30)]
    table = write("t.csv", ("file", "freundlich", "VP"), cells)
    assert "such as --label freundlich" in refused(capsys, table)
    assert "--ordered 1 2 3" in refused(capsys, table, "--label", "freundlich")
    book = write(
        "codes.csv", ("code", "meaning"), [(1, "anger"), (2, "fear"), (3, "joy"), (4, "x")]
    )
    content = init(table, "--label", "freundlich", "--labels", str(book))
    assert content["options"]["labels"] == {"1": "anger", "2": "fear", "3": "joy"}


# --- other messages -------------------------------------------------------------------------------


def test_splits_by_picture_are_not_an_error_where_there_is_one_person() -> None:
    cells = [(f"img/{i}.png", WORDS[i % 3], "S1") for i in range(30)]
    assert init(write("t.csv", ("file", "label", "person"), cells))["splits"]["by"] == "image"
    assert main(["data", "check", "out.yaml"]) == 0


def test_a_folder_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    cells = [(f"img/{i}.png", WORDS[i % 3], f"S{i % 8}") for i in range(30)]
    table = write("t.csv", ("file", "label", "person"), cells)
    monkeypatch.setattr(files, "atomic_write", deny)
    error = refused(capsys, table)
    assert "refused.yaml cannot be written: Permission denied: name another file" in error


def test_tables_without_rows_and_files_that_do_not_exist(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = write("t.csv", ("file", "label"), [])
    assert "t.csv has a header, but no rows" in refused(capsys, table)
    assert main(["data", "check", "gone.yaml"]) == 2
    assert "gone.yaml does not exist: write one with `vlmface data init`" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["data", "init", "t.csv", "--Label", "x"])
    assert "`vlmface data init --help` lists the options" in capsys.readouterr().err
