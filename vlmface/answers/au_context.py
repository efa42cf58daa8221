"""What decides on a mention besides its own clause: double negations, exceptions, conditions,
replies, ellipsis, and prose behind the name of an action unit.
"""

from __future__ import annotations

import re

from vlmface import facs
from vlmface.answers.au_clauses import SUBJECT_NEGATION, read_statement
from vlmface.answers.au_numbers import AUGroup
from vlmface.answers.au_vocabulary import (
    ABSENT,
    ABSENT_ADJECTIVE,
    ANY_NEGATION,
    BRACKETED_NAME,
    MARK,
    MARKED_AU,
    MARKED_LIST,
    MARKED_RUN,
    MAX_SUBJECT_CHARS,
    NOT_QUALIFIED,
    PRESENT,
    UNDECIDED,
    VERB,
    WRAP,
    may_deny,
)

# --- negations that are rewritten before a text is cut into sentences -----------------------------

_CANNOT = (
    r"\b(?:(?:not[ \t]+possible|impossible|unable)[ \t]+to|can[ \t]?not|can't|could[ \t]?not"
    r"|couldn't|should[ \t]not|shouldn't|never|not)\b"
)
# "AU12 cannot be ruled out", "not absent": two negations.
_DOUBLE_NEGATION = re.compile(
    rf"{_CANNOT}[ \t]+(?:be[ \t]+|to[ \t]+)?(?:(?:completely|fully|entirely)[ \t]+)?"
    r"(?:rul(?:e|ed)[ \t]+out|exclud(?:e|ed)|dismiss(?:ed)?|den(?:y|ied)|miss(?:ed)?"
    r"|(?:ignor|overlook|disput|doubt|question|mistak|reject|neglect|discount|discard|eliminat)"
    r"(?:e[dn]?)?)\b"
    r"|\bno[ \t]+(?:reason|need|cause)[ \t]+to[ \t]+(?:doubt|deny|question|dispute|exclude)\b"
    r"|\bno[ \t]+(?:denying|mistaking|doubting|ignoring|missing|question|denial)\b"
    r"|\bfar[ \t]+from[ \t]+(?:being[ \t]+)?(?:absent|missing|inactive)\b"
    r"|\banything[ \t]+but[ \t]+(?:absent|missing|inactive)\b"
    r"|(?:\b(?:not|never|no)|n't)[ \t]+(?:(?:entirely|completely|fully|a|the)[ \t]+)?"
    r"(?:absent|missing|inactive|un(?:detect|observ|seen)\w*|invisible|without|lacking"
    r"|free[ \t]+of|(?:lack|absence)[ \t]+of)\b",
    re.IGNORECASE,
)
# "AU4, which signals anger, is absent": what stands between a subject and its predicate.
_RELATIVE_CLAUSE = re.compile(
    r",[ \t]*(?:which|that|who)[ \t][^,.;\n\ue000]*,"
    r"[ \t]*(?=(?:is|are|was|were|do|does|has|have)\b)"
    r"|\([ \t]*(?:which|that)[ \t][^()\ue000]*\)|\(not[ \t]+to[ \t]+be[ \t]+confused[^()]*\)",
    re.IGNORECASE,
)
_ALL_BUT = re.compile(
    r"\b((?:all|every|any|no|none|nothing|everything)(?:\s+(?:of|the|them|other|AUs?"
    r"|(?:action\s+)?units?"
    r"|muscles?)){0,4})\s+but\s+(?=(?:the\s+)?\ue000)",
    re.IGNORECASE,
)
_RULED_OUT_BUT_NOT = re.compile(
    rf"(\brul(?:e|es|ed|ing)\s+out\s+(?:the\s+)?{WRAP}{MARKED_LIST}),?\s+but\s+not(?=\s+\ue000)",
    re.IGNORECASE,
)
_SPLIT_RULE_OUT = re.compile(
    rf"\b(rul(?:e|es|ed|ing))\s+((?:the\s+)?{WRAP}{MARKED_LIST})\s+out\b",
    re.I,
)
# "AU24 but no AU23, AU17 but no AU15": what is right before "but no" is affirmed.
_BEFORE_BUT_NO = re.compile(
    rf",(?=\s*(?:and\s+)?{MARKED_LIST},?\s+but\s+(?:no|not|without)\b)",
    re.IGNORECASE,
)


