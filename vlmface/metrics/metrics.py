"""What is measured, from prediction rows to the `metrics.json` shape. Pure numpy.

One rule holds for every number: a row without a valid answer is wrong. It stays in every
denominator, as a miss of its true class, and it is a prediction of no class.

    emotion, attributes   one label a face: see `labels`; with `groups` of people
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
labels a face also `labels` and `truth.labels`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from vlmface import facs
from vlmface.answers import STATUSES
from vlmface.errors import UserError
from vlmface.label_spaces import LabelSpace
from vlmface.metrics import affect, groups, measures, multilabel
from vlmface.metrics.action_units import count_aus, true_aus
from vlmface.metrics.calibration import calibration
from vlmface.metrics.labels import (
    answer,
    class_scores,
    count_labels,
    right_and_known,
    shift_confusion,
    truth,
)
from vlmface.metrics.measures import binary_scores, ratio
from vlmface.metrics.measures import multilabel_scores as au_scores
from vlmface.metrics.metric import METRICS, Kind, Metric, Row, Scope, of_kind, with_built_in
from vlmface.metrics.shares import paired_share, share_interval, too_few
from vlmface.metrics.statistics import (
    Array,
    Shift,
    align,
    bootstrap,
    paired_bootstrap,
    reweighted,
)
from vlmface.schema import AFFECT

__all__ = [
    "EQUAL",
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

EQUAL = "no interval: all resamples give the same value"
# The blocks of metrics.json that have scores.
BLOCKS = ("emotion", "attributes", "labels", "au", "affect", "rationale")


class About(TypedDict):
    """What metrics.json holds besides the scores; `prompt` is {"id", "sha"}, empty for a model
    without one."""

    benchmark: str
    model: str
    prompt: Mapping[str, str]
    scoring: str
    wall_s: float
    peak_rss_gib: float


@dataclass(frozen=True)
class Counted:
    """Metrics that are functions of the same sums over rows.

    Attributes:
        kind: The kind of block.
        path: Its place in metrics.json.
        functions: {key of a metric: sums (..., D1, D2) -> values (...)}.
        counts: (rows, D1, D2) what each row adds to the sums.
        subjects: The person in each row; None if not all are known.
        shares: {key: counts -> (hits, totals) of each row} of metrics that are shares of rows.
        shift: See `statistics.Shift`.
        has_tables: Whether the tables of the block are made from these counts.
    """

    kind: Kind
    path: tuple[str, ...]
    functions: Mapping[str, Callable[[Array], Array]]
    counts: Array
    subjects: Sequence[str] | None
    shares: Mapping[str, Callable[[Array], tuple[Array, Array]]] = field(default_factory=dict)
    shift: Shift | None = None
    has_tables: bool = True

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.functions)

    def score(self, totals: Array) -> dict[str, Array]:
        """{key: values} of sums (..., D1, D2)."""
        return {key: function(totals) for key, function in self.functions.items()}

    def values(self) -> dict[str, float]:
        """{key: value} over all rows, without those that are undefined."""
        return _finite(self.score(self.counts.sum(0)))

    def intervals(self) -> dict[str, Any]:
        """{"ci95": {key: [low, high]}} over the rows or, where they are named, the `subjects`, with
        "clusters" and, where scores have none, the reason as "no_ci95"."""
        reason = too_few(_units(self.counts, self.subjects), self.subjects is not None)
        intervals: dict[str, list[float]] = {}
        if reason is None:
            intervals = bootstrap(self.counts, self.score, clusters=self.subjects, shift=self.shift)
        for key, parts in self.shares.items():
            interval = share_interval(*parts(self.counts), clusters=self.subjects)
            if interval is not None:
                intervals[key] = interval
        values = self.values()
        reason = reason or (None if values.keys() <= intervals.keys() else EQUAL)
        return {
            "ci95": {key: interval for key, interval in intervals.items() if key in values},
            **_clusters(self.subjects),
            **({"no_ci95": reason} if reason else {}),
        }

    def changes(self, after: Part) -> dict[str, dict[str, Any]]:
        """{key: {"difference", "ci95", and "p" of a share}} of another run on the same rows. Of too
        few people "ci95" and "p" are missing, "no_ci95" says why."""
        assert isinstance(after, Counted)
        subjects = self.subjects or after.subjects
        reason = too_few(_units(self.counts, subjects), subjects is not None)
        changes = paired_bootstrap(
            self.counts, after.counts, self.score, clusters=subjects, shift=self.shift
        )
        tested = set()
        for key in self.shares.keys() & after.shares.keys() & changes.keys():
            first, totals = self.shares[key](self.counts)
            second, others = after.shares[key](after.counts)
            if np.array_equal(totals, others):  # a share of the same rows in both runs
                changes[key] = paired_share(first, second, totals, clusters=subjects)
                tested.add(key)
        if reason is not None:
            changes = {
                key: {k: v for k, v in change.items() if k == "difference" or key in tested}
                for key, change in changes.items()
            }
        return {
            key: change
            | _clusters(subjects)
            | ({} if "ci95" in change else {"no_ci95": reason or EQUAL})
            for key, change in changes.items()
        }


@dataclass(frozen=True)
class Reweighted:
    """A metric that is a function of how often each row is drawn, such as that of a ranking.

    Attributes:
        kind, path, subjects: As in `Counted`.
        metric: What is computed.
        function: Weights (R, rows) to values (R,).
        rows: How many rows there are.
    """

    kind: Kind
    path: tuple[str, ...]
    metric: Metric
    function: Callable[[Array], Array]
    rows: int
    subjects: Sequence[str] | None

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.metric.key,)

    def values(self) -> dict[str, float]:
        """As `Counted.values`."""
        return _finite({self.metric.key: self.function(np.ones((1, self.rows)))[0]})

    def intervals(self) -> dict[str, Any]:
        """As `Counted.intervals`."""
        reason = _too_few_rows(self.rows, self.subjects)
        intervals = {} if reason else _reweighted(self, self.function, self.subjects)
        reason = reason or (None if intervals else EQUAL)
        return {
            "ci95": intervals,
            **_clusters(self.subjects),
            **({"no_ci95": reason} if reason else {}),
        }

    def changes(self, after: Part) -> dict[str, dict[str, Any]]:
        """As `Counted.changes`."""
        assert isinstance(after, Reweighted)
        others = after.function
        subjects = self.subjects or after.subjects

        def difference(weights: Array) -> Array:
            return others(weights) - self.function(weights)

        change: dict[str, Any] = {"difference": float(difference(np.ones((1, self.rows)))[0])}
        if not math.isfinite(change["difference"]):
            return {}
        if reason := _too_few_rows(self.rows, subjects):
            change["no_ci95"] = reason
        else:
            intervals = _reweighted(self, difference, subjects)
            change |= {"ci95": intervals[self.metric.key]} if intervals else {"no_ci95": EQUAL}
        return {self.metric.key: change | _clusters(subjects)}


Part = Counted | Reweighted


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
    for part in _parts(rows, scope, metrics):
        block: dict[str, Any] = {**part.values()}
        if ci:
            block |= part.intervals()
        _join(blocks, part.path, block | _details(part, rows, scope, ci))
    blocks |= _of_answers(rows, scope, metrics)
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
    others = {(part.path, part.keys): part for part in _parts(after, scope, metrics)}
    for part in _parts(before, scope, metrics):
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
    for part in _parts(rows, Scope(space, au_set), with_built_in(extra)):
        scores[part.path] = scores.get(part.path, {}) | part.values()
    return scores


def label_block(rows: Sequence[Row], space: LabelSpace) -> dict[str, Any]:
    """{"n", "accuracy", "uar", "f1_macro", "ci95", and "calibration" where there are
    probabilities} of the labels alone."""
    part = _label_part(rows, Scope(space), METRICS.built_in.values())
    block: dict[str, Any] = {"n": int(part.counts.sum()), **part.values(), **part.intervals()}
    if probabilities := calibration(rows, space, list(METRICS.built_in.values())):
        block["calibration"] = probabilities
    return block


def label_scores(confusion: Array) -> dict[str, Array]:
    """{key: values} of the built-in metrics of confusion matrices (..., K, K + 1)."""
    metrics = of_kind(METRICS.built_in.values(), "emotion")
    return {metric.key: metric.function(confusion) for metric in metrics}


def block_of(scores: Mapping[str, Any], space: LabelSpace) -> dict[str, Any] | None:
    """The block of `summarise` that scores the labels of the space."""
    if space.field == "emotion":
        return scores.get("emotion")
    return scores.get("attributes", {}).get(space.field)


def valid_share(scores: Mapping[str, Any]) -> float:
    """The share of answers that could be read, of a metrics.json."""
    return scores["parse"]["strict"] + scores["parse"]["lenient"]


# --- parts: metrics that are computed together ---------------------------------------------------


def _parts(rows: Sequence[Row], scope: Scope, metrics: Sequence[Metric]) -> Iterator[Part]:
    """The metrics that the rows have a value of, those of the same sums together."""
    for part in _all_parts(rows, scope, metrics):
        if part.values():
            yield part


def _all_parts(rows: Sequence[Row], scope: Scope, metrics: Sequence[Metric]) -> Iterator[Part]:
    if not scope.space.multi_label:
        labels = _label_part(rows, scope, metrics)
        yield labels
        yield from _further_parts(rows, scope, metrics, labels.kind, labels.path)
    else:
        yield from _multilabel_parts(rows, scope, metrics)
        yield from _further_parts(rows, scope, metrics, "labels", ("labels",))
    if scope.au_set:
        counts = count_aus(rows, scope.au_set)
        yield _counted("au", ("au",), metrics, counts, rows, measures.shift_tally)
        yield from _further_parts(rows, scope, metrics, "au", ("au",))
    for name in AFFECT:
        yield _counted("affect", ("affect", name), metrics, affect.sums(rows, name), rows)
    yield from _further_parts(rows, scope, metrics, "rationale", ("rationale",))


def _label_part(rows: Sequence[Row], scope: Scope, metrics: Iterable[Metric]) -> Counted:
    is_emotion = scope.space.field == "emotion"
    kind: Kind = "emotion" if is_emotion else "attributes"
    path = ("emotion",) if is_emotion else ("attributes", scope.space.field)
    counts = count_labels(rows, scope.space)
    return _counted(kind, path, metrics, counts, rows, shift_confusion)


def _multilabel_parts(
    rows: Sequence[Row], scope: Scope, metrics: Sequence[Metric]
) -> Iterator[Part]:
    if multilabel.was_written(rows):
        counts = multilabel.counts(rows, scope.space)
        yield _counted("labels", ("labels",), metrics, counts, rows, multilabel.shift)


def _counted(
    kind: Kind,
    path: tuple[str, ...],
    metrics: Iterable[Metric],
    counts: Array,
    rows: Sequence[Row],
    shift: Shift | None = None,
) -> Counted:
    """The metrics of a kind that take sums of `counts`."""
    sum_metrics = [metric for metric in of_kind(metrics, kind) if metric.takes == "sums"]
    functions = {metric.key: metric.function for metric in sum_metrics}
    shares = {metric.key: metric.share for metric in sum_metrics if metric.share}
    return Counted(kind, path, functions, counts, _subjects(rows), shares, shift)


def _further_parts(
    rows: Sequence[Row],
    scope: Scope,
    metrics: Sequence[Metric],
    kind: Kind,
    path: tuple[str, ...],
) -> Iterator[Part]:
    """The metrics of a kind that take rows or weights, each by itself."""
    for metric in of_kind(metrics, kind):
        if metric.takes == "row":
            yield _mean_part(rows, scope, metric, kind, path)
        elif metric.takes == "weights":
            annotated = _annotated(rows) if kind == "labels" else rows
            if annotated and (function := metric.function(annotated, scope)) is not None:
                subjects = _subjects(annotated)
                yield Reweighted(kind, path, metric, function, len(annotated), subjects)


def _mean_part(
    rows: Sequence[Row], scope: Scope, metric: Metric, kind: Kind, path: tuple[str, ...]
) -> Counted:
    """A metric that is the mean of one number a row: counts are (rows, 1, 2) of that number and 1,
    0 and 0 where it is None."""
    counts = np.zeros((len(rows), 1, 2))
    for entry, row in zip(counts, rows, strict=True):
        if (value := row_value(metric, row, scope)) is not None:
            entry[0] = value, 1
    shares = {metric.key: _hits_of_sums} if np.isin(counts, (0, 1)).all() else {}
    functions = {metric.key: _mean_of_sums}
    return Counted(kind, path, functions, counts, _subjects(rows), shares, has_tables=False)


def row_value(metric: Metric, row: Row, scope: Scope) -> float | None:
    """The value of a metric that takes rows. Raises UserError if it is not a number."""
    value = metric.function(row, scope)
    if value is None:
        return None
    if not isinstance(value, bool | int | float | np.number | np.bool_) or not np.isfinite(value):
        raise UserError(
            f"metric {metric.name} gives {value!r} for row {row['id']!r}: return a number, or None "
            "where the row does not count"
        )
    return float(value)


def _mean_of_sums(sums: Array) -> Array:
    return ratio(sums[..., 0, 0], sums[..., 0, 1])


def _hits_of_sums(counts: Array) -> tuple[Array, Array]:
    return counts[:, 0, 0], counts[:, 0, 1]


def _of_answers(rows: Sequence[Row], scope: Scope, metrics: Sequence[Metric]) -> dict[str, float]:
    """The means over all answers, which are plain numbers in metrics.json."""
    scores: dict[str, float] = {}
    for metric in of_kind(metrics, "answers"):
        values = [row_value(metric, row, scope) for row in rows]
        defined = [value for value in values if value is not None]
        if defined:
            scores[metric.key] = float(np.mean(defined))
    return scores


def _reweighted(
    part: Reweighted, function: Callable[[Array], Array], subjects: Sequence[str] | None
) -> dict[str, list[float]]:
    key = part.metric.key
    return reweighted(lambda weights: {key: function(weights)}, part.rows, clusters=subjects)


# --- what blocks hold besides scores --------------------------------------------------------------


def _details(part: Part, rows: Sequence[Row], scope: Scope, ci: bool) -> dict[str, Any]:
    """The tables of a block: of each class, AU or label, and of groups of people."""
    if isinstance(part, Reweighted):
        if part.kind in ("emotion", "attributes"):  # `n` is that of the confusion matrix
            return {}
        return _ranking_details(rows, scope) if part.kind == "labels" else {"n": part.rows}
    total = part.counts.sum(0)
    if not part.has_tables:
        return {"n": int(total[0, 1])} if part.kind == "rationale" else {}
    if part.kind == "au":
        return {"per_au": _table(binary_scores(total), [facs.name(au) for au in scope.au_set])}
    if part.kind == "affect":
        return {"n": int(total[0, 0])}
    if part.kind == "labels":
        table = _table(multilabel.per_label(total), scope.space.labels)
        return {"n": int(total[-1, -1]), "per_label": table}
    return _per_class(total, scope.space) | _by_group(rows, scope.space, part.counts, ci)


def _ranking_details(rows: Sequence[Row], scope: Scope) -> dict[str, Any]:
    """{"n", "per_label": {label: {"support", "ap"}}} of the annotated rows' ranking."""
    annotated = _annotated(rows)
    details: dict[str, Any] = {"n": len(annotated)}
    values = multilabel.ranking(annotated, scope.space)
    if values is not None:
        flags = multilabel.present(annotated, scope.space)
        (precisions,) = multilabel.average_precisions(values, flags, np.ones((1, len(annotated))))
        columns = {"support": flags.sum(0), "ap": precisions}
        details["per_label"] = _table(columns, scope.space.labels)
    return details


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


