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
from vlmface.evaluate import scatter, tables, training_curves
from vlmface.metrics import groups, multilabel, ratings
from vlmface.metrics import metrics as scoring
from vlmface.metrics.metric import Metric, Row, ScoredBlock, of_kind, scored_blocks, with_built_in
from vlmface.scales import number_text
from vlmface.utils import html
from vlmface.utils.files import atomic_write
from vlmface.utils.images import data_uri

FACES = 8  # of each kind, right and wrong
NEAR = 0.1  # error of a number of a scale, as a share of its length, up to which it is called near
REQUIRED = ("benchmark", "model", "n", "scoring", "parse", "wall_s", "peak_rss_gib")


def write_report(
    run_dir: str | Path,
    *,
    images: Mapping[str, Any],
    baseline: Mapping[str, Any] | None = None,
    published: Sequence[Mapping[str, Any]] = (),
    extra: Sequence[Metric] = (),
) -> Path:
    """Write `report.html` into `run_dir` from the files there.

    Reads `metrics.json` (one evaluation, or {"before", "after", "train", "paired"}) and, where they
    exist, `vlmface.json`, `predictions.jsonl`, `predictions_before.jsonl` and `log.jsonl`. The page
    loads nothing from elsewhere. An older report is only replaced by a complete one.

    Args:
        run_dir: The folder.
        images: {row id: picture}, opened or as stored; rows without one are not shown.
        baseline: Another model, or another rule for this one: {"name", "source", "emotion":
            {"accuracy"}, "au": {"f1_macro", "per_au": {"AU4": {"f1"}}}}.
        published: Rows of `tables.beside_published`.
        extra: The metrics that the benchmark names.

    Returns:
        The path of the page.

    Raises:
        UserError: A file is missing or broken.
    """
    run_dir = Path(run_dir)
    scores, runs = _read_scores(run_dir)
    manifest = _read_json(run_dir / "vlmface.json") or {}
    metrics = with_built_in(extra)
    when = datetime.fromtimestamp((run_dir / "metrics.json").stat().st_mtime, UTC)
    content = html.render(
        "report.html.j2",
        runs=runs,
        train=scores.get("train") or {},
        warnings=_warnings(scores.get("train") or {}),
        when=html.stamp(when),
        origin=_origin(manifest),
        manifest=json.dumps(manifest, indent=2, ensure_ascii=False) if manifest else "",
        note=manifest.get("limitations"),
        baseline=baseline,
        groups=_score_groups(runs, scores.get("paired") or {}, baseline or {}, metrics),
        **_training(_read_lines(run_dir / "log.jsonl"), scores.get("train") or {}, metrics),
        **_tables(runs, baseline or {}),
        **_faces_of(run_dir, runs, images),
        **_published(published, metrics),
    )
    path = run_dir / "report.html"
    atomic_write(path, content)
    return path


def _read_scores(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metrics.json, {"before", "after" or "result": the scores of an evaluation})."""
    scores = _read_json(run_dir / "metrics.json")
    if scores is None:
        raise UserError(f"'{run_dir}' holds no metrics.json: give the folder of a finished run")
    runs = {name: scores[name] for name in ("before", "after") if name in scores}
    runs = runs or {"result": scores}
    for name, run in runs.items():
        if lacking := [key for key in REQUIRED if key not in run]:
            raise UserError(
                f"'{run_dir / 'metrics.json'}' ({name}) lacks {', '.join(lacking)}: "
                "run the evaluation again with this version of vlmface"
            )
    return scores, runs


def _tables(runs: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows besides the table of scores, by name in the template."""
    result = list(runs.values())[-1]
    return {
        "result": result,
        "targets": _targets(result),
        "confusions": {name: _confusions(run) for name, run in runs.items()},
        "aus": _au_bars(runs, baseline),
        "labels": _labels(runs),
        "reliability": _reliability(result),
        "few": groups.FEW,
        "grouped": groups.GROUPED,
    }


