"""Several runs on the same faces in one table: what each scores, and which differences are real.

`vlmface compare RUN RUN [...]` reads what the runs left behind; nothing is asked again. The first
run is what the others are held against; a second table has every pair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from vlmface import facs, label_spaces
from vlmface.benchmarks import load_benchmark
from vlmface.errors import UserError
from vlmface.evaluate import report
from vlmface.evaluate.tables import markdown_cell
from vlmface.metrics import measures, metrics
from vlmface.metrics.metric import Metric, of_kind, scored_blocks, with_built_in
from vlmface.utils import html
from vlmface.utils.files import atomic_write
from vlmface.utils.terminal import printable

# Settings that say where a run lies and how it is watched, not what it is.
_ASIDE = (
    "output_dir",
    "overwrite",
    "save_steps",
    "logging_steps",
    "completions_every",
    "report_to",
)
_ROUNDING = 1e-6  # of a score that was written as text and computed again
ALPHA = 0.05
PREDICTIONS, MANIFEST = "predictions.jsonl", "vlmface.json"
SAME = "no difference that this test set can show"


@dataclass(frozen=True)
class Run:
    """A finished run: `name` as it is shown, its scores, predictions and settings."""

    name: str
    folder: Path
    scores: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    train: Mapping[str, Any]
    recipe: str | None

    @property
    def prompts(self) -> list[tuple[str | None, label_spaces.LabelSpace]]:
        """(id, label space) of what it was asked; the id is None if there was only one prompt."""
        if "prompts" in self.scores:
            return [
                (prompt["id"], label_spaces.of_results(self.scores, prompt["label_space"]))
                for prompt in self.scores["prompts"]
            ]
        return [(None, label_spaces.of_results(self.scores, self.scores["label_space"]))]

    @property
    def au_set(self) -> list[int]:
        per_au = (self.scores.get("au") or {}).get("per_au", {})
        return [facs.parse_name(name) for name in per_au]


def read(folder: str | Path, name: str | None = None, extra: Sequence[Metric] = ()) -> Run:
    """A finished run.

    Args:
        folder: A run folder of a recipe, or the folder that `eval/run.py` wrote.
        name: How the run is shown; the folder's name by default.
        extra: The metrics that the benchmark names.

    Raises:
        UserError: A file is missing or damaged, or metrics.json and predictions.jsonl disagree.
    """
    folder = Path(folder)
    metrics_text, lines_text = (_text(folder, name) for name in ("metrics.json", PREDICTIONS))
    try:
        whole = json.loads(metrics_text)
    except ValueError as error:
        raise UserError(
            f"'{folder / 'metrics.json'}' is damaged ({error}): evaluate the run again"
        ) from error
    settings, manifest = (_optional_json(folder / name) for name in ("settings.json", MANIFEST))
    run = Run(
        name or folder.name,
        folder,
        whole.get("after", whole),
        _parse_lines(folder / PREDICTIONS, lines_text.split("\n")),
        settings,
        whole.get("train") or {},
        manifest.get("recipe"),
    )
    check_agreement(run, extra)
    return run


def _text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8")
    except OSError:
        raise UserError(
            f"'{folder}' holds no {name}: give the folder of a finished run or evaluation"
        ) from None
    except ValueError as error:
        raise UserError(
            f"'{folder / name}' is damaged ({error}): evaluate the run again"
        ) from error


def _optional_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _parse_lines(path: Path, texts: Sequence[str]) -> list[dict[str, Any]]:
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines += [json.loads(text)] if text else []
        except ValueError as error:
            raise UserError(
                f"'{path}' is damaged in line {number} ({error}): evaluate the run again"
            ) from error
    return lines


def check_agreement(run: Run, extra: Sequence[Metric] = ()) -> None:
    """Check that metrics.json holds the scores of predictions.jsonl. Raises UserError with both
    values of the first score that differs."""
    for prompt, space in run.prompts:
        lines = _lines_of(run, prompt)
        _check_same(run, "number of faces", run.scores["n"], len(lines))
        for path, computed in metrics.point_scores(lines, space, run.au_set, extra).items():
            block: Mapping[str, Any] = run.scores
            for key in path:
                block = block.get(key) or {}
            for score, value in computed.items():
                if score in block:
                    _check_same(run, f"{' '.join(path)} {score}", block[score], value)


def _check_same(run: Run, description: str, recorded: float, computed: float) -> None:
    if abs(recorded - computed) > _ROUNDING:
        raise UserError(
            f"'{run.folder}': {description} is {recorded:.6g} in metrics.json, but {computed:.6g} "
            "from predictions.jsonl: one of the two files is not of this run, evaluate it again"
        )


def compare(runs: Sequence[Run], extra: Sequence[Metric] = ()) -> dict[str, Any]:
    """The runs and the differences of each pair, ready for JSON.

    Args:
        runs: Two runs or more; the others are compared with the first.
        extra: The metrics that the benchmark names.

    Returns:
        {"benchmark", "n", "runs": [...], "pairs": [...]}. Of a run: "name", "folder", "recipe",
        "settings" (those in which it differs from other runs of that recipe), "train", "scores". Of
        a pair: "first", "second", "n", and the differences of each block, "emotion": {score:
        {"difference", "ci95"}}, "au", "attributes". A difference is the second minus the first,
        with its 95 % paired interval; that of a share, such as accuracy, also has "p" of the
        sign-flip test that its interval inverts, and "p_holm", Holm's correction over all pairs.

    Raises:
        UserError: There are fewer than two runs, or they are not about the same faces.
    """
    _check_comparable(runs)
    pairs = [
        {"first": left.name, "second": right.name, **_paired(left, right, extra)}
        for left, right in combinations(runs, 2)
    ]
    _correct(pairs)
    return {
        "schema": 2,
        "benchmark": runs[0].scores["benchmark"],
        "n": runs[0].scores["n"],
        "runs": [
            {
                "name": run.name,
                "folder": str(run.folder),
                "recipe": run.recipe,
                "settings": settings,
                "train": {k: run.train[k] for k in ("steps", "wall_s", "n") if k in run.train},
                "scores": run.scores,
            }
            for run, settings in zip(runs, _different(runs), strict=True)
        ],
        "pairs": pairs,
    }


def _check_comparable(runs: Sequence[Run]) -> None:
    if len(runs) < 2:
        raise UserError("one run cannot be compared: give two folders at least")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise UserError(f"two runs have one name ({', '.join(names)}): give them as NAME=FOLDER")
    for run in runs[1:]:
        for key in ("benchmark", "scoring"):
            if run.scores[key] != runs[0].scores[key]:
                raise UserError(
                    f"{runs[0].name} was scored with {key} {runs[0].scores[key]!r}, {run.name} "
                    f"with {run.scores[key]!r}: compare runs with the same"
                )


def _correct(pairs: Sequence[Mapping[str, Any]]) -> None:
    """Add "p_holm" to every difference that has a "p", each score by itself."""
    families: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for pair in pairs:
        for title, block in report.score_blocks(pair).items():
            for score, change in block.items():
                if "p" in change:
                    families.setdefault((title, score), []).append(change)
    for changes in families.values():
        corrected = measures.holm([change["p"] for change in changes])
        for change, p in zip(changes, corrected, strict=True):
            change["p_holm"] = float(p)


def _different(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each run, its settings that are not the same in all runs of its recipe."""
    different = []
    for run in runs:
        alike = [other.settings for other in runs if other.recipe == run.recipe]
        settings = {
            key: value
            for key, value in run.settings.items()
            if key not in _ASIDE and any(other.get(key) != value for other in alike)
        }
        different.append(settings)
    return different


