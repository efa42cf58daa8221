"""Which action units (AUs) a text says are present, and which it says are absent.

The reader never guesses. An AU that is denied is not read as present, and one that is stated is not
read as absent; where a careful person would not decide (a question, a condition, a rule such as
"sadness usually shows AU15"), the AU counts as neither. Reading has three steps:

1. notations become lines of text: JSON, tables, check marks, lists under a heading (`notations`);
2. each AU becomes a mark, so that the grammar sees "AUs 4, 7" and "AU4 and AU7" alike;
3. a value behind a mark decides ("AU4: 0"), else the grammar of its clause ("no AU4 or AU7").
"""

from __future__ import annotations

import re

from vlmface.answers import notations
from vlmface.answers.au_context import (
    excepted_mentions,
    read_sentence,
    resolve_ellipsis,
    rewrite_negations,
    verdict_of_prose,
    verdict_of_reply,
)
from vlmface.answers.au_numbers import AUGroup, mark_mentions, names_au
from vlmface.answers.au_values import read_values
from vlmface.answers.au_vocabulary import (
    ABSENT,
    MARK,
    NEGATIVE_ADJECTIVE,
    PRESENT,
    UNDECIDED,
    may_deny,
)

_MARKUP = re.compile(r"</?[A-Za-z][\w-]{0,20}>")
_DASHED_HEADING = re.compile(
    rf"\b({NEGATIVE_ADJECTIVE}|not\s+\w+)\s*\u2014\s*(?=AU)", re.IGNORECASE
)
_SENTENCE_BREAK = re.compile(
    r"(?<=[.!?;])[\s\"'*)]+|\n+|\u2014|\s\|\s"
    r"|\b(?:but|however|while|whereas|although|though|yet|because|since|so|which)\b",
    re.IGNORECASE,
)
_BARE_NUMBER = re.compile(
    r"(?<=[,;]\s)((?:but|and|while)\s+)?(?=\d{1,2}\s+(?:is|was)(?:n't|\s+not)\s*(?:[.,;]|$))",
    re.IGNORECASE,
)
_SPACES = re.compile(r"[^\S\n]{2,}")


def read(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(AUs that the text says are present, AUs that it says are absent), sorted and disjoint. A
    denial outweighs another mention, but that of one side of the face only another denial."""
    text = notations.as_lines(notations.in_full(_SPACES.sub(" ", text)))
    denies = " not" in text or "n't" in text
    if denies and _BARE_NUMBER.search(text) and names_au(text):
        # "AUs 1 and 2 are raised, 4 is not"
        text = _BARE_NUMBER.sub(r"\1AU", text)
    if "\u2014" in text:
        text = _DASHED_HEADING.sub(r"\1: ", text)
    if "<" in text:
        text = _MARKUP.sub(" ", text)
    marked, groups = mark_mentions(text)
    if not groups:
        return (), ()
    verdicts = _verdicts(marked, groups)
    present: set[int] = set()
    absent: set[int] = set()
    one_side: set[int] = set()
    for number, group in enumerate(groups):
        verdict = verdicts.get(number, UNDECIDED)
        if verdict == PRESENT:
            present.update(group.aus)
        elif verdict == ABSENT:
            (one_side if group.sided else absent).update(group.aus)
    absent |= one_side - present
    return tuple(sorted(present - absent)), tuple(sorted(absent))


def _verdicts(marked: str, groups: list[AUGroup]) -> dict[int, str]:
    """{number of a group: what the marked text says of it}."""
    verdicts: dict[int, str] = {}
    any_denial = may_deny(marked)
    if any_denial:
        marked = rewrite_negations(marked)
    mentions = list(MARK.finditer(marked))
    excepted = excepted_mentions(marked) if any_denial else set()
    for mention, value in zip(mentions, read_values(marked, mentions, groups), strict=True):
        number = int(mention[1])
        verdict = value
        if number in excepted:
            continue
        if verdict is None:
            verdict = verdict_of_prose(marked, mention, groups[number]) if any_denial else PRESENT
        if verdict:
            verdicts[number] = verdict
    last = ""
    for sentence in _SENTENCE_BREAK.split(marked) if any_denial else ():
        if "\ue000" in sentence:
            read_sentence(sentence, verdicts)
        elif reply := verdict_of_reply(last, sentence):
            before = [int(mention[1]) for mention in MARK.finditer(last)]
            verdicts.update(dict.fromkeys(before, reply if len(before) == 1 else UNDECIDED))
        last = sentence
    if any_denial:
        resolve_ellipsis(marked, verdicts)
    return verdicts
