"""Weights of rare labels, the same in every recipe."""

from __future__ import annotations

from collections.abc import Mapping


def label_weights(counts: Mapping[str, float], power: float) -> dict[str, float]:
    """The factor of each label's rows in the loss: (mean count / count) ** power, scaled.

    The mean over all rows is 1, so the size of the loss and the best learning rate stay the same.

    Args:
        counts: {label: number of rows, above 0}.
        power: 0: every row has weight 1; 1: the rows of every label together weigh the same; 0.5
            is between the two (Mahajan et al., ECCV 2018, draw rows by it).

    Returns:
        {label: weight}, {} without counts.
    """
    if not counts:
        return {}
    total = sum(counts.values())
    mean = total / len(counts)
    raw = {label: (mean / n) ** power for label, n in counts.items()}
    scale = total / sum(raw[label] * n for label, n in counts.items())
    return {label: weight * scale for label, weight in raw.items()}
