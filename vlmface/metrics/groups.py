"""For whom does it work? Scores of groups of people, the gaps between them, and where groups meet.

gap              difference of the best and the worst group's accuracy
equalised odds   the largest difference between two groups in how often a label is found where it
                 is true, or said where it is not (Hardt, Price & Srebro, NeurIPS 2016), each
                 label against the rest
intersections    accuracy of each combination of the attributes (Crenshaw 1989; Buolamwini &
                 Gebru, FAT* 2018); of cells with few faces it says little
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmface.metrics.statistics import Array

GROUPED = ("gender", "age_group", "race")
FEW = 30  # faces; what is measured on fewer is marked, and rates of fewer are not compared

Rows = NDArray[np.bool_]
Interval = Callable[[Rows], dict[str, Any]]


def by_group(
    attributes: Mapping[str, Sequence[str | None]],
    counts: Array,
    labels: Sequence[str],
    interval: Interval | None,
) -> dict[str, Any]:
    """The blocks of metrics.json: {"groups": {attribute: {group: {"n", "accuracy", "ci95"}}},
    "gaps": {attribute: 0..1}, "equalised_odds": {attribute: {"difference", "label", "rate",
    "groups"}}, "intersections": [{attribute: group, "n", "accuracy", "ci95"}, ...]}.

    `attributes` are the groups of each row, `counts` (rows, K, K + 1) what each adds to the
    confusion matrix, all 0 where it is not annotated. `interval` gives the "ci95" of the accuracy
    of the rows that are flagged. {} where no two groups are known.
    """
    groups: dict[str, dict[str, Any]] = {}
    odds: dict[str, dict[str, Any]] = {}
    annotated = counts.sum((1, 2)) > 0
    for name, words in attributes.items():
        inside = {
            word: np.array([other == word for other in words]) & annotated
            for word in sorted({word for word in words if word is not None})
        }
        table = {word: _cell(rows, counts, interval) for word, rows in inside.items() if rows.any()}
        if len(table) < 2:
            continue
        groups[name] = table
        largest = equalised_odds({word: counts[inside[word]].sum(0) for word in table}, labels)
        if largest:
            odds[name] = largest
    if not groups:
        return {}
    accuracies = {
        name: [cell["accuracy"] for cell in table.values()] for name, table in groups.items()
    }
    return {
        "groups": groups,
        "gaps": {name: max(values) - min(values) for name, values in accuracies.items()},
        **({"equalised_odds": odds} if odds else {}),
        **_crossed({name: attributes[name] for name in groups}, counts, annotated, interval),
    }


def equalised_odds(confusions: Mapping[str, Array], labels: Sequence[str]) -> dict[str, Any] | None:
    """{"difference": 0..1, "label", "rate": "true positives" or "false positives", "groups": [that
    with the higher rate, the other]} of the largest difference; None if no rate of two groups is
    known of FEW faces at least. `confusions` are (K, K + 1) for each group."""
    worst: dict[str, Any] | None = None
    rates = {group: _rates(confusion) for group, confusion in confusions.items()}
    for group, other in combinations(rates, 2):
        for kind in ("true positives", "false positives"):
            (first, few), (second, less) = rates[group][kind], rates[other][kind]
            for k in np.flatnonzero((few >= FEW) & (less >= FEW)).tolist():
                difference = float(first[k] - second[k])
                if worst is None or abs(difference) > worst["difference"]:
                    groups = [group, other] if difference >= 0 else [other, group]
                    worst = {
                        "difference": abs(difference),
                        "label": labels[k],
                        "rate": kind,
                        "groups": groups,
                    }
    return worst


def _rates(confusion: Array) -> dict[str, tuple[Array, Array]]:
    """For each kind of rate, (rate, faces that it is of), (K,) both; 0 of no faces."""
    hits, support = np.diagonal(confusion), confusion.sum(1)
    others = support.sum() - support
    alarms = confusion[:, :-1].sum(0) - hits
    return {
        "true positives": (hits / np.maximum(support, 1), support),
        "false positives": (alarms / np.maximum(others, 1), others),
    }


def _crossed(
    attributes: Mapping[str, Sequence[str | None]],
    counts: Array,
    annotated: Rows,
    interval: Interval | None,
) -> dict[str, Any]:
    """The cells where the attributes meet, the least accurate first, those of few faces last."""
    if len(attributes) < 2:
        return {}
    cells = []
    rows = list(zip(*attributes.values(), strict=True))
    for words in sorted({row for row in rows if None not in row}):
        inside = np.array([row == words for row in rows]) & annotated
        if inside.any():
            words_of = dict(zip(attributes, words, strict=True))
            cells.append(words_of | _cell(inside, counts, interval))
    cells.sort(key=lambda cell: (cell["n"] < FEW, cell["accuracy"]))
    return {"intersections": cells}


def _cell(rows: Rows, counts: Array, interval: Interval | None) -> dict[str, Any]:
    part = counts[rows].sum(0)
    n, right = int(part.sum()), int(np.trace(part))
    return {"n": n, "accuracy": right / n, **(interval(rows) if interval else {})}
