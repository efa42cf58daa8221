"""Metrics: what they are (`metric`), how they are computed from prediction rows (`metrics`).

The modules that are imported here define the built-in metrics, each in one place.
"""

from vlmface.metrics import action_units, affect, calibration, labels, multilabel, ordinal, votes
from vlmface.metrics.metric import METRICS, Metric, Scope, metric

__all__ = [
    "METRICS",
    "Metric",
    "Scope",
    "action_units",
    "affect",
    "calibration",
    "labels",
    "metric",
    "multilabel",
    "ordinal",
    "votes",
]
