"""One label a face: its rows, their confusion matrix, and the metrics of it.

accuracy   share of rows answered right (called WAR, weighted average recall, in FER papers)
uar        unweighted average recall: mean recall of the classes that occur in the truth
           (Schuller et al., Interspeech 2009)
f1_macro   mean F1 of the classes that occur in the truth
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from vlmface.errors import UserError
from vlmface.label_spaces import LabelSpace
from vlmface.metrics.measures import mean_where, ratio
from vlmface.metrics.metric import Row, built_in
from vlmface.metrics.statistics import Array


def answer(row: Row) -> str | None:
    """The label that counts: only a `strict` or `lenient` answer has one."""
    return row["label"] if row["status"] in ("strict", "lenient") else None


def truth(row: Row, space: LabelSpace) -> str | None:
    """The true label in `space`, or None if the row is not annotated for it."""
    if space.field == "emotion":
        return row["truth"].get("emotion")
    return (row["truth"].get("attributes") or {}).get(space.field)


def count_labels(rows: Sequence[Row], space: LabelSpace) -> Array:
    """What each row adds to the confusion matrix: (rows, K, K + 1), truth by answer, the last
    column for no valid answer; all 0 for a row that is not annotated."""
    index = {label: i for i, label in enumerate(space.labels)}
    true = [truth(row, space) for row in rows]
    for row, label in zip(rows, true, strict=True):
        if label is not None and label not in index:
            raise UserError(
                f"row {row['id']!r} has the true {space.field} {label!r}, which label space "
                f"{space.id} lacks ({', '.join(space.labels)}): choose the benchmark's own space"
            )
    predicted = [index.get(answer(row) or "", len(index)) for row in rows]
    counts = np.zeros((len(rows), len(index), len(index) + 1))
    entries = [(i, index[t], s) for i, (t, s) in enumerate(zip(true, predicted, strict=True)) if t]
    if entries:
        counts[tuple(np.array(entries).T)] = 1
    return counts


def class_scores(confusion: Array) -> dict[str, Array]:
    """f1, precision, recall, support of each class: (..., K); nan where undefined."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    support = confusion.sum(-1)
    predicted = confusion[..., :-1].sum(-2)
    return {
        "f1": ratio(2 * hits, np.where(support > 0, support + predicted, 0)),
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, support),
        "support": support,
    }


def right_and_known(counts: Array) -> tuple[Array, Array]:
    """(rows,) whether each row of `count_labels` is right, and whether it is annotated."""
    return np.trace(counts, axis1=1, axis2=2), counts.sum((1, 2))


def shift_confusion(confusion: Array, share: float) -> Array:
    """A confusion matrix (K, K + 1) with `share` of each class's errors made right or, below 0, of
    its right answers spread over the other answers."""
    moved = confusion.copy()
    for k, line in enumerate(moved):
        right = line[k]
        if share >= 0:
            line *= 1 - share
            line[k] = right + share * (confusion[k].sum() - right)
        else:
            line += -share * right / (len(line) - 1)
            line[k] = right * (1 + share)
    return moved


# --- metrics --------------------------------------------------------------------------------------


_of_confusion = partial(built_in, applies_to=("emotion", "attributes"), takes="sums")


@_of_confusion(
    "accuracy",
    published="accuracy",
    short_title="accuracy (WAR)",
    main=True,
    headline=True,
    summary={
        "emotion": "emotion accuracy {value}{interval}",
        "attributes": "{block} accuracy {value}",
    },
    share=right_and_known,
)
def accuracy(confusion: Array) -> Array:
    """Share of the annotated rows whose answer is right."""
    return ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum((-2, -1)))


@_of_confusion(
    "mean recall (UAR)",
    published="uar",
    short_title="UAR",
    hub_type="recall",
    main=True,
    summary={"emotion": "UAR {value}"},
)
def uar(confusion: Array) -> Array:
    """Mean recall of the classes that occur in the truth."""
    parts = class_scores(confusion)
    return mean_where(parts["recall"], parts["support"] > 0)


@_of_confusion("macro F1", published="f1_macro", hub_type="f1")
def f1_macro(confusion: Array) -> Array:
    """Mean F1 of the classes that occur in the truth."""
    parts = class_scores(confusion)
    return mean_where(parts["f1"], parts["support"] > 0)
