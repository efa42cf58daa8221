"""The Facial Action Coding System (FACS): action units and the emotions that they are evidence for.

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

# "number name (region: muscle)", and below it the cue.
_CATALOGUE = """
1 inner brow raiser (brow: frontalis, pars medialis)
    the inner ends of the brows are raised
2 outer brow raiser (brow: frontalis, pars lateralis)
    the outer ends of the brows are raised
4 brow lowerer (brow: corrugator and depressor supercilii)
    the brows are lowered and drawn together
5 upper lid raiser (eye: levator palpebrae superioris)
    the upper lids are raised and the eyes are wide
6 cheek raiser (cheek: orbicularis oculi, pars orbitalis)
    the cheeks are raised and the eyes are narrowed from below
7 lid tightener (eye: orbicularis oculi, pars palpebralis)
    the eyelids are tightened
8 lips toward each other (mouth: orbicularis oris)
    the lips are drawn toward each other over an open jaw
9 nose wrinkler (nose: levator labii superioris alaeque nasi)
    the nose is wrinkled
10 upper lip raiser (mouth: levator labii superioris)
    the upper lip is raised
11 nasolabial deepener (cheek: zygomaticus minor)
    the fold between nose and mouth is deepened
12 lip corner puller (mouth: zygomaticus major)
    the lip corners are pulled up and back
13 sharp lip puller (mouth: levator anguli oris)
    the lip corners are pulled sharply straight up
14 dimpler (mouth: buccinator)
    the lip corners are tightened and pressed in
15 lip corner depressor (mouth: depressor anguli oris)
    the lip corners are pulled down
16 lower lip depressor (mouth: depressor labii inferioris)
    the lower lip is pulled down
17 chin raiser (chin: mentalis)
    the chin is pushed up
18 lip pucker (mouth: incisivii labii)
    the lips are puckered
19 tongue show (mouth: genioglossus)
    the tongue is shown
20 lip stretcher (mouth: risorius)
    the lips are stretched sideways
21 neck tightener (jaw: platysma)
    the skin of the neck is tightened
22 lip funneler (mouth: orbicularis oris)
    the lips are pushed forward like a funnel
23 lip tightener (mouth: orbicularis oris)
    the lips are tightened and narrowed
24 lip pressor (mouth: orbicularis oris)
    the lips are pressed together
25 lips part (mouth: depressor labii inferioris, or relaxed mentalis)
    the lips are parted
26 jaw drop (jaw: relaxed masseter, temporalis and internal pterygoid)
    the jaw is dropped
27 mouth stretch (jaw: pterygoids and digastric)
    the mouth is stretched wide open
28 lip suck (mouth: orbicularis oris)
    the lips are sucked in over the teeth
29 jaw thrust (jaw: lateral pterygoid)
    the jaw is pushed forward
30 jaw sideways (jaw: lateral and medial pterygoid of one side)
    the jaw is moved sideways
31 jaw clencher (jaw: masseter)
    the jaw is clenched
32 lip bite (mouth: masseter and orbicularis oris)
    the teeth are set on the lip
33 cheek blow (cheek: buccinator)
    the cheeks are blown out while air leaves the lips
34 cheek puff (cheek: relaxed buccinator, closed orbicularis oris)
    the cheeks are puffed out
35 cheek suck (cheek: buccinator)
    the cheeks are sucked in
36 tongue bulge (cheek: genioglossus)
    the cheek is pushed out by the tongue
37 lip wipe (mouth: genioglossus)
    the lip is wiped by the tongue
38 nostril dilator (nose: nasalis, pars alaris)
    the nostrils are widened
39 nostril compressor (nose: nasalis, pars transversa)
    the nostrils are narrowed
43 eyes closed (eye: relaxed levator palpebrae superioris)
    the eyes are closed
45 blink (eye: relaxed levator palpebrae, orbicularis oculi)
    the eyes are shut for a blink
