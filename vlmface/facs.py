"""The Facial Action Coding System: which muscles move, what one sees, what it speaks for.

Sources: Ekman, Friesen & Hager, *FACS: The Manual and Investigator's Guide* (2002) for numbers,
names and muscles; Friesen & Ekman, *EMFACS-7* (1983) for the emotion prototypes; Du, Tao &
Martinez, "Compound facial expressions of emotion" (PNAS 2014, table 1) for accessory AUs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vlmface.errors import UserError


@dataclass(frozen=True)
class ActionUnit:
    """One action unit. `cue` is a main clause without a full stop: "the inner brows are raised"."""

    number: int
    name: str
    muscle: str
    region: str  # one of REGIONS
    cue: str


REGIONS = ("brow", "eye", "cheek", "nose", "mouth", "chin", "jaw")  # top of the face to bottom

_CATALOGUE = [
    ActionUnit(1, "inner brow raiser", "frontalis, pars medialis", "brow",
               "the inner ends of the brows are raised"),
    ActionUnit(2, "outer brow raiser", "frontalis, pars lateralis", "brow",
               "the outer ends of the brows are raised"),
    ActionUnit(4, "brow lowerer", "corrugator and depressor supercilii", "brow",
               "the brows are lowered and drawn together"),
    ActionUnit(5, "upper lid raiser", "levator palpebrae superioris", "eye",
               "the upper lids are raised and the eyes are wide"),
    ActionUnit(6, "cheek raiser", "orbicularis oculi, pars orbitalis", "cheek",
               "the cheeks are raised and the eyes are narrowed from below"),
    ActionUnit(7, "lid tightener", "orbicularis oculi, pars palpebralis", "eye",
               "the eyelids are tightened"),
    ActionUnit(8, "lips toward each other", "orbicularis oris", "mouth",
               "the lips are drawn toward each other over an open jaw"),
    ActionUnit(9, "nose wrinkler", "levator labii superioris alaeque nasi", "nose",
               "the nose is wrinkled"),
    ActionUnit(10, "upper lip raiser", "levator labii superioris", "mouth",
               "the upper lip is raised"),
    ActionUnit(11, "nasolabial deepener", "zygomaticus minor", "cheek",
               "the fold between nose and mouth is deepened"),
    ActionUnit(12, "lip corner puller", "zygomaticus major", "mouth",
               "the lip corners are pulled up and back"),
    ActionUnit(13, "sharp lip puller", "levator anguli oris", "mouth",
               "the lip corners are pulled sharply straight up"),
    ActionUnit(14, "dimpler", "buccinator", "mouth",
               "the lip corners are tightened and pressed in"),
    ActionUnit(15, "lip corner depressor", "depressor anguli oris", "mouth",
               "the lip corners are pulled down"),
    ActionUnit(16, "lower lip depressor", "depressor labii inferioris", "mouth",
               "the lower lip is pulled down"),
    ActionUnit(17, "chin raiser", "mentalis", "chin",
               "the chin is pushed up"),
    ActionUnit(18, "lip pucker", "incisivii labii", "mouth",
               "the lips are puckered"),
    ActionUnit(19, "tongue show", "genioglossus", "mouth",
               "the tongue is shown"),
    ActionUnit(20, "lip stretcher", "risorius", "mouth",
               "the lips are stretched sideways"),
    ActionUnit(21, "neck tightener", "platysma", "jaw",
               "the skin of the neck is tightened"),
    ActionUnit(22, "lip funneler", "orbicularis oris", "mouth",
               "the lips are pushed forward like a funnel"),
    ActionUnit(23, "lip tightener", "orbicularis oris", "mouth",
               "the lips are tightened and narrowed"),
    ActionUnit(24, "lip pressor", "orbicularis oris", "mouth",
               "the lips are pressed together"),
    ActionUnit(25, "lips part", "depressor labii inferioris, or relaxed mentalis", "mouth",
               "the lips are parted"),
    ActionUnit(26, "jaw drop", "relaxed masseter, temporalis and internal pterygoid", "jaw",
               "the jaw is dropped"),
    ActionUnit(27, "mouth stretch", "pterygoids and digastric", "jaw",
               "the mouth is stretched wide open"),
    ActionUnit(28, "lip suck", "orbicularis oris", "mouth",
               "the lips are sucked in over the teeth"),
    ActionUnit(29, "jaw thrust", "lateral pterygoid", "jaw",
               "the jaw is pushed forward"),
    ActionUnit(30, "jaw sideways", "lateral and medial pterygoid of one side", "jaw",
               "the jaw is moved sideways"),
    ActionUnit(31, "jaw clencher", "masseter", "jaw",
               "the jaw is clenched"),
    ActionUnit(32, "lip bite", "masseter and orbicularis oris", "mouth",
               "the teeth are set on the lip"),
    ActionUnit(33, "cheek blow", "buccinator", "cheek",
               "the cheeks are blown out while air leaves the lips"),
    ActionUnit(34, "cheek puff", "relaxed buccinator, closed orbicularis oris", "cheek",
               "the cheeks are puffed out"),
    ActionUnit(35, "cheek suck", "buccinator", "cheek",
               "the cheeks are sucked in"),
    ActionUnit(36, "tongue bulge", "genioglossus", "cheek",
               "the cheek is pushed out by the tongue"),
    ActionUnit(37, "lip wipe", "genioglossus", "mouth",
               "the lip is wiped by the tongue"),
    ActionUnit(38, "nostril dilator", "nasalis, pars alaris", "nose",
               "the nostrils are widened"),
    ActionUnit(39, "nostril compressor", "nasalis, pars transversa", "nose",
               "the nostrils are narrowed"),
    ActionUnit(43, "eyes closed", "relaxed levator palpebrae superioris", "eye",
               "the eyes are closed"),
    ActionUnit(45, "blink", "relaxed levator palpebrae, orbicularis oculi", "eye",
               "the eyes are shut for a blink"),
    ActionUnit(46, "wink", "orbicularis oculi of one side", "eye",
               "one eye is shut in a wink"),
]  # fmt: skip

AUS: dict[int, ActionUnit] = {unit.number: unit for unit in _CATALOGUE}
AU_NUMBERS: tuple[int, ...] = tuple(AUS)
# What image data sets code; 8, 29-33 and 35-39 are miscellaneous actions.
COMMON_AUS: tuple[int, ...] = tuple(
    n for n in AU_NUMBERS if n not in {8, 29, 30, 31, 32, 33, 35, 36, 37, 38, 39}
)
# What prompts define: jaw and teeth too, which RAF-AU codes and Facial-R1's own prompt defines.
DEFINED_AUS: tuple[int, ...] = tuple(n for n in AU_NUMBERS if n in {*COMMON_AUS, 29, 30, 31, 32})
# What the synthetic renderer can move.
SYNTH_AUS: tuple[int, ...] = (
    1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 16, 17, 18, 20, 22, 23, 24, 25, 26, 27, 28, 34, 43,
)  # fmt: skip

# FACS intensities A to E, that is 1 to 5, in words.
GRADES = ("faintly", "slightly", "clearly", "strongly", "extremely")


@dataclass(frozen=True)
class Prototype:
    """What an emotion looks like. `core` maps interchangeable AUs ("26 or 27") to their weight;
    `accessory` AUs often join in and neither add to the pattern nor speak against it."""

    core: dict[tuple[int, ...], float]
    accessory: tuple[int, ...]

    @property
    def core_aus(self) -> tuple[int, ...]:
        return tuple(sorted(au for group in self.core for au in group))

    @property
    def aus(self) -> tuple[int, ...]:
        """Core and accessory AUs, sorted."""
        return tuple(sorted((*self.core_aus, *self.accessory)))


# Core sets: EMFACS. Weights (ours): the sign that tells the emotion from its neighbours counts
# more, so that AU4 alone reads as anger and not as a third of sadness, AU5 alone as surprise.
# Accessory sets: EMFACS variants, and AUs that Du et al. found in a good part of the posed faces.
PROTOTYPES: dict[str, Prototype] = {
    "anger": Prototype({(4,): 2, (5,): 1, (7,): 1, (23, 24): 2}, (10, 17)),
    "contempt": Prototype({(14,): 1}, (12,)),
    "disgust": Prototype({(9, 10): 3, (15, 16): 1}, (4, 7, 17, 24, 25, 26)),
    "fear": Prototype({(1,): 1, (2,): 1, (4,): 1, (5,): 1, (20,): 1}, (7, 25, 26, 27)),
    "happiness": Prototype({(6,): 1, (12,): 2}, (25, 26)),
    "neutral": Prototype({}, ()),
    "sadness": Prototype({(1,): 1.5, (4,): 1, (15,): 1.5}, (6, 11, 17)),
    "surprise": Prototype({(1,): 1, (2,): 1, (5,): 1, (26, 27): 1}, (25,)),
}
# AUs that speak for some emotion; all others (blink, pucker, cheek puff ...) say nothing.
INFORMATIVE_AUS: tuple[int, ...] = tuple(
    sorted({au for prototype in PROTOTYPES.values() for au in prototype.aus})
)


def grade(intensity: float) -> int:
    """FACS grade 1 (A, trace) to 5 (E, maximum) of an intensity in 0..5, halves rounded up."""
    return min(5, max(1, int(intensity + 0.5)))


def name(number: int) -> str:
    """4 -> "AU4"."""
    return f"AU{number}"


_NAME = re.compile(r"\s*(?:AU[\s_-]?)?0?(\d{1,2})\s*", re.IGNORECASE | re.ASCII)


def parse_name(text: str) -> int:
    """ "AU4", "au04", "AU 4" or "4" -> 4. Raises UserError if FACS has no such action unit."""
    match = _NAME.fullmatch(text)
    if match and int(match[1]) in AUS:
        return int(match[1])
    known = ", ".join(name(n) for n in AU_NUMBERS)
    raise UserError(f"{text!r} is not a known action unit: use one of {known}")


def top_down(aus: Iterable[int]) -> list[int]:
    """The AUs from the brow to the jaw, by number within a region."""
    return sorted(aus, key=lambda au: (REGIONS.index(AUS[au].region), au))


def evidence(aus: Mapping[int, float | None] | Iterable[int]) -> dict[str, float]:
    """How much the AUs speak for each of the eight emotions: scores >= 0 that sum to 1.

    `aus` maps AU numbers to intensities 0..5 (0 = absent, None = present but not graded), or just
    lists the present AUs. Only AUs of some prototype count. An AU is visible by x = intensity / 3,
    at most 1 (grade C, "clearly", is full; an ungraded AU is full). For each emotion

        recall    = weighted mean over core groups of the highest x in the group
        precision = sum of x * (1 core, 1/2 accessory, 0 other) / sum of x
        score     = (2 * recall * precision / (recall + precision)) ** 2

    and neutral scores max(0, 1 - sum of x) ** 2. The scores are divided by their sum; when all are
    0 (no AU, or accessory ones only) neutral gets 1. Left-right differences are not used.
    """
    graded = aus if isinstance(aus, Mapping) else dict.fromkeys(aus, None)
    seen = {
        au: 1.0 if value is None else min(1.0, max(0.0, value / 3))
        for au, value in sorted(graded.items())
        if au in INFORMATIVE_AUS
    }
    total = sum(seen.values())
    scores = {"neutral": max(0.0, 1 - total) ** 2}
    for emotion, prototype in PROTOTYPES.items():
        found = sum(
            weight * max(seen.get(au, 0.0) for au in group)
            for group, weight in prototype.core.items()
        )
        if not found:
            scores.setdefault(emotion, 0.0)
            continue
        recall = found / sum(prototype.core.values())
        core, accessory = prototype.core_aus, prototype.accessory
        matched = sum(x * ((au in core) + 0.5 * (au in accessory)) for au, x in seen.items())
        precision = matched / total
        scores[emotion] = (2 * recall * precision / (recall + precision)) ** 2
    mass = sum(scores.values())
    if not mass:
        return {emotion: float(emotion == "neutral") for emotion in PROTOTYPES}
    return {emotion: scores[emotion] / mass for emotion in PROTOTYPES}


def supports(aus: Mapping[int, float | None] | Iterable[int], emotion: str) -> bool:
    """Whether no other emotion has more evidence than `emotion` (ties count as support)."""
    scores = evidence(aus)
    return scores[emotion] >= max(scores.values()) - 1e-9
