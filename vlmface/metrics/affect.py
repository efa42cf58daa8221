"""Valence and arousal, where a model tells them: `affect` {"valence", "arousal"} of a row, -1..1,
against `truth.affect`.

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


def sums(rows: Sequence[Row], dimension: str) -> Array:
    """What each row adds, (rows, 1, 7): 1, x, y, x², y², xy and whether the signs agree, of the
    prediction x and the truth y; all 0 where either is not known."""
    counts = np.zeros((len(rows), 1, 7))
    for entry, row in zip(counts, rows, strict=True):
        x = (row.get("affect") or {}).get(dimension)
        y = (row["truth"].get("affect") or {}).get(dimension)
        if x is not None and y is not None:
            entry[0] = 1, x, y, x * x, y * y, x * y, np.sign(x) == np.sign(y)
    return counts


def _moments(total: Array) -> tuple[Array, ...]:
    """The sums (..., 1, 7) as arrays: n, x, y, x², y², xy, agreeing signs."""
    return tuple(np.moveaxis(total[..., 0, :], -1, 0))


# --- metrics --------------------------------------------------------------------------------------


@built_in(
    "CCC \N{MULTIPLICATION SIGN} 100",
    applies_to="affect",
    takes="sums",
    unit="",
    main=True,
    summary={"affect": "{block} CCC {value}"},
)
def ccc(total: Array) -> Array:
    """Concordance correlation coefficient, -1..1; nan where it is not defined."""
    n, x, y, xx, yy, xy, _ = _moments(total)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_x, mean_y = ratio(x, n), ratio(y, n)
        spread = ratio(xx, n) - mean_x**2 + ratio(yy, n) - mean_y**2
        below = spread + (mean_x - mean_y) ** 2
        shared = ratio(xy, n) - mean_x * mean_y
        # Differences of sums: what is left of equal values is rounding.
        return np.where(below > 1e-12, 2 * shared / below, np.nan)


@built_in(
    "RMSE",
    applies_to="affect",
    takes="sums",
    higher_is_better=False,
    unit="",
    scale=1,
    digits=3,
    in_tables=False,
)
def rmse(total: Array) -> Array:
    """Root mean squared error, in the unit of the scale."""
    n, _, _, xx, yy, xy, _ = _moments(total)
    return np.sqrt(np.maximum(ratio(xx - 2 * xy + yy, n), 0))


@built_in(
    "right sign (SAGR)",
    applies_to="affect",
    takes="sums",
    share=lambda counts: (counts[:, 0, -1], counts[:, 0, 0]),
)
def sagr(total: Array) -> Array:
    """Share of the faces with the true sign."""
    n, *_, agree = _moments(total)
    return ratio(agree, n)