46 wink (eye: orbicularis oculi of one side)
    one eye is shut in a wink
"""

AUS: dict[int, ActionUnit] = {
    int(number): ActionUnit(int(number), name, muscle, region, cue)
    for number, name, region, muscle, cue in re.findall(
        r"^(\d+) (.+) \((\w+): (.+)\)\n +(.+)$", _CATALOGUE, re.MULTILINE
    )
}
AU_NUMBERS: tuple[int, ...] = tuple(AUS)
# What image data sets code; 8, 29-33 and 35-39 are miscellaneous actions.
COMMON_AUS: tuple[int, ...] = tuple(
    n for n in AU_NUMBERS if n not in {8, 29, 30, 31, 32, 33, 35, 36, 37, 38, 39}
)
# What prompts define: jaw and teeth too, which RAF-AU codes and Facial-R1's own prompt defines.
DEFINED_AUS: tuple[int, ...] = tuple(n for n in AU_NUMBERS if n in {*COMMON_AUS, 29, 30, 31, 32})
# What the synthetic renderer can move.
SYNTH_AUS: tuple[int, ...] = (
    *(1, 2, 4, 5, 6, 7, 9, 10, 12),
    *(14, 15, 16, 17, 18, 20),
    *(22, 23, 24, 25, 26, 27, 28, 34, 43),
)
# What version 2 of the rendered faces has in addition: a wink, on one side.
SYNTH_V2_AUS: tuple[int, ...] = (*SYNTH_AUS, 46)

# FACS intensities A to E, that is 1 to 5, in words.
GRADES = ("faintly", "slightly", "clearly", "strongly", "extremely")


@dataclass(frozen=True)
class Prototype:
    """The AUs of an emotion. `core` maps interchangeable AUs ("26 or 27") to their weight;
    `accessory` AUs often join in and are neither evidence for nor against it."""

    core: dict[tuple[int, ...], float]
    accessory: tuple[int, ...]

    @property
    def core_aus(self) -> tuple[int, ...]:
        """The AUs of its core, sorted."""
        return tuple(sorted(au for group in self.core for au in group))

    @property
    def aus(self) -> tuple[int, ...]:
        """Core and accessory AUs, sorted."""
        return tuple(sorted((*self.core_aus, *self.accessory)))


# Core sets: EMFACS. Weights (ours): the sign that distinguishes the emotion from its neighbours
# counts more, so that AU4 alone reads as anger and not as a third of sadness, AU5 alone as
# surprise.
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
# AUs that are evidence for some emotion; all others (blink, pucker, cheek puff ...) are not.
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
    names = ", ".join(name(n) for n in AU_NUMBERS)
    raise UserError(f"{text!r} is not a known action unit: use one of {names}")


def top_down(aus: Iterable[int]) -> list[int]:
    """The AUs from the brow to the jaw, by number within a region."""
    return sorted(aus, key=lambda au: (REGIONS.index(AUS[au].region), au))


def evidence(aus: Mapping[int, float | None] | Iterable[int]) -> dict[str, float]:
    """Evidence of AUs for each of the eight emotions: scores >= 0 that sum to 1.

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
    strengths = {
        au: 1.0 if value is None else min(1.0, max(0.0, value / 3))
        for au, value in sorted(graded.items())
        if au in INFORMATIVE_AUS
    }
    total = sum(strengths.values())
    scores = {"neutral": max(0.0, 1 - total) ** 2}
    for emotion, prototype in PROTOTYPES.items():
        visible_core = sum(
            weight * max(strengths.get(au, 0.0) for au in group)
            for group, weight in prototype.core.items()
        )
        if not visible_core:
            scores.setdefault(emotion, 0.0)
            continue
        recall = visible_core / sum(prototype.core.values())
        core, accessory = prototype.core_aus, prototype.accessory
        matched = sum(x * ((au in core) + 0.5 * (au in accessory)) for au, x in strengths.items())
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
