"""The model's label probabilities against the votes of annotators, where rows have both.

Peterson et al. (ICCV 2019) and Uma et al. (J. Artif. Intell. Res. 2021) measure models of
disagreeing annotators by the cross-entropy, the Jensen-Shannon divergence and the correlation of
entropies. A face that annotators disagree on has no single right answer; accuracy counts it as one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vlmface.metrics.measures import NLL_FLOOR, ratio
from vlmface.metrics.metric import Row, Scope, built_in
from vlmface.metrics.statistics import Array


def distributions(row: Row, scope: Scope) -> tuple[Array, Array] | None:
    """(shares of the votes, probabilities of the model), (K,) both; None if one is missing."""
    votes = (row["truth"].get("votes") or {}).get(scope.space.field)
    probabilities = row.get("probabilities")
    if not votes or not probabilities:
        return None
    of_votes, of_model = (
        np.array([table.get(label, 0.0) for label in scope.space.labels])
        for table in (votes, probabilities)
    )
    return of_votes, of_model


def entropy(shares: Array) -> float:
    """In bits."""
    present = shares[shares > 0]
    return float(-(present * np.log2(present)).sum())


def nll(votes: Array, model: Array) -> float:
    """Cross-entropy of the votes, in nats; probabilities below NLL_FLOOR count as NLL_FLOOR."""
    return float(-(votes * np.log(np.clip(model, NLL_FLOOR, 1))).sum())


def jsd(votes: Array, model: Array) -> float:
    """Jensen-Shannon divergence, 0..1 bit (Lin, IEEE Trans. Inf. Theory 1991)."""
    divergence = entropy((votes + model) / 2) - (entropy(votes) + entropy(model)) / 2
    return max(0.0, divergence)


def _mean_of(
    function: Callable[[Array, Array], float], rows: Sequence[Row], scope: Scope
) -> Callable[[Array], Array] | None:
    """The mean of a function over the rows that have votes and probabilities."""
    pairs = [distributions(row, scope) for row in rows]
    if not any(pairs):
        return None
    values = np.array([function(*pair) if pair else 0.0 for pair in pairs])
    counts = np.array([pair is not None for pair in pairs], float)
    return lambda weights: ratio(weights @ values, weights @ counts)


# --- metrics --------------------------------------------------------------------------------------

_FIELDS: dict[str, Any] = {
    "applies_to": ("emotion", "attributes"),
    "takes": "weights",
    "unit": "",
    "scale": 1,
    "digits": 3,
}


@built_in("NLL of the votes, nats", higher_is_better=False, **_FIELDS)
def votes_nll(rows: Sequence[Row], scope: Scope) -> Callable[[Array], Array] | None:
    """Mean negative log-likelihood of a vote."""
    return _mean_of(nll, rows, scope)


@built_in("divergence from the votes (JSD), bits", higher_is_better=False, **_FIELDS)
def votes_jsd(rows: Sequence[Row], scope: Scope) -> Callable[[Array], Array] | None:
    """Mean Jensen-Shannon divergence of the votes and the model's probabilities."""
    return _mean_of(jsd, rows, scope)


@built_in("entropies of votes and model, correlation", **_FIELDS)
def votes_entropy(rows: Sequence[Row], scope: Scope) -> Callable[[Array], Array] | None:
    """Pearson's correlation of the entropies: whether the model is unsure where annotators
    disagree. -1..1, nan if one of them is constant."""
    entropies = np.full((len(rows), 2), np.nan)
    for entry, row in zip(entropies, rows, strict=True):
        if (pair := distributions(row, scope)) is not None:
            entry[:] = entropy(pair[0]), entropy(pair[1])
    is_known = ~np.isnan(entropies[:, 0])
    if not is_known.any():
        return None
    values = entropies[is_known]

    def correlation(weights: Array) -> Array:
        """(R, rows) -> (R,)."""
        weights_known = weights[:, is_known]
        total = weights_known.sum(1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            centred = values[None] - (weights_known @ values / total)[:, None]
            x, y = centred[..., 0], centred[..., 1]
            covariance = (weights_known * x * y).sum(1)
            spread = np.sqrt((weights_known * x**2).sum(1) * (weights_known * y**2).sum(1))
            result: Array = np.where(spread > 1e-12, covariance / spread, np.nan)
        return result

    return correlation
