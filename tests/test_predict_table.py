"""`vlmface predict`: tables, names from standard input, several faces of a picture."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from helpers.fake_teacher import FakeTeacher, Reply
from helpers.samples import picture
from PIL import Image

from vlmface import prompts
from vlmface.answers import Answer
from vlmface.cli import main
from vlmface.data import detect
from vlmface.data.face_search import FaceSearch
from vlmface.infer import Predictor
from vlmface.infer.face_views import ViewSettings
from vlmface.infer.prediction import Prediction

PROMPT = prompts.load("face_cot")
RATIONALE = '=HYPERLINK("http://x")\nThe brows, lowered, meet (AU4).'


class Fake:
    """A backend whose answer is always the same; `images` are those that it received."""

    prompts = (PROMPT,)

    def __init__(self, fail_at: int | None = None) -> None:
        self.images: list[Any] = []
        self.fail_at = fail_at

    def predict(self, prompt: Any, images: Any, batch_size: int) -> list[Prediction]:
        self.images += images
        if self.fail_at is not None and len(self.images) >= self.fail_at:
            raise KeyboardInterrupt
        answer = Answer("anger", (4, 12), "strict", RATIONALE)
        likely = {**dict.fromkeys(PROMPT.space.labels, 0.03), "anger": 0.79}
        return [Prediction("text", answer, likely, 0.1, True) for _ in images]

    def close(self) -> None:
        pass


Load = Callable[..., Fake]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Replaces the model of the next command by a Fake."""

    def replace(fake: Fake | None = None, faces: str = "none") -> Fake:
        fake = fake or Fake()
        settings = ViewSettings(faces=faces)
        predictor = Predictor(fake, view_settings=settings)  # type: ignore[arg-type]
        monkeypatch.setattr(Predictor, "load", lambda *_, **__: predictor)
        return fake

    return replace


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with four pictures, one of them with a name like a formula, and a text."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a.png", "b.png", "c.png", "=d.png")):
        (tmp_path / "in").mkdir(exist_ok=True)
        picture(seed).save(tmp_path / "in" / name)
    (tmp_path / "in" / "text.jpg").write_text("not an image")
    return tmp_path


def predict(*words: str) -> int:
    return main(["predict", *words, "--model", "run"])


def table(path: str = "out.csv") -> pandas.DataFrame:
    return pandas.read_csv(path)


# --- the table -----------------------------------------------------------------------------------


