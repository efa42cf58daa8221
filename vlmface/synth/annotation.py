"""Simulated annotation of rendered faces: annotators who disagree, and labels of unequal frequency.

Annotators confuse emotions that are near to each other in valence and arousal, and faint
expressions more often than strong ones. With S the mean intensity / 5 of the AUs of the emotion's
prototype that are present, an annotator votes for the rendered emotion with the probability
SUREST * S + LEAST_SURE * (1 - S), and otherwise for another one with a probability proportional to
exp(-d^2 / (2 * CONFUSION_WIDTH^2)), where d is their distance in `expressions.CIRCUMPLEX`. Neutral
faces have no prototype: S is 1, less 0.3 for each AU of the face.

The numbers are ours. They give annotators who agree with the rendered emotion about as often as
those of FER+ do with its majority.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from vlmface import facs
from vlmface.label_spaces import EMOTIONS
from vlmface.synth.expressions import CIRCUMPLEX

SUREST, LEAST_SURE = 0.85, 0.3
CONFUSION_WIDTH = 0.4
# From the most to the least frequent emotion of AffectNet's training faces.
BY_FREQUENCY = (
    "happiness",
    "neutral",
    "sadness",
    "anger",
    "surprise",
    "fear",
    "disgust",
    "contempt",
)


def vote_probabilities(emotion: str, aus: Mapping[int, float | None]) -> dict[str, float]:
    """How likely an annotator votes for each emotion, of a face with AUs of intensity 1 to 5."""
    if emotion == "neutral":
        strong = max(0.0, 1 - 0.3 * len(aus))
    else:
        intensities = [aus[au] or 0.0 for au in facs.PROTOTYPES[emotion].aus if au in aus]
        strong = sum(intensities) / len(intensities) / 5 if intensities else 0.0
    right = SUREST * strong + LEAST_SURE * (1 - strong)
    near = {
        other: math.exp(
            -(math.dist(CIRCUMPLEX[emotion], CIRCUMPLEX[other]) ** 2) / (2 * CONFUSION_WIDTH**2)
        )
        for other in EMOTIONS
        if other != emotion
    }
    wrong = (1 - right) / sum(near.values())
    return {word: right if word == emotion else wrong * near[word] for word in EMOTIONS}


def draw_votes(id: str, probabilities: Mapping[str, float], annotators: int) -> dict[str, float]:
    """The votes of a number of annotators; the same for the same face."""
    rng = np.random.default_rng(zlib.crc32(id.encode()))
    counts = rng.multinomial(annotators, list(probabilities.values()))
    return {word: float(n) for word, n in zip(probabilities, counts, strict=True) if n}


def majority(votes: Mapping[str, float]) -> str | None:
    """The emotion with most votes; None for a tie."""
    most = max(votes.values())
    winners = [word for word, n in votes.items() if n == most]
    return winners[0] if len(winners) == 1 else None


def unbalanced(emotions: Sequence[str], ratio: float) -> list[int]:
    """The numbers of rows of which the most frequent emotion has `ratio` times as many as the
    rarest; in between the counts fall by a constant factor. Of each emotion the first ones."""
    count = min(Counter(emotions).values())
    last = len(BY_FREQUENCY) - 1
    left = {word: round(count * ratio ** (-k / last)) for k, word in enumerate(BY_FREQUENCY)}
    indices = []
    for index, emotion in enumerate(emotions):
        if left[emotion] > 0:
            left[emotion] -= 1
            indices.append(index)
    return indices
