"""One HTML page that shows what a run is, what it scores, and what the model says about faces."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlmface import facs, label_spaces
from vlmface.answers import join_labels
from vlmface.data import people
from vlmface.data.row_images import open_row_image
from vlmface.errors import UserError
from vlmface.evaluate import tables
from vlmface.metrics import groups, metrics, multilabel
from vlmface.utils import html
from vlmface.utils.files import atomic_write
from vlmface.utils.images import data_uri

FACES = 8  # of each kind, right and wrong
LABELS = "labels that apply"  # title of several labels a face
REQUIRED = ("benchmark", "model", "n", "mode", "parse", "wall_s", "peak_rss_gib")
SCORES = {
    "accuracy": "accuracy",
    "uar": "mean recall (UAR)",
    "f1_macro": "macro F1",
    "f1_micro": "micro F1",
    "map": "mAP",
    "jaccard": "Jaccard index",
    "exact_match": "all labels right",
    "ccc": "CCC \N{MULTIPLICATION SIGN} 100",
    "sagr": "right sign (SAGR)",
}


def write_report(
    run_dir: str | Path,
    *,
    images: Mapping[str, Any],
    baseline: Mapping[str, Any] | None = None,
    published: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write `report.html` into `run_dir` from the files there, and return its path.

    Reads `metrics.json` (one evaluation, or {"before", "after", "train", "paired"}) and, where they
    exist, `vlmface.json`, `predictions.jsonl`, `predictions_before.jsonl` and `log.jsonl`.
    `images` maps row ids to pictures, opened or as stored; rows without one are not
    shown. `baseline` is another model, or another rule for this one: {"name", "source", "emotion":
    {"accuracy"}, "au": {"f1_macro", "per_au": {"AU4": {"f1"}}}}. `published`: rows of
    `tables.beside_published`.
    The page loads nothing from elsewhere. Raises UserError for a missing or broken file; an older
    report is only replaced by a complete one.
    """
    run_dir = Path(run_dir)
    scores = _read_json(run_dir / "metrics.json")
    if scores is None:
        raise UserError(f"'{run_dir}' holds no metrics.json: give the folder of a finished run")
    manifest = _read_json(run_dir / "vlmface.json") or {}
    rows = _read_lines(run_dir / "predictions.jsonl")
    earlier = _read_lines(run_dir / "predictions_before.jsonl")
    runs = {name: scores[name] for name in ("before", "after") if name in scores}
    runs = runs or {"result": scores}
    for name, run in runs.items():
        if lacking := [key for key in REQUIRED if key not in run]:
            raise UserError(
                f"'{run_dir / 'metrics.json'}' ({name}) lacks {', '.join(lacking)}: "
                "run the evaluation again with this version of vlmface"
            )
    result = list(runs.values())[-1]
    when = datetime.fromtimestamp((run_dir / "metrics.json").stat().st_mtime, UTC)

    keys = tables.columns(published)
    content = html.render(
        "report.html.j2",
        runs=runs,
        result=result,
        train=scores.get("train") or {},
        warnings=_warnings(scores.get("train") or {}),
        when=html.stamp(when),
        origin=_origin(manifest),
        manifest=json.dumps(manifest, indent=2, ensure_ascii=False) if manifest else "",
        note=manifest.get("limits"),
        baseline=baseline,
        groups=_score_groups(runs, scores.get("paired") or {}, baseline or {}),
        targets=_targets(result),
        confusions={name: _confusions(run) for name, run in runs.items()},
        aus=_au_bars(runs, baseline or {}),
        labels=_labels(runs),
        reliability=_reliability(result),
        few=groups.FEW,
        grouped=groups.GROUPED,
        curve=_curve(_read_lines(run_dir / "log.jsonl")),
        faces=_faces(rows, earlier, images, result),
        published=[
            {**row, "cells": [(row["scores"].get(key), row["ci95"].get(key)) for key in keys]}
            for row in published
        ],
        published_titles=[tables.TITLES[key] for key in keys],
    )
    path = run_dir / "report.html"
    atomic_write(path, content)
    return path


