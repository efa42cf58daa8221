"""Our figures beside those that others publish on a benchmark, for a page, a README or a paper."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlmface.benchmarks import ATTRIBUTES, PUBLISHED_SCORES, Benchmark
from vlmface.metrics import labels
from vlmface.metrics.metric import METRICS, Metric, ScoredBlock, of_kind, scored_blocks
from vlmface.utils.terminal import printable

BUILT_IN = tuple(METRICS.built_in.values())

_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def beside_published(
    benchmark: Benchmark, scores: Mapping[str, Any], name: str
) -> list[dict[str, Any]]:
    """Rows {"model", "scores": {published name of a metric: value}, "ci95", "source", "notes"}, our
    own first. Empty if nothing is published on the benchmark."""
    published = benchmark.published
    if not published:
        return []
    ours, intervals = own_scores(benchmark, scores)
    rows: list[dict[str, Any]] = [
        {
            "model": name,
            "scores": ours,
            "ci95": intervals,
            "source": None,
            "notes": _about(scores),
        }
    ]
    for entry in published:
        rows.append(
            {
                "model": entry["model"],
                "scores": {key: entry[key] for key in PUBLISHED_SCORES if key in entry},
                "ci95": {},
                "source": entry["source"],
                "notes": entry.get("notes"),
            }
        )
    return rows


def own_scores(
    benchmark: Benchmark, scores: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """(our scores under their published names, their 95 % intervals)."""
    values: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}

    def take(name: str, block: ScoredBlock, metric: Metric) -> None:
        if (value := block.get(metric)) is not None:
            values[name] = value
            if (interval := block.ci95(metric)) is not None:
                intervals[name] = list(interval)

    is_lone = len(benchmark.spaces) == 1
    for block in scored_blocks(scores):
        if block.kind == "attributes" and not is_lone:
            if block.title in ATTRIBUTES:  # papers report their accuracy alone
                take(block.title, block, labels.accuracy)
            continue
        for metric in of_kind(benchmark.all_metrics, block.kind):
            if metric.published:
                take(metric.published, block, metric)
    return values, intervals


def _about(scores: Mapping[str, Any]) -> str:
    return f"{scores['n']} faces; an answer that cannot be read counts as wrong"


def by_published_name(metrics: Sequence[Metric] = BUILT_IN) -> dict[str, Metric]:
    """{published name: metric}, in the order of the columns; of an attribute, its accuracy."""
    metric_of: dict[str, Metric] = {}
    for metric in metrics:
        if metric.published:
            metric_of.setdefault(metric.published, metric)
    for name in ATTRIBUTES:
        title = f"{name.replace('_', ' ')} accuracy"
        metric_of[name] = replace(labels.accuracy, published=name, short_title=title)
    return metric_of


def columns(rows: Sequence[Mapping[str, Any]], metrics: Sequence[Metric] = BUILT_IN) -> list[str]:
    """The published names of the scores that any row has, in their order."""
    return [key for key in by_published_name(metrics) if any(key in row["scores"] for row in rows)]


def markdown(rows: Sequence[Mapping[str, Any]], metrics: Sequence[Metric] = BUILT_IN) -> str:
    """A table in per cent, ours with 95 % intervals, and notes on protocols that differ."""
    columns = _columns(rows, metrics)
    heads = ["model", *(metric.short_title for metric in columns), "source and notes"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in rows:
        cells = [row["model"], *(_cell(row, metric) for metric in columns), _remark(row)]
        lines.append("| " + " | ".join(map(markdown_cell, cells)) + " |")
    return "\n".join(lines) + "\n"


def markdown_cell(text: str) -> str:
    """Text for a cell of a Markdown table, which shows it as it is: neither HTML nor links nor
    pictures, which a page that shows the table would fetch."""
    text = printable(re.sub(r"\s+", " ", text))
    return re.sub(r"([\\`*<|&]|(?<=\])\()", r"\\\1", text)


def latex(
    rows: Sequence[Mapping[str, Any]], title: str, metrics: Sequence[Metric] = BUILT_IN
) -> str:
    """The same as a LaTeX table (package booktabs), followed by sources and notes as comments."""
    import pandas

    columns = _columns(rows, metrics)
    cells = [
        [escape(row["model"]), *(escape(_cell(row, metric)) for metric in columns)] for row in rows
    ]
    heads = ["Model", *(escape(metric.short_title) for metric in columns)]
    table = (
        pandas.DataFrame(cells, columns=heads)
        .style.hide(axis="index")
        .to_latex(
            caption=rf"{escape(title)}, in per cent, with 95\,\% intervals.",
            column_format="l" + "c" * len(columns),
            hrules=True,
            position_float="centering",
        )
    )
    remarks = (" ".join(f"{row['model']}: {_remark(row)}".split()) for row in rows)
    return table + "".join(f"% {remark}\n" for remark in remarks)


def escape(text: str) -> str:
    """Text for LaTeX."""
    return "".join(_LATEX.get(c, c) for c in text)


def _columns(rows: Sequence[Mapping[str, Any]], metrics: Sequence[Metric]) -> list[Metric]:
    metric_of = by_published_name(metrics)
    return [metric_of[key] for key in columns(rows, metrics)]


def _cell(row: Mapping[str, Any], metric: Metric) -> str:
    key = metric.published
    if key not in row["scores"]:
        return "-"
    text = metric.text(row["scores"][key])
    if key in row["ci95"]:
        text += f" [{', '.join(map(metric.text, row['ci95'][key]))}]"
    return text


def _remark(row: Mapping[str, Any]) -> str:
    return "; ".join(part for part in (row["source"], row["notes"]) if part)
