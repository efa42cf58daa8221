"""Tables of metrics.json: the scores of each class, AU, label, and group of people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmface import facs
from vlmface.label_spaces import LabelSpace
from vlmface.metrics import groups, multilabel, ratings
from vlmface.metrics.labels import class_scores, right_and_known
from vlmface.metrics.measures import binary_scores
from vlmface.metrics.metric import Row, Scope
from vlmface.metrics.parts import (
    Part,
    Reweighted,
    annotated_rows,
    cluster_note,
    count_units,
    subjects_of,
)
from vlmface.metrics.shares import share_interval, too_few
from vlmface.metrics.statistics import Array


def details(part: Part, rows: Sequence[Row], scope: Scope, ci: bool) -> dict[str, Any]:
    """The tables of a block: of each class, AU or label, and of groups of people."""
    if isinstance(part, Reweighted):
        if part.kind == "labels":
            return _ranking_details(rows, scope)
        return {"n": part.rows} if part.kind == "rationale" else {}
    total = part.counts.sum(0)
    if not part.has_tables:
        return {"n": int(total[0, 1])} if part.kind == "rationale" else {}
    if part.kind == "au":
        return {"per_au": _table(binary_scores(total), [facs.name(au) for au in scope.au_set])}
    if part.kind == "scale" and part.path[-1] == scope.space.field:
        return ratings.details(rows, scope.space)
    if part.kind in ("affect", "scale"):
        return {"n": int(total[0, 0])}
    if part.kind == "labels":
        table = _table(multilabel.per_label(total), scope.space.labels)
        return {"n": int(total[-1, -1]), "per_label": table}
    return _per_class(total, scope.space) | _by_group(rows, scope.space, part.counts, ci)


def _ranking_details(rows: Sequence[Row], scope: Scope) -> dict[str, Any]:
    """{"n", "per_label": {label: {"support", "ap"}}} of the annotated rows' ranking."""
    annotated = annotated_rows(rows)
    details: dict[str, Any] = {"n": len(annotated)}
    values = multilabel.ranking(annotated, scope.space)
    if values is not None:
        flags = multilabel.present(annotated, scope.space)
        (precisions,) = multilabel.average_precisions(values, flags, np.ones((1, len(annotated))))
        columns = {"support": flags.sum(0), "ap": precisions}
        details["per_label"] = _table(columns, scope.space.labels)
    return details


def _per_class(confusion: Array, space: LabelSpace) -> dict[str, Any]:
    answer_count = confusion[:, :-1].sum()
    return {
        "n": int(confusion.sum()),
        "answered": {
            "share": float(answer_count / confusion.sum()),
            "accuracy": float(np.trace(confusion) / answer_count) if answer_count else None,
        },
        "labels": list(space.labels),
        "confusion": confusion.astype(int).tolist(),
        "per_class": _table(class_scores(confusion), space.labels),
    }


def _by_group(rows: Sequence[Row], space: LabelSpace, counts: Array, ci: bool) -> dict[str, Any]:
    """What `groups.by_group` says of the annotated attributes that are not the label itself."""
    attributes = {
        name: [(row["truth"].get("attributes") or {}).get(name) for row in rows]
        for name in groups.GROUPED
        if name != space.field
    }

    def interval(inside: NDArray[np.bool_]) -> dict[str, Any]:
        subjects = subjects_of(
            [row for row, is_member in zip(rows, inside, strict=True) if is_member]
        )
        interval = share_interval(*right_and_known(counts[inside]), clusters=subjects)
        if interval is None:
            reason = too_few(count_units(counts[inside], subjects), subjects is not None)
            return {"no_ci95": reason, **cluster_note(subjects)}
        return {"ci95": interval, **cluster_note(subjects)}

    return groups.by_group(attributes, counts, space.labels, interval if ci else None)


def _table(columns: Mapping[str, Array], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{name: {column: value}}; an undefined value is null, and support is a whole number."""
    table: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(names):
        values = {key: column[i] for key, column in columns.items()}
        table[name] = {k: float(v) if np.isfinite(v) else None for k, v in values.items()}
        table[name]["support"] = int(values["support"])
    return table