def _paired(left: Run, right: Run, extra: Sequence[Metric]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for (id, space), (other_id, other_space) in zip(left.prompts, right.prompts, strict=False):
        if space.sha != other_space.sha:
            raise UserError(
                f"{left.name} was asked for {space.id}, {right.name} for {other_space.id}: "
                "compare runs with the same label spaces"
            )
        aus = [au for au in left.au_set if au in right.au_set]
        first, second = _lines_of(left, id), _lines_of(right, other_id)
        part = metrics.compare(first, second, space, aus, extra)
        for block in part.keys() - {"n"}:
            whole[block] = whole.get(block, {}) | part[block]
        whole["n"] = part["n"]
    return whole


def _lines_of(run: Run, prompt: str | None) -> list[Mapping[str, Any]]:
    return [line for line in run.lines if prompt is None or line.get("prompt") == prompt]


def undefined(runs: Sequence[Run], extra: Sequence[Metric] = ()) -> list[str]:
    """The keys of scores in the runs' metrics.json that no definition here belongs to. A definition
    is never looked up by what a run folder names."""
    defined = {metric.key for metric in with_built_in(extra)}
    keys = {
        key
        for run in runs
        for block in scored_blocks(run.scores)
        for key in block.scores.get("ci95", {})
    }
    return sorted(keys - defined)


# --- what people read -----------------------------------------------------------------------------


def rows(result: Mapping[str, Any], extra: Sequence[Metric] = ()) -> list[dict[str, Any]]:
    """The table: a line for each score of each block.

    Args:
        result: Of `compare`.
        extra: The metrics that the benchmark names.

    Returns:
        [{"block", "key", "metric", "main", "cells"}, ...]; a cell for each run has "value", "ci"
        and "change", the difference to the first run.
    """
    lines = []
    first = result["runs"][0]["name"]
    changes = {pair["second"]: pair for pair in result["pairs"] if pair["first"] == first}
    for scored_block in scored_blocks(result["runs"][0]["scores"]):
        for metric in of_kind(with_built_in(extra), scored_block.kind):
            cells = []
            for run in result["runs"]:
                block = report.score_blocks(run["scores"]).get(scored_block.title, {})
                change = report.score_blocks(changes.get(run["name"], {})).get(
                    scored_block.title, {}
                )
                value, ci95 = block.get(metric.key), block.get("ci95", {}).get(metric.key)
                cells.append({"value": value, "ci": ci95, "change": change.get(metric.key)})
            if metric.in_tables and any(cell["value"] is not None for cell in cells):
                is_main = metric.main or metric in extra
                line = {"block": scored_block.title, "key": metric.key, "metric": metric}
                lines.append(line | {"main": is_main, "cells": cells})
    return lines


def reliability(result: Mapping[str, Any], extra: Sequence[Metric] = ()) -> list[dict[str, Any]]:
    """Scores that have no interval: strict answers, and the metrics of answers as a whole; those
    that a run at least has."""
    scores = [run["scores"] for run in result["runs"]]
    strict = [run["parse"]["strict"] for run in scores]
    lines = [{"name": "answers in exactly the requested format", "values": strict}]
    for metric in of_kind(with_built_in(extra), "answers"):
        lines.append({"name": metric.label, "values": [run.get(metric.key) for run in scores]})
    return [line for line in lines if any(value is not None for value in line["values"])]


def verdict(change: Mapping[str, Any], metric: Metric | None = None) -> str:
    """The one verdict on a difference: by its corrected p value where it has one, else by its
    interval; "better" in the direction of the metric (without one, higher is better)."""
    if "ci95" not in change or change.get("p_holm", 0.0) >= ALPHA:
        return SAME
    low, high = change["ci95"]
    if low <= 0 <= high:
        return SAME
    is_gain = metric.gain(low) > 0 if metric else low > 0
    return "better" if is_gain else "worse"


def markdown(result: Mapping[str, Any], extra: Sequence[Metric] = ()) -> str:
    """The table for a paper or a README: a line for each run, per cent, differences to the first
    run with their intervals."""
    main_rows = [row for row in rows(result, extra) if row["main"]]
    titles = (f"{row['block']}: {row['metric'].label}" for row in main_rows)
    head = ["run", *map(markdown_cell, titles), "requested format"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for i, run in enumerate(result["runs"]):
        cells = [_markdown_cell(row["cells"][i], row["metric"]) for row in main_rows]
        strict = f"{100 * run['scores']['parse']['strict']:.1f}"
        lines.append("| " + " | ".join([markdown_cell(run["name"]), *cells, strict]) + " |")
    return "\n".join(lines) + "\n"


def _markdown_cell(cell: Mapping[str, Any], metric: Metric) -> str:
    text = "-" if cell["value"] is None else metric.text(cell["value"])
    if change := cell["change"]:
        text += f" ({metric.difference_text(change['difference'])}"
        if "ci95" in change:
            text += ": " + " to ".join(map(metric.difference_text, change["ci95"]))
        text += ")"
    return text


def write(
    result: Mapping[str, Any],
    output: Path,
    *,
    name: str = "compare",
    title: str | None = None,
    notes: Sequence[Mapping[str, Any]] = (),
    extra: Sequence[Metric] = (),
) -> Path:
    """Write NAME.json, NAME.md and NAME.html into `output`.

    Args:
        result: Of `compare`.
        output: The folder.
        name: Of the files.
        title: Of the page.
        notes: Further parts of the page, {"title", "facts": {name: value}} each.
        extra: The metrics that the benchmark names.

    Returns:
        The path of the page.
    """
    table = rows(result, extra)
    atomic_write(output / f"{name}.json", json.dumps(result, indent=2) + "\n")
    atomic_write(output / f"{name}.md", markdown(result, extra))
    content = html.render(
        "compare.html.j2",
        filters={"verdict": verdict, "as_text": _as_text, "color": _color},
        result=result,
        title=title or f"{len(result['runs'])} runs on {result['benchmark']}",
        notes=notes,
        table=table,
        reliability=reliability(result, extra),
        matrices=[_matrix(result, row) for row in table if row["main"]],
        when=html.stamp(),
    )
    path = output / f"{name}.html"
    atomic_write(path, content)
    return path


def _matrix(result: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Every pair of runs by one score: line minus column."""
    names, metric = [run["name"] for run in result["runs"]], row["metric"]
    changes: dict[tuple[str, str], dict[str, Any]] = {}
    for pair in result["pairs"]:
        change = report.score_blocks(pair).get(row["block"], {}).get(metric.key)
        if change is not None:
            changes[pair["second"], pair["first"]] = change
            turned = {"difference": -change["difference"]}
            if "ci95" in change:
                turned["ci95"] = [-end for end in reversed(change["ci95"])]
            changes[pair["first"], pair["second"]] = change | turned
    lines = [
        {"name": name, "cells": [changes.get((name, other)) for other in names]} for name in names
    ]
    title = f"{row['block']}: {metric.label}"
    return {"title": title, "metric": metric, "names": names, "lines": lines}


def _color(change: Mapping[str, Any], metric: Metric) -> str:
    """The CSS class of a difference: better, worse or same."""
    return {SAME: "same"}.get(verdict(change, metric), verdict(change, metric))


def _as_text(value: object) -> str:
    """A setting as it would stand in YAML."""
    return json.dumps(value, ensure_ascii=False).replace('"', "")


def compare_command(words: Sequence[str], output: str, benchmark: str | None = None) -> int:
    """Compare runs and print the table and where the page is.

    Args:
        words: The runs, FOLDER or NAME=FOLDER each.
        output: The folder to write.
        benchmark: The benchmark that they were scored on, for the metrics that its file names.
    """
    extra = load_benchmark(benchmark).extra_metrics if benchmark else []
    runs = []
    for word in words:
        name, equals, folder = word.partition("=")
        is_named = bool(equals) and not Path(word).exists()
        runs.append(read(folder, name, extra) if is_named else read(word, extra=extra))
    result = compare(runs, extra)
    path = write(result, Path(output), extra=extra)
    print(printable(markdown(result, extra), lines=True))
    if keys := undefined(runs, extra):
        print(
            f"not compared: {printable(', '.join(keys))}, which the runs have and vlmface does not "
            "define; give the benchmark file that names them with --benchmark"
        )
    print(f"page: {path}")
    return 0
