"""The verifier: a written rationale against the truth, and which rationales are nearly the same.

What is read out of a text is read by `answers.parse`, as everywhere; this module compares. A
`Verdict` without faults is kept; a fault says in words that a teacher understands what to mend.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vlmface import answers, facs
from vlmface.au_descriptions import contradictions
from vlmface.label_spaces import LabelSpace, normalise
from vlmface.rationale.ground_truth import Truth

# Reason -> what it means, in the order in which tables list them.
REASONS = {
    "refused": "declines to answer",
    "unreadable": "is not in the asked form: no single label, or no text before it",
    "wrong_label": "concludes another emotion than the annotated one",
    "argues_otherwise": "speaks of other emotions only than the one it concludes",
    "missing_au": "leaves out an action unit that the face shows",
    "denied_au": "says that an action unit is absent which the face shows",
    "hallucinated_au": "names an action unit that the face does not show",
    "unchecked_au": "speaks of an action unit that was not looked for in this face",
    "contradiction": "describes an action unit by a movement that is not its own",
    "cites_annotation": "speaks of the annotation instead of the face",
    "too_short": "has too few words",
    "too_long": "has too many words",
    "disagreement": "is one of several answers that do not agree",
    "surplus": "is more than its emotion may give",
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
    """What is asked of a rationale: precision and recall of its AUs (0..1), and its length."""

    min_precision: float = 1.0
    min_recall: float = 1.0
    max_words: int = 150


@dataclass(frozen=True)
class Fault:
    """One thing wrong: a key of REASONS, and a sentence to the writer of the text."""

    reason: str
    message: str


@dataclass(frozen=True)
class Verdict:
    """`body` is the rationale without its form, `precision` and `recall` are of the AUs that it
    says are there (1 where there is nothing to name). Kept if there are no faults."""

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
        return tuple(fault.reason for fault in self.faults)


def check(
    text: str, truth: Truth, space: LabelSpace, form: str, limits: Limits | None = None
) -> Verdict:
    """Compare a completion in `form` ("think_answer", "three_part") with the truth of its face."""
    limits = limits or Limits()
    answer = answers.parse(text, space, form)
    body = answer.rationale
    said, denied, present = set(answer.aus), set(answer.negated_aus), set(truth.aus)
    judged = said & truth.coded
    precision = len(judged & present) / len(judged) if judged else 1.0
    recall = len(said & present) / len(present) if present else 1.0
    words = len(body.split())
    faults: list[Fault] = []

    def fault(reason: str, message: str) -> None:
        faults.append(Fault(reason, message))

    if answer.status == "refused":
        fault("refused", "You did not answer.")
    elif answer.label is None or not _fits_every_form(body, answer.label, space):
        fault("unreadable", f"It is not in the asked form ({_shape(form)}), with one label.")
    elif answer.label != truth.label:
        fault("wrong_label", f"The expression is {truth.label}, not {answer.label}.")
    elif (spoken := _emotions(body, space)) and answer.label not in spoken:
        fault(
            "argues_otherwise",
            f"It concludes {answer.label}, but argues for {_and(sorted(spoken))} only.",
        )
    if (missing := present - said - denied) and recall < limits.min_recall:
        fault("missing_au", f"It leaves out {_named(missing)}.")
    if wrong := denied & present:
        fault("denied_au", f"It says that {_named(wrong)} would be absent, but the face shows it.")
    if (extra := judged - present) and precision < limits.min_precision:
        fault("hallucinated_au", f"It names {_named(extra)}, which the face does not show.")
    if unknown := (said | denied) - truth.coded:
        fault("unchecked_au", f"It speaks of {_named(unknown)}, which was not looked for.")
    for au, phrase in contradictions(body):
        fault("contradiction", f'"{phrase}" does not describe {_named([au])}: {facs.AUS[au].cue}.')
    if cited := _CITES.search(body):
        fault("cites_annotation", f'It says "{cited[0]}": speak of the face, not of notes on it.')
    if words < MIN_WORDS and "unreadable" not in [f.reason for f in faults]:
        fault("too_short", f"It has {words} words: explain the expression.")
    if words > limits.max_words:
        fault("too_long", f"It has {words} words: use {limits.max_words} at most.")
    return Verdict(answer, body, precision, recall, tuple(faults))


def _fits_every_form(body: str, label: str, space: LabelSpace) -> bool:
    """Whether prompts of either form can be trained on the text."""
    return bool(body) and all(
        answers.parse(
            answers.completion_prefix(body, form) + label + answers.SUFFIX[form], space, form
        ).status
        == "strict"
        for form in ("think_answer", "three_part")
    )


def _emotions(body: str, space: LabelSpace) -> set[str]:
    return {space.index[word] for word in normalise(body).split() if word in space.index}


def _shape(form: str) -> str:
    return answers.completion_prefix("...", form).replace("\n", " ") + "..." + answers.SUFFIX[form]


def _named(aus: Iterable[int]) -> str:
    return _and([f"{facs.name(au)} ({facs.AUS[au].name})" for au in facs.top_down(aus)])


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


# --- near duplicates ------------------------------------------------------------------------------

_BANDS, _ROWS = 16, 8


def near_duplicates(texts: Sequence[str], similarity: float = 0.85) -> list[int | None]:
    """For each text the position of an earlier one that it nearly repeats, None if it is new.

    Nearly means a Jaccard similarity of at least `similarity` between their sets of three words in
    a row. Candidates come from MinHash (Broder, 1997) in 16 bands of 8, which meets a pair of
    similarity 0.85 in 99 % of cases; a candidate is then compared exactly.
    """
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 2**64, (_BANDS * _ROWS, 1), np.uint64) | np.uint64(1)
    shifts = rng.integers(0, 2**64, (_BANDS * _ROWS, 1), np.uint64)
    buckets: dict[tuple[int, bytes], list[int]] = {}
    sets: list[set[int]] = []
    found: list[int | None] = []
    for number, text in enumerate(texts):
        shingles = _shingles(text)
        sets.append(shingles)
        hashed = np.fromiter(shingles, np.uint64, len(shingles))
        signature = ((hashed * factors + shifts) >> np.uint64(32)).min(1)  # wraps around, as meant
        bands = signature.reshape(_BANDS, _ROWS)
        keys = [(band, rows.tobytes()) for band, rows in enumerate(bands)]
        candidates = sorted({earlier for key in keys for earlier in buckets.get(key, ())})
        twin = next((c for c in candidates if _jaccard(shingles, sets[c]) >= similarity), None)
        found.append(twin)
        if twin is None:
            for key in keys:
                buckets.setdefault(key, []).append(number)
    return found


def _shingles(text: str) -> set[int]:
    words = normalise(text).split()
    return {zlib.crc32(" ".join(words[i : i + 3]).encode()) for i in range(max(1, len(words) - 2))}


def _jaccard(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other)
