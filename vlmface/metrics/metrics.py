"""What is measured, from prediction rows to the `metrics.json` shape. Pure numpy.

One rule holds for every number: a row without a valid answer is wrong. It stays in every
denominator, as a miss of its true class, and it is a prediction of no class.

    emotion, attributes   one label a face: see `labels`; with `groups` of people
    scale                 numbers of a scale, as answered and, where there are probabilities, as
                          expected by them: see `ratings`
    labels                several labels a face: see `multilabel`
    au                    action units, and `consistency`: see `action_units`
    affect                valence and arousal, where rows have them: see `affect`
    calibration           of label probabilities: see `calibration`
    rationale             metrics of the user's about the texts; see `metric`
    ci95       95 % intervals, over people if every row names its subject (`clusters` {"unit",
               "n"} then holds their number): of a share, such as accuracy, the exact binomial one
               at the effective number of rows (`shares`), of other scores a bootstrap
    no_ci95    why scores have no interval, such as too few people

A row is a line of `predictions.jsonl`: `id`, `truth` {`emotion`, `aus` {"4": intensity} or null,
`annotated_aus`, `attributes`}, `label`, `status`, `aus`, `probabilities` {label: p} or null, and
`subject`, a name for the person in the picture, null or left out if it is not known; of several
labels a face also `labels` and `truth.labels`; of a scale `truth.value`, the exact number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from vlmface.answers import STATUSES
from vlmface.errors import UserError
from vlmface.label_spaces import LabelSpace
from vlmface.metrics import ratings
from vlmface.metrics.action_units import count_aus, true_aus
from vlmface.metrics.calibration import calibration
from vlmface.metrics.labels import answer, count_labels, right_and_known, truth
from vlmface.metrics.measures import multilabel_scores as au_scores
from vlmface.metrics.metric import METRICS, Metric, Row, Scope, of_kind, with_built_in
from vlmface.metrics.parts import answer_scores, label_part, parts_of, scale_part
from vlmface.metrics.statistics import Array, align
from vlmface.metrics.tables import details

__all__ = [
    "About",
    "Row",
    "answer",
    "au_scores",
    "block_of",
    "compare",
    "count_aus",
    "count_labels",
    "label_block",
    "label_scores",
    "merge",
    "point_scores",
    "right_and_known",
    "summarise",
    "true_aus",
    "truth",
    "valid_share",
]

# The blocks of metrics.json that have scores.
BLOCKS = ("emotion", "attributes", "scale", "labels", "au", "affect", "rationale")


class About(TypedDict):
    """What metrics.json holds besides the scores; `prompt` is {"id", "sha"}, empty for a model
    without one."""

    benchmark: str
    model: str
    prompt: Mapping[str, str]
    scoring: str
    wall_s: float
    peak_rss_gib: float


def summarise(
    rows: Sequence[Row],
    space: LabelSpace,
    au_set: Sequence[int],
    about: About,
    *,
    ci: bool = True,
    extra: Sequence[Metric] = (),
) -> dict[str, Any]:
    """The content of `metrics.json` for one evaluation; blocks that do not apply are left out.

    Args:
        rows: The predictions.
        space: The label space that was asked for.
        au_set: The AUs to score, empty if the model was not asked for any.
        about: What metrics.json holds besides the scores.
        ci: Whether to add 95 % intervals.
        extra: Metrics in addition to the built-in ones.

    Raises:
        UserError: There are no rows, a truth is outside `space`, or a status is unknown; the
            message names the row.
    """
    if not rows:
        raise UserError("there are no predictions to score: check the split and n")
    scope, metrics = Scope(space, au_set), with_built_in(extra)
    blocks: dict[str, Any] = {}
    for part in parts_of(rows, scope, metrics):
        block: dict[str, Any] = {**part.values()}
        if ci:
            block |= part.intervals()
        _join(blocks, part.path, block | details(part, rows, scope, ci))
    blocks |= answer_scores(rows, scope, metrics)
    if probabilities := calibration(rows, space, metrics):
        blocks["calibration"] = probabilities
    prompt = about["prompt"]
    return {
        "schema": 2,
        "benchmark": about["benchmark"],
        "model": about["model"],
        **({"prompt": {"id": prompt["id"], "sha": prompt["sha"]}} if prompt else {}),
        "label_space": space.id,
        "n": len(rows),
        "scoring": about["scoring"],
        **blocks,
        "parse": _parse_shares(rows),
        "wall_s": about["wall_s"],
        "peak_rss_gib": about["peak_rss_gib"],
    }


def merge(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One `metrics.json` of several prompts' summaries of the same images: a lone one as it is;
    else the blocks side by side, each with its calibration, `prompts` instead of `prompt`, parse
    shares over all answers, `wall_s` in all."""
    first, *others = summaries
    if not others:
        return first
    merged = {k: first[k] for k in ("schema", "benchmark", "model")}
    merged["prompts"] = [s["prompt"] | {"label_space": s["label_space"]} for s in summaries]
    merged |= {"n": first["n"], "scoring": first["scoring"]}
    for summary in summaries:
        blocks = {k: summary[k] for k in BLOCKS if k in summary}
        for block in [summary.get("emotion"), *summary.get("attributes", {}).values()]:
            if block and "calibration" in summary:
                block["calibration"] = summary["calibration"]
        for name, block in blocks.items():
            merged[name] = merged.get(name, {}) | block
    shares = [summary["parse"] for summary in summaries]
    merged["parse"] = {k: sum(share[k] for share in shares) / len(shares) for k in STATUSES}
    merged["wall_s"] = round(sum(summary["wall_s"] for summary in summaries), 2)
    merged["peak_rss_gib"] = max(summary["peak_rss_gib"] for summary in summaries)
    return merged


