"""What the probabilities of the labels are worth.

ece    expected calibration error, 15 equal-width bins (Guo et al., ICML 2017)
nll    negative log-likelihood of the true label, in nats
brier  squared error, summed over the labels
top2   share of rows whose true label is among the two most probable ones
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vlmface.label_spaces import LabelSpace
from vlmface.metrics import measures
from vlmface.metrics.labels import truth
from vlmface.metrics.metric import Metric, Row, built_in, of_kind


def calibration(
    rows: Sequence[Row], space: LabelSpace, metrics: Sequence[Metric]
) -> dict[str, Any] | None:
    """The block "calibration" of the annotated rows that have probabilities.

    Returns:
        {"n", each of the `metrics`, "bins", "reliability": [{"count", "confidence", "accuracy"},
        ...] of each bin}; None without such rows, where a face has several labels, and for a
        scale, whose steps are not classes.
    """
    scored_rows = [
        row for row in rows if row.get("probabilities") and truth(row, space) is not None
    ]
    if not scored_rows or space.multi_label or space.scale is not None:
        return None
    table = [
        [row["probabilities"].get(label, 0.0) for label in space.labels] for row in scored_rows
    ]
    true = [space.labels.index(str(truth(row, space))) for row in scored_rows]
    bins = measures.reliability(*measures.top_label(table, true))
    return {
        "n": len(scored_rows),
        **{metric.key: metric.function(table, true) for metric in of_kind(metrics, "calibration")},
        "bins": measures.ECE_BINS,
        "reliability": [
            {"count": int(count)}
            | {
                name: float(value)
                for name, value in (("confidence", confidence), ("accuracy", accuracy))
                if np.isfinite(value)
            }
            for count, confidence, accuracy in zip(*bins.values(), strict=True)
        ],
    }


# --- metrics --------------------------------------------------------------------------------------

_of_probabilities = partial(built_in, applies_to="calibration", takes="probabilities")
_error = partial(_of_probabilities, higher_is_better=False)
_unlisted_number: dict[str, Any] = {"unit": "", "scale": 1, "in_tables": False}


@_error("calibration error")
def ece(probabilities: ArrayLike, truth: ArrayLike) -> float:
    """Expected calibration error of the most probable labels."""
    return measures.expected_calibration_error(*measures.top_label(probabilities, truth))


@_error("negative log-likelihood, nats", digits=2, **_unlisted_number)
def nll(probabilities: ArrayLike, truth: ArrayLike) -> float:
    """Mean negative log-likelihood of the true label."""
    return measures.negative_log_likelihood(probabilities, truth)


@_error("Brier score", digits=3, **_unlisted_number)
def brier(probabilities: ArrayLike, truth: ArrayLike) -> float:
    """Mean squared error of the probabilities, summed over the labels."""
    return measures.brier_score(probabilities, truth)


@_of_probabilities("true label among the first two", in_tables=False)
def top2(probabilities: ArrayLike, truth: ArrayLike) -> float:
    """Share of the rows whose true label is one of the two most probable."""
    return measures.top_k_accuracy(probabilities, truth, 2)
