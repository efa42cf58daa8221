"""Scores of several labels a face: of the labels that a model says, and of its ranking of faces.

    f1_macro     mean F1 of the labels that occur in the truth
    f1_micro     F1 of the hits, false alarms and misses pooled over all labels
    jaccard      mean over faces of measures.jaccard, the labels in both sets by those in either
    exact_match  share of the faces whose labels are all right and complete
    map          mean over the labels that occur in the truth of their average precision: how well
                 the faces that have the label are ranked before the others

The first four need labels that were said (`labels` of a row; null where nothing was written), and a
row without a valid answer says none. `map` needs a number for each label and face: the row's
`scores` or, without them, its `probabilities`; see `ranking`. The truth is `truth.labels`, null
where it is not annotated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vlmface.errors import UserError
from vlmface.label_spaces import LabelSpace
from vlmface.metrics import measures
from vlmface.metrics.metric import Row, Scope, built_in
from vlmface.metrics.statistics import Array


def true_labels(row: Row) -> tuple[str, ...] | None:
    """The true labels, or None if the row is not annotated."""
    labels = row["truth"].get("labels")
    return None if labels is None else tuple(labels)


def predicted_labels(row: Row) -> tuple[str, ...]:
    """The labels that count: only a `strict` or `lenient` answer has them."""
    return tuple(row.get("labels") or ()) if row["status"] in ("strict", "lenient") else ()


def was_written(rows: Sequence[Row]) -> bool:
    """Whether the rows hold what a model said, and not only its ranking."""
    return any(row.get("labels") is not None for row in rows)


def counts(rows: Sequence[Row], space: LabelSpace) -> Array:
    """What each row adds to the sums, (rows, K + 1, 3): hit, false alarm, miss of each label, and
    in the last line its Jaccard index, whether it is an exact match, and 1; all 0 where it is not
    annotated. Raises UserError for a true label outside the space."""
    index_of = {label: i for i, label in enumerate(space.labels)}
    tallies = np.zeros((len(rows), len(index_of) + 1, 3))
    for tally, row in zip(tallies, rows, strict=True):
        labels = true_labels(row)
        if labels is None:
            continue
        _check(row, labels, space)
        answer = predicted_labels(row)
        for label in {*labels, *answer}:
            kind = 0 if label in labels and label in answer else 1 if label in answer else 2
            tally[index_of[label], kind] = 1
        tally[-1] = measures.jaccard(answer, labels), set(answer) == set(labels), 1
    return tallies


def shift(total: Array, share: float) -> Array:
    """The sums with `share` of what is wrong made right; see `statistics.Shift`."""
    moved = total.copy()
    moved[:-1] = measures.shift_tally(total[:-1], share)
    right, n = total[-1, :2], total[-1, 2]
    moved[-1, :2] = right + share * (n - right) if share >= 0 else right * (1 + share)
    return moved


def per_label(total: Array) -> dict[str, Array]:
    """f1, precision, recall, support of each label, (K,) each."""
    return measures.binary_scores(total[:-1])


def present(rows: Sequence[Row], space: LabelSpace) -> Array:
    """Which labels each row has, (rows, K) of 0 and 1. Raises as `counts`."""
    for row in rows:
        _check(row, true_labels(row) or (), space)
    return np.array(
        [[label in (true_labels(row) or ()) for label in space.labels] for row in rows], float
    )


def ranking(rows: Sequence[Row], space: LabelSpace) -> Array | None:
    """How strongly each label is held of each face, (rows, K), to compare a label's values between
    faces; None if no row says so.

    Of a language model (`scores`): the log-likelihood of the label as the first of its answer, less
    what it is behind a grey picture of the same size where that is known, which makes pictures of
    different sizes comparable. Of a model with a probability for each label (`probabilities`, which
    then need not sum to 1): these. Raises UserError if some rows have it and others not.
    """
    strengths = [_strength(row) for row in rows]
    if not any(strengths):
        return None
    for row, strength in zip(rows, strengths, strict=True):
        if strength is None or not strength.keys() >= set(space.labels):
            lacking = "no likelihoods" if strength is None else "likelihoods of some labels only"
            raise UserError(
                f"row {row['id']!r} has {lacking} of {space.id}, while others have all: "
                "evaluate the model again, all faces in one way"
            )
    return np.array(
        [
            [strength[label] for label in space.labels]
            for strength in strengths
            if strength is not None
        ]
    )


def average_precisions(values: Array, flags: Array, weights: Array) -> Array:
    """AP of each label of (N, K) values and flags, (R, K), the rows occurring as often as each line
    of `weights` (R, N) says; nan where a label does not occur."""
    return np.stack(
        [
            measures.weighted_average_precision(values[:, k], flags[:, k].astype(bool), weights)
            for k in range(values.shape[1])
        ],
        1,
    )


def map_of(values: Array, flags: Array) -> Callable[[Array], Array]:
    """mAP as a function of how often each row occurs, (R, rows) to (R,)."""

    def score(weights: Array) -> Array:
        precisions = average_precisions(values, flags, weights)
        return measures.mean_where(precisions, np.isfinite(precisions))

    return score


def _strength(row: Row) -> Mapping[str, float] | None:
    if likely := row.get("scores"):
        prior = likely["prior"] or {}
        return {label: x - prior.get(label, 0.0) for label, x in likely["log_likelihood"].items()}
    return row.get("probabilities")


def _check(row: Row, labels: Sequence[str], space: LabelSpace) -> None:
    if unknown := [label for label in labels if label not in space.labels]:
        raise UserError(
            f"row {row['id']!r} has the true label {unknown[0]!r}, which label space {space.id} "
            f"lacks ({', '.join(space.labels)}): choose the benchmark's own space"
        )


# --- metrics --------------------------------------------------------------------------------------


@built_in(
    "macro F1",
    name="labels_f1",
    key="f1_macro",
    applies_to="labels",
    takes="sums",
    published="f1_macro",
    hub_type="f1",
    summary={"labels": "label F1 {value}{interval}"},
)
def labels_f1(total: Array) -> Array:
    """Mean F1 of the labels that occur in the truth."""
    return measures.multilabel_scores(total[..., :-1, :])["f1_macro"]


@built_in(
    "micro F1",
    name="labels_f1_micro",
    key="f1_micro",
    applies_to="labels",
    takes="sums",
    hub_type="f1",
)
def labels_f1_micro(total: Array) -> Array:
    """F1 of the hits, false alarms and misses pooled over all labels."""
    return measures.multilabel_scores(total[..., :-1, :])["f1_micro"]


@built_in(
    "mAP",
    name="map",
    applies_to="labels",
    takes="weights",
    published="map",
    main=True,
    summary={"labels": "mAP {value}{interval}"},
)
def mean_average_precision(rows: Sequence[Row], scope: Scope) -> Callable[[Array], Array] | None:
    """How well the faces that have a label are ranked before the others, as a function of how often
    each row occurs; None if the rows do not rank them or none has a label."""
    values, flags = ranking(rows, scope.space), present(rows, scope.space)
    if values is None or not flags.any():
        return None
    return map_of(values, flags)


@built_in(
    "Jaccard index",
    applies_to="labels",
    takes="sums",
    main=True,
    headline=True,
    summary={"labels": "Jaccard {value}{interval}"},
)
def jaccard(total: Array) -> Array:
    """Mean over faces of the labels in both sets by those in either."""
    return measures.ratio(total[..., -1, 0], total[..., -1, 2])


@built_in(
    "all labels right",
    applies_to="labels",
    takes="sums",
    share=lambda counts: (counts[:, -1, 1], counts[:, -1, 2]),
)
def exact_match(total: Array) -> Array:
    """Share of the faces whose labels are all right and complete."""
    return measures.ratio(total[..., -1, 1], total[..., -1, 2])
