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
from vlmface.errors import UserError
from vlmface.evaluate import report
from vlmface.evaluate.tables import markdown_cell
from vlmface.metrics import measures, metrics
from vlmface.utils import html
from vlmface.utils.files import atomic_write
from vlmface.utils.terminal import printable

# Settings that say where a run lies and how it is watched, not what it is.
_ASIDE = ("output_dir", "overwrite", "save_steps", "logging_steps", "samples_every", "report_to")
_ROUNDING = 1e-6  # of a score that was written as text and computed again
_MAIN = {"accuracy", "uar", "map", "jaccard", "ccc"}  # scores that every pair is compared by
ALPHA = 0.05
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
        named = (self.scores.get("au") or {}).get("per_au", {})
        return [facs.parse_name(name) for name in named]


def read(folder: str | Path, name: str | None = None) -> Run:
    """A run folder of a recipe, or the folder that `eval/run.py` wrote. Raises UserError."""
    folder = Path(folder)
    found: dict[str, Any] = {}
    for file in ("metrics.json", "predictions.jsonl"):
        try:
            text = (folder / file).read_text(encoding="utf-8")
            found[file] = json.loads(text) if file.endswith(".json") else text.split("\n")
        except OSError:
            raise UserError(
                f"'{folder}' holds no {file}: give the folder of a finished run or evaluation"
            ) from None
        except ValueError as error:
            raise UserError(
                f"'{folder / file}' is damaged ({error}): evaluate the run again"
            ) from error
    for file in ("settings.json", "vlmface.json"):
        path = folder / file
        found[file] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    whole = found["metrics.json"]
    run = Run(
        name or folder.name,
        folder,
        whole.get("after", whole),
        _parse_lines(folder / "predictions.jsonl", found["predictions.jsonl"]),
        found["settings.json"],
        whole.get("train") or {},
        found["vlmface.json"].get("recipe"),
    )
    check_agreement(run)
    return run


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


def check_agreement(run: Run) -> None:
    """Check that metrics.json holds the scores of predictions.jsonl. Raises UserError with both
    values of the first score that differs."""
    for prompt, space in run.prompts:
        lines = _asked(run, prompt)
        _check_same(run, "number of faces", run.scores["n"], len(lines))
        for path, computed in metrics.point_scores(lines, space, run.au_set).items():
            block: Mapping[str, Any] = run.scores
            for key in path:
                block = block.get(key) or {}
            for score, value in computed.items():
                if score in block:
                    _check_same(run, f"{' '.join(path)} {score}", block[score], value)


