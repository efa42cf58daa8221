"""`vlmface score`: what the answers of another system score, by the rules of our own."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmface.errors import UserError
from vlmface.evaluate import answering, external_formats, ferbench, report, run
from vlmface.label_spaces import definitions_of
from vlmface.manifest import is_run
from vlmface.metrics import metrics
from vlmface.utils.files import atomic_write, make_output_folder
from vlmface.utils.memory import peak_rss_gib

WRITTEN = ("metrics.json", "predictions.jsonl", "report.html", "disagreements.jsonl")


def score_command(
    path: Path,
    format: str,
    label_space: str | None,
    output_dir: Path | None,
    au_set: Sequence[str] = (),
) -> int:
    """Score a file, with the AUs of `au_set` (see `files.parse_au_set`) if it names any; writes
    metrics.json, predictions.jsonl and report.html (for FERBench also disagreements.jsonl) into
    `output_dir`, by default scores/NAME, and prints what they say."""
    start = time.perf_counter()
    aus = external_formats.parse_au_set(au_set) if au_set else []
    answers = external_formats.read(path, format, label_space, aus)
    out = _folder(output_dir or Path("scores") / path.stem, path)
    rows = external_formats.predictions(answers)
    baseline: dict[str, Any] | None = None
    different: list[dict[str, Any]] = []
    about: metrics.About = {
        "benchmark": format,
        "model": path.name,
        "prompt": {},
        "scoring": "generated",
        "wall_s": round(time.perf_counter() - start, 2),
        "peak_rss_gib": round(peak_rss_gib(), 3),
    }
    scores = metrics.summarise(rows, answers.space, aus or answers.au_set(rows), about)
    scores |= definitions_of([answers.space])
    _describe(path, format, answers)
    print(run.one_line_summary(scores))
    if format == "ferbench":
        items = answers.items
        theirs, different = ferbench.compare(
            rows, [item.words for item in items], [item.failed for item in items], answers.space
        )
        scores["ferbench_rule"] = theirs
        baseline = {
            "name": "FERBench's own rule",
            "source": f"the same answers as UniFER's scorer reads them, {theirs['n']} of them: it "
            "leaves out items with an error and takes the first candidate that it finds",
            "emotion": {"accuracy": theirs["accuracy"]},
        }
        print(_held_against(theirs, different))
    answering.write_lines(out / "predictions.jsonl", rows)
    atomic_write(out / "metrics.json", json.dumps(scores, indent=2, ensure_ascii=False) + "\n")
    if format == "ferbench":
        answering.write_lines(out / "disagreements.jsonl", different)
    else:  # what an earlier file left here
        (out / "disagreements.jsonl").unlink(missing_ok=True)
    print(f"report: {report.write_report(out, images={}, baseline=baseline)}")
    return 0


def _folder(out: Path, scored: Path) -> Path:
    """The output folder, made; refused where it would overwrite what is scored, or a run."""
    make_output_folder(out)
    if is_run(out) or any((out / name).resolve() == scored.resolve() for name in WRITTEN):
        raise UserError(f"{out} holds a run or the file itself: give another --output_dir")
    return out


def _describe(path: Path, format: str, answers: external_formats.Answers) -> None:
    items = answers.items
    print(
        f"{path.name}: {len(items):,} answers as {format}, labels of {answers.space.id}, "
        f"read in the format {answers.format}"
    )
    if empty := sum(item.empty for item in items):
        print(f"{empty:,} of them are errors or empty; they count as wrong")
    if lone := sum(external_formats.true_label(item, answers.space) is None for item in items):
        print(f"{lone:,} of them have no single true label; their labels are not scored")


def _held_against(theirs: Mapping[str, Any], different: Sequence[Mapping[str, Any]]) -> str:
    share = "none" if theirs["accuracy"] is None else f"{theirs['accuracy']:.3f}"
    text = (
        f"FERBench's own rule: accuracy {share} on {theirs['n']:,} faces, "
        f"{theirs['errors']:,} left out for an error, {theirs['unknown']:,} unknown"
    )
    if not different:
        return f"{text}; both read every answer alike"
    return f"{text}; {len(different):,} answers read differently:\n\n{ferbench.table(different)}\n"
