"""The rule writer: action units and an emotion -> a short rationale, thousands per second.

A rationale describes the face from top to bottom, one clause for each AU with its number and its
intensity in words, and ends with one sentence on the evidence of all signs, by the EMFACS weights
in `facs`. It does not hide evidence against its label: signs of another emotion are named, and weak
evidence is called weak. The style "plain" varies little, so that a language model of a few million
parameters can learn it; "varied" is for larger models.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from vlmface import answers, facs
from vlmface.au_descriptions import CLAUSES
from vlmface.errors import UserError
from vlmface.rationale.phrase_tables import VARIED, Style

T = TypeVar("T")


# Noun phrases for the closing sentence. The AUs of the brows are one sign.
BROWS: dict[tuple[int, ...], str] = {
    (1,): "raised inner brows",
    (2,): "raised outer brows",
    (4,): "lowered brows",
    (1, 2): "raised brows",
    (1, 4): "slanted brows",
    (2, 4): "angled brows",
    (1, 2, 4): "raised and drawn brows",
}
SIGNS: dict[int, str] = {
    5: "wide eyes",
    6: "raised cheeks",
    7: "tense lids",
    9: "a wrinkled nose",
    10: "a raised upper lip",
    11: "deep nasal folds",
    12: "raised lip corners",
    14: "dimpled lip corners",
    15: "lowered lip corners",
    16: "a lowered lower lip",
    17: "a raised chin",
    20: "stretched lips",
    23: "tight lips",
    24: "pressed lips",
    25: "parted lips",
    26: "a dropped jaw",
    27: "a wide open mouth",
}
MAX_SIGNS = 3

AT_REST = (
    "No muscle moves visibly.",
    "The face shows no visible movement.",
    "The face is at rest.",
)
CLOSINGS: dict[str, tuple[str, ...]] = {
    "clear": (
        "{S} point[s] to {e}.",
        "{S} tell[s] of {e}.",
        "With {s}, the face shows {e}.",
    ),
    "faint": (
        "{S} point[s] to {e}, though only faintly.",
        "The signs are faint, but {s} fit[s] {e}.",
    ),
    "mixed": (
        "{A} speak[s] against it, but {s} point[s] to {e}.",
        "Despite {a}, {s} point[s] to {e}.",
    ),
    "weak": (
        "{S} fit[s] {e}, but the evidence is weak.",
        "The evidence is weak, yet {s} fit[s] {e}.",
    ),
    "outweighed": (
        "{A} speak[s] against it, so {s} give[s] only weak evidence of {e}.",
        "{S} fit[s] {e}, but against {a} the evidence is weak.",
    ),
    "contrary": (
        "{A} speak[s] against it, so the evidence of {e} is weak.",
        "Little here is typical of {e}, and {a} speak[s] against it.",
    ),
    "none": (
        "Little here is typical of {e}; the evidence is weak.",
        "The evidence of {e} is weak.",
    ),
    "rest": (
        "A face at rest is neutral.",
        "The expression is neutral.",
    ),
    "idle": (
        "Such movement names no emotion; the face is neutral.",
        "This tells of no emotion, so the face is neutral.",
    ),
    "too faint": (
        "{A} stay[s] too faint for an emotion; the face is neutral.",
        "So faint a movement names no emotion; the face is neutral.",
    ),
    "not neutral": (
        "{A} speak[s] against it, so the evidence of a neutral face is weak.",
        "Despite {a}, the face is taken as neutral; the evidence is weak.",
    ),
}

STYLES: dict[str, Style] = {
    "plain": Style(
        grades=tuple((word,) for word in facs.GRADES),
        clauses=CLAUSES,
        layouts=(("plain", "{clause} ({au})"),),
        openings=("",),
        joins=(", ",),
        at_rest=AT_REST,
        brows={aus: (name,) for aus, name in BROWS.items()},
        signs={au: (name,) for au, name in SIGNS.items()},
        closings=CLOSINGS,
    ),
    "varied": VARIED,
}


def write(
    aus: Mapping[int, float | None],
    emotion: str,
    *,
    format: str = "think_answer",
    seed: int = 0,
    body_only: bool = False,
    style: str = "plain",
) -> str:
    """Write the rationale of a face. The same arguments give the same text.

    Args:
        aus: {AU: intensity 0..5, None if it was not graded}; 0 means absent.
        emotion: The label that the text concludes.
        format: Of the completion.
        seed: Of the random choices.
        body_only: Return only the text, which is the same for every format, as in
            `FaceSample.rationale`.
        style: "plain" or "varied".

    Returns:
        A completion, from which `answers.parse` reads the AUs and the emotion.

    Raises:
        UserError: An AU, intensity, emotion, format or style does not exist.
    """
    if emotion not in facs.PROTOTYPES:
        raise UserError(f"{emotion!r} is not an emotion: use one of {', '.join(facs.PROTOTYPES)}")
    present = _present(aus)
    body = _writer(style, seed).body(present, emotion)
    return (
        body
        if body_only
        else answers.completion_prefix(body, format) + emotion + answers.SUFFIX[format]
    )


def describe(aus: Mapping[int, float | None], *, seed: int = 0, style: str = "plain") -> str:
    """The rationale of a face without a conclusion, for labels that AUs are not known to be
    evidence of: one clause for each AU.

    Args:
        aus: As in `write`.
        seed: Of the random choices.
        style: "plain" or "varied".

    Raises:
        UserError: An AU, intensity or style does not exist.
    """
    return _writer(style, seed).observations(_present(aus))


def _present(aus: Mapping[int, float | None]) -> dict[int, float | None]:
    """The AUs that are present, from the top of the face to its bottom. Raises UserError."""
    for au, intensity in aus.items():
        if au not in facs.AUS:
            raise UserError(f"AU {au!r} is not in FACS: use one of {', '.join(map(str, facs.AUS))}")
        if intensity is not None and not 0 <= intensity <= 5:
            raise UserError(f"AU{au} has intensity {intensity!r}: use 0 to 5, or None")
    return {au: aus[au] for au in facs.top_down(aus) if aus[au] != 0}


def _writer(style: str, seed: int) -> _Writer:
    if style not in STYLES:
        raise UserError(f"unknown style {style!r}: use one of {', '.join(STYLES)}")
    return _Writer(STYLES[style], random.Random(seed))


def sample_seed(seed: int, id: str) -> int:
    """A seed for one sample, so that its text does not depend on the order of the rows."""
    return int.from_bytes(f"{seed} {id}".encode()[-64:], "big")


class _Writer:
    """Writes one rationale in a style, with one source of randomness."""

    def __init__(self, style: Style, rng: random.Random) -> None:
        self.style = style
        self.choose = rng.choice

    def vary(self, options: Sequence[T]) -> T:
        # With one option no random number is drawn, so that the texts of "plain" do not change when
        # a style gets more kinds of variation.
        return options[0] if len(options) == 1 else self.choose(options)

    def body(self, aus: Mapping[int, float | None], emotion: str) -> str:
        return f"{self.observations(aus)} {self.closing(aus, emotion)}"

    # --- observations ---

    def observations(self, aus: Mapping[int, float | None]) -> str:
        if not aus:
            return self.choose(self.style.at_rest)
        layout, tag = self.vary(self.style.layouts)
        join = self.vary(self.style.joins)
        upper: list[str] = []
        lower: list[str] = []
        for au, intensity in aus.items():
            half = lower if facs.AUS[au].region in ("mouth", "chin", "jaw") else upper
            half.append(self.clause(au, intensity, tag))
        if layout == "each":
            sentences = [[clause] for clause in upper + lower]
        elif layout == "halves" or (layout == "plain" and len(aus) > 4):
            sentences = [upper, lower]
        else:
            sentences = [upper + lower]
        sentences = [clauses for clauses in sentences if clauses]
        if len(sentences[0]) > 1:
            sentences[0][0] = self.vary(self.style.openings) + sentences[0][0]
        return " ".join(f"{_capital(_join(clauses, join))}." for clauses in sentences)

    def clause(self, au: int, intensity: float | None, tag: str) -> str:
        grades = self.style.grades
        grade_word = "" if intensity is None else f" {self.vary(grades[facs.grade(intensity) - 1])}"
        clause = self.choose(self.style.clauses[au]).format(how=grade_word)
        return tag.format(clause=clause, au=facs.name(au), name=facs.AUS[au].name)

    # --- conclusion ---

    def closing(self, aus: Mapping[int, float | None], emotion: str) -> str:
        fitting, against, case = _weigh(aus, emotion)
        if case == "full" and case not in self.style.closings:
            case = "clear"
        signs, contrary = self.signs(fitting), self.signs(against)
        rival = _rival({au: aus[au] for au in against}, emotion)
        options = [text for text in self.style.closings[case] if rival or "{o}" not in text]
        text = _agree(self.choose(options), signs, contrary)
        s, a = _join(signs), _join(contrary)
        return text.format(s=s, a=a, S=_capital(s), A=_capital(a), e=emotion, o=rival)

    def signs(self, aus: list[int]) -> list[str]:
        brows = tuple(au for au in aus if au in (1, 2, 4))
        names = [self.style.brows[brows]] if brows else []
        names += [self.style.signs[au] for au in aus if au in self.style.signs]
        return [self.vary(options) for options in names[:MAX_SIGNS]]


def _weigh(aus: Mapping[int, float | None], emotion: str) -> tuple[list[int], list[int], str]:
    """(AUs that are evidence of the emotion, AUs against it, case of CLOSINGS)."""
    prototype = facs.PROTOTYPES[emotion]
    core = [au for au in aus if au in prototype.core_aus]
    fitting = core or [au for au in aus if au in prototype.accessory]
    against = [au for au in aus if au in facs.INFORMATIVE_AUS and au not in prototype.aus]
    supported = facs.supports(aus, emotion)
    strengths = [aus[au] for au in core]
    faint = all(strength is not None and strength < 1.5 for strength in strengths)
    if emotion == "neutral":
        case = "idle" if aus else "rest"
        if against and not _accessory_only(against):
            case = "too faint" if supported else "not neutral"
    elif supported and _has_main_sign(core, prototype):
        is_full = all(set(group) & set(core) for group in prototype.core)
        case = "mixed" if against else "faint" if faint else "full" if is_full else "clear"
    elif fitting:
        case = "outweighed" if against else "weak"
    else:
        case = "contrary" if against else "none"
    return fitting, against, case


def _has_main_sign(core: Iterable[int], prototype: facs.Prototype) -> bool:
    """Whether one of the signs with the largest weight is among the AUs: a lowered lower lip occurs
    with disgust, but without a wrinkled nose or a raised upper lip it does not indicate it."""
    max_weight = max(prototype.core.values(), default=0.0)
    return any(
        weight == max_weight and set(group) & set(core) for group, weight in prototype.core.items()
    )


def _accessory_only(aus: Iterable[int]) -> bool:
    """Whether none of the AUs is at the core of an emotion, so that they are not evidence alone."""
    return not any(au in prototype.core_aus for prototype in facs.PROTOTYPES.values() for au in aus)


def _rival(against: Mapping[int, float | None], emotion: str) -> str | None:
    """The emotion that the AUs against `emotion` are the strongest evidence of, if any."""
    scores = {
        e: score for e, score in facs.evidence(against).items() if e not in (emotion, "neutral")
    }
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] > 0 else None


def _agree(text: str, signs: Sequence[str], contrary: Sequence[str]) -> str:
    """Fill in the [s] of a closing: a verb agrees with the nearest list before it, and "a dropped
    jaw" alone is a singular."""
    singular = {
        key: len(names) == 1 and names[0].startswith("a ")
        for key, names in (("s", signs), ("a", contrary))
    }
    ending = ""
    pieces = []
    for piece in re.split(r"(\{[sSaA]\}|\[s\])", text):
        if piece == "[s]":
            piece = ending
        elif piece[1:-1].lower() in singular and piece.startswith("{"):
            ending = "s" if singular[piece[1:-1].lower()] else ""
        pieces.append(piece)
    return "".join(pieces)


def _join(items: Sequence[str], join: str = ", ") -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([join.join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