def _faces_of(run_dir: Path, runs: Mapping[str, Any], images: Mapping[str, Any]) -> dict[str, Any]:
    """Faces with their answers, before training too where that was scored."""
    rows = _read_lines(run_dir / "predictions.jsonl")
    earlier = _read_lines(run_dir / "predictions_before.jsonl")
    result = list(runs.values())[-1]
    prompts = result.get("prompts") or [result]
    spaces = [
        label_spaces.of_results(result, prompt.get("label_space", "emotion8")) for prompt in prompts
    ]
    drawings = scatter.of_scales(result, spaces, rows)
    return {"faces": _faces(rows, earlier, images, result), "scales": drawings}


def _training(
    log: Sequence[Mapping[str, Any]], train: Mapping[str, Any], metrics: Sequence[Metric]
) -> dict[str, Any]:
    """The curves of the training, and what is said about its best checkpoint."""
    best = train.get("best")
    charts = training_curves.charts(log, metrics, best)
    if best is None:
        return {"charts": charts, "best": None}
    metric = next((metric for metric in metrics if metric.name == best["metric"]), None)
    title = "validation loss" if metric is None else metric.title
    value = f"{best['value']:.3f}" if metric is None else metric.with_unit(best["value"])
    return {"charts": charts, "best": {"step": best["step"], "text": f"{title} {value}"}}


def _published(published: Sequence[Mapping[str, Any]], metrics: Sequence[Metric]) -> dict[str, Any]:
    """The table of published results, and the metrics of its columns."""
    metric_of = tables.by_published_name(metrics)
    columns = [metric_of[key] for key in tables.columns(published, metrics)]
    return {
        "published": [
            {
                **row,
                "cells": [
                    {
                        "metric": metric,
                        "value": row["scores"].get(metric.published),
                        "ci": row["ci95"].get(metric.published),
                    }
                    for metric in columns
                ],
            }
            for row in published
        ],
        "published_metrics": columns,
    }


# --- numbers -------------------------------------------------------------------------------------


