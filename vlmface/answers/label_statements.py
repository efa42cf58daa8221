"""Which labels a text states where its answer stands.

A label is stated by a clause that consists of filler words and the label ("The person looks
happy"), or by a list of labels and nothing else; a negation, a question or a competing label leaves
the text ambiguous.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import regex

from vlmface.answers import notations
from vlmface.label_spaces import WORD_CHARACTERS, LabelSpace, normalise

REFUSAL = re.compile(
    r"\b(?:can\s?not|can'?t|could\s+not|couldn'?t|unable\s+to|not\s+able\s+to|won'?t|will\s+not"
    r"|(?:not\s+|im)possible\s+to|(?:difficult|hard)\s+to)\s+(?:\w+\s+)?"
    r"(?:determine|identify|tell|recogni[sz]e|say|assess|answer|provide|infer|analy[sz]e|help"
    r"|assist|comply|judge|classify|discern|process)\b"
    r"|\bi(?:'m|\s+am)\s+sorry\b|\bas\s+an\s+ai\b|\bno\s+(?:visible\s+)?face\b"
    r"|^\W*(?:unknown|unclear|uncertain|undetermined|n/?a|not\s+sure)\W*$",
    re.IGNORECASE,
)


def word_set(text: str) -> frozenset[str]:
    """The words of a list that spaces separate."""
    return frozenset(text.split())


# Words between two words for one label: "happy, i.e. happiness", "anger or rage".
_EQUATING = word_set("i e g that is or and namely also called aka eg ie even")
# Words that may stand around a label without changing what is stated.
_MARKERS = word_set(
    "is are was be looks look appears appear seems seem feels feel feeling shows showing expresses"
    " expressing conveys conveying displays displaying suggests indicates emotion emotions"
    " expression label answer conclusion prediction class category"
)
_FILLERS = _MARKERS | word_set(
    "the a an of in to as this that it it's its he he's she she's they their his her i my being"
    " person person's man man's woman woman's individual individual's subject subject's face face's"
    " facial emotional state image picture photo shown depicted here final primary predominant"
    " dominant main most likely probably overall clearly definitely very therefore thus hence"
    " one sense think believe best described classified identified recognized predicted detected"
    " assistant boxed text json"
)
NEGATORS = word_set("not no nor neither never without than instead non")
_REFUTING = word_set("rather instead of than and but")
DENIALS = word_set("false wrong incorrect untrue")
_BETWEEN = word_set("a an the any be being feeling showing really of signs sign expression")
_WORD = regex.compile(rf"[{WORD_CHARACTERS}]+(?:[-\u2013'][{WORD_CHARACTERS}]+)*")


# "happiness (95%)", "anger (confidence: 0.9)"; less than half is not what the writer believes.
_SHARE = re.compile(
    r"[(\[]?(?:(?:with\s)?(?:a\s)?\b(?:confidence|probability|certainty|likelihood"
    r"|score)\s*(?:of|is|[:=])?"
    r"\s*(?:(?:100|[5-9]\d)(?:\.\d+)?\s*%|1\.0+|0?\.[5-9]\d*)"
    r"|(?<=[(\[])(?:1\.0+|0?\.[5-9]\d*)(?=[)\]])|(?:100"
    r"|[5-9]\d)(?:\.\d+)?\s*%(?:\s+(?:confidence|confident|sure|certain|probability))?)\s*[)\]]?"
    r"(?=[^\w\n]*(?:$|\n))",
    re.IGNORECASE,
)
_CROSS, _TICK = (re.compile(f"[{marks}]\ufe0f?") for marks in (notations.NO, notations.YES))
# "It is hard to say, but she looks sad" is an answer, "I cannot say" is not.
_HEDGE = re.compile(r"(?:difficult|hard)\s+to", re.IGNORECASE)


def decide(text: str, space: LabelSpace) -> tuple[set[str], str]:
    """Label and status of a text that stands in the place of the answer."""
    if _CROSS.search(text) or _TICK.search(text):
        return _decide_marked(text, space)
    whole = space.match(text)
    if whole and "?" not in text:
        return {whole}, "lenient"
    refusal = REFUSAL.search(text)
    if refusal and _HEDGE.match(refusal[0]):
        unhedged = _without_hedge(text)
        labels, status = (
            decide(unhedged, space) if unhedged.strip() != text.strip() else (set(), "")
        )
        return (labels, status) if labels else (set(), "refused")
    if refusal:
        return set(), "refused"
    if any(c.isdigit() for c in text):
        text = _SHARE.sub(" ", re.sub(r"\s{2,}", "\n", text))
    return _decide_statement(text, space)


def _without_hedge(text: str) -> str:
    """The text without the clauses that call the question hard."""
    clauses = re.split(r"(?i)(?<=[.!?;,\n])|\bbut\b", text)
    return " ".join(clause for clause in clauses if not REFUSAL.search(clause))


def _decide_marked(text: str, space: LabelSpace) -> tuple[set[str], str]:
    """Of a text with check marks: the labels of crossed lines are refuted."""
    lines = [line for line in text.split("\n") if line.strip()]
    crossed = [line for line in lines if _CROSS.search(line)]
    remaining = [_TICK.sub("", line) for line in lines if not _CROSS.search(line)]
    if any(_TICK.search(line) for line in crossed):
        return set(), "ambiguous"
    refuted = {label for line in crossed for label in _all_labels(line, space)}
    if not remaining:
        return set(), "none" if len(refuted) < 2 else "ambiguous"
    labels, status = decide("\n".join(remaining), space)
    return (set(), "ambiguous") if labels & refuted else (labels, status)


def _all_labels(text: str, space: LabelSpace) -> set[str]:
    _, _, labels, refuted = _read_clause(text, space)
    return {*labels, *refuted}


def _decide_statement(text: str, space: LabelSpace) -> tuple[set[str], str]:
    """The one label that a clause states, while no other is in play."""
    stated: set[str] = set()
    mentioned: set[str] = set()
    negated: set[str] = set()
    denied = False
    readings = [(*_read_clause(clause, space), question) for clause, question in _clauses(text)]
    # "happiness, joy" and "happiness, not surprise": one statement in several clauses.
    alone = _one_statement([reading[1:4] for reading in readings])
    for words, others, labels, refuted, question in readings:
        mentioned.update(labels)
        negated.update(refuted)
        # "The person is happy. That is wrong.", "happy, not"
        denied = denied or bool(DENIALS & set(others)) or NEGATORS.issuperset(words)
        plain = not question and _is_plain(others, labels, refuted)
        if len(set(labels)) == 1 and plain and (_MARKERS & set(others) or alone):
            stated.add(labels[0])
    if len(mentioned) == 1 and stated == mentioned and not mentioned & negated and not denied:
        return mentioned, "lenient"
    return set(), "ambiguous" if mentioned else "none"


def _one_statement(clauses: Sequence[tuple[list[str], list[str], list[str]]]) -> bool:
    """Whether clauses (other words, labels, refuted labels) state one label and nothing else, or
    first state it and then refute others."""
    if len(clauses) == 1:
        return True
    label_stated = False
    for others, labels, refuted in clauses:
        if not labels and refuted and not label_stated:
            return False
        if not labels and not refuted and not _EQUATING.issuperset(others):
            return False
        if not _is_plain(others, labels, refuted):
            return False
        label_stated = label_stated or bool(labels)
    return True


def _is_plain(others: Sequence[str], labels: Sequence[str], refuted: Sequence[str]) -> bool:
    """Whether a clause holds nothing that could change what its labels state."""
    allowed = _FILLERS
    if len(labels) > 1 or not labels:
        allowed = allowed | _EQUATING
    if refuted:
        allowed = allowed | NEGATORS | _REFUTING
    return all(word in allowed for word in others)


# What divides a list, with the marks before its items: "1. ", "- ", "* ", "(a) " need a line each.
_DIVIDERS = re.compile(r"(?i)[,;&+|\n]|\band\b")
_ITEM = re.compile(r"^\s*(?:[-*\u2022]|\(?(?:\d{1,2}|[a-z])[.)])\s+")
# Fewer words than of _FILLERS: "one of these: anger, fear" and "most likely anger" state no list.
_AROUND_A_LIST = word_set(
    "is are looks look appears appear seems seem feels feel feeling shows showing expresses"
    " expressing conveys conveying displays displaying emotion emotions category categories label"
    " labels answer answers the a an this these that he she they it his her their person person's"
    " man man's woman woman's individual individual's subject subject's face emotional state of in"
    " image picture photo following final both as well also"
)


def decide_multi_label(text: str, space: LabelSpace) -> tuple[set[str], str]:
    """Labels and status of a text that stands in the place of an answer of several labels."""
    if _CROSS.search(text):
        return set(), "ambiguous" if _all_labels(text, space) else "none"
    if whole := label_list(text, space):
        return whole, "lenient"
    if REFUSAL.search(text):
        return set(), "refused"
    stated: set[str] = set()
    plain = "?" not in text
    for piece in _DIVIDERS.split(text):
        _, others, stated_labels, refuted = _read_clause(piece, space)
        stated.update(stated_labels)
        # Two labels without a divider may be alternatives: "fear/sadness".
        lone = len(stated_labels) <= 1 and not refuted
        plain = plain and lone and _AROUND_A_LIST.issuperset(others)
    if stated and plain:
        return stated, "lenient"
    return set(), "ambiguous" if stated else "none"


def label_list(text: str, space: LabelSpace) -> set[str]:
    """The labels of a text that is a list of labels and nothing else; else none."""
    labels: set[str] = set()
    for line in text.split("\n"):
        for piece in _DIVIDERS.split(_ITEM.sub("", line)):
            if not normalise(piece):
                continue
            label = space.match(piece)
            if label is None:
                return set()
            labels.add(label)
    return labels if "?" not in text else set()


def _read_clause(
    clause: str, space: LabelSpace
) -> tuple[list[str], list[str], list[str], list[str]]:
    """(words, those that are not labels, labels, labels right behind a negation)."""
    words = _WORD.findall(clause.casefold())
    others: list[str] = []
    labels: list[str] = []
    refuted: list[str] = []
    for word in _fold_labels(words, space):
        if not isinstance(word, tuple):
            others.append(word)
            continue
        before = [w for w in others if w not in _BETWEEN]
        no = bool(before) and (before[-1] in NEGATORS or before[-1].endswith("n't"))
        if refuted and not labels and not no:  # "not anger surprise": refuted too, or stated?
            others.append("?")
        (refuted if no else labels).append(word[0])
    return words, others, labels, refuted


def _clauses(text: str) -> list[tuple[str, bool]]:
    """(clause, whether its sentence is a question)."""
    clauses = []
    for sentence, end in re.findall(r"([^.!?\n]+)([.!?\n]*)", text):
        for clause in re.split(r"(?i)[;,]|\b(?:but|because|since|while|with|so|which)\b", sentence):
            if _WORD.search(clause):
                clauses.append((clause, "?" in end))
    return clauses


def _fold_labels(words: list[str], space: LabelSpace) -> list[str | tuple[str]]:
    """The words with each label or alias (the longest first) replaced by a tuple of its label."""
    longest = max(key.count(" ") for key in space.index) + 1
    folded: list[str | tuple[str]] = []
    at = 0
    while at < len(words):
        for size in range(min(longest, len(words) - at), 0, -1):
            label = space.index.get(normalise(" ".join(words[at : at + size])))
            if label:
                folded.append((label,))
                at += size
                break
        else:
            folded.append(words[at])
            at += 1
    return folded
