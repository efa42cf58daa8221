"""Drawings of numbers of a scale for reports: what was answered over what is annotated."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vlmface.evaluate.training_curves import ticks
from vlmface.label_spaces import LabelSpace
from vlmface.metrics import ratings
from vlmface.metrics.metric import Row

_LEFT, _TOP, _SIDE = 40, 10, 200  # of the square in a drawing of 260 x 250
_CELLS = 100  # along each side; dots in one cell are drawn as one


def of_scales(
    run: Mapping[str, Any], spaces: Sequence[LabelSpace], rows: Sequence[Row]
) -> list[dict[str, Any]]:
    """A drawing for each scale that a run was scored on.

    Args:
        run: The scores.
        spaces: The label spaces of its prompts.
        rows: Its predictions.

    Returns:
        {"name", "block", "rated", "range", "dots": {"x", "y", "r", "n", "truth", "answer"}, "x",
        "y": (place, label) of ticks, "unanswered"}.
    """
    return [
        {
            "name": space.field.replace("_", " "),
            "rated": scale.name or "number",
            "range": scale.range_text,
            "block": block,
            **_drawing([row for row in rows if _is_of(row, space)], space),
        }
        for space in spaces
        if (scale := space.scale) is not None
        and (block := (run.get("scale") or {}).get(space.field))
    ]


def _is_of(row: Row, space: LabelSpace) -> bool:
    """Whether a row answers the prompt of the scale; a row of another prompt has no value."""
    return "value" in row and ratings.true_value(row, space) is not None


def _drawing(rows: Sequence[Row], space: LabelSpace) -> dict[str, Any]:
    low, high = ratings.scale_of(space).limits
    pairs = [
        (ratings.true_value(row, space) or 0.0, value)
        for row in rows
        if (value := ratings.predicted_value(row, space)) is not None
    ]
    cells = Counter(
        tuple(round((number - low) / (high - low) * _CELLS) for number in pair) for pair in pairs
    )
    most = max(cells.values(), default=1)

    def number(cell: int) -> str:
        return f"{low + (high - low) * cell / _CELLS:.4g}"

    def place(share: float) -> float:
        return round(_SIDE * share, 1)

    marks = [((tick - low) / (high - low), f"{tick:g}") for tick in ticks(low, high)]
    marks = [(share, text) for share, text in marks if 0 <= share <= 1]
    return {
        "dots": [
            {
                "x": _LEFT + place(x / _CELLS),
                "y": _TOP + _SIDE - place(y / _CELLS),
                "r": round(2.5 + 5 * math.sqrt((n - 1) / most), 1),
                "n": n,
                "truth": number(x),
                "answer": number(y),
            }
            for (x, y), n in sorted(cells.items())
        ],
        "x": [(_LEFT + place(share), text) for share, text in marks],
        "y": [(_TOP + _SIDE - place(share), text) for share, text in marks],
        "unanswered": len(rows) - len(pairs),
    }
