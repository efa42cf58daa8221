"""How photographs are read: the landmarker's blendshapes, calibrated on faces at rest.

Networks that are fitted on rendered faces rank the AUs of photographs well, and their thresholds do
not transfer. The landmarker was trained on photographs, so its blendshapes do: an AU that one of
them measures is read from it, with a threshold from labelled photographs, or, for AUs without
labels, above what faces at rest reach. A gate tells photographs from rendered faces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlmface.aus.rendered_faces import UNITS

# AU -> the landmarker's blendshapes that measure it on photographs, by their numbers: left and
# right in pairs. The others are too weak (cheekPuff, cheekSquint, noseSneer) or ambiguous.
BLENDSHAPES: dict[int, tuple[int, ...]] = {
    1: (3,),  # browInnerUp
    2: (4, 5),  # browOuterUp
    5: (21, 22),  # eyeWide
    12: (44, 45),  # mouthSmile
    14: (28, 29),  # mouthDimple
    15: (30, 31),  # mouthFrown
    17: (42,),  # mouthShrugLower
    18: (38,),  # mouthPucker
    20: (46, 47),  # mouthStretch
    22: (32,),  # mouthFunnel
    24: (36, 37),  # mouthPress
    25: (25, 34, 35, 48, 49),  # jawOpen, mouthLowerDown, mouthUpperUp
    26: (25,),  # jawOpen
    27: (25,),
    28: (40, 41),  # mouthRollLower, mouthRollUpper
    43: (9, 10),  # eyeBlink
}
PAIRS = {au: pair for au, pair in BLENDSHAPES.items() if len(pair) == 2 and au != 28}
# The score at which an AU is as strong as it gets; 0.8 for the others.
TOP = {5: 0.3, 12: 0.95, 14: 0.5, 15: 0.5, 20: 0.5, 22: 0.5, 25: 0.5}
# The least threshold of blendshapes, some of which are nearly 0 at rest and rise with any speech.
LEAST = {5: 0.05, 14: 0.2, 18: 0.4, 20: 0.25, 22: 0.15, 26: 0.15, 27: 0.6}
MARGIN = 0.6  # above what faces at rest reach, on the scale of logits
AT_REST = 0.98  # share of the faces at rest that are below the threshold
LEAST_LABELLED = 3  # photographs with an AU, and without it, from which on labels set its threshold
RENDERED = 0.995  # share of the rendered faces that the gate must be sure of
GATE_PENALTY, GATE_SLOPE, GATE_MARGIN = 0.02, 2.0, 1.0
FLOOR = 1e-4


@dataclass(frozen=True)
class PhotographExpert:
    """Thresholds on photographs, and the gate.

    Attributes:
        threshold: (units,) of the blendshapes' logits; of AUs without blendshapes 0.
        net_threshold: (units,) of the networks' logits, of AUs without blendshapes.
        gate: (inputs + 1,), weights and bias of the logit that a face is photographed.
    """

    threshold: np.ndarray
    net_threshold: np.ndarray
    gate: np.ndarray

    def photographed(self, inputs: np.ndarray) -> np.ndarray:
        """How likely faces are photographed and not rendered, (n,), from their inputs."""
        logit = (inputs * self.gate[:-1]).sum(1) + self.gate[-1]
        return 1 / (1 + np.exp(-np.clip(logit, -30, 30)))

    def strength(self, scores: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """How far (n, units) AUs are above their threshold, in FACS intensities.

        Args:
            scores: (n, units), as of `blendshape_scores`.
            logits: (n, units), of the networks.
        """
        with_blendshape = np.isin(UNITS, list(BLENDSHAPES))
        from_blendshapes = self.blendshape_strength(scores)
        return np.where(with_blendshape, from_blendshapes, logits - self.net_threshold)

    def blendshape_strength(self, scores: np.ndarray) -> np.ndarray:
        """As `strength`, from scores (n, units) of blendshapes alone, also those of one side."""
        return 4 * (scores - self.threshold) / (_top() - self.threshold)


def _top() -> np.ndarray:
    return _logit(np.array([TOP.get(au, 0.8) for au in UNITS]))


def _logit(share: np.ndarray) -> np.ndarray:
    clipped = np.clip(share, FLOOR, 1 - FLOOR)
    return np.log(clipped / (1 - clipped))


def blendshape_scores(blendshapes: np.ndarray) -> np.ndarray:
    """The logits (n, units) of the mean of each AU's blendshapes (n, 52); 0 for AUs without any."""
    columns = [blendshapes[:, list(BLENDSHAPES.get(au, (0,)))].mean(1) for au in UNITS]
    scores = _logit(np.stack(columns, 1))
    return np.where(np.isin(UNITS, list(BLENDSHAPES)), scores, 0.0)


