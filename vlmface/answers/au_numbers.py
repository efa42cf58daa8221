"""Action units that a text names: single numbers, lists, ranges, sides and FACS grades."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace

from vlmface import facs
from vlmface.answers.au_vocabulary import BRACKETED_NAME

# A number may have a side before it, and an OpenFace column, a FACS grade or a side behind it:
# "L12", "04_r", "12C", "14R".
_NUMBER = r"[LR]?0?\d{1,2}(?:_[rc]\b)?(?:[A-E][LR]?\b|[LR][A-E]?\b)?(?![^\W_]|\.\d|\s?%)"
_LISTED_NUMBER = rf"(?:AU[\s_-]?)?{_NUMBER}"
_RANGE_SIGN = r"[ \t]*(?:[-\u2013\u2014]|\bto\b|\bthrough\b|\bthru\b)[ \t]*"
_CONJUNCTION = r"\b(?:and|or)\b(?:/or\b)?"
_FURTHER_NUMBER = (
    rf"(?:[ \t]*(?:,\s*(?:{_CONJUNCTION}\s*|&\s*)?|[+/&]|{_CONJUNCTION}|{_RANGE_SIGN})"
    rf"\s*{_LISTED_NUMBER}{BRACKETED_NAME})"
)
# What may follow "AU6 and 12" for the 12 to be an AU: in "AU4 and 2 people" it is not.
_AFTER_PAIR = (
    r"(?=\s*(?:$|[.;:)\n,|]|\b(?:are|is|were|was|do|have|both|together|all|with|co-occur|appear"
    r"|show|active|present|visible|absent|missing|inactive|not|combined?|combination)\b))"
)
_PLURAL_PREFIX = (
    r"(?:(?:AUs|action\s+units)(?:\s*\(AUs?\))?(?:\s+(?:numbers?|nos?\.|codes?))?"
    r"|(?:AU|action\s+unit|FACS)\s+(?:numbers|codes))"
)
_STATE_PREFIX = (
    r"(?:\s+(?:(?:that|which)\s+are\s+)?((?:not\s+)?(?:present|active|activated|observed"
    r"|detected|visible|identified|seen|coded"
    r"|found)|absent|inactive|missing)\s*[:=])?"
)
# "AU4", "AU 04", "AU12C", "AU1+2", "AU25/26", "action unit 4", "AUs 4, 7 and 23", "AU: 1, 2".
_MENTION = re.compile(
    rf"(?<![^\W_])(?:{_PLURAL_PREFIX}{_STATE_PREFIX}[\s_#:=\[{{'\"\u2192-]*"
    rf"{_NUMBER}{BRACKETED_NAME}{_FURTHER_NUMBER}*"
    rf"|(?:AU|action\s+unit)\s*:\s*{_NUMBER}(?:\s*,\s*{_NUMBER})+"
    rf"|(?:AU|action\s+unit)[\s_#:-]*{_NUMBER}"
    rf"(?:(?:\s?[+/]\s?{_LISTED_NUMBER})+|{_RANGE_SIGN}AU\s?{_NUMBER}|[-\u2013]{_NUMBER}"
    rf"|\s+(?:through|thru)\s+{_NUMBER}"
    rf"|{BRACKETED_NAME}(?:\s*,\s*{_NUMBER}{BRACKETED_NAME})*[ \t]?,?[ \t]?(?:and\b"
    rf"|&)\s*{_NUMBER}{BRACKETED_NAME}{_AFTER_PAIR})?"
    # FACS codes without "AU": "6B+12C", "L12A", "R14"; but neither "2D" nor the "R2" of a fit.
    rf"|(?-i:(?=[\dLRA-E+]*\d[A-E]\b|[\d+]*[LR]\d)[LR]?\d{{1,2}}[A-E]?(?:\+[LR]?\d{{1,2}}[A-E]?)+"
    rf"|[LR]\d{{2}}[A-E]?|[LR]\d[A-E])(?![\w.]))",
    re.IGNORECASE,
)
_SINGLE_NUMBER = re.compile(
    r"(?<![^\W_])(?:AU[\s_-]?)?([LR]?)(\d{1,2})(?:_[rc])?[A-E]?([LR]?)[A-E]?(?!\d)", re.I
)
_NUMBER_RANGE = re.compile(rf"(\d{{1,2}})({_RANGE_SIGN})(?:AU\s?)?(\d{{1,2}})\b", re.IGNORECASE)
_PLURAL_MENTION = re.compile(_PLURAL_PREFIX, re.IGNORECASE)
_COMBINATION = re.compile(r"\s+(?:combination|pair|pairing|pattern|complex|co-\w+|coupling)", re.I)
# "AU1-AU5" is a range; between the ends of a wider one without a plural is a guess.
_MAX_IMPLIED_RANGE = 4
_SIDE_BEFORE = re.compile(
    r"(?:\b(?:left|right)(?:-?\s?sided)?|\bunilateral|\b(?:one|single)-sided"
    r"|(?-i:(?<![^\W_])[LR]))\s+$",
    re.IGNORECASE,
)
_SIDE_AFTER = re.compile(
    r"\s*\(?(?:(?:on|at|in)\s+)?(?:(?:the|his|her|their|one)\s+)?(?:left|right|one\s+side)\b"
    r"(?!\s+(?:here|away|now|after))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class AUGroup:
    """AUs that a text names together. `sided`: only of one half of the face;
    `graded`: with a FACS grade, which says that they are present."""

    aus: tuple[int, ...]
    sided: bool = False
    graded: bool = False


def normalise_characters(text: str) -> str:
    """Full-width letters and curly quotes made plain, invisible and private characters dropped."""
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'")
    if text.isascii():
        return text
    return "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Co", "Cs"))


def names_au(text: str) -> bool:
    """Whether a text names an action unit."""
    return _MENTION.search(text) is not None


def au_spans(text: str) -> list[tuple[int, int, tuple[int, ...]]]:
    """Where a text names action units, whatever it says of them: (start, end, the AUs)."""
    spans = []
    for match in _MENTION.finditer(text):
        aus = tuple(dict.fromkeys(au for _, _, group in _groups_of(match) for au in group.aus))
        if aus:
            spans.append((*match.span(), aus))
    return spans


def _groups_of(match: re.Match[str]) -> list[tuple[int, int, AUGroup]]:
    """(start, end, AUs) of each number in a match of `_MENTION`; of a range, one for all."""
    text, base = match[0], match.start()
    plural = _PLURAL_MENTION.match(text) is not None
    groups, at = [], 0
    while number := _SINGLE_NUMBER.search(text, at):
        span = _NUMBER_RANGE.match(text, number.start(2))
        if span and int(span[1]) < int(span[3]):
            low, high = int(span[1]), int(span[3])
            whole = plural or high - low <= _MAX_IMPLIED_RANGE or "thr" in span[2].lower()
            ends = not whole or bool(_COMBINATION.match(match.string, match.end()))
            numbers = (low, high) if ends else tuple(range(low, high + 1))
            at = span.end()
        else:
            numbers, at = (int(number[2]),), number.end()
        aus = tuple(n for n in numbers if n in facs.AUS)
        sided = bool(number[1] or number[3])
        graded = text[number.end() - 1] in "ABCDE"
        groups.append((base + number.start(), base + at, AUGroup(aus, sided, graded)))
    return groups


def mark_mentions(text: str) -> tuple[str, list[AUGroup]]:
    """The text with a mark for each AU that it names, and what the marks stand for."""
    groups: list[AUGroup] = []
    parts: list[str] = []
    last = 0
    for match in _MENTION.finditer(text):
        number_groups = _groups_of(match)
        if _SIDE_BEFORE.search(text, last, match.start()) or _SIDE_AFTER.match(text, match.end()):
            number_groups = [(a, b, replace(group, sided=True)) for a, b, group in number_groups]
        joined = "+" in match[0] or "/" in match[0].replace("and/or", "").replace("or/and", "")
        if joined or len(number_groups) == 1:
            aus = tuple(dict.fromkeys(au for _, _, group in number_groups for au in group.aus))
            number_groups = [
                (
                    match.start(),
                    match.end(),
                    AUGroup(
                        aus, any(g.sided for *_, g in number_groups), number_groups[0][2].graded
                    ),
                )
            ]
        parts.append(text[last : match.start()])
        if match[1]:
            parts.append(f"{match[1]}: ")  # "AUs absent: 4, 7"
        last = number_groups[0][0] if number_groups else match.start()
        for start, end, group in number_groups:
            parts.append(f"{text[last:start]}\ue000{len(groups)}\ue001")
            groups.append(group)
            last = end
    return "".join((*parts, text[last:])), groups