# --- numbers -------------------------------------------------------------------------------------


def score_blocks(run: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The scored blocks of a run by title: emotion, each attribute, several labels a face, action
    units, valence and arousal."""
    found = {"emotion": run.get("emotion")} | (run.get("attributes") or {})
    found |= {LABELS: run.get("labels"), "action units": run.get("au")}
    found |= run.get("affect") or {}
    return {name: block for name, block in found.items() if block}


def _warnings(train: Mapping[str, Any]) -> list[str]:
    """What a reader must know of the training rows before the scores."""
    found = train.get("shared_people") or {}
    return [people.overlap_warning(both, part) for part, both in found.items()]


def _targets(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each label block: its name, accuracy, interval, and what constant answering scores."""
    return [
        {"name": name.replace("_", " "), "block": block, "n": block.get("n", run["n"]),
         "constant": _constant(block)}
        for name, block in score_blocks(run).items() if "accuracy" in block
    ]  # fmt: skip


def _constant(block: Mapping[str, Any]) -> float | None:
    supports = [entry["support"] for entry in block.get("per_class", {}).values()]
    return max(supports) / sum(supports) if sum(supports) else None


def _origin(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the manifest says about where the model comes from, as (name, value) lines."""
    lines = []
    if base := manifest.get("base"):
        lines.append(("base model", f"{base['id']}, weights {base['sha']}"))
    if policy := manifest.get("trainable"):
        lines.append(("trained parts", ", ".join(f"{k}: {v}" for k, v in policy.items())))
    if data := manifest.get("data"):
        facts = [f"{k} {v}" for k, v in data.items() if k not in ("name", "n") and v]
        lines.append(("training data", ", ".join([data["name"], f"{data['n']} faces", *facts])))
    return lines


def _score_groups(
    runs: Mapping[str, Any], paired: Mapping[str, Any], baseline: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The score table: groups of lines with a value and interval per run, change and baseline."""
    blocks = [score_blocks(run) for run in runs.values()]
    changes, others = score_blocks(paired), score_blocks(baseline)
    groups = []
    for title in dict.fromkeys(title for block in blocks for title in block):
        lines = []
        for key, name in SCORES.items():
            cells = [
                {"value": block.get(title, {}).get(key),
                 "ci": block.get(title, {}).get("ci95", {}).get(key)}
                for block in blocks
            ]  # fmt: skip
            if all(cell["value"] is None for cell in cells):
                continue
            change = changes.get(title, {}).get(key)
            other = others.get(title, {}).get(key)
            lines.append({"name": name, "cells": cells, "change": change, "baseline": other})
        if lines:
            groups.append({"title": title.replace("_", " "), "lines": lines})
    lines = []
    for name, value in (
        ("the model's own AUs support its label", lambda run: run.get("consistency")),
        ("calibration error, lower is better", lambda run: run.get("calibration", {}).get("ece")),
    ):
        cells = [{"value": value(run), "ci": None} for run in runs.values()]
        if any(cell["value"] is not None for cell in cells):
            lines.append({"name": name, "cells": cells, "change": None, "baseline": None})
    return groups + ([{"title": "reliability", "lines": lines}] if lines else [])


def _confusions(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Confusion tables: per true label its count and cells (count, share of the line, right)."""
    tables = []
    for target in _targets(run):
        block = target["block"]
        if "confusion" not in block:
            continue
        lines = [
            {"label": label, "n": sum(counts),
             "cells": [{"count": c, "share": c / sum(counts), "right": i == j}
                       for j, c in enumerate(counts)]}
            for i, (label, counts) in enumerate(zip(block["labels"], block["confusion"],
                                                    strict=True))
            if sum(counts)
        ]  # fmt: skip
        heads = [*block["labels"], "no valid answer"]
        tables.append({"title": target["name"], "heads": heads, "lines": lines})
    return tables


def _au_bars(runs: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """Per AU its support, the F1 of each run, the baseline's F1; and the AUs nobody shows."""
    tables = {name: (run.get("au") or {}).get("per_au", {}) for name, run in runs.items()}
    others = (baseline.get("au") or {}).get("per_au", {})
    bars, unseen = [], []
    for au, entry in list(tables.values())[-1].items():
        if not entry["support"]:
            unseen.append(au)
            continue
        bars.append({
            "au": au,
            "name": facs.AUS[facs.parse_name(au)].name,
            "support": entry["support"],
            "f1": {name: table.get(au, {}).get("f1") for name, table in tables.items()},
            "baseline": others.get(au, {}).get("f1"),
        })  # fmt: skip
    return {
        "bars": bars,
        "unseen": unseen,
        "baseline": any(b["baseline"] is not None for b in bars),
    }


def _labels(runs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each of several labels a face, the commonest first: its support and, of each run, F1,
    precision, recall and AP as far as they are known."""
    tables = [(run.get("labels") or {}).get("per_label", {}) for run in runs.values()]
    known = {label: entry["support"] for label, entry in tables[-1].items() if entry["support"]}
    return [
        {
            "label": label,
            "support": known[label],
            "runs": [table.get(label, {}) for table in tables],
        }
        for label in sorted(known, key=lambda label: -known[label])
    ]


def _reliability(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """The reliability diagram, in a drawing of 260 x 250, of the first block that has one."""
    blocks = [run, *score_blocks(run).values()]
    found = next((block["calibration"] for block in blocks if "calibration" in block), None)
    if found is None or "reliability" not in found:
        return None
    most = max(one["count"] for one in found["reliability"])
    return {
        "ece": found["ece"],
        "x": [(40 + 200 * share, f"{100 * share:.0f}") for share in (0, 0.25, 0.5, 0.75, 1)],
        "y": [(210 - 200 * share, f"{100 * share:.0f}") for share in (0, 0.25, 0.5, 0.75, 1)],
        "dots": [
            {
                "x": round(40 + 200 * one["confidence"], 1),
                "y": round(210 - 200 * one["accuracy"], 1),
                "r": round(2 + 8 * math.sqrt(one["count"] / most), 1),
                "n": one["count"], "confidence": one["confidence"], "accuracy": one["accuracy"],
            }
            for one in found["reliability"]
            if one["count"]
        ],
    }  # fmt: skip


# --- how training went ---------------------------------------------------------------------------


def _curve(log: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Points of the curve and its ticks, in a drawing of 480 x 240 with room for the labels: the
    mean reward of a run that learns from rewards, whose loss says little, else the loss."""
    name = "reward" if any("reward" in line for line in log) else "loss"
    points = [
        (float(line["step"]), float(line[name]))
        for line in log
        if name in line and "step" in line and math.isfinite(line[name])
    ]
    if len(points) < 2:
        return None
    steps, values = zip(*points, strict=True)
    across = _ticks(0, max(steps))
    up = _ticks(min(0.0, *values), max(values))

    def x(step: float) -> float:
        return 44 + 412 * (step - across[0]) / (across[-1] - across[0])

    def y(value: float) -> float:
        return 204 - 192 * (value - up[0]) / (up[-1] - up[0])

    line = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
    return {
        "name": "mean reward" if name == "reward" else "training loss",
        "line": line,
        "x": [(x(tick), f"{tick:g}") for tick in across],
        "y": [(y(tick), f"{tick:g}") for tick in up],
        "first": values[0],
        "last": values[-1],
        "steps": int(max(steps)),
    }


def _ticks(low: float, high: float) -> list[float]:
    """4 to 8 round numbers that enclose low..high."""
    span = (high - low) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if span / (m * unit) <= 6)
    first, last = math.floor(low / step), math.ceil((low + span) / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


# --- the faces -----------------------------------------------------------------------------------


def _faces(
    rows: Sequence[metrics.Row],
    earlier: Sequence[metrics.Row],
    images: Mapping[str, Any],
    result: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Right and wrong answers, FACES of each: in file order, every true label in turn."""
    lone = result.get("label_space", "emotion8")
    spaces = {p["id"]: label_spaces.space(p["label_space"]) for p in result.get("prompts", ())}

    def space_of(row: metrics.Row) -> label_spaces.LabelSpace:
        return spaces.get(row.get("prompt", "")) or label_spaces.space(lone)

    per_au = (result.get("au") or {}).get("per_au", {})
    au_set = [facs.parse_name(name) for name in per_au]
    before = {(row["id"], row.get("prompt")): row for row in earlier}
    groups = []
    for right in (True, False):
        kind = [row for row in rows if _is_right(row, space_of(row), au_set) is right]
        shown = _in_turn(
            [row for row in kind if row["id"] in images],
            lambda row: _words(row, space_of(row))[0],
        )
        cards = [
            {
                "image": data_uri(open_row_image(images[row["id"]]), max_side=html.MAX_SIDE),
                "id": row["id"],
                "truth": _words(row, space_of(row))[0],
                "answer": _words(row, space_of(row))[1],
                "status": row["status"],
                "aus": _chips(row, au_set),
                "text": row["text"],
                "before": before.get((row["id"], row.get("prompt")), {}).get("text"),
            }
            for row in shown[:FACES]
        ]
        groups.append({"right": right, "cards": cards, "of": len(kind)})
    return groups


def _words(row: metrics.Row, space: label_spaces.LabelSpace) -> tuple[str | None, str | None]:
    """(what is true, what was answered), several labels as one text in the order of the space."""
    if space.several:
        return join_labels(multilabel.true(row) or ()) or None, join_labels(
            multilabel.said(row)
        ) or None
    return metrics.truth(row, space), metrics.answer(row)


def _is_right(
    row: metrics.Row, space: label_spaces.LabelSpace, au_set: Sequence[int]
) -> bool | None:
    """Whether the labels are right; without a true label, whether the AUs are; None if neither, or
    if nothing was said."""
    if space.several and row.get("labels") is None:
        return None
    label, said = _words(row, space)
    if label is not None:
        return said == label
    aus = metrics.true_aus(row, au_set)
    return None if aus is None else set(row["aus"] or ()) & aus[1] == aus[0]


def _in_turn(
    rows: Sequence[metrics.Row], key: Callable[[metrics.Row], str | None]
) -> list[metrics.Row]:
    """The rows reordered: the first of each key, then the second of each, and so on."""
    queues: dict[str | None, list[metrics.Row]] = {}
    for row in rows:
        queues.setdefault(key(row), []).append(row)
    order = sorted(queues, key=str)
    return [
        queues[k][i] for i in range(max(map(len, queues.values()), default=0))
        for k in order if i < len(queues[k])
    ]  # fmt: skip


def _chips(row: metrics.Row, au_set: Sequence[int]) -> list[dict[str, str]]:
    """Every AU that the truth or the text names: found, missed or wrongly named."""
    if (labels := metrics.true_aus(row, au_set)) is None:
        return []
    present, annotated = labels
    said = set(row["aus"] or ()) & annotated
    return [
        {
            "au": facs.name(au),
            "name": facs.AUS[au].name,
            "kind": ("found" if au in said else "missed") if au in present else "extra",
        }
        for au in facs.top_down(present | said)
    ]


# --- files --------------------------------------------------------------------------------------


def _read_json(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{path}' is not valid JSON ({error}): run the evaluation again") from None


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        try:
            if line.strip():
                rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f"'{path}' line {number} is not valid JSON ({error}): run the evaluation again"
            ) from None
    return rows
