"""The movements that were measured of a face, as the text that a prompt contains.

A prompt with the placeholder `{evidence}` is given this text about each face that it is asked
about. `VERSION` is part of the prompt's sha and must be raised with every change of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vlmface import facs
from vlmface.au_descriptions import CLAUSES

VERSION = 1  # raise whenever the same measurement would give another text
NONE = "no muscle moves"  # no action unit is present
NOT_MEASURED = "not measured"  # no face, one that is turned too far, or withheld
PHOTOGRAPH = "photograph: "  # in front of what was measured in a photograph, not in a rendered face
_NUMBER = re.compile(r"\(AU(\d+)")
SIDE_DIFFERENCE = 1.0  # by which one side must be stronger to be named


@dataclass(frozen=True)
class Movements:
    """What was measured of one face.

    Attributes:
        aus: {AU: intensity 0..5}; from 1 on it is present.
        sides: {AU: (left, right)}, intensities of the face's own sides.
        is_photograph: Whether the face is photographed and not rendered.
    """

    aus: Mapping[int, float]
    sides: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    is_photograph: bool = False


def text_of(movements: Movements | None) -> str:
    """The text of a face, such as "the cheeks are slightly raised (AU6), the lip corners are
    strongly pulled up (AU12 left)".

    AUs are described in the order of the face, from the brows to the jaw, with a word for the
    intensity and the side that is stronger: in the words of rationales, because a small language
    model learns to repeat them sooner than to turn numbers into words. "photograph: " stands in
    front of those of a photograph.

    Args:
        movements: None if the face was not measured.
    """
    if movements is None:
        return NOT_MEASURED
    present = [au for au, intensity in movements.aus.items() if intensity >= 1]
    text = ", ".join(_unit(au, movements) for au in facs.top_down(present)) or NONE
    return of_photograph(text) if movements.is_photograph else text


def is_of_photograph(text: str) -> bool:
    """Whether a text is about a photograph."""
    return text.startswith(PHOTOGRAPH)


def of_photograph(text: str) -> str:
    """The text of a rendered face as if it were photographed."""
    return text if text == NOT_MEASURED else PHOTOGRAPH + text


def _unit(au: int, movements: Movements) -> str:
    clause = CLAUSES[au][0].format(how=f" {facs.GRADES[facs.grade(movements.aus[au]) - 1]}")
    left, right = movements.sides.get(au, (0.0, 0.0))
    side = "" if abs(left - right) < SIDE_DIFFERENCE else " left" if left > right else " right"
    return f"{clause} ({facs.name(au)}{side})"


def mixed(own: str, other: str, is_changed: Callable[[], bool]) -> str:
    """The text of one face with errors: AUs removed, and those of another face added.

    Args:
        own: The text of the face.
        other: That of another face.
        is_changed: Called for each AU of both that the other lacks: whether it is removed, or
            added.
    """
    if NOT_MEASURED in (own, other):
        return own
    of_own, of_other = _units(own), _units(other)
    units = {au: text for au, text in of_own.items() if au in of_other or not is_changed()}
    units |= {au: text for au, text in of_other.items() if au not in of_own and is_changed()}
    text = ", ".join(units[au] for au in facs.top_down(units)) or NONE
    return of_photograph(text) if is_of_photograph(own) else text


def _units(text: str) -> dict[int, str]:
    """{AU: its part} of a text of `text_of`."""
    text = text.removeprefix(PHOTOGRAPH)
    parts = [] if text == NONE else text.split(", ")
    return {int(_NUMBER.findall(part)[-1]): part for part in parts}