def compare(
    before: Sequence[Row],
    after: Sequence[Row],
    space: LabelSpace,
    au_set: Sequence[int],
    extra: Sequence[Metric] = (),
) -> dict[str, Any]:
    """after - before of every score on the same images, with 95 % paired intervals.

    Args:
        before: The predictions of one run.
        after: Those of the other, matched by id; the subjects may be named by either run.
        space: The label space that was asked for.
        au_set: The AUs to score.
        extra: Metrics in addition to the built-in ones.

    Returns:
        {"n", "emotion": {"accuracy": {"difference", "ci95", "p"}, "uar": {"difference", "ci95"},
        ...}, "au": {...}}. See `Counted.changes`.

    Raises:
        UserError: The two runs did not answer the same images, or what `summarise` raises.
    """
    after = align(before, after)
    scope, metrics = Scope(space, au_set), with_built_in(extra)
    result: dict[str, Any] = {"n": len(before)}
    others = {(part.path, part.keys): part for part in parts_of(after, scope, metrics)}
    for part in parts_of(before, scope, metrics):
        other = others.get((part.path, part.keys))
        if other is not None:  # valence, say, may be known of one of the two only
            _join(result, part.path, part.changes(other))
    return result


def point_scores(
    rows: Sequence[Row],
    space: LabelSpace,
    au_set: Sequence[int],
    extra: Sequence[Metric] = (),
) -> dict[tuple[str, ...], dict[str, float]]:
    """{place in metrics.json: scores, without intervals} of the rows."""
    scores: dict[tuple[str, ...], dict[str, float]] = {}
    for part in parts_of(rows, Scope(space, au_set), with_built_in(extra)):
        scores[part.path] = scores.get(part.path, {}) | part.values()
    return scores


def label_block(rows: Sequence[Row], space: LabelSpace) -> dict[str, Any]:
    """{"n", "accuracy", "uar", "f1_macro", "ci95", and "calibration" where there are
    probabilities} of the labels alone; of a scale {"n", "mae", "ccc", ..., "ci95", and "expected"
    where there are probabilities}."""
    if space.scale is not None:
        return _scale_block(rows, space)
    part = label_part(rows, Scope(space), METRICS.built_in.values())
    block: dict[str, Any] = {"n": int(part.counts.sum()), **part.values(), **part.intervals()}
    if probabilities := calibration(rows, space, list(METRICS.built_in.values())):
        block["calibration"] = probabilities
    return block


def _scale_block(rows: Sequence[Row], space: LabelSpace) -> dict[str, Any]:
    """`label_block` of a scale."""

    def of_reading(reading: str) -> dict[str, Any]:
        part = scale_part(rows, Scope(space), METRICS.built_in.values(), reading)
        return {"n": int(part.counts.sum(0)[0, 0]), **part.values(), **part.intervals()}

    block = of_reading(ratings.ANSWERED)
    if any(row.get("probabilities") for row in rows):
        block["expected"] = of_reading(ratings.EXPECTED)
    return block


def label_scores(confusion: Array) -> dict[str, Array]:
    """{key: values} of the built-in metrics of confusion matrices (..., K, K + 1)."""
    metrics = of_kind(METRICS.built_in.values(), "emotion")
    return {m.key: m.function(confusion) for m in metrics if m.takes == "sums"}


def block_of(scores: Mapping[str, Any], space: LabelSpace) -> dict[str, Any] | None:
    """The block of `summarise` that scores the labels of the space."""
    if space.field == "emotion":
        return scores.get("emotion")
    if space.scale is not None:
        return scores.get("scale", {}).get(space.field)
    return scores.get("attributes", {}).get(space.field)


def valid_share(scores: Mapping[str, Any]) -> float:
    """The share of answers that could be read, of a metrics.json."""
    return scores["parse"]["strict"] + scores["parse"]["lenient"]


def _join(tree: dict[str, Any], path: tuple[str, ...], block: Mapping[str, Any]) -> None:
    """Put a block at its place; of one that is there already, tables are joined."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    before = tree.get(path[-1], {})
    joined = before | block
    if "ci95" in before and "ci95" in block:
        joined["ci95"] = before["ci95"] | block["ci95"]
    if "per_label" in before and "per_label" in block:
        joined["per_label"] = {
            label: before["per_label"][label] | entry for label, entry in block["per_label"].items()
        }
    tree[path[-1]] = joined


def _parse_shares(rows: Sequence[Row]) -> dict[str, float]:
    for row in rows:
        if row["status"] not in STATUSES:
            raise UserError(
                f"row {row['id']!r} has status {row['status']!r}: use one of {', '.join(STATUSES)}"
            )
    return {s: sum(row["status"] == s for row in rows) / len(rows) for s in STATUSES}
