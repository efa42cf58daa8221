"""Descriptions of action units in words, and whether the words around an AU describe that unit:
"The brows are raised (AU4)" do not.

The check recognises parts of the face and their movements. It is precise rather than complete: a
mention is only called wrong if its words name a movement that contradicts the unit's own and none
that fits it, or if they name parts of the other half of the face alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vlmface import facs

_UPPER, _LOWER = {"brow", "eye"}, {"corner", "upper lip", "lower lip", "mouth", "chin", "jaw"}
_BETWEEN = {"cheek", "nose"}  # part of either half

_PARTS = {
    "corner": (
        r"(?:lips?|mouth)(?:'s)?[\s-]corners?|corners?\s+of\s+(?:the|his|her|their|both)\s+"
        r"(?:lips?|mouth)|corners"
    ),
    "upper lip": r"upper\s+lip",
    "lower lip": r"(?:lower|bottom)\s+lip",
    "mouth": r"lips?|mouth",
    "brow": r"(?:eye)?brows?|forehead|glabella",
    "eye": r"(?:(?:upper|lower)\s+)?(?:eye)?lids?|eyes?|gaze",
    "cheek": r"cheeks?",
    "nose": r"nose|nostrils?|nasolabial(?:\s+folds?)?",
    "chin": r"chin",
    "jaw": r"(?:lower\s+)?jaw",
}
_MOVES = {
    "up": (
        r"rais(?:e|es|ed|ing|er)|rise|rises|risen|rising|lift(?:s|ed|ing)?|up|upwards?|upturned"
        r"|elevat\w+|arch(?:es|ed|ing)?"
    ),
    "down": (
        r"lower(?:s|ed|ing|er)?|down|downwards?|downturned|drop(?:s|ped|ping)?|sink\w*|sunk"
        r"|sag(?:s|ged|ging)?|droop\w*|depress\w*|knit\w*|furrow\w*|frown\w*|together"
        r"|contract\w*"
    ),
    "open": (
        r"open(?:s|ed|ing)?|wide|widen\w*|part(?:s|ed|ing)?(?!\s+of\b)|apart|agape"
        r"|gap(?:es|ing)"
    ),
    "shut": (
        r"clos(?:e|es|ed|ing)|shut|narrow\w*|squint\w*|tight\w*|tens\w*|press\w*|squeez\w*"
        r"|clench\w*|seal\w*|pinch\w*"
    ),
}
_WORD = re.compile(
    "|".join(
        rf"(?P<{kind}_{i}>\b(?:{pattern})\b)"
        for kind, table in (("part", _PARTS), ("move", _MOVES))
        for i, pattern in enumerate(table.values())
    ),
    re.IGNORECASE,
)
_NOT = re.compile(r"(?:\b(?:not|never|no|without|rather\s+than)|n't)\s+(?:\w+\s+)?$", re.IGNORECASE)
# "raised inner brows", "lowers the brows": a movement whose part comes after it.
_BEFORE_PART = re.compile(
    r"\s+(?:(?:the|of|his|her|their|both|inner|outer|ends?)\s+){0,4}$", re.IGNORECASE
)

# AU -> (parts it moves, movements that describe it, movements that contradict it).
_UNITS: dict[int, tuple[set[str], set[str], set[str]]] = {
    1: ({"brow"}, {"up"}, {"down"}),
    2: ({"brow"}, {"up"}, {"down"}),
    4: ({"brow"}, {"down"}, {"up"}),
    5: ({"eye"}, {"up", "open"}, {"down", "shut"}),
    6: ({"cheek"}, {"up"}, {"down"}),
    7: ({"eye"}, {"shut"}, {"open"}),
    10: ({"upper lip"}, {"up"}, {"down"}),
    12: ({"corner"}, {"up"}, {"down"}),
    15: ({"corner"}, {"down"}, {"up"}),
    16: ({"lower lip"}, {"down"}, {"up"}),
    17: ({"chin"}, {"up"}, {"down"}),
    23: ({"mouth"}, {"shut"}, {"open"}),
    24: ({"mouth"}, {"shut", "down"}, {"open"}),
    25: ({"mouth"}, {"open"}, {"shut"}),
    26: ({"jaw", "mouth"}, {"down", "open"}, {"up", "shut"}),
    27: ({"jaw", "mouth"}, {"down", "open"}, {"up", "shut"}),
    43: ({"eye"}, {"shut", "down"}, {"open", "up"}),
}
MENTION = re.compile(r"\bAU\s?0?(\d{1,2})\b", re.IGNORECASE)


def contradictions(text: str) -> list[tuple[int, str]]:
    """(AU, the words that do not describe it) for each mention that is described wrongly, in order.

    Only mentions such as "AU4" are checked, not statements about the face without a number.
    """
    wrong = []
    for sentence in re.split(r"(?<=[.!?;])\s+|\n+", text):
        mentions = list(MENTION.finditer(sentence))
        start = 0
        for i, mention in enumerate(mentions):
            end = mentions[i + 1].start() if i + 1 < len(mentions) else len(sentence)
            before, after = sentence[start : mention.start()], sentence[mention.end() : end]
            # In brackets the number closes its own description; elsewhere it may stand anywhere.
            closes = re.search(r"[(\[][^)\]]*$", before)
            spans = [before] if closes else [before, after]
            # "(AU1, inner brow raiser) and": up to the bracket it is still about AU1.
            bracket = re.match(r"[^(\[)\]]*[)\]]", after) if closes else None
            start = mention.end() + (bracket.end() if bracket else 0)
            au = int(mention[1])
            if au in facs.AUS and _is_wrong(au, spans):
                wrong.append((au, " ".join(" ".join(spans).strip(" ,:()[]").split())))
    return wrong


def _is_wrong(au: int, spans: list[str]) -> bool:
    parts: set[str] = set()
    moves: set[tuple[str, str]] = set()
    for span in spans:
        for part, move in _read(span):
            if move is None:
                parts.add(part)
            else:
                moves.add((part, move))
    half = _UPPER if facs.AUS[au].region in ("brow", "eye") else _LOWER
    if facs.AUS[au].region in ("cheek", "nose"):
        half = _UPPER | _LOWER
    if parts and not parts & (half | _BETWEEN):
        return True
    moved_parts, consistent, contradicting = _UNITS.get(au, (set(), set(), set()))
    described = {move for part, move in moves if part in moved_parts}
    return bool(described & contradicting) and not described & consistent


def _read(span: str) -> Iterator[tuple[str, str | None]]:
    """(part, None) for each part of the face, (part, movement) for each movement of one."""
    words = [
        (match, match.lastgroup.split("_"))
        for match in _WORD.finditer(span)
        if match.lastgroup is not None
    ]
    names = {"part": list(_PARTS), "move": list(_MOVES)}
    part = None
    for i, (match, (kind, number)) in enumerate(words):
        name = names[kind][int(number)]
        if kind == "part":
            part = name
            yield part, None
            continue
        if _NOT.search(span, 0, match.start()):
            continue
        moved = part
        if i + 1 < len(words) and words[i + 1][1][0] == "part":
            following, (_, number) = words[i + 1]
            if _BEFORE_PART.fullmatch(span, match.end(), following.start()):
                moved = names["part"][int(number)]
        if moved is not None:
            yield moved, name


def from_cue(au: int) -> tuple[str, ...]:
    """The cue of an AU, with a placeholder for the intensity."""
    return (re.sub(r" (is|are) ", r" \1{how} ", facs.AUS[au].cue, count=1),)


CLAUSES: dict[int, tuple[str, ...]] = {
    1: ("the inner brows are{how} raised", "the inner brows rise{how}"),
    2: ("the outer brows are{how} raised", "the outer brows rise{how}"),
    4: (
        "the brows are{how} lowered",
        "the brows are{how} drawn together",
        "the brows are{how} pulled down",
    ),
    5: ("the upper lids are{how} raised", "the eyes are{how} widened"),
    6: ("the cheeks are{how} raised", "the cheeks are{how} lifted"),
    7: ("the lids are{how} tightened", "the lids are{how} tensed"),
    9: ("the nose is{how} wrinkled", "the nose wrinkles{how}"),
    10: ("the upper lip is{how} raised", "the upper lip is{how} pulled up"),
    12: ("the lip corners are{how} pulled up", "the lip corners are{how} raised"),
    14: ("the lip corners are{how} dimpled", "the lip corners are{how} pressed in"),
    15: ("the lip corners are{how} pulled down", "the lip corners are{how} lowered"),
    16: ("the lower lip is{how} pulled down", "the lower lip is{how} lowered"),
    17: ("the chin is{how} pushed up", "the chin is{how} raised"),
    18: ("the lips are{how} puckered", "the lips are{how} pursed"),
    20: ("the lips are{how} stretched", "the lips are{how} stretched sideways"),
    22: ("the lips are{how} funneled", "the lips are{how} pushed forward"),
    23: ("the lips are{how} tightened", "the lips are{how} narrowed"),
    24: ("the lips are{how} pressed", "the lips are{how} pressed together"),
    25: ("the lips are{how} parted", "the lips part{how}"),
    26: ("the jaw is{how} dropped", "the jaw drops{how}"),
    27: ("the mouth is{how} stretched open", "the mouth stretches open{how}"),
    28: ("the lips are{how} sucked in", "the lips are{how} rolled in"),
    34: ("the cheeks are{how} puffed out", "the cheeks are{how} puffed"),
    43: ("the eyes are{how} closed", "the eyes are{how} shut"),
}
CLAUSES |= {au: from_cue(au) for au in facs.AUS if au not in CLAUSES}