def score_blocks(run: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The scored blocks of a run by title: emotion, each attribute, several labels a face, action
    units, valence and arousal, rationales."""
    return {block.title: block.scores for block in scored_blocks(run)}


def _warnings(train: Mapping[str, Any]) -> list[str]:
    """What a reader must know of the training rows before the scores."""
    shared = train.get("shared_people") or {}
    return [people.overlap_warning(both, part) for part, both in shared.items()]


def _targets(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each label block: its name, accuracy, interval, and what constant answering scores."""
    return [
        {
            "name": name.replace("_", " "),
            "block": block,
            "n": block.get("n", run["n"]),
            "constant": _constant(block),
        }
        for name, block in score_blocks(run).items()
        if "accuracy" in block
    ]


def _constant(block: Mapping[str, Any]) -> float | None:
    supports = [entry["support"] for entry in block.get("per_class", {}).values()]
    return max(supports) / sum(supports) if sum(supports) else None


def _origin(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the manifest says about where the model comes from, as (name, value) lines."""
    lines = []
    if base := manifest.get("base_model"):
        lines.append(("base model", f"{base['id']}, weights {base['sha']}"))
    if start := manifest.get("init_from"):
        lines.append(("started from", f"{start['id']}, weights {start['sha']}"))
    if trainable := manifest.get("trainable"):
        lines.append(("trained parts", ", ".join(f"{k}: {v}" for k, v in trainable.items())))
    if data := manifest.get("dataset"):
        facts = [f"{k} {v}" for k, v in data.items() if k not in ("name", "n") and v]
        lines.append(("training data", ", ".join([data["name"], f"{data['n']} faces", *facts])))
    return lines


def _score_groups(
    runs: Mapping[str, Any],
    paired: Mapping[str, Any],
    baseline: Mapping[str, Any],
    metrics: Sequence[Metric],
) -> list[dict[str, Any]]:
    """The score table: groups of lines with a value and interval per run, change and baseline."""
    blocks = [{block.title: block for block in scored_blocks(run)} for run in runs.values()]
    changes, others = score_blocks(paired), score_blocks(baseline)
    groups = []
    for title in dict.fromkeys(title for run in blocks for title in run):
        kind = next(run[title].kind for run in blocks if title in run)
        lines = []
        for metric in of_kind(metrics, kind):
            cells = [_cell(run.get(title), metric) for run in blocks]
            if metric.in_tables and any(cell["value"] is not None for cell in cells):
                change = changes.get(title, {}).get(metric.key)
                other = others.get(title, {}).get(metric.key)
                lines.append(
                    {"metric": metric, "cells": cells, "change": change, "baseline": other}
                )
        if lines:
            groups.append({"title": title.replace("_", " "), "lines": lines})
    return groups + _reliability_group(runs, metrics)


def _cell(block: ScoredBlock | None, metric: Metric) -> dict[str, Any]:
    if block is None:
        return {"value": None, "ci": None}
    return {"value": block.get(metric), "ci": block.ci95(metric)}


def _reliability_group(runs: Mapping[str, Any], metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """The group of lines about answers as a whole and label probabilities, without intervals."""
    lines = []
    for metric in of_kind(metrics, "answers") + of_kind(metrics, "calibration"):
        sources = [
            run if "answers" in metric.applies_to else run.get("calibration", {})
            for run in runs.values()
        ]
        cells = [{"value": source.get(metric.key), "ci": None} for source in sources]
        if metric.in_tables and any(cell["value"] is not None for cell in cells):
            lines.append({"metric": metric, "cells": cells, "change": None, "baseline": None})
    return [{"title": "reliability", "lines": lines}] if lines else []


def _confusions(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Confusion tables: per true label its count and cells (count, share of the line, right)."""
    tables = []
    for target in _targets(run):
        block = target["block"]
        if "confusion" not in block:
            continue
        lines = [
            {
                "label": label,
                "n": sum(counts),
                "cells": [
                    {"count": c, "share": c / sum(counts), "right": i == j}
                    for j, c in enumerate(counts)
                ],
            }
            for i, (label, counts) in enumerate(
                zip(block["labels"], block["confusion"], strict=True)
            )
            if sum(counts)
        ]
        heads = [*block["labels"], "no valid answer"]
        tables.append({"title": target["name"], "heads": heads, "lines": lines})
    return tables


def _au_bars(runs: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """Per AU its support, the F1 of each run, the baseline's F1; and the AUs that no face shows."""
    tables = {name: (run.get("au") or {}).get("per_au", {}) for name, run in runs.items()}
    others = (baseline.get("au") or {}).get("per_au", {})
    bars, unseen = [], []
    for au, entry in list(tables.values())[-1].items():
        if not entry["support"]:
            unseen.append(au)
            continue
        bars.append(
            {
                "au": au,
                "name": facs.AUS[facs.parse_name(au)].name,
                "support": entry["support"],
                "f1": {name: table.get(au, {}).get("f1") for name, table in tables.items()},
                "baseline": others.get(au, {}).get("f1"),
            }
        )
    return {
        "bars": bars,
        "unseen": unseen,
        "baseline": any(b["baseline"] is not None for b in bars),
    }


def _labels(runs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each of several labels a face, the commonest first: its support and, of each run, F1,
    precision, recall and AP as far as they are known."""
    tables = [(run.get("labels") or {}).get("per_label", {}) for run in runs.values()]
    supports = {label: entry["support"] for label, entry in tables[-1].items() if entry["support"]}
    return [
        {
            "label": label,
            "support": supports[label],
            "runs": [table.get(label, {}) for table in tables],
        }
        for label in sorted(supports, key=lambda label: -supports[label])
    ]


def _reliability(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """The reliability diagram, in a drawing of 260 x 250, of the first block that has one."""
    blocks = [run, *score_blocks(run).values()]
    calibration = next((block["calibration"] for block in blocks if "calibration" in block), None)
    if calibration is None or "reliability" not in calibration:
        return None
    most = max(entry["count"] for entry in calibration["reliability"])
    return {
        "ece": calibration["ece"],
        "x": [(40 + 200 * share, f"{100 * share:.0f}") for share in (0, 0.25, 0.5, 0.75, 1)],
        "y": [(210 - 200 * share, f"{100 * share:.0f}") for share in (0, 0.25, 0.5, 0.75, 1)],
        "dots": [
            {
                "x": round(40 + 200 * entry["confidence"], 1),
                "y": round(210 - 200 * entry["accuracy"], 1),
                "r": round(2 + 8 * math.sqrt(entry["count"] / most), 1),
                "n": entry["count"],
                "confidence": entry["confidence"],
                "accuracy": entry["accuracy"],
            }
            for entry in calibration["reliability"]
            if entry["count"]
        ],
    }


# --- the faces -----------------------------------------------------------------------------------


def _faces(
    rows: Sequence[Row],
    earlier: Sequence[Row],
    images: Mapping[str, Any],
    result: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Right and wrong answers, FACES of each: in file order, every true label in turn."""
    lone = result.get("label_space", "emotion8")
    spaces = {
        prompt["id"]: label_spaces.of_results(result, prompt["label_space"])
        for prompt in result.get("prompts", ())
    }

    def space_of(row: Row) -> label_spaces.LabelSpace:
        return spaces.get(row.get("prompt", "")) or label_spaces.of_results(result, lone)

    per_au = (result.get("au") or {}).get("per_au", {})
    au_set = [facs.parse_name(name) for name in per_au]
    before = {(row["id"], row.get("prompt")): row for row in earlier}
    groups = []
    for right in (True, False):
        kind = [row for row in rows if _is_right(row, space_of(row), au_set) is right]
        rows_shown = _in_turn(
            [row for row in kind if row["id"] in images],
            lambda row: _class_of(row, space_of(row)),
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
            for row in rows_shown[:FACES]
        ]
        rated = bool(rows) and all(space_of(row).scale is not None for row in rows)
        title = ("Near" if right else "Far") if rated else ("Right" if right else "Wrong")
        groups.append(
            {"right": right, "rated": rated, "title": title, "cards": cards, "of": len(kind)}
        )
    return groups


def _class_of(row: Row, space: label_spaces.LabelSpace) -> str | None:
    """What faces are shown of in turn: the true label, or the fifth of the scale."""
    if space.scale is None:
        return _words(row, space)[0]
    value, (low, high) = ratings.true_value(row, space), space.scale.limits
    return None if value is None else str(int(4.999 * (value - low) / (high - low)))


def _words(row: Row, space: label_spaces.LabelSpace) -> tuple[str | None, str | None]:
    """(what is true, what was answered), several labels as one text in the order of the space."""
    if space.multi_label:
        true, predicted = multilabel.true_labels(row) or (), multilabel.predicted_labels(row)
        return join_labels(true) or None, join_labels(predicted) or None
    if space.scale is not None:
        value = ratings.true_value(row, space)
        return None if value is None else number_text(value), scoring.answer(row)
    return scoring.truth(row, space), scoring.answer(row)


def _is_right(row: Row, space: label_spaces.LabelSpace, au_set: Sequence[int]) -> bool | None:
    """Whether the labels are right, or a number of a scale near the truth; without a true label,
    whether the AUs are; None if neither, or if nothing was said."""
    if space.multi_label and row.get("labels") is None:
        return None
    label, predicted = _words(row, space)
    if space.scale is not None and label is not None:
        low, high = space.scale.limits
        value = ratings.predicted_value(row, space)
        return value is not None and abs(value - float(label)) <= NEAR * (high - low)
    if label is not None:
        return predicted == label
    aus = scoring.true_aus(row, au_set)
    return None if aus is None else set(row["aus"] or ()) & aus[1] == aus[0]


def _in_turn(rows: Sequence[Row], key: Callable[[Row], str | None]) -> list[Row]:
    """The rows reordered: the first of each key, then the second of each, and so on."""
    queues: dict[str | None, list[Row]] = {}
    for row in rows:
        queues.setdefault(key(row), []).append(row)
    order = sorted(queues, key=str)
    return [
        queues[k][i]
        for i in range(max(map(len, queues.values()), default=0))
        for k in order
        if i < len(queues[k])
    ]


def _chips(row: Row, au_set: Sequence[int]) -> list[dict[str, str]]:
    """Every AU that the truth or the text names: found, missed or wrongly named."""
    if (labels := scoring.true_aus(row, au_set)) is None:
        return []
    present, annotated = labels
    predicted = set(row["aus"] or ()) & annotated
    return [
        {
            "au": facs.name(au),
            "name": facs.AUS[au].name,
            "kind": ("found" if au in predicted else "missed") if au in present else "extra",
        }
        for au in facs.top_down(present | predicted)
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
