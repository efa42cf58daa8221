"""How FERBench reads an answer (UniFER, zfkarl/UniFER on GitHub), to hold it against our reading.

Its scorer looks for words in lower-case text, always in the order of the candidate list:

    answer     in the first <answer>...</answer>: the first candidate that it equals or contains;
    response   else the first candidate contained anywhere in the response, reasoning included;
    synonym    else the first label of its table with a synonym contained anywhere in the response;
    unknown    else nothing, which is wrong.

Items with an `error` leave its denominator. This is the rule of `eval_total/code/eval_unifer.py`,
behind the published total. The scripts of the single sets have the same, except that the one of
SFEW takes answers of several lines and only tags in lower case.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmface.answers import split_tags
from vlmface.label_spaces import LabelSpace, normalise
from vlmface.metrics import metrics

_SAME = {
    "contempt": "scorn disdain",
    "disgust": "revulsion repulsion",
    "fear": "terror fright",
    "neutral": "normal calm blank",
    "surprise": "shock astonishment",
}
_NOUNS = _SAME | {"anger": "angry", "happiness": "joy happy", "sadness": "sad"}
_ADJECTIVES = _SAME | {"angry": "anger", "happy": "joy happiness", "sad": "sorrow unhappy"}
_ORDER = (
    "anger",
    "angry",
    "contempt",
    "disgust",
    "fear",
    "happiness",
    "happy",
    "sadness",
    "sad",
    "neutral",
    "surprise",
)


@dataclass(frozen=True)
class Reading:
    """What FERBench's rule makes of a response: one of the item's candidates, or None; the step
    that decided (see above, or "dropped" for an error), and the text that it came upon."""

    word: str | None
    step: str
    matched_text: str = ""


def synonyms(candidates: Sequence[str]) -> dict[str, list[str]]:
    """The scorer's table for the set that has these candidates: RAF-DB and AffectNet nouns, FERPlus
    and SFEW adjectives; AffectNet and FERPlus with contempt."""
    adjectives = "angry" in candidates
    table = _ADJECTIVES if adjectives else _NOUNS
    words_of = {
        word: table[word].split() for word in _ORDER if word in table and word in candidates
    }
    if adjectives != ("contempt" in candidates):  # AffectNet and SFEW
        for word in words_of.keys() & {"anger", "angry"}:
            words_of[word].append("mad")
    return words_of


def read(response: str, candidates: Sequence[str]) -> Reading:
    """A response as FERBench reads it."""
    answer = first_answer(response)
    if answer is not None:
        for word in candidates:
            if word.lower() in answer:
                return Reading(word, "answer", word.lower())
    lowered = response.lower()
    for word in candidates:
        if word in lowered:
            return Reading(word, "response", word)
    for word, others in synonyms(candidates).items():
        for other in others:
            if other in lowered:
                return Reading(word, "synonym", other)
    return Reading(None, "unknown")


_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)


def first_answer(response: str) -> str | None:
    r"""What the pattern `<answer>\s*(.*?)\s*</answer>` captures first, in lower case: the text of
    the first answer that is on one line; in time linear in the response, unlike the pattern."""
    opened: list[int] = []
    for tag in _ANSWER_TAG.finditer(response):
        if not tag[1]:
            opened.append(tag.end())
            continue
        if opened:
            text = response[opened[0] : tag.start()].rstrip()
            # An answer may start only where nothing but white space is left before its last line.
            earliest = opened[0] + len(text[: max(0, text.rfind("\n"))].rstrip())
            for start in opened:
                if start >= earliest:
                    return response[start : tag.start()].strip().lower()
        opened = []
    return None


def compare(
    rows: Sequence[metrics.Row],
    candidates: Sequence[Sequence[str]],
    failed: Sequence[bool],
    space: LabelSpace,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """({"accuracy", "n", "errors", "unknown", "disagreements"} by FERBench's rule, the rows that
    the two rules read differently, each with both readings and the reason).

    `candidates` are each row's words, of `space`; `failed` says which rows have an error. The
    accuracy is None if all have. "right" is the rule that had the true label: "ours", "ferbench"
    or "neither".
    """
    hits = Counter[str]()
    different = []
    for row, words, error in zip(rows, candidates, failed, strict=True):
        reading = Reading(None, "dropped") if error else read(row["text"], words)
        label = space.match(reading.word) if reading.word else None
        ours, true = metrics.answer(row), metrics.truth(row, space)
        hits[reading.step] += 1
        hits["right"] += label == true
        if label == ours and not error:
            continue
        different.append(
            {
                "id": row["id"],
                "image": row["image"],
                "truth": true,
                "text": row["text"],
                "ours": {"label": ours, "status": row["status"]},
                "ferbench": {"label": label, "step": reading.step},
                "right": "ours" if ours == true else "ferbench" if label == true else "neither",
                "reason": _reason(row, reading, words, space),
            }
        )
    n = len(rows) - hits["dropped"]
    block = {
        "accuracy": hits["right"] / n if n else None,
        "n": n,
        "errors": hits["dropped"],
        "unknown": hits["unknown"],
        "disagreements": len(different),
    }
    return block, different


def table(different: Sequence[Mapping[str, Any]]) -> str:
    """Why the rules differ, for people: a line for each kind of reason, the most frequent first."""
    kinds = [(item["reason"].partition(":")[0], item["right"]) for item in different]
    counts = Counter(kinds)
    order = [kind for kind, _ in Counter(kind for kind, _ in kinds).most_common()]
    width = max(map(len, order), default=0)
    lines = [f"{'why':<{width}}  items  only FERBench right  only ours right  neither"]
    for kind in order:
        theirs, ours, no = (counts[kind, reader] for reader in ("ferbench", "ours", "neither"))
        lines.append(f"{kind:<{width}}  {theirs + ours + no:>5}  {theirs:>19}  {ours:>15}  {no:>7}")
    return "\n".join(lines)


# --- why ------------------------------------------------------------------------------------------

_WORD = re.compile(r"[\w'\u2019-]+")


def _reason(
    row: metrics.Row, reading: Reading, candidates: Sequence[str], space: LabelSpace
) -> str:
    """Why FERBench's rule reads a row differently, as "kind" or "kind: the words it is about"."""
    text, matched = row["text"], reading.matched_text
    if reading.step == "dropped":
        return "error dropped from the denominator"
    if reading.word is None:
        return f"did not know the word: {_alias(text, row['label'], space)}"
    thought, answers, outside_tags = split_tags(text)
    first = first_answer(text) if reading.step == "answer" else None
    searched = text.lower() if first is None else first
    words = [word for word in _WORD.findall(searched) if matched in word]
    outside = " ".join([*answers, outside_tags]).lower()
    if first is None and matched in thought.lower() and matched not in outside:
        return f"searched the reasoning: {words[0] if words else matched}"
    if row["status"] == "refused":
        return f"took a refusal for an answer: {matched}"
    if first is not None and sum(bool(answer.strip()) for answer in answers) > 1:
        return "several answers, took the first"
    if reading.step == "synonym":
        inside = f", inside {words[0]}" if words and matched not in words else ""
        return f"synonym: {matched}{inside}"
    label = space.match(reading.word)
    if words and not any(word == matched or space.match(word) == label for word in words):
        return f"substring: {words[0]}"
    if len({space.match(word) for word in candidates if word.lower() in searched}) > 1:
        return "several candidates, took the first of the list"
    if negation := _negation(matched).search(searched):
        return f"passed over a negation: {' '.join(negation[0].split())}"
    return f"mentioned, not stated: {matched}"


def _negation(word: str) -> re.Pattern[str]:
    return re.compile(
        r"(?:\b(?:not|no|never|neither|nor|without|hardly)|\w{2,6}n['\u2019]t)"
        rf"\s+(?:\w+\s+){{0,3}}{re.escape(word)}"
    )


def _alias(text: str, label: str, space: LabelSpace) -> str:
    """The word of the text for which we read this label."""
    padded = f" {normalise(text)} "
    aliases = (word for word, alias_label in space.index.items() if alias_label == label)
    return next((word for word in aliases if f" {word} " in padded), label)
