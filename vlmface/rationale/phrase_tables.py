"""The phrases of the rule writer: `Style`, and the tables of the style "varied".

Every entry is a list of equally likely choices. The tables of the style "plain" are in `rules`,
since the built-in tiny model was trained on exactly those sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlmface import facs
from vlmface.au_descriptions import from_cue


@dataclass(frozen=True)
class Style:
    """The phrases of a style.

    Attributes:
        grades: Words for the FACS intensities A..E, five lists without a common word.
        clauses: {AU: main clauses}; {how} is the intensity with a space before it, or empty.
        layouts: (layout, template). The layout combines clauses into sentences: "list", one
            sentence; "halves", upper and lower face; "plain", halves for more than four clauses;
            "each", a sentence each. The template marks a clause with its AU; its fields are
            {clause}, {au} ("AU4") and {name}.
        openings: Texts before a list of two or more clauses.
        joins: Separators of the clauses of a list, before the last "and".
        at_rest: Sentences for a face without action units.
        brows: {present AUs of 1, 2, 4: noun phrases}; the brows are one sign.
        signs: {AU: noun phrases for the closing sentence}.
        closings: {case: closing sentences}; {s} are the signs for the emotion {e}, {a} those
            against it, {o} the emotion that these fit better; {S} and {A} begin the sentence. [s]
            is written if the list before it is one singular ("a dropped jaw points").
    """

    grades: tuple[tuple[str, ...], ...]
    clauses: Mapping[int, tuple[str, ...]]
    layouts: tuple[tuple[str, str], ...]
    openings: tuple[str, ...]
    joins: tuple[str, ...]
    at_rest: tuple[str, ...]
    brows: Mapping[tuple[int, ...], tuple[str, ...]]
    signs: Mapping[int, tuple[str, ...]]
    closings: Mapping[str, tuple[str, ...]]


_CLAUSES: dict[int, tuple[str, ...]] = {
    1: (
        "the inner brows are{how} raised",
        "the inner brows rise{how}",
        "the inner ends of the brows are{how} lifted",
        "the brows are{how} raised at their inner ends",
        "the middle of the forehead is{how} lifted",
    ),
    2: (
        "the outer brows are{how} raised",
        "the outer brows rise{how}",
        "the outer ends of the brows are{how} lifted",
        "the brows are{how} raised at their outer ends",
        "the sides of the forehead are{how} lifted",
    ),
    4: (
        "the brows are{how} lowered",
        "the brows are{how} drawn together",
        "the brows are{how} pulled down",
        "the brows are{how} knitted",
        "the brows are{how} furrowed",
        "the brows are{how} lowered and drawn together",
    ),
    5: (
        "the upper lids are{how} raised",
        "the eyes are{how} widened",
        "the upper lids are{how} pulled up",
        "the eyes are{how} opened wide",
    ),
    6: (
        "the cheeks are{how} raised",
        "the cheeks are{how} lifted",
        "the cheeks are{how} pushed up toward the eyes",
        "the eyes are{how} narrowed from below by the cheeks",
        "the cheeks bunch up{how}",
    ),
    7: (
        "the lids are{how} tightened",
        "the lids are{how} tensed",
        "the lower lids are{how} tensed",
        "the eyes are{how} narrowed by tense lids",
    ),
    9: (
        "the nose is{how} wrinkled",
        "the nose wrinkles{how}",
        "the root of the nose is{how} wrinkled",
        "the skin beside the nose is{how} pulled up into wrinkles",
    ),
    10: (
        "the upper lip is{how} raised",
        "the upper lip is{how} pulled up",
        "the upper lip is{how} lifted",
        "the upper lip rises{how}",
    ),
    11: (*from_cue(11), "the nasolabial fold is{how} deepened"),
    12: (
        "the lip corners are{how} pulled up",
        "the lip corners are{how} raised",
        "the corners of the mouth are{how} drawn up and back",
        "the mouth corners are{how} lifted",
        "the corners of the lips rise{how}",
    ),
    14: (
        "the lip corners are{how} dimpled",
        "the lip corners are{how} pressed in",
        "the mouth corners are{how} tightened into dimples",
        "the corners of the mouth are{how} drawn inward",
    ),
    15: (
        "the lip corners are{how} pulled down",
        "the lip corners are{how} lowered",
        "the corners of the mouth are{how} drawn down",
        "the mouth corners sink{how}",
    ),
    16: (
        "the lower lip is{how} pulled down",
        "the lower lip is{how} lowered",
        "the lower lip is{how} drawn down",
        "the lower lip sinks{how}",
    ),
    17: (
        "the chin is{how} pushed up",
        "the chin is{how} raised",
        "the chin boss is{how} pushed up",
        "the chin lifts{how} toward the lower lip",
    ),
    18: (
        "the lips are{how} puckered",
        "the lips are{how} pursed",
        "the mouth is{how} puckered",
        "the lips are{how} drawn to a pucker",
    ),
    20: (
        "the lips are{how} stretched",
        "the lips are{how} stretched sideways",
        "the mouth is{how} stretched to the sides",
        "the lip corners are{how} pulled back sideways",
    ),
    22: (
        "the lips are{how} funneled",
        "the lips are{how} pushed forward",
        "the lips form a funnel{how}",
        "the lips are{how} rounded and pushed outward",
    ),
    23: (
        "the lips are{how} tightened",
        "the lips are{how} narrowed",
        "the lips are{how} tensed",
        "the lips are{how} thinned",
    ),
    24: (
        "the lips are{how} pressed",
        "the lips are{how} pressed together",
        "the lips are{how} squeezed together",
        "one lip is{how} pressed against the other",
    ),
    25: (
        "the lips are{how} parted",
        "the lips part{how}",
        "the mouth is{how} opened at the lips",
        "the lips are{how} apart",
    ),
    26: (
        "the jaw is{how} dropped",
        "the jaw drops{how}",
        "the lower jaw is{how} lowered",
        "the jaw sinks{how}",
    ),
    27: (
        "the mouth is{how} stretched open",
        "the mouth stretches open{how}",
        "the jaw is{how} pulled down and the mouth wide",
        "the mouth is{how} opened wide by the jaw",
    ),
    28: (
        "the lips are{how} sucked in",
        "the lips are{how} rolled in",
        "the lips are{how} drawn in over the teeth",
        "the lips curl inward{how}",
    ),
    34: (
        "the cheeks are{how} puffed out",
        "the cheeks are{how} puffed",
        "the cheeks are{how} filled with air",
        "the cheeks bulge{how}",
    ),
    43: (
        "the eyes are{how} closed",
        "the eyes are{how} shut",
        "the lids are{how} closed",
        "the upper lids are{how} lowered over the eyes",
    ),
}
_CLAUSES |= {au: from_cue(au) for au in facs.AUS if au not in _CLAUSES}

VARIED = Style(
    grades=(
        ("faintly", "just visibly", "minimally"),
        ("slightly", "mildly", "lightly"),
        ("clearly", "plainly", "distinctly"),
        ("strongly", "markedly", "forcefully"),
        ("extremely", "maximally", "intensely"),
    ),
    clauses=_CLAUSES,
    layouts=(
        ("list", "{clause} ({au})"),
        ("list", "{clause} ({au}, {name})"),
        ("list", "{clause} [{au}]"),
        ("halves", "{clause} ({au})"),
        ("halves", "{clause} ({au}, {name})"),
        ("each", "{clause} ({au})"),
        ("each", "{clause} ({au}, {name})"),
        ("each", "{au}: {clause}"),
        ("each", "{au}, {name}: {clause}"),
    ),
    openings=(
        "",
        "",
        "From top to bottom, ",
        "Going down the face, ",
        "What moves: ",
        "In this face, ",
    ),
    joins=(", ", "; "),
    at_rest=(
        "No muscle moves visibly.",
        "The face shows no visible movement.",
        "The face is at rest.",
        "Brows, eyes and mouth are all at rest.",
        "All of the face is relaxed.",
        "Nothing moves from the brows to the jaw.",
        "The features rest in their usual place.",
    ),
    brows={
        (1,): ("raised inner brows", "brows raised at the inner ends"),
        (2,): ("raised outer brows", "brows raised at the outer ends"),
        (4,): ("lowered brows", "knitted brows", "furrowed brows"),
        (1, 2): ("raised brows", "lifted brows"),
        (1, 4): ("slanted brows", "brows raised and knitted at the inner ends"),
        (2, 4): ("angled brows", "lowered brows with raised outer ends"),
        (1, 2, 4): ("raised and drawn brows", "raised and knitted brows"),
    },
    signs={
        5: ("wide eyes", "raised upper lids"),
        6: ("raised cheeks", "lifted cheeks"),
        7: ("tense lids", "tightened lids"),
        9: ("a wrinkled nose", "wrinkles at the nose"),
        10: ("a raised upper lip", "a lifted upper lip"),
        11: ("deep nasal folds", "a deepened nasolabial fold"),
        12: ("raised lip corners", "upturned lip corners"),
        14: ("dimpled lip corners", "pressed-in lip corners"),
        15: ("lowered lip corners", "downturned lip corners"),
        16: ("a lowered lower lip", "a pulled-down lower lip"),
        17: ("a raised chin", "a pushed-up chin"),
        20: ("stretched lips", "sideways stretched lips"),
        23: ("tight lips", "tightened lips"),
        24: ("pressed lips", "lips pressed together"),
        25: ("parted lips", "open lips"),
        26: ("a dropped jaw", "a lowered jaw"),
        27: ("a wide open mouth", "a mouth stretched open"),
    },
    closings={
        "full": (
            "{S} complete[s] the pattern that EMFACS gives for {e}.",
            "With {s}, every core sign of {e} in EMFACS is there.",
            "Nothing is missing from the EMFACS pattern of {e}: {s} tell[s] of it.",
            "In EMFACS, {s} make[s] the pattern of {e} complete.",
            "EMFACS describes {e} in just this way, and {s} show[s] it.",
        ),
        "clear": (
            "{S} point[s] to {e}.",
            "{S} tell[s] of {e}.",
            "With {s}, the face shows {e}.",
            "{S} belong[s] to the core of {e} in EMFACS.",
            "EMFACS counts {s} among the core signs of {e}.",
            "In terms of EMFACS, {s} speak[s] for {e}.",
            "The evidence is clear: {s} fit[s] {e}, and nothing speaks against it.",
        ),
        "faint": (
            "{S} point[s] to {e}, though only faintly.",
            "The signs are faint, but {s} fit[s] {e}.",
            "EMFACS links {s} to {e}, yet all of it is faint.",
            "This is a faint case of {e}: {s} belong[s] to its core in EMFACS.",
            "Faint as the movement is, {s} speak[s] for {e}.",
        ),
        "mixed": (
            "{A} speak[s] against it, but {s} point[s] to {e}.",
            "{S} point[s] to {e}, despite {a}.",
            "{S} belong[s] to {e} in EMFACS, although {a} speak[s] against it.",
            "{A} fit[s] {o} and speak[s] against it, yet {s} make[s] {e} more likely.",
            "EMFACS ties {s} to {e}; {a} speak[s] against that, but weigh[s] less.",
            "The signs conflict: {a} speak[s] against {e}, but {s} outweigh[s] that.",
            "{A} speak[s] against {e} and rather for {o}, but {s} decide[s] for {e}.",
        ),
        "weak": (
            "{S} fit[s] {e}, but the evidence is weak.",
            "The evidence is weak, yet {s} fit[s] {e}.",
            "{S} may go with {e}, but EMFACS asks for more: the evidence is weak.",
            "By {s} alone, {e} has weak evidence.",
            "{S} agree[s] with {e} without proving it; the evidence is weak.",
        ),
        "outweighed": (
            "{A} speak[s] against it, so {s} give[s] only weak evidence of {e}.",
            "{S} fit[s] {e}, but against {a} the evidence is weak.",
            "{S} fit[s] {e}, but {a} speak[s] against it and for {o}: the evidence is weak.",
            "EMFACS reads {a} as {o}; in {s} there is only weak evidence of {e}.",
            "{A} speak[s] against {e}, and {s} lend[s] it weak support.",
        ),
        "contrary": (
            "{A} speak[s] against it, so the evidence of {e} is weak.",
            "Little here is typical of {e}, and {a} speak[s] against it.",
            "{A} speak[s] for {o} and against {e}, whose evidence is weak.",
            "EMFACS lists none of this under {e}, and {a} speak[s] against it.",
            "The evidence of {e} is weak, for {a} fit[s] {o} better and speak[s] against it.",
        ),
        "none": (
            "Little here is typical of {e}; the evidence is weak.",
            "The evidence of {e} is weak.",
            "EMFACS lists none of this under {e}: the evidence is weak.",
            "For {e} there is only weak evidence in this face.",
        ),
        "rest": (
            "A face at rest is neutral.",
            "The expression is neutral.",
            "Nothing speaks for an emotion, so the face is neutral.",
            "EMFACS finds no emotion in a face at rest: it is neutral.",
            "Where nothing moves, the expression is neutral.",
        ),
        "idle": (
            "Such movement names no emotion; the face is neutral.",
            "This tells of no emotion, so the face is neutral.",
            "EMFACS ties no emotion to this: the face is neutral.",
            "The movement is there, but it speaks for no emotion and the face is neutral.",
        ),
        "too faint": (
            "{A} stay[s] too faint for an emotion; the face is neutral.",
            "So faint a movement names no emotion; the face is neutral.",
            "{A} could hint at {o}, but too faintly: the face is neutral.",
            "EMFACS asks for more than faint signs, so the face is neutral.",
        ),
        "not neutral": (
            "{A} speak[s] against it, so the evidence of a neutral face is weak.",
            "Despite {a}, the face is taken as neutral; the evidence is weak.",
            "{A} speak[s] for {o} and against a neutral face, whose evidence is weak.",
            "EMFACS reads {a} as {o}, so a neutral face has weak evidence.",
        ),
    },
)
