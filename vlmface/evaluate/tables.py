"""Our figures beside those that others publish on a benchmark, for a page, a README or a paper."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlmface.benchmarks import ATTRIBUTES, PUBLISHED_SCORES, Benchmark
from vlmface.utils.terminal import printable

TITLES = {
    "accuracy": "accuracy (WAR)",
    "uar": "UAR",
    "f1_macro": "macro F1",
    "map": "mAP",
    "au_f1_macro": "AU F1",
    "gender": "gender accuracy",
    "age_group": "age group accuracy",
    "race": "race accuracy",
}
_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip


def beside_published(
    benchmark: Benchmark, scores: Mapping[str, Any], name: str
) -> list[dict[str, Any]]:
    """Rows {"model", "scores": {name of PUBLISHED_SCORES: 0..1}, "ci95", "source", "notes"}, our
    own first. Empty if nothing is published on the benchmark."""
    published = benchmark.published
    if not published:
        return []
    ours, intervals = own_scores(benchmark, scores)
    rows = [{"model": name, "scores": ours, "ci95": intervals, "source": None,
             "notes": _about(scores)}]  # fmt: skip
    for entry in published:
        given = {key: entry[key] for key in PUBLISHED_SCORES if key in entry}
        rows.append({"model": entry["model"], "scores": given, "ci95": {},
                     "source": entry["source"], "notes": entry.get("notes")})  # fmt: skip
    return rows


def own_scores(
    benchmark: Benchmark, scores: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """(our scores under the names of PUBLISHED_SCORES, their 95 % intervals)."""
    found: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}

    def take(name: str, block: Mapping[str, Any], key: str) -> None:
        if key in block:
            found[name] = block[key]
            if key in block.get("ci95", {}):
                intervals[name] = block["ci95"][key]

    attributes = scores.get("attributes", {})
    lone = scores.get("emotion")
    if lone is None and len(benchmark.spaces) == 1:
        lone = attributes.get(benchmark.spaces[0].field)
    if any(space.several for space in benchmark.spaces):
        lone = scores.get("labels")
    for key in ("accuracy", "uar", "f1_macro", "map"):
        take(key, lone or {}, key)
    take("au_f1_macro", scores.get("au", {}), "f1_macro")
    if len(benchmark.spaces) > 1:
        for name in ATTRIBUTES:
            take(name, attributes.get(name, {}), "accuracy")
    return found, intervals


def _about(scores: Mapping[str, Any]) -> str:
    return f"{scores['n']} faces; an answer that cannot be read counts as wrong"


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The scores that any row has, in the order of PUBLISHED_SCORES."""
    return [key for key in PUBLISHED_SCORES if any(key in row["scores"] for row in rows)]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table in per cent, ours with 95 % intervals, and notes on protocols that differ."""
    keys = columns(rows)
    lines = ["| model | " + " | ".join(TITLES[key] for key in keys) + " | source and notes |",
             "| --- |" + " --- |" * (len(keys) + 1)]  # fmt: skip
    for row in rows:
        cells = [row["model"], *(_cell(row, key) for key in keys), _remark(row)]
        lines.append("| " + " | ".join(map(markdown_cell, cells)) + " |")
    return "\n".join(lines) + "\n"


def markdown_cell(text: str) -> str:
    """Text for a cell of a Markdown table, which shows it as it is: neither HTML nor links nor
    pictures, which a page that shows the table would fetch."""
    text = printable(re.sub(r"\s+", " ", text))
    return re.sub(r"([\\`*<|&]|(?<=\])\()", r"\\\1", text)


def latex(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """The same as a LaTeX table (package booktabs), sources and notes as comments."""
    keys = columns(rows)
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escape(title)}, in per cent; intervals are 95\,\% bootstrap.}}",
        r"  \begin{tabular}{l" + "c" * len(keys) + "}",
        r"    \toprule",
        "    Model & " + " & ".join(escape(TITLES[key]) for key in keys) + r" \\",
        r"    \midrule",
    ]
    for i, row in enumerate(rows):
        cells = [escape(row["model"]), *(escape(_cell(row, key)) for key in keys)]
        lines.append("    " + " & ".join(cells) + rf" \\ % {' '.join(_remark(row).split())}")
        if i == 0 and len(rows) > 1:
            lines.append(r"    \midrule")
    lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text for LaTeX."""
    return "".join(_LATEX.get(c, c) for c in text)


def _cell(row: Mapping[str, Any], key: str) -> str:
    if key not in row["scores"]:
        return "-"
    text = f"{100 * row['scores'][key]:.1f}"
    if key in row["ci95"]:
        low, high = row["ci95"][key]
        text += f" [{100 * low:.1f}, {100 * high:.1f}]"
    return text


def _remark(row: Mapping[str, Any]) -> str:
    return "; ".join(part for part in (row["source"], row["notes"]) if part)
