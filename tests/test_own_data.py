"""docs/your-own-data.md word by word, on a table with foreign column names and own labels."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import own_labels
import pytest

from vlmface import data, manifest
from vlmface.cli import main
from vlmface.schema import FaceSample

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/your-own-data.md").read_text(encoding="utf-8")
LABELS = ("abgewandt", "neutral", "zugewandt")
SPELLINGS = (str.lower, str.title, str.lower, str.upper)  # the first is the most frequent


def state(sample: FaceSample) -> str:
    """A German label by the valence of the face, in mixed case."""
    assert sample.valence is not None
    word = "zugewandt" if sample.valence > 0.1 else "neutral"
    word = "abgewandt" if sample.valence < -0.3 else word
    return SPELLINGS[int(sample.id[-2:]) % len(SPELLINGS)](word)


def commands() -> list[list[str]]:
    """The commands of the first part of the page."""
    first = PAGE.partition("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", first, re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with study/gesichter.csv: 30 rows, 11 people."""
    folder = tmp_path / "study"
    folder.mkdir()
    header = ("Bilddatei", "Zustand", "VP")
    table = own_labels.write(folder, 30, header=header, label=state, people=11)
    table.rename(folder / "gesichter.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_page(extra: dict[str, list[str]], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the page's commands with further words for some of them; returns what they print."""
    texts = []
    assert [words[1] for words in commands()] == ["data", "data", "train", "eval"]
    for words in commands():
        assert words[0] == "vlmface"
        assert main([*words[1:], *extra.get(words[1], [])]) == 0, capsys.readouterr().out
        texts.append(capsys.readouterr().out)
    return "\n".join(texts)


def check_result(folder: Path) -> list[str | None]:
    """The answers; people are in one split, and the labels are those of the table."""
    people = {}
    for split in ("train", "validation", "test"):
        rows = data.load("study/gesichter.yaml", split=split)
        people[split] = set(rows["subject"])
        assert {word for words in rows["context"] for word in words} == set(LABELS)
    assert sum(map(len, people.values())) == len(set.union(*people.values())) == 11
    run = folder / "runs/gesichter"
    _, (prompt,) = manifest.load(run)
    assert prompt.space.labels == LABELS and "abgewandt, neutral, zugewandt" in str(
        prompt.messages()
    )
    scores = json.loads((run / "eval/gesichter/metrics.json").read_text())
    during = json.loads((run / "metrics.json").read_text())["after"]
    assert scores["attributes"] == during["attributes"] and scores["n"] == during["n"]
    lines = (run / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line)["label"] for line in lines]


def test_the_page_on_a_small_random_model(
    study: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--base_model", str(base), "--epochs", "1", "--cache_features", "false"]
    printed = run_page({"train": words}, capsys)
    assert "11 people" in printed and "30 of 30 files exist" in printed
    check_result(study)


@pytest.mark.slow
def test_the_page_word_by_word(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_page({}, capsys)
    answers = check_result(study)
    assert set(answers) <= set(LABELS)
    guesses = max(answers.count(label) for label in set(answers))
    assert guesses < len(answers), "one answer for all faces"
