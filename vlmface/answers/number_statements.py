"""Which number of a scale a text states where its answer stands.

A number is stated if it is the whole text ("7", "7,5", "7/10", "7 out of 10"), or stands in a
clause of filler words ("I would rate it 7"), and no other number and no refusal is in the text.
Numbers in words ("seven") are not read.
"""

from __future__ import annotations

import re

from vlmface.answers.label_statements import DENIALS, NEGATORS, REFUSAL, word_set
from vlmface.label_spaces import LabelSpace, normalise
from vlmface.scales import Scale, read_number

_DIGITS = r"\d+(?:[.,]\d+)*"
# A sign counts in front of a word only: "3-4" is two numbers.
_NUMBER = re.compile(rf"(?<![\w.,])[-+\u2212\u2013]?{_DIGITS}|{_DIGITS}")
_RANGE = re.compile(
    r"[(\[]?\bon\s+(?:a|the)\s+scale\s+(?:from|of)\s+(\S+?)\s*(?:to|-|\u2013)\s*(\S+)",
    re.IGNORECASE,
)
_OF_HIGHEST = re.compile(
    rf"(?<=\d)\s*(?:/|\bout\s+of\b|\bof\b)\s*({_DIGITS})(?![\w%])", re.IGNORECASE
)
_PERCENT = re.compile(r"(?<=\d)\s*%")
_DIVIDER = re.compile(r"[!\n;:]|[.,](?!\d)")
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
# Marks by which another number may be meant: "<7", "70%", "7?", ".5", and "- 3" of a scale below 0.
_SIGNS = re.compile(r"[<>\u2264\u2265%\u2030^\u00b1?]|(?<!\d)[.,]\d")
_LONE_MINUS = re.compile(r"[-\u2212\u2013\u2014]\s+\d|\u2014\d")
_FILLERS = word_set(
    "a about an answer approximately around as assess assistant at be conclusion estimate estimated"
    " face final give gives giving he her here him his i i'd image in is it it's its json level me"
    " my number of on overall person person's photo picture points predicted prediction probably"
    " rate rated rates rating represents roughly scale score scored scores she shown so text that"
    " the their them therefore they this thus to value was would"
)


def decide(text: str, space: LabelSpace) -> tuple[set[str], str]:
    """The label and the status of a text that stands in the place of the answer.

    Args:
        text: The text.
        space: Of a scale.

    Returns:
        ({the step nearest to the number}, "lenient"), or no label and "ambiguous" (several numbers,
        or one that is not stated), "refused", or "none" (no number, or one outside the range).
    """
    scale = space.scale
    assert scale is not None
    text = _without_range(text, scale)
    numbers = {read_number(match[0]) for match in _NUMBER.finditer(text)}
    if REFUSAL.search(text):
        return set(), "refused"
    if not numbers:
        return set(), "none"
    number = numbers.pop()
    if number is None or numbers or not _is_stated(text, scale):  # None: such as 1.2.3
        return set(), "ambiguous"
    label = scale.nearest(number)
    return ({label}, "lenient") if label else (set(), "none")


def _without_range(text: str, scale: Scale) -> str:
    """The text without "on a scale from 0 to 10", "/10" and "out of 10" of this very scale, and of
    one from 0 to 100 without "%"."""

    def is_range(match: re.Match[str]) -> bool:
        ends = [read_number(end.strip(".,;:)]")) for end in match.groups()]
        return ends == list(scale.limits)[-len(ends) :]

    for pattern in (_RANGE, _OF_HIGHEST):
        text = pattern.sub(lambda match: " " if is_range(match) else match[0], text)
    return _PERCENT.sub("", text) if scale.limits == (0, 100) else text


def _is_stated(text: str, scale: Scale) -> bool:
    """Whether all clauses with a number hold nothing else but filler words, no other clause denies
    it, and no mark says that another number is meant."""
    if _SIGNS.search(text) or (scale.minimum < 0 and _LONE_MINUS.search(text)):
        return False
    fillers = _FILLERS | set(normalise(scale.name).split())
    for clause in _DIVIDER.split(text):
        words = {word.casefold() for word in _WORD.findall(clause)}
        if any(character.isdigit() for character in clause):
            if not words <= fillers:
                return False
        elif words & DENIALS or (words and words <= NEGATORS):
            return False
    return True
