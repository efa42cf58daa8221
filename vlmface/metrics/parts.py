"""Parts of metrics.json: the metrics of a block that are computed together, from the same sums over
rows (`Counted`) or from how often each row is drawn (`Reweighted`), with their intervals and the
differences of two runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlmface.errors import UserError
from vlmface.metrics import affect, measures, multilabel, ratings
from vlmface.metrics.action_units import count_aus
from vlmface.metrics.labels import count_labels, shift_confusion
from vlmface.metrics.measures import ratio
from vlmface.metrics.metric import Kind, Metric, Row, Scope, of_kind
from vlmface.metrics.shares import paired_share, share_interval, too_few
from vlmface.metrics.statistics import Array, Shift, bootstrap, paired_bootstrap, reweighted
from vlmface.schema import AFFECT

EQUAL = "no interval: all resamples give the same value"


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
        """The keys of its metrics."""
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
        reason = too_few(count_units(self.counts, self.subjects), self.subjects is not None)
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
            **cluster_note(self.subjects),
            **({"no_ci95": reason} if reason else {}),
        }

    def changes(self, after: Part) -> dict[str, dict[str, Any]]:
        """{key: {"difference", "ci95", and "p" of a share}} of another run on the same rows. Of too
        few people "ci95" and "p" are missing, "no_ci95" says why."""
        assert isinstance(after, Counted)
        subjects = self.subjects or after.subjects
        reason = too_few(count_units(self.counts, subjects), subjects is not None)
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
            | cluster_note(subjects)
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
        """The key of its metric."""
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
            **cluster_note(self.subjects),
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
        return {self.metric.key: change | cluster_note(subjects)}


Part = Counted | Reweighted


def parts_of(rows: Sequence[Row], scope: Scope, metrics: Sequence[Metric]) -> Iterator[Part]:
    """The metrics that the rows have a value of, those of the same sums together."""
    for part in _all_parts(rows, scope, metrics):
        if part.values():
            yield part


def _all_parts(rows: Sequence[Row], scope: Scope, metrics: Sequence[Metric]) -> Iterator[Part]:
    if scope.space.scale is not None:
        answered = scale_part(rows, scope, metrics)
        yield answered
        yield from _further_parts(rows, scope, metrics, "scale", answered.path)
        if any(row.get("probabilities") for row in rows):
            yield scale_part(rows, scope, metrics, ratings.EXPECTED)
    elif not scope.space.multi_label:
        labels = label_part(rows, scope, metrics)
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


def label_part(rows: Sequence[Row], scope: Scope, metrics: Iterable[Metric]) -> Counted:
    """The metrics of one label a face."""
    is_emotion = scope.space.field == "emotion"
    kind: Kind = "emotion" if is_emotion else "attributes"
    path = ("emotion",) if is_emotion else ("attributes", scope.space.field)
    counts = count_labels(rows, scope.space)
    return _counted(kind, path, metrics, counts, rows, shift_confusion)


def scale_part(
    rows: Sequence[Row],
    scope: Scope,
    metrics: Iterable[Metric],
    reading: str = ratings.ANSWERED,
) -> Counted:
    """The metrics of numbers of a scale: those answered, or those expected by the probabilities."""
    name = scope.space.field if reading == ratings.ANSWERED else f"{scope.space.field}_{reading}"
    counts = ratings.sums(rows, scope.space, reading)
    return _counted("scale", ("scale", name), metrics, counts, rows)


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
    return Counted(kind, path, functions, counts, subjects_of(rows), shares, shift)


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
            annotated = annotated_rows(rows) if kind == "labels" else rows
            if annotated and (function := metric.function(annotated, scope)) is not None:
                subjects = subjects_of(annotated)
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
    return Counted(kind, path, functions, counts, subjects_of(rows), shares, has_tables=False)


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


def answer_scores(rows: Sequence[Row], scope: Scope, metrics: Sequence[Metric]) -> dict[str, float]:
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


def annotated_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows that are annotated with several labels."""
    return [row for row in rows if multilabel.true_labels(row) is not None]


def subjects_of(rows: Sequence[Row]) -> list[str] | None:
    """The subject of each row; None unless all rows name one."""
    names = [row.get("subject") for row in rows]
    return None if None in names else [str(name) for name in names]


def count_units(counts: Array, subjects: Sequence[str] | None) -> int:
    """How many people, or rows of unknown people, add anything to the counts."""
    counted = np.flatnonzero(counts.any((1, 2)))
    return len(counted) if subjects is None else len({subjects[i] for i in counted.tolist()})


def cluster_note(subjects: Sequence[str] | None) -> dict[str, Any]:
    """What a block says of its interval beside it; nothing if rows were drawn."""
    return {"clusters": {"unit": "subject", "n": len(set(subjects))}} if subjects else {}


def _too_few_rows(rows: int, subjects: Sequence[str] | None) -> str | None:
    return too_few(len(set(subjects or range(rows))), subjects is not None)


def _finite(scores: Mapping[str, Array]) -> dict[str, Any]:
    return {name: float(value) for name, value in scores.items() if np.isfinite(value)}
