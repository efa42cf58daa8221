"""The readings of a model beside each other (see `answering`): of the same faces, the label that it
writes, the one that it finds likeliest behind its rationale, and the one without writing.

    generated               the label in the text
    after_rationale         the likeliest label behind the rationale that the model has just written
    likelihood              the label whose text is likeliest, nothing being written
    likelihood_per_token    the same per token
    likelihood_minus_prior  the same, less what it is behind a grey picture
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmface.infer.prediction import LabelScores
from vlmface.label_spaces import LabelSpace
from vlmface.metrics import metrics
from vlmface.metrics.metrics import Row

NORM_OF = {  # reading: how `LabelScores.probabilities` makes its probabilities
    "likelihood": "sum",
    "likelihood_per_token": "mean",
    "likelihood_minus_prior": "prior",
}
NAMES = ("generated", "after_rationale", *NORM_OF)


def read(row: Row, name: str) -> Row | None:
    """The row with label, status and probabilities as that reading has them; None if it was not
    read in that way."""
    if name == "generated" or _was_not_run(row):
        return {**row, "probabilities": None}
    if name == "after_rationale":
        probabilities = row["probabilities"]
    else:
        likely = row.get("scores")
        if likely is None:
            return None
        scores = LabelScores(likely["log_likelihood"], likely["tokens"], 0.0, likely["prior"])
        probabilities = scores.probabilities(NORM_OF[name])
    if probabilities is None:
        return None
    label = max(probabilities, key=probabilities.__getitem__)
    return {**row, "label": label, "status": "strict", "probabilities": probabilities}


def _was_not_run(row: Row) -> bool:
    """Whether the model was not asked about the row, because no face was found in it."""
    return row.get("face_found") is False and row["label"] is None and not row["text"]


def summarise(rows: Sequence[Row], space: LabelSpace) -> dict[str, Any]:
    """{reading: {"accuracy", "uar", "f1_macro", "ci95", and where it has probabilities "top2",
    "nll", "brier", "ece"}} of the readings that all rows have."""
    blocks = {}
    written = any(row["text"] for row in rows)
    for name in NAMES if written else NORM_OF:
        as_read = [read(row, name) for row in rows]
        if all(row is not None for row in as_read):
            blocks[name] = metrics.label_block([row for row in as_read if row is not None], space)
    return blocks
