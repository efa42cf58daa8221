"""Labels that are steps of a scale (`LabelSpace.ordered`): how far answers are from the truth.

mean_step_error   mean absolute error in steps of the scale; 0 is best
weighted_kappa    agreement beyond chance with quadratic weights (Cohen 1968); 1 is best

A row without a valid answer counts as the answer that is farthest from the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vlmface.metrics.labels import count_labels
from vlmface.metrics.measures import ratio
from vlmface.metrics.metric import Row, Scope, built_in
from vlmface.metrics.statistics import Array


def steps(size: int) -> Array:
    """The steps between truth and answer, (K, K + 1): the last column is for no valid answer, which
    is as far away as the scale allows."""
    places = np.arange(size)
    between = np.abs(places[:, None] - places)
    return np.column_stack([between, between.max(1)]).astype(float)


def _of_confusion(
    rows: Sequence[Row], scope: Scope, score: Callable[[Array], Array]
) -> Callable[[Array], Array] | None:
    """`score` of the confusion matrices (R, K, K + 1) of weighted rows; None if the labels of the
    space have no order."""
    if not scope.space.ordered:
        return None
    counts = count_labels(rows, scope.space)
    return lambda weights: score(np.tensordot(weights, counts, axes=1))


@built_in(
    "mean error in steps",
    applies_to="attributes",
    takes="weights",
    higher_is_better=False,
    unit="",
    scale=1,
    digits=2,
    summary={"attributes": "mean error {value} steps"},
)
def mean_step_error(rows: Sequence[Row], scope: Scope) -> Callable[[Array], Array] | None:
    """Mean number of steps between answer and truth, over the annotated rows."""
    distance = steps(len(scope.space.labels))
    return _of_confusion(
        rows,
        scope,
        lambda confusion: ratio((confusion * distance).sum((1, 2)), confusion.sum((1, 2))),
    )


@built_in(
    "quadratic weighted kappa",
    applies_to="attributes",
    takes="weights",
    unit="",
    scale=1,
    digits=3,
)
def weighted_kappa(rows: Sequence[Row], scope: Scope) -> Callable[[Array], Array] | None:
    """1 - the squared steps between answer and truth over those expected by chance; nan where
    truth and answers are all the same."""
    squared = steps(len(scope.space.labels)) ** 2

    def kappa(confusion: Array) -> Array:
        total = confusion.sum((1, 2))
        by_chance = confusion.sum(2)[:, :, None] * confusion.sum(1)[:, None, :]
        expected = ratio((by_chance * squared).sum((1, 2)), total)
        return 1 - ratio((confusion * squared).sum((1, 2)), expected)

    return _of_confusion(rows, scope, kappa)