def side_scores(blendshapes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores of the face's left and right side, each (n, units); 0 for AUs that are not in
    PAIRS."""
    sides = []
    for side in (0, 1):
        even = np.full(len(blendshapes), 0.5)
        columns = [blendshapes[:, pair[side]] if (pair := PAIRS.get(au)) else even for au in UNITS]
        sides.append(_logit(np.stack(columns, 1)))
    return sides[0], sides[1]


def fit_expert(
    scores: np.ndarray, logits: np.ndarray, labels: np.ndarray, at_rest: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The thresholds of labelled photographs, of which each row is a view: each photograph has two,
    itself and its mirror image.

    Args:
        scores: (n, units), as of `blendshape_scores`.
        logits: (n, units), of networks that were fitted without the photograph's person.
        labels: (n, units) 1 present, 0 absent, nan unknown.
        at_rest: bool (n,), faces without any AU.

    Returns:
        (threshold, net_threshold), as of `PhotographExpert`.
    """
    threshold, net_threshold = np.zeros(len(UNITS)), np.zeros(len(UNITS))
    for k, au in enumerate(UNITS):
        net_threshold[k] = max(0.0, np.quantile(logits[at_rest, k], AT_REST))
        if au not in BLENDSHAPES:
            continue
        labelled = ~np.isnan(labels[:, k])
        present = labels[labelled, k] == 1
        if min(present.sum(), (~present).sum()) >= 2 * LEAST_LABELLED:
            threshold[k] = balanced_threshold(scores[labelled, k], present)
        else:
            threshold[k] = np.quantile(scores[at_rest, k], AT_REST) + MARGIN
        if au in LEAST:
            threshold[k] = max(threshold[k], float(_logit(np.array(LEAST[au]))))
    return threshold, net_threshold


def balanced_threshold(scores: np.ndarray, present: np.ndarray) -> float:
    """The middle of the thresholds whose balanced accuracy is within a hundredth of the best."""
    ordered = np.unique(scores)
    candidates = (ordered[1:] + ordered[:-1]) / 2
    above = scores >= candidates[:, None]
    accuracy = (above[:, present].mean(1) + (~above)[:, ~present].mean(1)) / 2
    good = candidates[accuracy >= accuracy.max() - 0.01]
    return float((good.min() + good.max()) / 2)


def fit_gate(rendered: np.ndarray, photographed: np.ndarray) -> np.ndarray:
    """The gate (inputs + 1,), by ridge-penalised logistic regression with equal class weights.

    The bias is then moved towards the rendered faces, so that what is not clearly rendered counts
    as photographed: there are more kinds of photographs than were fitted to.
    """
    from scipy.optimize import minimize

    values = np.concatenate([rendered, photographed]).astype(np.float64)
    sign = np.concatenate([-np.ones(len(rendered)), np.ones(len(photographed))])
    weight = np.where(sign > 0, 0.5 / len(photographed), 0.5 / len(rendered))

    def loss(gate: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (values @ gate[:-1] + gate[-1])
        slope = -sign * weight / (1 + np.exp(np.clip(margin, -30, 30)))
        penalty = GATE_PENALTY / 2 * (gate[:-1] ** 2).sum()
        gradient = np.append(slope @ values + GATE_PENALTY * gate[:-1], slope.sum())
        return float((weight * np.logaddexp(0, -margin)).sum() + penalty), gradient

    start = np.zeros(values.shape[1] + 1)
    gate = GATE_SLOPE * minimize(loss, start, jac=True, method="L-BFGS-B").x
    gate[-1] -= np.quantile(rendered @ gate[:-1] + gate[-1], RENDERED) + GATE_MARGIN
    return gate
