"""Thresholds of scores, and figures of the model on rendered faces and photographs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from vlmface.aus.model import Model
from vlmface.aus.rendered_faces import UNITS, MeasuredFaces
from vlmface.metrics.measures import intraclass_correlation


def best_threshold(scores: np.ndarray, present: np.ndarray) -> float:
    """The score from which on "present" gives the best F1; the middle of the best ones."""
    order = np.argsort(-scores)
    hits = np.cumsum(present[order])
    f1 = 2 * hits / (np.arange(1, len(scores) + 1) + present.sum())
    smooth = np.convolve(f1, np.ones(5) / 5, mode="same")
    best = int(smooth.argmax())
    following = order[min(best + 1, len(order) - 1)]
    return float((scores[order[best]] + scores[following]) / 2)


def fit_slope(logits: np.ndarray, present: np.ndarray) -> float:
    """The factor of the logits that makes them probabilities, by likelihood."""
    slopes = np.linspace(0.2, 2.0, 37)[:, None]
    z = slopes * logits
    losses = (np.logaddexp(0, z) - z * present).mean(1)
    return float(slopes[losses.argmin(), 0])


def auc(scores: np.ndarray, present: np.ndarray) -> float:
    """The area under the ROC curve, ties counted half; nan if one class is missing."""
    positive, negative = scores[present], np.sort(scores[~present])
    if not len(positive) or not len(negative):
        return float("nan")
    below = np.searchsorted(negative, positive, "left")
    not_above = np.searchsorted(negative, positive, "right")
    return float((below + not_above).mean() / 2 / len(negative))


def f1_score(predicted: np.ndarray, present: np.ndarray) -> float:
    """F1 of a binary decision; 0 if nothing is present or predicted."""
    hits = np.sum(predicted & present)
    return float(2 * hits / max(1, predicted.sum() + present.sum()))


def rendered_figures(model: Model, faces: MeasuredFaces) -> dict[int, dict[str, float]]:
    """{AU: auc, f1, icc, share} of all units of a model, on rendered faces."""
    whole = replace(model, about={**model.about, "told": model.all_units, "sided": []})
    estimates = whole.estimate_arrays(
        faces.points[:, 0], faces.blendshapes[:, 0], faces.patch[:, 0]
    )
    figures = {}
    for k, au in enumerate(model.all_units):
        present, intensity = faces.grade[:, k] > 0, estimates.intensity[:, k]
        figures[au] = {
            "auc": auc(estimates.probability[:, k], present),
            "f1": f1_score(intensity >= 1, present),
            "icc": intraclass_correlation(np.stack([intensity, faces.grade[:, k]], 1)),
            "share": float(present.mean()),
        }
    return figures


def means(figures: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """The means of `rendered_figures` over the units."""
    return {
        name: float(np.mean([row[name] for row in figures.values()]))
        for name in ("auc", "f1", "icc")
    }


def photograph_figures(scores: np.ndarray, labels: np.ndarray) -> dict[str, dict[str, float]]:
    """The figures of `Fit.cross_validate`, of AUs with positives and negatives."""
    figures = {}
    for k, au in enumerate(UNITS):
        labelled = ~np.isnan(labels[:, k])
        present, score = labels[labelled, k] == 1, scores[labelled, k]
        if 1 < present.sum() < len(present) - 1:
            sensitivity, specificity = (score[present] >= 0).mean(), (score[~present] < 0).mean()
            figures[f"AU{au}"] = {
                "auc": round(auc(score, present), 4),
                "balanced_accuracy": round(float(sensitivity + specificity) / 2, 4),
                "positives": int(present.sum()),
                "negatives": int((~present).sum()),
            }
    return figures
