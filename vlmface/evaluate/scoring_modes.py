"""The readings of a model beside each other (see `answering`): of the same faces, the label that it
writes, the one that it finds likeliest behind its rationale, and the one without writing.

    free          the label in the text
    rationale     the likeliest label behind the rationale that the model has just written
    scored        the label whose text is likeliest, nothing being written
    scored_mean   the same per token
    scored_prior  the same, less what it is behind a grey picture
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmface.infer.local import NORMS, LabelScores
from vlmface.label_spaces import LabelSpace
from vlmface.metrics import metrics
from vlmface.metrics.metrics import Row

NAMES = ("free", "rationale", *("scored" if n == "sum" else f"scored_{n}" for n in NORMS))


def read(row: Row, name: str) -> Row | None:
    """The row with label, status and probabilities as that reading has them; None if it was not
    read in that way."""
    if name == "free":
        return {**row, "probabilities": None}
    if name == "rationale":
        probabilities = row["probabilities"]
    else:
        likely = row.get("scores")
        if likely is None:
            return None
        scores = LabelScores(likely["log_likelihood"], likely["tokens"], 0.0, likely["prior"])
        probabilities = scores.probabilities(name.removeprefix("scored").lstrip("_") or "sum")
    if probabilities is None:
        return None
    label = max(probabilities, key=probabilities.__getitem__)
    return {**row, "label": label, "status": "strict", "probabilities": probabilities}


def summarise(rows: Sequence[Row], space: LabelSpace) -> dict[str, Any]:
    """{reading: {"accuracy", "uar", "f1_macro", "ci95", and where it has probabilities "top2",
    "nll", "brier", "ece"}} of the readings that all rows have."""
    blocks = {}
    written = any(row["text"] for row in rows)
    for name in NAMES if written else NAMES[2:]:
        as_read = [read(row, name) for row in rows]
        if all(row is not None for row in as_read):
            blocks[name] = metrics.label_block([row for row in as_read if row is not None], space)
    return blocks
