"""`vlmface data init` on columns of numbers: which are ratings, on which scale, and what is left to
the user."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.picture_folder import enter_folder, write_picture

from vlmface import data, label_spaces
from vlmface.cli import main
from vlmface.data.init import rating_columns

Cells = Callable[[int, np.random.Generator], Any]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with img/0.png to img/29.png."""
    return enter_folder(tmp_path, monkeypatch)


def whole(low: int, high: int) -> Cells:
    return lambda i, generator: (low, high)[i] if i < 2 else int(generator.integers(low, high + 1))


def real(low: float, high: float) -> Cells:
    return lambda i, generator: f"{(low, high)[i] if i < 2 else generator.uniform(low, high):.2f}"


def write(**columns: Cells) -> Path:
    generator = np.random.default_rng(0)
    with open("t.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", "person", *columns])
        for i in range(30):
            cells = [function(i, generator) for function in columns.values()]
            writer.writerow([f"img/{i}.png", f"P{i % 10:02d}", *cells])
    return Path("t.csv")


def init(*words: str) -> dict[str, Any]:
    assert main(["data", "init", "t.csv", "--output", "out.yaml", "--overwrite", *words]) == 0
    content: dict[str, Any] = yaml.safe_load(Path("out.yaml").read_text(encoding="utf-8"))
    return content


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["data", "init", "t.csv", "--output", "no.yaml", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and not Path("no.yaml").exists()
    return error


@pytest.mark.parametrize(
    ("name", "cells", "low", "high", "step"),
    [
        ("engagement", whole(0, 10), 0, 10, 1),
        ("engagement", real(0.4, 9.7), 0, 10, 1),
        ("Schmerz (VAS)", whole(1, 98), 0, 100, 10),
        ("pain_score", whole(-3, 3), -3, 3, 1),
        ("mean_rating", real(1.2, 4.9), 1, 5, 0.5),
        ("painRating", whole(1, 7), 1, 7, 1),
        ("valence", whole(1, 9), 1, 9, 1),  # not the built-in one from -1 to 1
        ("注意力评分", real(0, 1), 0, 1, 0.1),
        ("评分", real(0, 1), 0, 1, 0.1),
        ("label", real(1.1, 6.8), 1, 7, 1),
        ("Zugewandtheit", real(0.5, 9.5), 0, 10, 1),  # the only column of many numbers
        ("rating", whole(0, 3000), 0, 3000, 300),
    ],
)
def test_ratings_are_recognised(
    name: str, cells: Cells, low: float, high: float, step: float
) -> None:
    write(**{name: cells, "age": whole(20, 60), "trial_nr": whole(1, 70)})
    content = init()
    assert content["options"]["columns"]["label"] == name
    scale = content["label_space"]["scale"]
    assert (scale["min"], scale["max"], scale["step"]) == (low, high, step)
    rows = data.load("out.yaml", split="train")
    assert all(words and float(words[0]) is not None for words in rows["context"][:])


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("emotion", whole(1, 7)),
        ("label", whole(0, 25)),  # codes of many classes
        ("engagement", whole(0, 1)),
        ("engagement", whole(0, 3)),
        ("rating", whole(1, 4)),
    ],
)
def test_codes_of_classes_are_left_to_the_user(
    name: str, cells: Cells, capsys: pytest.CaptureFixture[str]
) -> None:
    write(**{name: cells})
    error = refused(capsys, "--label", name)
    assert "the labels are numbers" in error and f"--scale {name}=" in error
    option = error.strip().rpartition("--scale ")[2]
    content = init("--scale", option)
    assert content["label_space"]["scale"]["name"] == name


@pytest.mark.parametrize(
    "columns",
    [
        {"age": real(20, 60)},
        {"valence": real(-1, 1)},
        {"engagement_sd": real(0, 2)},
        {"timestamp": real(0, 99)},
        {"trial": whole(1, 99)},
        {"counter": lambda i, _: i},
        {"smile": whole(0, 1)},
        {"condition": whole(1, 30)},
    ],
)
def test_what_is_no_rating(columns: dict[str, Cells], capsys: pytest.CaptureFixture[str]) -> None:
    write(**columns)
    assert "no column was recognised as the label" in refused(capsys)


def test_words_and_action_units_come_first() -> None:
    write(state=lambda i, _: "ab"[i % 2], intensity=whole(0, 10))
    assert init()["label_space"]["labels"] == ["a", "b"]
    write(AU12=real(0, 5), AU4=real(0, 5), unknown=real(0, 10))
    assert init()["label_space"]["multi_label"] is True
    write(AU12=real(0, 5), AU4=real(0, 5), pain=real(0, 10))
    content = init()
    assert content["label_space"]["scale"]["max"] == 10 and content["prompt"] == "au_rationale"


def test_several_ratings_must_be_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    write(pain=real(0, 10), stress=real(0, 10))
    assert "--label pain" in refused(capsys)
    assert init("--label", "stress")["label_space"]["scale"]["name"] == "stress"
    assert init("--scale", "stress=0:20:2")["label_space"]["scale"]["step"] == 2


def test_the_step_follows_the_numbers() -> None:
    write(comfort=real(0, 1))
    assert init("--scale", "comfort=0:1")["label_space"]["scale"]["step"] == 0.1
    write(comfort=whole(0, 10))
    assert init("--scale", "comfort=0:10")["label_space"]["scale"]["step"] == 1