def _check_same(run: Run, what: str, recorded: float, computed: float) -> None:
    if abs(recorded - computed) > _ROUNDING:
        raise UserError(
            f"'{run.folder}': {what} is {recorded:.6g} in metrics.json, but {computed:.6g} from "
            "predictions.jsonl: one of the two files is not of this run, evaluate it again"
        )


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """{"benchmark", "n", "runs": [...], "pairs": [...]}, ready for JSON.

    Of a run: "name", "folder", "recipe", "settings" (those in which it differs from other runs of
    that recipe), "train", "scores". Of a pair: "first", "second", "n", and the differences of each
    block, "emotion": {score: {"difference", "ci95"}}, "au", "attributes".

    A pair's difference is the second minus the first, with its 95 % paired interval; that of a
    share, such as accuracy, also has "p" of the sign-flip test that its interval inverts, and
    "p_holm", Holm's correction of it over all pairs.
    Raises UserError for fewer than two runs, and for runs that are not about the same faces.
    """
    if len(runs) < 2:
        raise UserError("one run cannot be compared: give two folders at least")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise UserError(f"two runs have one name ({', '.join(names)}): give them as NAME=FOLDER")
    for run in runs[1:]:
        for what in ("benchmark", "mode"):
            if run.scores[what] != runs[0].scores[what]:
                raise UserError(
                    f"{runs[0].name} was scored with {what} {runs[0].scores[what]!r}, {run.name} "
                    f"with {run.scores[what]!r}: compare runs with the same"
                )
    pairs = [
        {"first": one.name, "second": other.name, **_paired(one, other)}
        for one, other in combinations(runs, 2)
    ]
    _correct(pairs)
    return {
        "schema": 1,
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
    found = []
    for run in runs:
        alike = [other.settings for other in runs if other.recipe == run.recipe]
        found.append({
            key: value
            for key, value in run.settings.items()
            if key not in _ASIDE and any(other.get(key) != value for other in alike)
        })  # fmt: skip
    return found


def _paired(one: Run, other: Run) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for (id, space), (other_id, other_space) in zip(one.prompts, other.prompts, strict=False):
        if space.sha != other_space.sha:
            raise UserError(
                f"{one.name} was asked for {space.id}, {other.name} for {other_space.id}: "
                "compare runs with the same label spaces"
            )
        aus = [au for au in one.au_set if au in other.au_set]
        first, second = _asked(one, id), _asked(other, other_id)
        part = metrics.compare(first, second, space, aus)
        for block in part.keys() - {"n"}:
            whole[block] = whole.get(block, {}) | part[block]
        whole["n"] = part["n"]
    return whole


def _asked(run: Run, prompt: str | None) -> list[Mapping[str, Any]]:
    return [line for line in run.lines if prompt is None or line.get("prompt") == prompt]


# --- what people read -----------------------------------------------------------------------------


def rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table: for each score its title and, for each run, value, interval, and the difference
    to the first run."""
    found = []
    first = result["runs"][0]["name"]
    changes = {pair["second"]: pair for pair in result["pairs"] if pair["first"] == first}
    for title in report.score_blocks(result["runs"][0]["scores"]):
        for key, name in report.SCORES.items():
            cells = []
            for run in result["runs"]:
                block = report.score_blocks(run["scores"]).get(title, {})
                change = report.score_blocks(changes.get(run["name"], {})).get(title, {}).get(key)
                ci = block.get("ci95", {}).get(key)
                cells.append({"value": block.get(key), "ci": ci, "change": change})
            if any(cell["value"] is not None for cell in cells):
                main = key in _MAIN or (title == "action units" and key == "f1_macro")
                found.append({"block": title, "key": key, "name": name, "cells": cells,
                              "main": main})  # fmt: skip
    return found


def reliability(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Scores that have no interval: valid and strict answers, AUs that support the label; those
    that a run at least has."""
    values = {
        "answers in exactly the asked form": lambda s: s["parse"]["strict"],
        "its own AUs support its label": lambda s: s.get("consistency"),
    }
    found = [
        {"name": name, "values": [of(run["scores"]) for run in result["runs"]]}
        for name, of in values.items()
    ]
    return [row for row in found if any(value is not None for value in row["values"])]


def verdict(change: Mapping[str, Any]) -> str:
    """The one verdict on a difference: by its corrected p value where it has one, else by its
    interval."""
    if "ci95" not in change or change.get("p_holm", 0.0) >= ALPHA:
        return SAME
    low, high = change["ci95"]
    if low > 0:
        return "better"
    return "worse" if high < 0 else SAME


def markdown(result: Mapping[str, Any]) -> str:
    """The table for a paper or a README: a line for each run, per cent, differences to the first
    run with their intervals."""
    shown = [row for row in rows(result) if row["main"]]
    head = ["run", *(f"{row['block']}: {row['name']}" for row in shown), "asked form"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for i, run in enumerate(result["runs"]):
        cells = [markdown_cell(run["name"])]
        for row in shown:
            cell = row["cells"][i]
            text = "-" if cell["value"] is None else f"{100 * cell['value']:.1f}"
            if change := cell["change"]:
                text += f" ({100 * change['difference']:+.1f}"
                if "ci95" in change:
                    text += ": {:+.1f} to {:+.1f}".format(*(100 * end for end in change["ci95"]))
                text += ")"
            cells.append(text)
        cells.append(f"{100 * run['scores']['parse']['strict']:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write(
    result: Mapping[str, Any],
    output: Path,
    *,
    name: str = "compare",
    title: str | None = None,
    notes: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write NAME.json, NAME.md and NAME.html into `output`; returns the page. `notes` are further
    parts of the page, {"title", "facts": {name: value}} each."""
    table = rows(result)
    atomic_write(output / f"{name}.json", json.dumps(result, indent=2) + "\n")
    atomic_write(output / f"{name}.md", markdown(result))
    content = html.render(
        "compare.html.j2",
        filters={"verdict": verdict, "said": _said, "color": _color},
        result=result,
        title=title or f"{len(result['runs'])} runs on {result['benchmark']}",
        notes=notes,
        table=table,
        reliability=reliability(result),
        matrices=[_matrix(result, row) for row in table if row["main"]],
        when=html.stamp(),
    )
    path = output / f"{name}.html"
    atomic_write(path, content)
    return path


def _matrix(result: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Every pair of runs by one score: line minus column."""
    names = [run["name"] for run in result["runs"]]
    known: dict[tuple[str, str], dict[str, Any]] = {}
    for pair in result["pairs"]:
        change = report.score_blocks(pair).get(row["block"], {}).get(row["key"])
        if change is not None:
            known[pair["second"], pair["first"]] = change
            turned = {"difference": -change["difference"]}
            if "ci95" in change:
                turned["ci95"] = [-end for end in reversed(change["ci95"])]
            known[pair["first"], pair["second"]] = change | turned
    lines = [{"name": one, "cells": [known.get((one, other)) for other in names]} for one in names]
    return {"title": f"{row['block']}: {row['name']}", "names": names, "lines": lines}


def _color(change: Mapping[str, Any]) -> str:
    """The CSS class of a difference: better, worse or same."""
    return {SAME: "same"}.get(verdict(change), verdict(change))


def _said(value: object) -> str:
    """A setting as it would stand in YAML."""
    return json.dumps(value, ensure_ascii=False).replace('"', "")


def compare_command(words: Sequence[str], output: str) -> int:
    """Compare runs, FOLDER or NAME=FOLDER each; prints the table and where the page is."""
    runs = []
    for word in words:
        name, equals, folder = word.partition("=")
        runs.append(read(folder, name) if equals and not Path(word).exists() else read(word))
    result = compare(runs)
    path = write(result, Path(output))
    print(printable(markdown(result), lines=True))
    print(f"page: {path}")
    return 0