def rewrite_negations(marked: str) -> str:
    """The text with double negations resolved, and with "but" only where it starts a statement."""
    marked = _RULED_OUT_BUT_NOT.sub(r"\1; one cannot rule out", marked)
    marked = _SPLIT_RULE_OUT.sub(r"\1 out \2", marked)
    marked = _RELATIVE_CLAUSE.sub(" ", _DOUBLE_NEGATION.sub(" possible ", marked))
    if "but" in marked:
        marked = _BEFORE_BUT_NO.sub(";", marked)
        marked = _ALL_BUT.sub(r"\1 except ", marked).replace("anything but", "not")
    return marked


# --- sentences: questions, conditions, exceptions -------------------------------------------------

_EXCEPTION = re.compile(
    r"\b(?:except(?:\s+for)?|other\s+(?:\w+\s+){1,3}than|other\s+than(?!\s+that)|apart\s+from"
    r"|aside\s+from|save(?:\s+for)?|excluding|besides"
    r"|with\s+the\s+exceptions?\s+of)\s*:?\s*(?:the\s+)?(?=\W*\ue000)",
    re.IGNORECASE,
)
_EXCEPTION_HINT = re.compile("[Ee]xc|[Oo]ther|[Aa]part|[Aa]side|[Ss]ave|[Bb]esides")
_COPULA_NEXT = re.compile(r"\s*(?:is|are|was|were|has|have|remains?|stays?|at)\b", re.IGNORECASE)
_MARKED_RUN = re.compile(rf"{WRAP}{MARKED_RUN}", re.I)
_AT_REST = re.compile(r"\b(?:zero|nil|off|relaxed|silent|quiet|ruled\s+out|excluded)\b", re.I)
_UNIVERSAL = re.compile(
    r"\b(?:all|every|each|everything|both|active|present|visible|engaged)\b|\ue000", re.I
)
# "Had AU4 been active, ..." and "of AU1, AU2 and AU4, only ...": what is only considered.
_HYPOTHETICAL = re.compile(
    rf"^\W*(?:(?:(?:had|were|should)\s+(?:the\s+|there\s+)?(?:been\s+)?(?=\ue000)|(?:if|unless"
    rf"|provided|supposing|assuming|in\s+case)\b)"
    rf"[^;]*?(?:,(?!\s*(?:and\s+|or\s+)?\ue000)|$)|(?:out\s+)?(?:of"
    rf"|among)\s+(?:the\s+)?{WRAP}{MARKED_RUN},\s*(?:only|just)\b)",
    re.IGNORECASE,
)


def excepted_mentions(marked: str) -> set[int]:
    """The marks that a predicate behind them is not about: "all except AU4 and AU12 are at 0"."""
    numbers: set[int] = set()
    if not _EXCEPTION_HINT.search(marked):
        return numbers
    for exception in _EXCEPTION.finditer(marked):
        run = _MARKED_RUN.match(marked, exception.end())
        if run and _COPULA_NEXT.match(marked, run.end()):
            numbers.update(int(mention[1]) for mention in MARK.finditer(run[0]))
    return numbers


def read_sentence(sentence: str, verdicts: dict[int, str]) -> None:
    """Add a verdict for each mark of the sentence that has none."""
    if not may_deny(sentence):
        for mention in MARK.finditer(sentence):
            verdicts.setdefault(int(mention[1]), PRESENT)
        return
    if sentence.rstrip(" \"'*)").endswith("?"):
        for mention in MARK.finditer(sentence):
            verdicts.setdefault(int(mention[1]), UNDECIDED)
        return
    if considered := _HYPOTHETICAL.match(sentence):
        for mention in MARK.finditer(considered[0]):
            verdicts.setdefault(int(mention[1]), UNDECIDED)
    if exception := _EXCEPTION.search(sentence):
        _read_exception(sentence, exception, verdicts)
    else:
        read_statement(sentence, verdicts)


