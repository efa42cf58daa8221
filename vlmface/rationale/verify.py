"""The verifier: compares rationales with the ground truth, and finds near duplicates.

Texts are parsed by `answers.parse`, as everywhere; this module compares. A text whose `Verdict` has
no faults is kept; the message of a fault tells a teacher what to correct.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vlmface import answers, facs
from vlmface.au_descriptions import contradictions
from vlmface.label_spaces import LabelSpace, normalise
from vlmface.rationale.ground_truth import GroundTruth

# Reason -> predicate of "the text", in the order of tables.
REASONS = {
    "refused": "declines to answer",
    "unreadable": "is not in the required format: no single label, or no text before it",
    "wrong_label": "concludes another emotion than the annotated one",
    "argues_otherwise": "mentions only other emotions than the one it concludes",
    "missing_au": "omits an action unit that the face shows",
    "denied_au": "denies an action unit that the face shows",
    "hallucinated_au": "names an action unit that the face does not show",
    "unchecked_au": "mentions an action unit that was not annotated for this face",
    "contradiction": "describes an action unit by the movement of another one",
    "cites_annotation": "refers to the annotation instead of the face",
    "too_short": "has too few words",
    "too_long": "has too many words",
    "disagreement": "is one of several answers that do not agree",
    "surplus": "exceeds the number of texts for its emotion",
    "near_duplicate": "has nearly the words of an earlier one",
    "no_answer": "is missing: the endpoint gave no answer",
}
AU_REASONS = frozenset({"missing_au", "denied_au", "hallucinated_au", "unchecked_au"})
MIN_WORDS = 5

_CITES = re.compile(
    r"\b(?:given|provided|annotated|stated|supplied|target)\s+(?:\w+\s+){0,2}"
    r"(?:labels?|emotions?|expressions?|action\s+units?|AUs?|codes?|notes?)\b"
    r"|\bground[\s-]truth\b|\bannotat(?:ion|ions|or|ors)\b|\byou\s+(?:gave|provided|told|listed)\b"
    r"|\bas\s+(?:given|provided|told|instructed)\b|\bthe\s+label\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Limits:
    """The requirements for a rationale: precision and recall of its AUs (0..1), and its length."""

    min_precision: float = 1.0
    min_recall: float = 1.0
    max_words: int = 150


@dataclass(frozen=True)
class Fault:
    """A key of REASONS, and a sentence for the writer of the text."""

    reason: str
    message: str


@dataclass(frozen=True)
class Verdict:
    """The result of `check`.

    Attributes:
        answer: The parsed text.
        body: The rationale without the tags of its format.
        precision: Of the AUs that it names, 1 if it names none.
        recall: Of the AUs that it names, 1 if none is present.
        faults: Empty if the text is kept.
    """

    answer: answers.Answer
    body: str
    precision: float
    recall: float
    faults: tuple[Fault, ...]

    @property
    def kept(self) -> bool:
        return not self.faults

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reason of each fault."""
        return tuple(fault.reason for fault in self.faults)


def check(
    text: str, truth: GroundTruth, space: LabelSpace, format: str, limits: Limits | None = None
) -> Verdict:
    """Compare a completion with the ground truth of its face.

    Args:
        text: The completion.
        truth: The ground truth.
        space: Of the label.
        format: "think_answer" or "three_part".
        limits: The requirements, by default the strictest.
    """
    limits = limits or Limits()
    answer = answers.parse(text, space, format)
    body = answer.rationale
    predicted, present = set(answer.aus), set(truth.aus)
    annotated = predicted & truth.coded
    precision = len(annotated & present) / len(annotated) if annotated else 1.0
    recall = len(predicted & present) / len(present) if present else 1.0
    faults = [
        *_label_faults(answer, truth, space, format),
        *_au_faults(answer, truth, precision < limits.min_precision, recall < limits.min_recall),
    ]
    for au, phrase in contradictions(body):
        message = f'"{phrase}" does not describe {_name_aus([au])}: {facs.AUS[au].cue}.'
        faults.append(Fault("contradiction", message))
    if citation := _CITES.search(body):
        message = f'It says "{citation[0]}": speak of the face, not of notes on it.'
        faults.append(Fault("cites_annotation", message))
    words = len(body.split())
    if words < MIN_WORDS and "unreadable" not in [fault.reason for fault in faults]:
        faults.append(Fault("too_short", f"It has {words} words: explain the expression."))
    if words > limits.max_words:
        message = f"It has {words} words: use {limits.max_words} at most."
        faults.append(Fault("too_long", message))
    return Verdict(answer, body, precision, recall, tuple(faults))


