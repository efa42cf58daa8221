"""Valence and arousal, where a model tells them: `affect` {"valence", "arousal"} of a row, -1..1,
against `truth.affect`. Numbers of other scales (`ratings`) are measured by the same sums.

All three figures follow from sums over rows, so their intervals are those of `statistics`.

    ccc   concordance correlation (Lin 1989); nan where it is not defined
    rmse  root mean squared error, in the unit of the scale; 0 is best
    sagr  share of the faces with the true sign; 0 has a sign of its own
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlmface.metrics.measures import ratio
from vlmface.metrics.metric import Row, built_in
from vlmface.metrics.statistics import Array

SUMS = 8
ROUNDING = 1e-12  # share of a mean square below which a variance is what rounding left


def summands(x: float, y: float) -> tuple[float, ...]:
    """What a prediction x and the truth y add: 1, x, y, x², y², xy, whether the signs agree, and
    the absolute difference."""
    return 1, x, y, x * x, y * y, x * y, np.sign(x) == np.sign(y), abs(x - y)


def sums(rows: Sequence[Row], dimension: str) -> Array:
    """What each row adds, (rows, 1, SUMS), see `summands`; all 0 where prediction or truth is not
    known."""
    counts = np.zeros((len(rows), 1, SUMS))
    for entry, row in zip(counts, rows, strict=True):
        x = (row.get("affect") or {}).get(dimension)
        y = (row["truth"].get("affect") or {}).get(dimension)
        if x is not None and y is not None:
            entry[0] = summands(x, y)
    return counts


def moments(total: Array) -> tuple[Array, ...]:
    """The sums (..., 1, SUMS) as arrays: n, x, y, x², y², xy, agreeing signs, absolute error."""
    return tuple(np.moveaxis(total[..., 0, :], -1, 0))


# --- metrics --------------------------------------------------------------------------------------


@built_in(
    "CCC \N{MULTIPLICATION SIGN} 100",
    applies_to=("affect", "scale"),
    takes="sums",
    unit="",
    main=True,
    summary={"affect": "{block} CCC {value}", "scale": "{block} CCC {value}{interval}"},
)
def ccc(total: Array) -> Array:
    """Concordance correlation coefficient, -1..1; nan where it is not defined."""
    n, x, y, xx, yy, xy, *_ = moments(total)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_x, mean_y = ratio(x, n), ratio(y, n)
        spread = ratio(xx, n) - mean_x**2 + ratio(yy, n) - mean_y**2
        below = spread + (mean_x - mean_y) ** 2
        shared = ratio(xy, n) - mean_x * mean_y
        # Differences of sums: what is left of equal values is rounding.
        squares = ratio(xx, n) + ratio(yy, n)
        return np.where(below > ROUNDING * squares, 2 * shared / below, np.nan)


@built_in(
    "RMSE",
    applies_to=("affect", "scale"),
    takes="sums",
    higher_is_better=False,
    unit="",
    scale=1,
    digits=3,
)
def rmse(total: Array) -> Array:
    """Root mean squared error, in the unit of the scale."""
    n, _, _, xx, yy, xy, *_ = moments(total)
    return np.sqrt(np.maximum(ratio(xx - 2 * xy + yy, n), 0))


@built_in(
    "right sign (SAGR)",
    applies_to="affect",
    takes="sums",
    share=lambda counts: (counts[:, 0, 6], counts[:, 0, 0]),
)
def sagr(total: Array) -> Array:
    """Share of the faces with the true sign."""
    n, *_, agree, _ = moments(total)
    return ratio(agree, n)
