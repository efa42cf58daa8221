"""Random action units of a face, after EMFACS prototypes.

An emotion's prototype sometimes lacks a unit or has one that is not evidence for any emotion, and
some of its units are weak. Neutral faces also talk, blink and purse their lips. Muscles that cannot
act together never do, and a unit that is present has at least intensity 1 (FACS "A"), drawn
strongly enough to be visible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from vlmface import facs
from vlmface.label_spaces import EMOTIONS

# Emotion -> [(chance, unit)]; alternatives are tuples of which one is drawn. After Friesen &
# Ekman's EMFACS prototypes and their variants.
RECIPES: dict[str, tuple[tuple[float, tuple[int, ...]], ...]] = {
    "anger": (
        (0.95, (4,)),
        (0.75, (7,)),
        (0.30, (5,)),
        (0.92, (23, 24)),
        (0.25, (17,)),
        (0.20, (10,)),
    ),
    "contempt": ((1.0, (14,)), (0.12, (7,)), (0.10, (2,))),
    "disgust": (
        (0.70, (9,)),
        (0.55, (10,)),
        (0.45, (15, 16)),
        (0.45, (17,)),
        (0.25, (4,)),
        (0.25, (7,)),
    ),
    "fear": (
        (0.95, (1,)),
        (0.75, (2,)),
        (0.85, (4,)),
        (0.88, (5,)),
        (0.85, (20,)),
        (0.70, (25, 26)),
    ),
    "happiness": ((0.90, (6,)), (1.0, (12,)), (0.55, (25,)), (0.25, (26,)), (0.15, (7,))),
    "neutral": (),
    "sadness": ((0.93, (1,)), (0.82, (4,)), (0.93, (15,)), (0.50, (17,)), (0.12, (43,))),
    "surprise": ((0.95, (1,)), (0.95, (2,)), (0.80, (5,)), (0.92, (26, 27))),
}
# Emotion -> (valence, arousal): mean pleasure and arousal of the emotion's word in Russell &
# Mehrabian, "Evidence for a three-factor theory of emotions" (J. Res. Pers. 1977). Contempt, which
# is not among the six words taken from there, is ours: half of disgust.
CIRCUMPLEX: dict[str, tuple[float, float]] = {
    "anger": (-0.51, 0.59),
    "contempt": (-0.30, 0.175),
    "disgust": (-0.60, 0.35),
    "fear": (-0.64, 0.60),
    "happiness": (0.76, 0.48),
    "neutral": (0.0, 0.0),
    "sadness": (-0.63, -0.27),
    "surprise": (0.40, 0.67),
}
# Units that name no emotion: speech, blinks, habits. On a neutral face they are all there is.
NEUTRAL_EXTRAS = {18: 0.18, 22: 0.14, 28: 0.20, 34: 0.20, 43: 0.14, 25: 0.07, 26: 0.07}
BYSTANDERS = {2: 0.15, 10: 0.1, 16: 0.15, 17: 0.15, 24: 0.1, 25: 0.15, 26: 0.1, 43: 0.1}
PURSED = (18, 22, 28, 34)  # may stand for the mouth of these emotions:
PURSED_CHANCE = {"anger": 0.2, "disgust": 0.2, "fear": 0.2, "sadness": 0.2, "surprise": 0.25}
LOWER_FACE_ALONE = (
    {18, 22, 23, 24, 28, 34},  # what the lips do as a whole excludes the rest of them
    {10, 12, 14, 15, 16, 18, 20, 22, 23, 24, 25, 26, 27, 28, 34},
)
EXCLUSIVE = (
    {12, 14, 15, 20},  # where the lip corners go
    {5, 7, 43},  # what the lids do
    {6, 5, 43},
    {16, 17},
    {17, 25, 26, 27},
    {26, 27},
    {9, 2},
    {17, 18, 22, 28, 34},
)


@dataclass(frozen=True)
class Expression:
    """`aus` maps each present AU to its FACS intensity 1..5 (A..E), `left` and `right` to its drawn
    strength 0..1 on that side."""

    emotion: str
    aus: dict[int, float]
    left: dict[int, float]
    right: dict[int, float]


def compatible(au: int, others: set[int]) -> bool:
    """Whether `au` can act together with `others`."""
    lips, all_lower = LOWER_FACE_ALONE
    if (
        au in lips
        and others & (all_lower - {au})
        and not (au in {23, 24} and others & all_lower <= {10, 15})
    ):
        return False
    if others & lips and au in all_lower and not (others & lips <= {23, 24} and au in {10, 15}):
        return False
    return not any(au in group and others & (group - {au}) for group in EXCLUSIVE)


def sample_expression(rng: np.random.Generator, emotion: str | None = None) -> Expression:
    """Draw an expression of an emotion, by default any of the eight, equally likely."""
    if emotion is None:
        emotion = str(rng.choice(EMOTIONS))
    while True:
        aus = _draw_units(rng, emotion)
        # Mostly, what is shown should speak for the emotion that is felt; not always.
        if facs.supports(aus, emotion) or rng.random() < 0.10:
            break
    grades = draw_grades(rng, aus)
    left, right = draw_sides(rng, grades, emotion)
    return Expression(emotion, {au: float(g) for au, g in sorted(grades.items())}, left, right)


def draw_grades(rng: np.random.Generator, aus: Iterable[int]) -> dict[int, int]:
    """FACS intensities 1..5 of the AUs of one face: most around C and D, a few weak."""
    vigour = rng.normal(0, 0.45)
    grades = {
        au: int(np.clip(round(rng.normal(3.4, 0.9) + vigour - 1.3 * (rng.random() < 0.12)), 1, 5))
        for au in sorted(aus)
    }
    if grades.get(26) or grades.get(27):  # a dropped jaw parts the lips
        grades.setdefault(25, int(np.clip(grades.get(26, 0) or grades.get(27, 0), 2, 5)))
    return grades


def affect(emotion: str, aus: Mapping[int, float]) -> tuple[float, float]:
    """(valence, arousal), each -1..1, of an expression with the AUs' FACS intensities 0..5.

    The emotion's place in CIRCUMPLEX, times the mean intensity / 5 of those of its prototype's AUs
    (core and accessory) that are present: an expression at E throughout lies at that place, a
    fainter one nearer to the middle. Without any of its AUs, and for neutral, it is (0, 0).
    """
    intensities = [aus[au] for au in facs.PROTOTYPES[emotion].aus if aus.get(au)]
    strong = sum(intensities) / len(intensities) / 5 if intensities else 0.0
    valence, arousal = (round(min(1.0, max(-1.0, x * strong)), 4) for x in CIRCUMPLEX[emotion])
    return valence, arousal


def strength(intensity: float) -> float:
    """How strongly (0..1) a FACS intensity 1..5 is drawn."""
    return 0.30 + 0.14 * intensity


def intensity(value: float) -> float:
    """The inverse of `strength`: the intensity 0..5 of what is drawn so strongly, 0 below its
    least."""
    return min(5.0, max(0.0, (value - 0.30) / 0.14))


def draw_sides(
    rng: np.random.Generator, grades: Mapping[int, int], emotion: str
) -> tuple[dict[int, float], dict[int, float]]:
    """Drawn strength (0..1) on the left and on the right of AUs with their intensities 1..5."""
    left, right = {}, {}
    for au, grade in sorted(grades.items()):
        value = strength(grade + rng.uniform(-0.4, 0.4))
        lean = np.clip(rng.normal(0, 0.06), -0.15, 0.15)
        left[au], right[au] = float(value * (1 + lean)), float(value * (1 - lean))
    if 14 in grades and emotion == "contempt" and rng.random() < 0.75:
        weaker = left if rng.random() < 0.5 else right  # contempt is the one-sided expression
        weaker[14] *= 0.12
    return left, right


def _draw_units(rng: np.random.Generator, emotion: str) -> set[int]:
    aus: set[int] = set()
    if rng.random() < PURSED_CHANCE.get(emotion, 0.0):
        aus.add(int(rng.choice(PURSED)))
    for chance, choices in RECIPES[emotion]:
        au = int(rng.choice(choices))
        if rng.random() < chance and compatible(au, aus):
            aus.add(au)
    extras, chance = (NEUTRAL_EXTRAS, 0.85) if emotion == "neutral" else (BYSTANDERS, 0.45)
    if rng.random() < chance:
        au = int(rng.choice(list(extras), p=np.array(list(extras.values())) / sum(extras.values())))
        if compatible(au, aus):
            aus.add(au)
    return aus
