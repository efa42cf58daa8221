"""Our figures beside published ones, as Markdown and LaTeX."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from vlmface.benchmarks import load_benchmark, load_published
from vlmface.evaluate import report, tables

SCORES: dict[str, Any] = {
    "n": 3068,
    "emotion": {
        "accuracy": 0.875,
        "uar": 0.8,
        "f1_macro": 0.81,
        "ci95": {"accuracy": [0.86, 0.89], "uar": [0.78, 0.82]},
    },
}


def test_ours_come_first_and_theirs_with_their_source() -> None:
    rows = tables.beside_published(load_benchmark("rafdb"), SCORES, "my_run")
    theirs = load_published()["rafdb"]
    assert [row["model"] for row in rows] == ["my_run", *(entry["model"] for entry in theirs)]
    assert tables.columns(rows) == ["accuracy", "uar", "f1_macro"]
    lines = tables.markdown(rows).splitlines()
    assert lines[2].startswith("| my_run | 87.5 [86.0, 89.0] | 80.0 [78.0, 82.0] | 81.0 |")
    assert len(lines) == 2 + len(rows)
    for line, entry in zip(lines[3:], theirs, strict=True):
        assert f"{100 * entry['accuracy']:.1f}" in line and entry["source"] in line
        assert "| - | - |" in line  # nobody else reports UAR and F1 there
    assert tables.beside_published(load_benchmark("synth"), SCORES, "x") == []


def test_latex_is_escaped_and_whole() -> None:
    rows = tables.beside_published(load_benchmark("rafdb"), SCORES, "50%_best & {new}")
    text = tables.latex(rows, "rafdb_x")
    assert r"50\%\_best \& \{new\} & 87.5 [86.0, 89.0]" in text
    assert text.count(r"\begin") == text.count(r"\end") == 2
    assert r"\caption{rafdb\_x," in text
    body = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(body) == 1 + len(rows)
    for line in body:
        assert len(re.findall(r"(?<!\\)&", line)) == 3, line
    comments = [line for line in text.splitlines() if line.startswith("% ")]
    assert len(comments) == len(rows) and "POSTER V2" in text


@pytest.mark.parametrize("name", sorted(load_published()))
def test_every_published_result_has_a_column(name: str) -> None:
    benchmark = load_benchmark(name)
    scores: dict[str, Any] = {"n": 1, "au": {"f1_macro": 0.5}}
    for one in benchmark.spaces:
        block = {"accuracy": 0.5, "uar": 0.5, "f1_macro": 0.5}
        if one.multi_label:
            scores["labels"] = {"map": 0.5, "f1_macro": 0.5}
        elif one.field == "emotion":
            scores["emotion"] = block
        else:
            scores.setdefault("attributes", {})[one.field] = block
    rows = tables.beside_published(benchmark, scores, "ours")
    for row in rows[1:]:
        assert row["scores"].keys() <= rows[0]["scores"].keys()
        assert row["source"]


def test_the_report_shows_them(run_dir: Path, tmp_path: Path) -> None:
    import shutil

    for name in ("metrics.json", "predictions.jsonl", "vlmface.json"):
        shutil.copy(run_dir / name, tmp_path / name)
    rows = tables.beside_published(load_benchmark("rafdb"), SCORES, "my <run>")
    page = report.write_report(tmp_path, images={}, published=rows).read_text()
    assert "What others report" in page and "my &lt;run&gt;" in page and "POSTER V2" in page
    page = report.write_report(tmp_path, images={}).read_text()
    assert "What others report" not in page
    assert "Does it know when it is right?" in page and page.count("<circle") >= 1
    assert "Where the groups meet" in page
