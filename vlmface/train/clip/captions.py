"""Captions of faces, written from annotated attributes and action units.

After FLIP (trained on FaceCaption-15M, arXiv:2407.08515): one sentence on who is seen, one on what
the face does. An emotion is named only on request, so that a model trained on captions
can be measured on emotions that never occurred in them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from vlmface import facs
from vlmface.errors import UserError
from vlmface.schema import FaceSample

CONTENTS = ("attributes", "aus", "emotion")
_PEOPLE = {"female": ("woman", "girl"), "male": ("man", "boy")}
_AGES = (
    (13, "{child}"),
    (20, "teenage {child}"),
    (40, "young {adult}"),
    (60, "middle-aged {adult}"),
    (200, "old {adult}"),
)
_OPENINGS = ("a photo of", "a portrait of", "the face of", "a close-up of")
_CALM = ("no facial muscle is moved", "the face is at rest", "the face is relaxed")


def write_caption(sample: FaceSample, says: Sequence[str], seed: int) -> str | None:
    """One caption; None if the sample has none of the requested annotations.

    `says`: some of SAYS. The same seed gives the same caption; other seeds order the signs
    differently, open differently, and leave out what is said least.
    """
    check_contents(says)
    rng = random.Random(f"{seed} {sample.id}")
    person = _person(sample) if "attributes" in says else None
    signs = _signs(sample, rng) if "aus" in says else None
    feeling = sample.emotion if "emotion" in says else None
    if person is None and signs is None and feeling is None:
        return None
    parts = [f"{rng.choice(_OPENINGS)} {person or 'a person'}"]
    if feeling:
        parts.append(f"with an expression of {feeling}")
    sentence = " ".join(parts)
    return f"{sentence}; {signs}." if signs else f"{sentence}."


def check_contents(says: Sequence[str]) -> None:
    """Raises UserError unless `says` are some of SAYS."""
    odd = sorted(set(says) - set(CONTENTS))
    if odd or not says:
        raise UserError(f"says is {', '.join(odd) or 'empty'}: use some of {', '.join(CONTENTS)}")


def _person(sample: FaceSample) -> str | None:
    if sample.gender not in _PEOPLE:
        return None
    adult, child = _PEOPLE[sample.gender]
    fitting = [words for limit, words in _AGES if sample.age is not None and sample.age < limit]
    age = fitting[0] if fitting else "{adult}"
    person = age.format(adult=adult, child=child)
    looks = f"{sample.race} {person}" if sample.race else person
    words = [f"{'an' if looks[0].lower() in 'aeiou' else 'a'} {looks}"]
    style, colour = sample.meta.get("hair_style"), sample.meta.get("hair_colour")
    if style == "bald":
        words.append("with a bald head")
    elif style and colour:
        words.append(f"with {colour} hair, {style}")
    if sample.meta.get("beard"):
        words.append("and a beard")
    return " ".join(words)


def _signs(sample: FaceSample, rng: random.Random) -> str | None:
    if sample.aus is None:
        return None
    units = list(sample.present_aus())
    if not units:
        return rng.choice(_CALM)
    rng.shuffle(units)
    cues = [facs.AUS[unit].cue for unit in units]
    return cues[0] if len(cues) == 1 else f"{', '.join(cues[:-1])} and {cues[-1]}"