def test_a_row_for_each_file(folder: Path, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    load()
    assert predict("in", "missing.png", "--csv", "out.csv") == 2
    rows = table()
    assert list(rows["image"]) == [
        *("in/=d.png", "in/a.png", "in/b.png", "in/c.png", "in/text.jpg", "missing.png")
    ]
    assert len(Path("out.csv").read_text().splitlines()) == 1 + len(rows)
    good = rows[rows["error"].isna()]
    assert list(good["emotion"]) == ["anger"] * 4 and list(good["aus"]) == ["AU4 AU12"] * 4
    assert good["emotion_probability"].tolist() == [0.79] * 4 == good["p_emotion_anger"].tolist()
    assert set(good["emotion_status"]) == {"strict"} and good["face"].isna().all()
    assert {f"p_emotion_{label}" for label in PROMPT.space.labels} < set(rows)
    assert good["rationale"][0] == "'" + " ".join(RATIONALE.split())
    assert (rows["model"] == "run").all() and (rows["faces"] == "none").all()
    bad = rows[rows["error"].notna()]
    assert bad["emotion"].isna().all() and "does not exist" in bad["error"].iloc[1]
    printed = capsys.readouterr()
    assert printed.out == "out.csv: 4 faces in 4 images; errors: 2\n"
    assert [line[:6] for line in printed.err.splitlines()] == ["error:"] * 2


def test_cells_are_not_formulas(folder: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    load()
    monkeypatch.chdir(folder / "in")
    assert predict("=d.png", "@x.png", "--csv", "out.csv") == 2
    with open("out.csv", encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert {"'=d.png", "'@x.png"} <= set(cells)


def test_an_interrupted_table_is_continued(folder: Path, load: Load) -> None:
    words = ("in/a.png", "in/b.png", "in/c.png", "in/=d.png", "--csv", "out.csv")
    load(Fake(fail_at=3))
    assert predict(*words, "--batch_size", "1") == 130
    assert list(table()["image"]) == ["in/a.png", "in/b.png"]
    first = Path("out.csv").read_bytes()
    Path("out.csv").write_bytes(first + "in/c.png,1,ä".encode()[:-1])  # killed while it was written
    fake = load()
    assert predict(*words) == 0
    assert len(fake.images) == 3  # the row before the cut may be one of several of its file
    assert sorted(table()["image"]) == sorted(words[:4])
    load(Fake(fail_at=0))
    whole = Path("out.csv").read_bytes()
    assert predict("in/a.png", *words) == 0 and Path("out.csv").read_bytes() == whole


def test_failed_files_are_tried_again(folder: Path, load: Load) -> None:
    load()
    assert predict("in", "--csv", "out.csv") == 2
    picture(9).save(folder / "in" / "text.jpg")
    load()
    assert predict("in/a.png", "--csv", "out.csv") == 0
    assert table()["error"].notna().sum() == 1  # of a file that this call did not name
    fake = load()
    assert predict("in", "--csv", "out.csv") == 0 and len(fake.images) == 1
    assert len(table()) == 5 and table()["error"].isna().all()


def test_another_table_is_refused(
    folder: Path, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    load()
    assert predict("in/a.png", "--csv", "out.csv") == 0
    before = Path("out.csv").read_bytes()
    Path("mine.csv").write_text("name,age\nAnna,33\n")
    Path("zip.csv").write_bytes(b"PK\3\4\xff\xfe")
    capsys.readouterr()
    other = ["predict", "in/b.png", "--model", "other", "--csv"]
    for words, text in (
        ([*other, "out.csv"], "rows with model 'run', not 'other'"),
        ([*other, "mine.csv"], "its columns are name, age"),
        ([*other, "zip.csv"], "it cannot be read"),
        ([*other, "in"], "is a folder"),
        ([*other[:-1], "--overwrite"], "--overwrite is about the table of --csv"),
        ([*other, "out.csv", "--box", "1", "1", "9", "9"], "use --json"),
    ):
        load()
        assert main(words) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1
    load()
    assert predict("in/b.png", "--csv", "out.csv", "--faces", "largest") == 2
    assert "rows with faces 'none', not 'largest'" in capsys.readouterr().err
    assert Path("out.csv").read_bytes() == before
    load()
    assert main([*other, "mine.csv", "--overwrite"]) == 0
    assert list(table("mine.csv")["image"]) == ["in/b.png"]
    with pytest.raises(SystemExit):
        main([*other, "x.csv", "--json"])


def test_a_face_without_an_answer_is_a_row(folder: Path, run_dir: Path) -> None:
    replies = iter([Reply("<think>AU12.</think>\n<answer>happiness</answer>"), Reply(status=400)])
    words = ["predict", "in/a.png", "in/b.png", "--run_dir", str(run_dir), "--faces", "none"]
    with FakeTeacher(lambda _: next(replies)) as server:
        assert main([*words, "--model", server.url, "--csv", "out.csv"]) == 2
    rows = table()
    assert sorted(rows["emotion"].fillna("")) == ["", "happiness"]
    (error,) = rows["error"].dropna()
    assert "HTTP 400" in error and rows["emotion_probability"].isna().all()
    assert str(run_dir) in rows["model"][0]


def test_the_bar_is_for_terminals(
    folder: Path, load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load()
    assert predict("in/a.png", "--csv", "out.csv") == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    load()
    assert predict("in/a.png", "--csv", "out.csv", "--overwrite") == 0
    assert "1/1" in capsys.readouterr().err


# --- names from standard input -------------------------------------------------------------------


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def replace(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))

    return replace


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"in/a.png\nin/=d.png\n", ()),
        (b"in/a.png\r\n\r\nin/=d.png", ()),
        (b"in/a.png\0in/=d.png\0", ("--null",)),
    ],
)
def test_names_from_standard_input(
    folder: Path,
    load: Load,
    stdin: Callable[[bytes], None],
    content: bytes,
    words: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    load()
    stdin(content)
    assert predict("-", "in/b.png", "--json", *words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == ["in/a.png", "in/=d.png", "in/b.png"]
    assert [line["face"] for line in lines] == [None] * 3


def test_names_with_any_bytes(folder: Path, load: Load, stdin: Callable[[bytes], None]) -> None:
    name = b"in/two\nlines\xff.png"
    picture(8).save(folder / "in" / "x.png")
    os.rename(b"in/x.png", name)
    load()
    stdin(name + b"\0")
    assert predict("-", "--null", "--csv", "out.csv") == 0
    assert table()["image"][0] == r"in/two\nlines\udcff.png"
    fake = load()
    stdin(name + b"\0")
    assert predict("-", "--null", "--csv", "out.csv") == 0 and fake.images == []


@pytest.mark.parametrize(
    ("content", "words", "text"),
    [
        (b"", ("-",), "standard input has no names"),
        (b"\n\n", ("-",), "standard input has no names"),
        (b"a.png\0b.png\0", ("-",), "pass --null"),
        (b"", ("in/a.png", "--null"), "--null is about names on standard input"),
    ],
)
def test_standard_input_that_names_nothing(
    folder: Path,
    load: Load,
    stdin: Callable[[bytes], None],
    content: bytes,
    words: tuple[str, ...],
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    load()
    stdin(content)
    assert predict(*words) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


# --- several faces of a picture ------------------------------------------------------------------


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Finds two faces in wide pictures, the largest first, and none in others."""
    meshes = [
        np.array([[10.0, 10.0], [60.0, 70.0]]),
        np.array([[100.0, 20.0], [130.0, 60.0]]),
    ]

    def search(_: Predictor, image: Image.Image) -> FaceSearch:
        return FaceSearch(meshes if image.size[0] > 100 else [], 20)

    monkeypatch.setattr(Predictor, "_search", search)
    monkeypatch.setattr(Predictor, "_quick_search", search)
    monkeypatch.setattr(detect, "unavailable_reason", lambda: None)
    yield


@pytest.mark.usefixtures("detector")
def test_all_faces_the_largest_first(
    folder: Path, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (160, 90), (90, 140, 90)).save("two.png")
    words = ("in/a.png", "two.png", "--faces", "all")
    load(faces="largest")
    assert predict(*words, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    keys = ("image", "face", "face_found")
    assert [tuple(line[key] for key in keys) for line in lines] == [
        ("in/a.png", None, False),
        ("two.png", 1, True),
        ("two.png", 2, True),
    ]
    assert [line["box"] and line["box"][0] for line in lines] == [None, 10.0, 100.0]
    load(faces="largest")
    assert predict(*words, "--csv", "out.csv") == 0
    assert "out.csv: 2 faces in 2 images; images without a face: 1" in capsys.readouterr().out
    rows = table()
    assert list(rows["image"]) == ["in/a.png", "two.png", "two.png"]
    assert list(rows["face"].fillna(0)) == [0, 1, 2]
    assert list(rows["face_found"]) == [False, True, True]
    assert list(rows["left"].fillna(-1)) == [-1, 10, 100] and rows["emotion"].isna()[0]
    load(faces="largest")
    assert predict(*words) == 0
    out = capsys.readouterr().out
    assert "a.png: no face found" in out and "two.png, face 2: anger" in out