def _annotated(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if multilabel.true_labels(row) is not None]


def _subjects(rows: Sequence[Row]) -> list[str] | None:
    """The subject of each row; None unless all rows name one."""
    names = [row.get("subject") for row in rows]
    return None if None in names else [str(name) for name in names]


def _units(counts: Array, subjects: Sequence[str] | None) -> int:
    """How many people, or rows of unknown people, add anything to the counts."""
    counted = np.flatnonzero(counts.any((1, 2)))
    return len(counted) if subjects is None else len({subjects[i] for i in counted.tolist()})


def _clusters(subjects: Sequence[str] | None) -> dict[str, Any]:
    """What a block says of its interval beside it; nothing if rows were drawn."""
    return {"clusters": {"unit": "subject", "n": len(set(subjects))}} if subjects else {}


def _too_few_rows(rows: int, subjects: Sequence[str] | None) -> str | None:
    return too_few(len(set(subjects or range(rows))), subjects is not None)


def _per_class(confusion: Array, space: LabelSpace) -> dict[str, Any]:
    answer_count = confusion[:, :-1].sum()
    return {
        "n": int(confusion.sum()),
        "answered": {
            "share": float(answer_count / confusion.sum()),
            "accuracy": float(np.trace(confusion) / answer_count) if answer_count else None,
        },
        "labels": list(space.labels),
        "confusion": confusion.astype(int).tolist(),
        "per_class": _table(class_scores(confusion), space.labels),
    }


