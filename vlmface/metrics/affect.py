"""Valence and arousal, where a model tells them: `affect` {"valence", "arousal"} of a row, -1..1,
against `truth.affect`.

All three figures follow from sums over rows, so their intervals are those of `statistics`.

    ccc   concordance correlation (Lin 1989); nan where it is not defined
    rmse  root mean squared error, in the unit of the scale; 0 is best
    sagr  share of the faces with the true sign; 0 has a sign of its own
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlmface.metrics.measures import ratio
from vlmface.metrics.statistics import Array

Row = Mapping[str, Any]


def sums(rows: Sequence[Row], dimension: str) -> Array:
    """What each row adds, (rows, 1, 7): 1, x, y, x², y², xy and whether the signs agree, of the
    prediction x and the truth y; all 0 where either is not known."""
    found = np.zeros((len(rows), 1, 7))
    for one, row in zip(found, rows, strict=True):
        x = (row.get("affect") or {}).get(dimension)
        y = (row["truth"].get("affect") or {}).get(dimension)
        if x is not None and y is not None:
            one[0] = 1, x, y, x * x, y * y, x * y, np.sign(x) == np.sign(y)
    return found


def scores(total: Array) -> dict[str, Array]:
    """ccc, rmse, sagr of sums (..., 1, 7); nan without any row."""
    n, x, y, xx, yy, xy, agree = np.moveaxis(total[..., 0, :], -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_x, mean_y = ratio(x, n), ratio(y, n)
        spread = ratio(xx, n) - mean_x**2 + ratio(yy, n) - mean_y**2
        below = spread + (mean_x - mean_y) ** 2
        shared = ratio(xy, n) - mean_x * mean_y
        # Differences of sums: what is left of equal values is rounding.
        ccc = np.where(below > 1e-12, 2 * shared / below, np.nan)
        error = np.sqrt(np.maximum(ratio(xx - 2 * xy + yy, n), 0))
    return {"ccc": ccc, "rmse": error, "sagr": ratio(agree, n)}
