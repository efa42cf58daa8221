"""Numbers of a scale (`LabelSpace.scale`): answers against `truth.value`, the exact annotation.

    mae      mean absolute error, in the unit of the scale; 0 is best
    ccc, rmse   as of valence and arousal, see `affect`
    pearson  correlation (Pearson 1895); nan where it is not defined

A row without a valid answer counts as the end of the scale that is farthest from the truth. The
`expected` reading is the mean of the numbers, weighted with their probabilities, instead of the
number that was answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmface.errors import UserError
from vlmface.label_spaces import LabelSpace
from vlmface.metrics import affect
from vlmface.metrics.labels import answer
from vlmface.metrics.measures import ratio
from vlmface.metrics.metric import Row, built_in
from vlmface.metrics.statistics import Array
from vlmface.scales import Scale

ANSWERED, EXPECTED = "answered", "expected"  # readings


def scale_of(space: LabelSpace) -> Scale:
    """The scale of a space that has one."""
    assert space.scale is not None
    return space.scale


def true_value(row: Row, space: LabelSpace) -> float | None:
    """The annotated number; None if the row has none.

    Raises:
        UserError: It is not a number of the scale.
    """
    value = row["truth"].get("value")
    low, high = scale_of(space).limits
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and low <= value <= high):
        raise UserError(
            f"row {row['id']!r} has the true value {value!r}, which is outside of {space.id} "
            f"({scale_of(space).range_text}): choose the benchmark's own label space"
        )
    return None if value is None else float(value)


def predicted_value(row: Row, space: LabelSpace, reading: str = ANSWERED) -> float | None:
    """The number that was answered, or that is expected by the probabilities; None without one."""
    if reading == EXPECTED:
        probabilities = row.get("probabilities")
        return scale_of(space).expected(probabilities) if probabilities else None
    label = answer(row)
    return float(label) if label in space.labels else None


def sums(rows: Sequence[Row], space: LabelSpace, reading: str = ANSWERED) -> Array:
    """What each row adds, as `affect.sums`; all 0 for a row that is not annotated. Both numbers are
    counted from the middle of the scale, which no metric depends on, so that little is rounded."""
    low, high = scale_of(space).limits
    middle = (low + high) / 2
    counts = np.zeros((len(rows), 1, affect.SUMS))
    for entry, row in zip(counts, rows, strict=True):
        true = true_value(row, space)
        if true is None:
            continue
        value = predicted_value(row, space, reading)
        if value is None:
            value = high if true < middle else low
        entry[0] = affect.summands(value - middle, true - middle)
    return counts


def details(rows: Sequence[Row], space: LabelSpace) -> dict[str, Any]:
    """{"n", "answered": {"share", "mae"}, "constant": {"value", "mae"}}: of the annotated rows, how
    many have a valid answer and its error, and what always answering their median would score."""
    pairs = [
        (true, predicted_value(row, space))
        for row in rows
        if (true := true_value(row, space)) is not None
    ]
    errors = [abs(true - value) for true, value in pairs if value is not None]
    true_values = np.array([true for true, _ in pairs])
    median = float(np.median(true_values))
    return {
        "n": len(pairs),
        "answered": {
            "share": len(errors) / len(pairs),
            "mae": float(np.mean(errors)) if errors else None,
        },
        "constant": {"value": median, "mae": float(np.abs(true_values - median).mean())},
    }


# --- metrics --------------------------------------------------------------------------------------


@built_in(
    "mean absolute error",
    applies_to="scale",
    takes="sums",
    higher_is_better=False,
    unit="",
    scale=1,
    digits=3,
    main=True,
    headline=True,
    summary={"scale": "MAE {value}{interval}"},
)
def mae(total: Array) -> Array:
    """Mean absolute error, in the unit of the scale."""
    return ratio(total[..., 0, -1], total[..., 0, 0])


@built_in("Pearson correlation", applies_to="scale", takes="sums", unit="", scale=1, digits=3)
def pearson(total: Array) -> Array:
    """Correlation of answers and truth, -1..1; nan where one of them is constant."""
    n, x, y, xx, yy, xy, *_ = affect.moments(total)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_x, mean_y = ratio(x, n), ratio(y, n)
        spread_x, spread_y = ratio(xx, n) - mean_x**2, ratio(yy, n) - mean_y**2
        varies = (spread_x > affect.ROUNDING * ratio(xx, n)) & (
            spread_y > affect.ROUNDING * ratio(yy, n)
        )
        shared = ratio(xy, n) - mean_x * mean_y
        return np.where(varies, shared / np.sqrt(spread_x * spread_y), np.nan)