def _by_group(rows: Sequence[Row], space: LabelSpace, counts: Array, ci: bool) -> dict[str, Any]:
    """What `groups.by_group` says of the annotated attributes that are not the label itself."""
    attributes = {
        name: [(row["truth"].get("attributes") or {}).get(name) for row in rows]
        for name in groups.GROUPED
        if name != space.field
    }

    def interval(inside: NDArray[np.bool_]) -> dict[str, Any]:
        subjects = _subjects(
            [row for row, is_member in zip(rows, inside, strict=True) if is_member]
        )
        interval = share_interval(*right_and_known(counts[inside]), clusters=subjects)
        if interval is None:
            reason = too_few(_units(counts[inside], subjects), subjects is not None)
            return {"no_ci95": reason, **_clusters(subjects)}
        return {"ci95": interval, **_clusters(subjects)}

    return groups.by_group(attributes, counts, space.labels, interval if ci else None)


def _table(columns: Mapping[str, Array], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{name: {column: value}}; an undefined value is null, and support is a whole number."""
    table: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(names):
        values = {key: column[i] for key, column in columns.items()}
        table[name] = {k: float(v) if np.isfinite(v) else None for k, v in values.items()}
        table[name]["support"] = int(values["support"])
    return table


def _parse_shares(rows: Sequence[Row]) -> dict[str, float]:
    for row in rows:
        if row["status"] not in STATUSES:
            raise UserError(
                f"row {row['id']!r} has status {row['status']!r}: use one of {', '.join(STATUSES)}"
            )
    return {s: sum(row["status"] == s for row in rows) / len(rows) for s in STATUSES}


def _finite(scores: Mapping[str, Array]) -> dict[str, Any]:
    return {name: float(value) for name, value in scores.items() if np.isfinite(value)}