def test_a_code_for_missing_ratings(capsys: pytest.CaptureFixture[str]) -> None:
    write(engagement=lambda i, g: 99 if i % 9 == 4 else whole(0, 10)(i, g))
    assert "--labels 99=null" in refused(capsys)
    content = init("--labels", "99=null")
    assert content["label_space"]["scale"]["max"] == 10
    rows = data.load("out.yaml", split="train")["context"][:]
    assert None in rows and ["99"] not in rows
    assert init("--scale", "engagement=0:100")["label_space"]["scale"]["max"] == 100


def test_raters(capsys: pytest.CaptureFixture[str]) -> None:
    write(rater1=real(0, 10), rater2=real(0, 10))
    content = init()
    assert content["options"]["raters"] == ["rater1", "rater2"]
    assert content["label_space"]["scale"]["max"] == 10
    write(Anna=whole(0, 6), Ben=whole(0, 6))
    content = init("--raters", "Anna", "Ben", "--scale", "0:6:0.5")
    assert content["label_space"]["scale"] == {"min": 0, "max": 6, "step": 0.5}
    assert "mean of 2 raters" in capsys.readouterr().out


def test_decimal_commas() -> None:
    write(engagement=lambda i, g: real(0, 10)(i, g).replace(".", ","))
    content = init()
    assert content["options"]["decimal"] == ","
    assert content["label_space"]["scale"]["max"] == 10


@pytest.mark.parametrize(
    "words",
    [
        ("--scale", "engagement"),
        ("--scale", "engagement=0"),
        ("--scale", "engagement=10:0"),
        ("--scale", "engagement=0:10:0"),
        ("--scale", "engagement=0:10:3"),
        ("--scale", "engagement=nan:10"),
        ("--scale", "engagement=0:1e308"),
        ("--scale", "=0:10"),
        ("--scale", "engagement=0:5"),
        ("--scale", "other=0:10"),
        ("--scale", "engagement=0:10", "--label", "person"),
        ("--scale", "engagement=0:10", "--multi-label"),
        ("--scale", "engagement=0:10", "--ordered", "1", "2"),
        ("--scale", "engagement=0:10", "--label-space", "emotion8"),
    ],
)
def test_scales_that_do_not_fit(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    write(engagement=whole(0, 10))
    refused(capsys, *words)


def test_a_label_space_with_a_scale_and_a_long_name() -> None:
    name = "How engaged was the person? " * 6
    write(**{name: whole(0, 10)})
    Path("pain.yaml").write_text(
        "{id: pain, field: context, source: s, scale: {min: 0, max: 20, step: 2}}"
    )
    assert init("--label-space", "pain.yaml", "--label", name)["label_space"] == "pain.yaml"
    scale = init("--scale", f"{name}=0:10")["label_space"]["scale"]
    assert scale["name"].startswith("How engaged was") and len(scale["name"]) <= 100


def test_a_constant_column_and_too_few_rows(capsys: pytest.CaptureFixture[str]) -> None:
    write(engagement=lambda i, _: 5)
    assert "all rows have the label '5'" in refused(capsys)
    write(engagement=lambda i, g: whole(0, 10)(i, g) if i < 8 else "")
    assert "8 rows with a label" in refused(capsys)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 7), (-3, 3), (0, 100), (1, 9), (0, 3000)])
@pytest.mark.parametrize("are_whole", [False, True])
def test_usual_steps_divide_the_range(low: float, high: float, are_whole: bool) -> None:
    steps = (high - low) / rating_columns.usual_step(low, high, are_whole)
    assert steps == pytest.approx(round(steps)) and 1 <= steps <= 10


def test_data_check_shows_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    write(engagement=real(0, 10))
    init("--scale", "engagement=0:10:0.5")
    assert main(["data", "check", "out.yaml"]) == 0
    printed = capsys.readouterr().out
    assert "0 to 1" in printed and "9 to 10" in printed and "min, median, max" in printed
    assert Path("checks/out/sheet.png").exists()
    write(engagement=real(4, 5))
    init("--scale", "engagement=0:10")
    assert main(["data", "check", "out.yaml"]) == 0
    assert "less than half of the scale (0 to 10)" in capsys.readouterr().out
    text = Path("out.yaml").read_text().replace("max: 10", "max: 4")
    Path("out.yaml").write_text(text)
    assert main(["data", "check", "out.yaml"]) == 2
    assert "0 to 4" in capsys.readouterr().err


def test_ratings_in_folders_and_in_names_of_files(folder: Path) -> None:
    for i in range(30):
        write_picture(folder / f"byname/P{i % 10:02d}_{i % 7 + 1}_{i}.png", i)
        write_picture(folder / f"faces/{i % 5 + 1}/P{i % 10:02d}_{i}.png", i)
    words = ("--output", "out.yaml", "--overwrite", "--scale", "1:7")
    assert main(["data", "init", "faces", *words]) == 0
    space = label_spaces.space("out.yaml")
    assert space.scale is not None and space.scale.range_text == "1 to 7"
    labels = data.load("out.yaml", split="train")["context"][:]
    assert {x for words in labels for x in words} <= set("12345")
    named = ("--name-pattern", "{subject}_{label}_*")
    assert main(["data", "init", "byname", *words, *named]) == 0
    assert data.load("out.yaml", split="test")["context"][0][0] in "1234567"


def test_a_row_for_each_rating() -> None:
    generator = np.random.default_rng(0)
    lines = ["picture,person,rater,score"]
    for i in range(30):
        lines += [
            f"img/{i}.png,P{i % 10:02d},R{rater},{generator.integers(0, 11)}" for rater in range(3)
        ]
    Path("t.csv").write_text("\n".join(lines) + "\n")
    content = init()
    assert content["options"]["votes_in_rows"] is True
    assert content["label_space"]["scale"]["max"] == 10
    rows = data.load("out.yaml", split="train")["context"][:]
    assert any("." in words[0] for words in rows)