def _label_faults(
    answer: answers.Answer, truth: GroundTruth, space: LabelSpace, format: str
) -> Iterator[Fault]:
    body = answer.rationale
    if answer.status == "refused":
        yield Fault("refused", "You did not answer.")
    elif answer.label is None or not _fits_every_form(body, answer.label, space):
        message = f"It is not in the asked format ({_pattern(format)}), with one label."
        yield Fault("unreadable", message)
    elif answer.label != truth.label:
        message = f"The expression is {truth.label}, not {answer.label}."
        yield Fault("wrong_label", message)
    elif (mentioned := _emotions(body, space)) and answer.label not in mentioned:
        emotions = _join(sorted(mentioned))
        message = f"It concludes {answer.label}, but argues for {emotions} only."
        yield Fault("argues_otherwise", message)


def _au_faults(
    answer: answers.Answer, truth: GroundTruth, low_precision: bool, low_recall: bool
) -> Iterator[Fault]:
    predicted, denied, present = set(answer.aus), set(answer.negated_aus), set(truth.aus)
    if (missing := present - predicted - denied) and low_recall:
        yield Fault("missing_au", f"It leaves out {_name_aus(missing)}.")
    if wrong := denied & present:
        message = f"It says that {_name_aus(wrong)} would be absent, but the face shows it."
        yield Fault("denied_au", message)
    if (extra := (predicted & truth.coded) - present) and low_precision:
        message = f"It names {_name_aus(extra)}, which the face does not show."
        yield Fault("hallucinated_au", message)
    if unknown := (predicted | denied) - truth.coded:
        message = f"It speaks of {_name_aus(unknown)}, which was not looked for."
        yield Fault("unchecked_au", message)


def _fits_every_form(body: str, label: str, space: LabelSpace) -> bool:
    """Whether prompts of both formats can be trained on the text."""
    return bool(body) and all(
        answers.parse(
            answers.completion_prefix(body, format) + label + answers.SUFFIX[format], space, format
        ).status
        == "strict"
        for format in ("think_answer", "three_part")
    )


def _emotions(body: str, space: LabelSpace) -> set[str]:
    return {space.index[word] for word in normalise(body).split() if word in space.index}


def _pattern(format: str) -> str:
    return (
        answers.completion_prefix("...", format).replace("\n", " ") + "..." + answers.SUFFIX[format]
    )


def _name_aus(aus: Iterable[int]) -> str:
    return _join([f"{facs.name(au)} ({facs.AUS[au].name})" for au in facs.top_down(aus)])


def _join(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


# --- near duplicates ------------------------------------------------------------------------------

_BANDS, _ROWS = 16, 8


def near_duplicates(texts: Sequence[str], similarity: float = 0.85) -> list[int | None]:
    """Find texts that nearly repeat an earlier one.

    Candidates come from MinHash (Broder, 1997) in 16 bands of 8, which finds a pair of similarity
    0.85 in 99 % of cases; a candidate is then compared exactly.

    Args:
        texts: The texts.
        similarity: The least Jaccard similarity of their sets of three consecutive words.

    Returns:
        For each text the index of an earlier near duplicate, None if there is none.
    """
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 2**64, (_BANDS * _ROWS, 1), np.uint64) | np.uint64(1)
    shifts = rng.integers(0, 2**64, (_BANDS * _ROWS, 1), np.uint64)
    buckets: dict[tuple[int, bytes], list[int]] = {}
    sets: list[set[int]] = []
    duplicate_of: list[int | None] = []
    for number, text in enumerate(texts):
        shingles = _shingles(text)
        sets.append(shingles)
        hashed = np.fromiter(shingles, np.uint64, len(shingles))
        signature = ((hashed * factors + shifts) >> np.uint64(32)).min(1)  # overflow is intended
        bands = signature.reshape(_BANDS, _ROWS)
        keys = [(band, rows.tobytes()) for band, rows in enumerate(bands)]
        candidates = sorted({index for key in keys for index in buckets.get(key, ())})
        earlier = next((c for c in candidates if _jaccard(shingles, sets[c]) >= similarity), None)
        duplicate_of.append(earlier)
        if earlier is None:
            for key in keys:
                buckets.setdefault(key, []).append(number)
    return duplicate_of


def _shingles(text: str) -> set[int]:
    words = normalise(text).split()
    return {zlib.crc32(" ".join(words[i : i + 3]).encode()) for i in range(max(1, len(words) - 2))}


def _jaccard(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b)
