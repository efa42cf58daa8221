"""The curves of a training for its report, from the lines of log.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmface.metrics.metric import Metric

_PREFIX = "eval_"  # of what is measured on validation rows
_ANSWERS = "answers about validation rows"
_STYLES = ("main", "other", "good", "bad", "early")  # colours of page.css
# A drawing of 480 x 240 has this place for the curves.
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 456, 12, 204
_MOST_DOTS = 30  # of a curve whose points are drawn


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        name: For the legend.
        points: (step, value).
    """

    name: str
    points: Sequence[tuple[float, float]]


def charts(
    log: Sequence[Mapping[str, Any]], metrics: Sequence[Metric], best: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """The drawings of a training: losses (or the mean reward), shares in percent, other scores.

    Args:
        log: The lines of log.jsonl.
        metrics: The metrics that validation may have measured.
        best: The `best` of metrics.json's `train`: its step is marked.

    Returns:
        {"title", "sentence", "x", "y": (place, label) of ticks, "series": {"name", "style", "line",
        "dots"}, "best": place of the best step or None}; none with fewer than two points.
    """
    by_name = {metric.name: metric for metric in metrics}
    measured = [key for line in log for key in line if key.startswith(_PREFIX)]
    scores = [key for key in dict.fromkeys(measured) if key != f"{_PREFIX}loss"]
    shares = [key for key in scores if _is_share(key, by_name)]
    others = [key for key in scores if key not in shares]
    losses = _training_series(log)
    groups = [
        (" and ".join(series.name for series in losses), "", losses),
        (_ANSWERS, "%", [Series(_name(key, by_name), _points(log, key, 100)) for key in shares]),
        (_ANSWERS, "", [Series(_name(key, by_name), _points(log, key)) for key in others]),
    ]
    last = max((float(line["step"]) for line in log if "step" in line), default=0.0)
    step = None if best is None else float(best["step"])
    return [
        _chart(title, unit, group, (last, step))
        for title, unit, group in groups
        if sum(len(series.points) for series in group) > 1
    ]


def _training_series(log: Sequence[Mapping[str, Any]]) -> list[Series]:
    """The mean reward of a run that learns from rewards, whose loss says little; else the losses of
    training and validation."""
    if any("reward" in line for line in log):
        return [Series("mean reward", _points(log, "reward"))]
    series = [
        Series("training loss", _points(log, "loss")),
        Series("validation loss", _points(log, f"{_PREFIX}loss")),
    ]
    return [curve for curve in series if curve.points]


def _points(log: Sequence[Mapping[str, Any]], key: str, scale: float = 1) -> list[Any]:
    return [
        (float(line["step"]), scale * float(line[key]))
        for line in log
        if "step" in line and key in line and math.isfinite(line[key])
    ]


def _is_share(key: str, metrics: Mapping[str, Metric]) -> bool:
    metric = _metric_of(key.removeprefix(_PREFIX), metrics)
    return metric is None or metric.is_share


def _metric_of(name: str, metrics: Mapping[str, Metric]) -> Metric | None:
    """The metric of a name, or of that of a further block, such as arousal_ccc."""
    endings = [end for end in metrics if name == end or name.endswith(f"_{end}")]
    return metrics[max(endings, key=len)] if endings else None


def _name(key: str, metrics: Mapping[str, Metric]) -> str:
    name = key.removeprefix(_PREFIX)
    if name not in metrics:
        return name.replace("_", " ")
    of_aus = metrics[name].applies_to == ("au",)
    return f"{'AU ' if of_aus else ''}{metrics[name].label}"


def _chart(
    title: str, unit: str, group: Sequence[Series], steps: tuple[float, float | None]
) -> dict[str, Any]:
    last, best = steps
    values = [value for series in group for _, value in series.points]
    across = ticks(0, last)
    up = ticks(0, 100) if unit else ticks(min(0.0, *values), max(values))

    def x(step: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (step - across[0]) / (across[-1] - across[0])

    def y(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (value - up[0]) / (up[-1] - up[0])

    drawn = []
    for number, series in enumerate(group):
        places = [(round(x(step), 1), round(y(value), 1)) for step, value in series.points]
        drawn.append(
            {
                "name": series.name,
                "style": _STYLES[number % len(_STYLES)],
                "line": " ".join(f"{right},{down}" for right, down in places),
                "dots": places if len(places) <= _MOST_DOTS else [],
            }
        )
    first = group[0].points
    return {
        "title": title,
        "sentence": f"from {first[0][1]:.3g} to {first[-1][1]:.3g} {unit}".rstrip(),
        "x": [(round(x(tick), 1), f"{tick:g}") for tick in across],
        "y": [(round(y(tick), 1), f"{tick:g}{' %' if unit else ''}") for tick in up],
        "series": drawn,
        "best": None if best is None else round(x(best), 1),
        "steps": int(last),
    }


def ticks(low: float, high: float) -> list[float]:
    """4 to 8 round numbers that enclose low..high."""
    span = (high - low) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if span / (m * unit) <= 6)
    first, last = math.floor(low / step), math.ceil((low + span) / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]