def _read_exception(sentence: str, exception: re.Match[str], verdicts: dict[int, str]) -> None:
    """`read_sentence` of one with an exception, "no AU except AU4": what is said of the others is
    not true of the AUs behind `exception`."""
    before = sentence[: exception.start()]
    run = _MARKED_RUN.match(sentence, exception.end())
    end = run.end() if run else exception.end()
    comma = sentence.find(",", exception.end(), end)
    if not before.strip() and comma >= 0 and VERB.search(sentence, end):
        end = comma  # "Except for AU4, AU6 and AU12 are absent."
    others = before if before.strip() else sentence[end:]
    if before.strip() and not VERB.search(before):  # "All AUs other than AU12 are inactive."
        others += re.split("[,;\ue000]", sentence[end:], maxsplit=1)[0]
    none, every = ANY_NEGATION.search(others) or _AT_REST.search(others), _UNIVERSAL.search(others)
    verdict = PRESENT if none else ABSENT if every else UNDECIDED
    if exception[0].lower().startswith("besides") and not none:
        verdict = UNDECIDED if re.search(r"\b(?:all|every)", others, re.IGNORECASE) else PRESENT
    elif not before.strip() and every and "\ue000" in every[0]:
        verdict = UNDECIDED  # "Apart from AU6, AU12 is active": as well as, or without?
    for mention in MARK.finditer(sentence, exception.end(), end):
        verdicts.setdefault(int(mention[1]), verdict)
    for part in (before, sentence[end:]):
        if "\ue000" in part:
            read_statement(part, verdicts)


# --- replies and ellipsis -------------------------------------------------------------------------

_RETRACTION = re.compile(
    rf"\W*(?:here\s+|[\w\s]{{1,30}},\s*)?(?:(?:it|they|this|these)?\s*(?:is|are|was"
    rf"|were)(?:\s+(?:actually|really|completely|entirely))?\s*(?:{ABSENT_ADJECTIVE}"
    r"|(?:not|n't)\s+(?:present|active|visible|found|seen|detected|observed|there))"
    r"|(?-i:not)\s+(?:found|seen|detected|observed|visible|there))\s*(?:[.,;!)]|$|(?:here|at|in"
    r"|on)\b)",
    re.IGNORECASE,
)
_UNDECIDED = re.compile(
    r"\W*(?:(?:it|this|that)(?:\s+is|'s)|I\s+(?:am|find\s+it))\s+(?:\w+\s+)?(?:hard|difficult"
    r"|impossible|unsure"
    r"|uncertain|unclear|too\s+\w+)\b",
    re.IGNORECASE,
)
_REPLY = re.compile(r"\W*(?:yes|yep|(?P<no>no|nope))\b(?=\s*(?:[.,;:!]|$))", re.IGNORECASE)


def verdict_of_reply(last: str, sentence: str) -> str | None:
    """What a sentence that names no AU says of the one before: "AU4? No.", "It is absent.",
    "That is hard to tell."; None if it says nothing of it."""
    if _RETRACTION.match(sentence):
        return ABSENT
    if _UNDECIDED.match(sentence):
        return UNDECIDED
    reply = _REPLY.match(sentence)
    if reply is None or not last.rstrip(" \"'*)").endswith("?"):
        return None
    if ANY_NEGATION.search(last):
        return UNDECIDED  # "Is AU4 absent? No."
    return ABSENT if reply["no"] else PRESENT


