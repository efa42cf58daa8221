"""Action units: what is annotated and named of them, and the metrics of it.

An intensity of 0 means absent and null means present but not graded. An AU that is not in
`annotated_aus` is unknown and not scored (null there: the whole AU set is annotated). The AUs that
a text names are scored whether or not the text also gives a valid label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlmface import facs
from vlmface.label_spaces import EMOTIONS
from vlmface.metrics.labels import answer
from vlmface.metrics.measures import multilabel_scores
from vlmface.metrics.metric import Row, Scope, built_in
from vlmface.metrics.statistics import Array


def true_aus(row: Row, au_set: Sequence[int]) -> tuple[set[int], set[int]] | None:
    """(present, annotated) AUs among `au_set`, or None if the row has no AU annotation."""
    aus = row["truth"].get("aus")
    if aus is None:
        return None
    annotated = row["truth"].get("annotated_aus")
    present = {int(au) for au, intensity in aus.items() if intensity is None or intensity > 0}
    annotated_aus = set(au_set) if annotated is None else set(au_set) & set(annotated)
    return present & annotated_aus, annotated_aus


def count_aus(rows: Sequence[Row], au_set: Sequence[int]) -> Array:
    """(rows, AUs, 3): hit, false alarm, miss of each row and AU; all 0 where not annotated."""
    index_of = {au: j for j, au in enumerate(au_set)}
    entries: list[tuple[int, int, int]] = []
    for i, row in enumerate(rows):
        if (labels := true_aus(row, au_set)) is None:
            continue
        present, annotated_aus = labels
        predicted = annotated_aus.intersection(row["aus"] or ())
        entries += [(i, index_of[au], 0 if au in present else 1) for au in predicted]
        entries += [(i, index_of[au], 2) for au in present if au not in predicted]
    counts = np.zeros((len(rows), len(au_set), 3))
    if entries:
        counts[tuple(np.array(entries).T)] = 1
    return counts


# --- metrics --------------------------------------------------------------------------------------


@built_in(
    "macro F1",
    name="au_f1",
    key="f1_macro",
    applies_to="au",
    takes="sums",
    published="au_f1_macro",
    short_title="AU F1",
    hub_type="f1",
    main=True,
    headline=True,
    summary={"au": "AU F1 {value}"},
)
def au_f1(tally: Array) -> Array:
    """Mean binary F1 of the AUs that are present at least once in the truth."""
    return multilabel_scores(tally)["f1_macro"]


@built_in(
    "micro F1", name="au_f1_micro", key="f1_micro", applies_to="au", takes="sums", hub_type="f1"
)
def au_f1_micro(tally: Array) -> Array:
    """F1 of the hits, false alarms and misses pooled over all AUs of the set."""
    return multilabel_scores(tally)["f1_micro"]


@built_in("the model's own AUs support its label", applies_to="answers")
def consistency(row: Row, scope: Scope) -> float | None:
    """Whether the AUs of an answer support its label (`facs.supports`); None where it names no
    emotion, or was not asked for AUs."""
    label = answer(row)
    if label is None or not scope.au_set or not set(scope.space.labels) <= set(EMOTIONS):
        return None
    return float(facs.supports(row["aus"] or (), label))
