from __future__ import annotations

import base64
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import pytest
from helpers.fake_run import ABOUT, AUS, SPACE, faces, random_rows, row, write_lines, write_run
from helpers.run_files import read_metrics
from PIL import Image

from vlmface.errors import UserError
from vlmface.evaluate.report import write_report
from vlmface.label_spaces import SPACES
from vlmface.metrics import metrics
from vlmface.utils.html import MAX_SIDE

HOSTILE = "</blockquote><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}"
BASELINE: dict[str, Any] = {
    "name": "small CNN",
    "source": "trained on the same faces & labels",
    "emotion": {"accuracy": 0.715},
    "au": {"f1_macro": 0.622, "per_au": {"AU4": {"f1": 0.333}}},
}


class Page(HTMLParser):
    """Checks that tags nest, and collects them with their attributes and the visible text."""

    VOID = ("meta", "img", "line", "polyline", "br")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        words: list[str] = []
        self.words = words
        self.feed(self.source)
        self.close()
        assert not self.open
        self.text = re.sub(r"\s+", " ", " ".join(words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def count(self, tag: str, css: str = "") -> int:
        return sum(t == tag and css in (a.get("class") or "").split(" ") for t, a in self.tags)

    def images(self) -> list[Image.Image]:
        sources = [a["src"] or "" for t, a in self.tags if t == "img"]
        heads = {source.partition(",")[0] for source in sources}
        assert heads <= {"data:image/jpeg;base64"}
        return [
            Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources
        ]


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, dict[str, Image.Image]]:
    before = random_rows(120, 1, unparsed=0.6, skill=0.1)
    after = random_rows(120, 2, unparsed=0.05, skill=0.7)
    after[0]["text"] = HOSTILE
    write_run(tmp_path, after, before)
    return tmp_path, faces(after)


def test_a_training_run(run: tuple[Path, dict[str, Image.Image]]) -> None:
    folder, images = run
    path = write_report(folder, images=images, baseline=BASELINE)
    assert path == folder / "report.html"
    page = Page(path)
    scores = read_metrics(folder)
    for part in ("before", "after"):
        for block, name in (("emotion", "accuracy"), ("emotion", "uar"), ("au", "f1_macro")):
            assert f"{100 * scores[part][block][name]:.1f}" in page.text
            low, high = scores[part][block]["ci95"][name]
            assert f"{100 * low:.1f}\N{EN DASH}{100 * high:.1f}" in page.text
        for share in scores[part]["parse"].values():
            assert f"{100 * share:.1f}" in page.text
    gain = scores["paired"]["emotion"]["accuracy"]["difference"]
    assert f"{100 * gain:+.1f}" in page.text
    for word in (
        "tiny on synth",
        "face_cot",
        "0123456789ab",
        "300 steps in 4.0 min",
        "Synthetic faces only.",
        "vlmface-tiny, weights ba5eba5eba5e",
        "vision_tower: lora",
        "fingerprint f00d",
        "small CNN",
        "71.5",
        "62.2",
        "trained on the same faces &",
        "lip corner puller",
        "no face of the benchmark shows them: AU26",
    ):
        assert word in page.text
    assert page.count("polyline") == 1
    assert page.count("u") == 1  # the baseline's marker, for AU4 only
    assert 'style="left:33.3%"' in page.source
    counts = [sum(line) for line in scores["after"]["emotion"]["confusion"]]
    assert f"{SPACE.labels[0]} {counts[0]}" in page.text


def test_the_face_sheet_shows_right_and_wrong_answers(run: Any) -> None:
    folder, images = run
    page = Page(write_report(folder, images=images))
    assert page.count("article", "right") == 8
    assert page.count("article", "wrong") == 8
    assert page.text.count("✓ right") == 8
    assert page.text.count("✗ wrong") == 8
    shown = page.images()
    assert len(shown) == 16
    assert {image.size for image in shown} == {(20, 24)}
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").open(encoding="utf-8")]
    correct = sum(metrics.answer(r) == r["truth"]["emotion"] for r in rows)
    assert f"Right: 8 of {correct} shown" in page.text
    assert f"Wrong: 8 of {120 - correct} shown" in page.text
    labels = {a["alt"] for t, a in page.tags if t == "img"}
    assert len(labels) == 16
    for truth in SPACE.labels[:6]:  # every true label has its turn among the right ones
        assert page.text.count(f"truth {truth}") >= 1


def test_chips_tell_found_missed_and_extra(tmp_path: Path) -> None:
    rows = [
        row(0, "anger", "anger", aus=[4, 12])
        | {"truth": {"emotion": "anger", "aus": {"4": 3.0, "15": 2.0}, "annotated_aus": list(AUS)}}
    ]
    write_run(tmp_path, rows, rows)
    page = Page(write_report(tmp_path, images=faces(rows)))
    for chip in ("✓ AU4", "\N{EN DASH} AU15", "+ AU12"):
        assert chip in page.text


def test_nothing_is_loaded_from_elsewhere(run: Any) -> None:
    folder, images = run
    page = Page(write_report(folder, images=images, baseline=BASELINE))
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action"):
                assert (value or "").startswith("data:image/jpeg;base64,")
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert "@import" not in page.source
    assert "url(" not in page.source


def test_hostile_text_is_shown_and_not_obeyed(run: Any) -> None:
    folder, images = run
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").open(encoding="utf-8")]
    rows[0] |= {"text": HOSTILE}
    rows[1] |= {"text": "right \u202egnorw, cut \ud800 off \x00\u2028 end"}
    write_lines(folder / "predictions.jsonl", rows)
    scores = read_metrics(folder)
    scores["after"]["model"] = "<b onclick=x>model</b>"
    (folder / "metrics.json").write_text(json.dumps(scores))
    few = {key: images[key] for key in ("0", "1")}
    page = Page(write_report(folder, images=few, baseline=BASELINE | {"name": "<i>CNN</i>"}))
    assert HOSTILE in page.text
    assert html.escape("<script>alert(1)</script>", quote=False) in page.source
    assert "<script" not in page.source
    assert "<i>CNN" not in page.source
    assert "<b onclick" not in page.source
    assert "right \N{REPLACEMENT CHARACTER}gnorw, cut \N{REPLACEMENT CHARACTER} off" in page.text
    assert "\u202e" not in page.source


def test_a_single_evaluation(tmp_path: Path) -> None:
    rows = random_rows(60, 0)
    scores = metrics.summarise(rows, SPACE, AUS, about=ABOUT)
    (tmp_path / "metrics.json").write_text(json.dumps(scores))
    write_lines(tmp_path / "predictions.jsonl", rows)
    page = Page(write_report(tmp_path, images=faces(rows)))
    assert "this run" in page.text
    assert "before training" not in page.text
    assert "How training went" not in page.text
    assert page.count("article", "right") == 8
    assert page.count("polyline") == 0


def test_an_attribute_and_an_au_benchmark(tmp_path: Path) -> None:
    rows = [
        row(i, None, "female", truth={"attributes": {"gender": ["female", "male"][i % 2]}})
        for i in range(30)
    ]
    scores = metrics.summarise(rows, SPACES["gender"], (), about=ABOUT)
    (tmp_path / "metrics.json").write_text(json.dumps(scores))
    write_lines(tmp_path / "predictions.jsonl", rows)
    page = Page(write_report(tmp_path, images=faces(rows)))
    assert "the right gender for 50.0 % of 30 faces" in page.text
    assert page.text.count("truth male") == 8
    assert "facial muscles the model sees" not in page.text

    rows = [
        row(i, None, "anger", aus=[4], truth={"aus": {"4": None} if i % 2 else {"12": 1.0}})
        for i in range(30)
    ]
    scores = metrics.summarise(rows, SPACE, (4, 12), ci=False, about=ABOUT)
    (tmp_path / "metrics.json").write_text(json.dumps(scores))
    write_lines(tmp_path / "predictions.jsonl", rows)
    page = Page(write_report(tmp_path, images=faces(rows)))
    assert "names 2 facial action units with a mean F1 of 33.3 %" in page.text
    assert "Right: 8 of 15 shown" in page.text
    assert "What is confused with what" not in page.text


def test_only_metrics_are_needed(tmp_path: Path) -> None:
    scores = metrics.summarise(random_rows(20, 0), SPACE, AUS, about=ABOUT | {"prompt": {}})
    assert "prompt" not in scores
    (tmp_path / "metrics.json").write_text(json.dumps(scores))
    page = Page(write_report(tmp_path, images={}))
    assert "Faces and answers" not in page.text


def test_large_pictures_are_reduced(run: Any) -> None:
    folder, _ = run
    page = Page(write_report(folder, images={"0": Image.new("RGBA", (3000, 1500))}))
    assert [image.size for image in page.images()] == [(MAX_SIDE, MAX_SIDE // 2)]


def test_a_failure_leaves_the_old_report(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, images = run
    old = write_report(folder, images=images).read_bytes()
    files = sorted(folder.iterdir())
    scores = read_metrics(folder)
    del scores["after"]["parse"]["none"]
    (folder / "metrics.json").write_text(json.dumps(scores))
    with pytest.raises(jinja2.UndefinedError):
        write_report(folder, images=images)
    assert (folder / "report.html").read_bytes() == old
    assert sorted(folder.iterdir()) == files


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no metrics\.json"):
        write_report(tmp_path, images={})
    (tmp_path / "metrics.json").write_text('{"schema": 2, "model": "tiny"}')
    with pytest.raises(UserError, match=r"metrics\.json' \(result\) lacks benchmark, n"):
        write_report(tmp_path, images={})
    (tmp_path / "metrics.json").write_text('{"schema": 2,')
    with pytest.raises(UserError, match=r"metrics\.json' is not valid JSON"):
        write_report(tmp_path, images={})
    rows = random_rows(5, 0)
    write_run(tmp_path, rows, rows)
    with (tmp_path / "predictions.jsonl").open("a") as file:
        file.write('{"id": "cut off\n')
    with pytest.raises(UserError, match=r"predictions\.jsonl' line 6 is not valid JSON"):
        write_report(tmp_path, images={})