_ELLIPSIS = re.compile(
    rf"{MARKED_LIST}\s*\b(?:is|are|was|were|do|does|did|has|have|can|could|should|may|might)"
    rf"(?P<no>n't|\s*not)?\b(?P<also>,?\s+(?:too|also|as\s+well|either|likewise))?(?=\s*(?:$"
    rf"|[.,;!)\n]|\b(?:but|and|while|though)\b))",
    re.IGNORECASE,
)
_LIKEWISE = re.compile(
    rf"\b(?:so|as|(?:the\s+)?same\s+(?:goes|holds|applies|is\s+true))\s+(?:is|are|was|were|for"
    rf"|to|of)\s+{WRAP}{MARKED_RUN}"
    rf"|\b(?:along|together)\s+with\s+{WRAP}{MARKED_AU}",
    re.IGNORECASE,
)
_LIKEWISE_HINT = re.compile("so |as |same |with ")
_SENTENCE_END = re.compile(r"[.!?]\s|\n")
_ANTECEDENT = re.compile(
    rf"\b(?:{ABSENT_ADJECTIVE}|possible|ruled\s+out|excluded|dismissed|relaxed|at\s+rest|off"
    rf"|zero|nil|denied|suppressed|lacks?)\b",
    re.IGNORECASE,
)


def resolve_ellipsis(marked: str, verdicts: dict[int, str]) -> None:
    """Decide "AU4 cannot" and "AU4 is too" by the verb before: "AU1 can be excluded; AU4 cannot."
    denies nothing of AU4."""
    for match in _ELLIPSIS.finditer(marked):
        before = _text_since_mark(marked, match.start())
        antecedent = _ANTECEDENT.search(before)
        if antecedent is None or (_SENTENCE_END.search(before) and "can" not in match[0].lower()):
            continue
        alike = match["also"] and not match["no"] and "possible" not in antecedent[0].lower()
        for mention in MARK.finditer(match[0]):
            verdicts[int(mention[1])] = ABSENT if alike else UNDECIDED
    for match in _LIKEWISE.finditer(marked) if _LIKEWISE_HINT.search(marked) else ():
        before = _text_since_mark(marked, match.start())
        antecedent = _ANTECEDENT.search(before) or ANY_NEGATION.search(before)
        if antecedent is None:
            continue
        sure = "with" not in match[0] and "possible" not in before
        for mention in MARK.finditer(match[0]):
            if verdicts.get(int(mention[1])) == PRESENT:
                verdicts[int(mention[1])] = ABSENT if sure else UNDECIDED


def _text_since_mark(marked: str, end: int) -> str:
    """The text between the last mark before `end` and `end`."""
    before = marked[max(0, end - MAX_SUBJECT_CHARS) : end]
    return before[before.rfind("\ue001") + 1 :]


# --- prose behind the name of an AU ---------------------------------------------------------------

# "AU2: the outer brows are not raised, so it is absent": prose behind the name of an AU.
_PROSE = re.compile(
    rf"[\"'*`)\]]*{BRACKETED_NAME}[\"'*`]*\s*"
    r"(?::|\s[-\u2013\u2014]\s)[\"'*\s]*([^\n\ue000.!?;]*)",
    re.IGNORECASE,
)
_IT_IS_NOT = re.compile(
    rf"\b(?:it|this(?:\s+(?:AU|unit|action\s+unit|muscle))?)\s+(?:(?:is|was)(?:n't"
    rf"|\s+not)\b{NOT_QUALIFIED}|(?:is|was)\s+{ABSENT_ADJECTIVE}\b)",
    re.I,
)
_DOES_NOT = re.compile(
    r"(?:(?:the|both|his|her|their)\s+)?(?:\w+\s+){1,4}?(?:is|are|do|does|remain|remains)"
    r"(?:n't|\s+not)\s+(?:\w+ly\s+)?(\w{4})",
    re.IGNORECASE,
)


def verdict_of_prose(marked: str, mention: re.Match[str], group: AUGroup) -> str | None:
    """What prose behind the name of an AU says of it, if it denies something; None if it does not:
    ABSENT if it denies the AU's own movement, UNDECIDED if what it denies may be another one."""
    match = _PROSE.match(marked, mention.end())
    if not match or not ANY_NEGATION.search(match[1]):
        return None
    if _IT_IS_NOT.search(match[1]):
        return ABSENT
    movement = _DOES_NOT.match(match[1])
    names = " ".join(f"{facs.AUS[au].name} {facs.AUS[au].cue}" for au in group.aus)
    if movement and movement[1].lower() in names:
        return ABSENT
    denial = SUBJECT_NEGATION.search(match[1])
    return UNDECIDED if denial and denial.start() > 0 else None
