"""The grammar of a statement: its clauses, and what each says of the action units in it.

A statement is a sentence or a part of one without a "but" or "although". It is cut into clauses;
in each, a denial before a mention ("no AU4") or after it ("AU4 is absent") decides, if it is about
that mention rather than about another subject.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right

from vlmface.answers.au_vocabulary import (
    ABSENT,
    ABSENT_ADJECTIVE,
    AU_NAMES,
    COPULA,
    FINITE_VERB,
    MARK,
    MARKED_LIST,
    MARKED_RUN,
    MAX_SUBJECT_CHARS,
    NEGATIVE_ADJECTIVE,
    NOT_QUALIFIED,
    PLURAL_VERB,
    PRESENT,
    UNDECIDED,
    VERB,
    WRAP,
)

# --- denials --------------------------------------------------------------------------------------

# Negates what follows in its clause.
_NEGATION = re.compile(
    rf"(?:\b(?:no(?!\s*,|\s+others?\b(?!\s+\w))|not|neither|nor|never|lacks?(?!\s+of)|lacking"
    rf"|cannot|none\s+of"
    rf"|fails?\s+to(?!\s+(?:appear|activate|engage|fire|occur|show\s+up|accompan|co-?occur|join))"
    rf"|(?:rul(?:e|es|ed|ing)\s+out|exclud(?:e|es|ing)|dismiss(?:es|ing)?)(?=\s+[^\W_]|\s*\ue000))"
    rf"|n't)\b{NOT_QUALIFIED}"
    rf"|(?:^|(?<=[,;:.]\s)|(?<=[,;:.]))\s*{NEGATIVE_ADJECTIVE}\s+(?:is|are|was"
    rf"|were)\b(?=[^.;]*\ue000)"
    r"|\b(?:zero|nil|0(?:\.0+)?)\s+(?:\w+\s+)?(?:for|of|in|on)\s+(?=(?:the\s+)?\ue000)"
    rf"|(?:^|[,;:.(|])\s*{NEGATIVE_ADJECTIVE}\s+(?=\ue000)"
    r"|\b(?:evidence|argues?|speaks?|signs?)\s+against\s+(?=(?:the\s+)?\ue000)|\bagainst\s*:"
    r"|\b(?:reject|dismiss|discard|refut|discount|exclud|eliminat|rul)(?:s|es|ed"
    r"|ing)(?:\s+out)?\s+(?=(?:the\s+)?\ue000)"
    rf"|\b{NEGATIVE_ADJECTIVE}\s+(?:facial\s+)?(?:AUs?|(?:action\s+)?units?|muscles?|codes?"
    rf"|ones)\s+(?:is|are|was|were|includes?|included|comprises?)\b"
    r"|\bnothing\s+(?:suggests?|indicates?|points\s+to|speaks\s+for|hints\s+at|supports?)\b"
    rf"|\b{NEGATIVE_ADJECTIVE}\s*(?:(?:facial\s+)?(?:AUs?|action\s+units?|muscles?)\s*)?"
    rf"(?:[:=]|\s[-\u2013]\s)|\b(?:absent|missing|inactive)\s+(?:(?:AUs?"
    rf"|action\s+units?)\s*)?(?=\ue000)",
    re.IGNORECASE,
)
# Negates the list right behind it, and nothing that comes after a verb.
_LIST_NEGATION = re.compile(
    rf"\b(?:without(?!\s+(?:a\s+)?doubt)|(?:absence|lack)\s+of|free\s+of|rather\s+than"
    rf"|instead\s+of|unlike|devoid\s+of|in\s+place\s+of|as\s+opposed\s+to"
    rf"|unaccompanied\s+by)\b{NOT_QUALIFIED}",
    re.IGNORECASE,
)
_LIST_END = re.compile(
    r"\b(?:means?|implies|makes?|leaves?|points?|speaks?|confirms?|hints?|argues?|with|where"
    r"|when)\b",
    re.IGNORECASE,
)
# Negates the subject before it: "AU4 is not active", "AU4 and AU7 are absent", "AU4 not visible".
SUBJECT_NEGATION = re.compile(
    rf"(?:(?:{COPULA}|\b(?:do|does|did|has|have|had|can|could|may|might|must|should"
    rf"|will)\s+)(?:not|never|no\s+longer)"
    rf"|\b\w{{2,6}}n't|\bcannot)\b{NOT_QUALIFIED}"
    rf"|\bnever\s+(?=\w)|'s\s+(?:absence|lack|inactivity)\b"
    rf"|\b(?:shows?|has|have|exhibits?|displays?|with)\s+(?:no|zero"
    rf"|little\s+to\s+no)\s+(?:\w+\s+)?(?:movement|action|activity|activation|contraction|sign"
    rf"|intensity)\b"
    rf"|\black(?:s|ed)?\s+(?:\w+\s+)?(?:movement|action|activity|activation|intensity)\b"
    rf"|\bfails?\s+to(?=\s+(?:appear|activate|engage|fire|occur|show\s+up|accompan|co-?occur|join))"
    rf"|(?:{COPULA}|\b(?:can|could|may|must|should|has|have)\s+(?:\w+\s+)?(?:be"
    rf"|been)\s+)(?:\w+ly\s+)?"
    rf"(?:ruled\s+out|excluded|dismissed|rejected|contradicted|relaxed|at\s+rest|(?:switched\s+"
    rf"|turned\s+)?off|out(?!\s+of)|zero|nil"
    r"|false|denied|suppressed|gone|silent|quiet|discounted|discarded)\b"
    r"|(?:\b(?:has|have|had)\s+)?\b(?:disappear|vanish)(?:s|es|ed)?\b"
    r"|\b(?:plays?|has|have)\s+no\s+(?:role|part)\b|\bshows?\s+nothing\b"
    r"|,?\s*there\s+(?:is|was)\s+none\b|\b(?:is|are)\s+out\s+of\s+the\s+question\b"
    rf"|(?P<bare>\b(?:ruled\s+out|excluded|dismissed)\b|\bnot\s+(?:present|visible|active"
    rf"|activated|seen|detected|observed|found|shown"
    r"|engaged|noted|evident|involved|recruited)\b|\bnot(?=\s*(?:[.;!)\n]|$))"
    rf"|(?:{COPULA})?(?<!not\s)\b{ABSENT_ADJECTIVE}\b(?!\s*(?:AUs?"
    rf"|action\s+units?)?\s*[:=\ue000]))",
    re.IGNORECASE,
)
_NONE_OF = re.compile(r"\b(?:none\s+of|neither)\b", re.IGNORECASE)
# Words that deny, wherever they stand: if no AU of a statement is denied, which one is unclear.
_DENYING_WORD = re.compile(
    r"\b(?:absen\w*|inactiv\w*|missing|nothing(?!\s+(?:else|more|other|further))|anything\s+but"
    r"|in\s+contrast\s+to|neither"
    r"|(?:reject|refut|eliminat|discard|discount|exclud|dismiss|fail|vanish|disappear|eras"
    r"|ignor)(?:e|s|es|ed|ing)?"
    r"|dormant|gone|blank|unmoved|untouched|unaffected|unmarked|unticked|unscored|uncoded"
    r"|crossed\s+out|struck)\b",
    re.IGNORECASE,
)
_ANY_DENIAL = re.compile(
    rf"\b(?:no|not|never|none|zero|nil|off|absen\w*|inactiv\w*|lack\w*|missing|without|nicht|pas"
    rf"|kein\w*)\b{NOT_QUALIFIED}"
    rf"(?!\s+(?:others?|further|additional|more|else)\b)|n't\b{NOT_QUALIFIED}",
    re.IGNORECASE,
)
_NEXT_WORDS = re.compile(r"\s*(?:[\w']+\s+){0,4}\W*")
_RELATION = re.compile(
    r"\s*(?:\w+ly\s+)?(?:accompan|co-?occur|join|pair|combin|coupl|match|associat|follow|explain"
    r"|caus"
    r"|due\b|support|go\s+with|be\s+(?:accompan|pair|combin|explain))\w*",
    re.IGNORECASE,
)

# --- words that leave a mention undecided ---------------------------------------------------------

_UNDECIDED_BEFORE = re.compile(
    r"\b(?:whether|(?<!as\s)if|(?:usually|typically|normally|generally|commonly"
    r"|often)(?!\s*[,.;:)])|needs?|hardly|scarcely"
    r"|(?:false|wrong|untrue)\s+that|claims?|den(?:y|ies)"
    r"|kein\w*|ohne|sans|pas|nicht|senza"
    r"|requires?|unclear|uncertain|unsure|unlikely|doubtful|questionable"
    r"|not\s+(?:clear|sure|certain))\b"
    r"|(?:might|would|could|may)\s+(?:have\s+)?expect(?:ed)?\b|\b(?:cannot|can't)\s+(?:say|claim"
    r"|conclude)\b|\b(?:unless|in\s+case|removed|deleted)\b",
    re.IGNORECASE,
)
_UNDECIDED_AFTER = re.compile(
    r"\b(?:unclear|uncertain|unlikely|doubtful|questionable|hardly|scarcely|negligible|removed"
    r"|deleted"
    r"|not\s+(?:clear|certain|sure)\b|(?:can)?not\s+be\s+(?:determined|judged|assessed|scored"
    r"|coded|rated|measured))\b",
    re.IGNORECASE,
)
_WOULD = re.compile(
    r"\bwould\s+(?:also\s+)?(?:be|have|show|need|require|include|involve|appear|occur|act|fire|come"
    r"|accompany|join|follow|add|contract|activate)\b",
    re.IGNORECASE,
)

# --- parts of a statement -------------------------------------------------------------------------

_CLAUSE_BREAK = re.compile(r"[,:]|\band\b|\bwith\b|\bplus\b", re.IGNORECASE)
# What starts a new statement without a verb: "no frown, lips parted" or "no frown, the mouth open".
_PARTICIPLE = re.compile(r"\b\w+ed\b|\bdrawn\b", re.IGNORECASE)
_PRONOUN_SUBJECT = re.compile(
    r"\s*(?:the|this|his|her|their|she|he|they|we|i|one|there|it)(?:'\w+)?\s", re.IGNORECASE
)
# "no AU12 and a clear AU15", but not "without a frown and a smile".
_AFFIRMED_NOUN = re.compile(
    r"\s*(?:(?:with|only|just|instead|hence|thus|therefore|ergo|so)\s+)?(?:(?:an?|some)\s"
    r"|(?:very\s+)?(?:clear|obvious|strong|slight|pronounced|distinct"
    r"|definite|marked|mild|moderate|intense|noticeable|evident|weak|faint)(?:ly)?\s)",
    re.IGNORECASE,
)
_LIST_WITH_TOO = re.compile(rf"{WRAP}{MARKED_RUN},?\s*(?:too|also|as\s+well)\b", re.I)
_CONSEQUENCE = re.compile(r"\s*(?:instead|hence|thus|therefore|ergo|so|leaving)\b", re.IGNORECASE)
_CONTRAST = re.compile(r",\s*not\s+\w+\s*:$", re.IGNORECASE)  # "down, not up: AU15"
_QUANTIFIER = re.compile(
    r"\b(?:an?|any|clear|obvious|strong|slight|pronounced|distinct|noticeable|evident)\s", re.I
)
_OR = re.compile(r"\b(?:or|nor)\b", re.IGNORECASE)
# A list of AUs that is the subject of a new statement.
_AU_SUBJECT = re.compile(
    rf"(?:\s|\b(?:the|both|also|only)\b)*{MARKED_LIST}\s*(?:\b(?:all|both|also|clearly|alone"
    rf"|activation|activity|action|movement)\s+)*"
    rf"(?P<predicate>\b(?:{FINITE_VERB}|\w{{2,6}}n't)\b"
    r"|\b(?:seen|observed|detected|noted|present|active|visible|engaged|activated|dominates?"
    r"|means?|points?|gives?|makes?|tells?|strong|mild|clear|weak|moderate|slight|intense)\b)",
    re.IGNORECASE,
)
_NEW_PERSON = re.compile(r",\s*(?:the|his|her|their|she|he|they|it)\s", re.IGNORECASE)
_HEADING_WORD = re.compile(
    rf"\ue000|\b(?:AUs?|units?|muscles?|codes?|{NEGATIVE_ADJECTIVE}|following|these|activ\w*"
    rf"|engage\w*|present|visible"
    r"|seen|observed|detected|found|noted|shown|identified|scored|coded|movement|signs?|evidence"
    r"|trace|activity|no|none|zero)\b",
    re.IGNORECASE,
)
# What may stand between the AU of a list and "absent" or "not seen" without a verb.
_ONLY_A_LIST = re.compile(
    rf"(?:\([^()]*\)|[\s\"'*`,&/+()\[\]:|-]|\ue000\d+\ue001|\b(?:and|or|nor|the|also|both"
    rf"|as\s+well\s+as"
    rf"|is|are|was|were|remains?|stays?|est|ist|activity|activation|movement|action"
    rf"|{AU_NAMES})\b)*+",
    re.IGNORECASE,
)
_LIST_WORD = re.compile(r"\b(?:and|or|nor|as\s+well\s+as|both|neither)\b|[&+/]", re.IGNORECASE)
_REPORTED_LIST = re.compile(
    rf"\b(?:meaning|mean[s]?|suggest(?:s|ing)|impl(?:y|ies|ying)|indicat(?:es|ing)|confirm(?:s"
    rf"|ing)|that|so|i\.e\.,?)"
    rf"\s+(?:that\s+|the\s+)?{WRAP}{MARKED_RUN}\s*$",
    re.IGNORECASE,
)
_LIST_ENDED = re.compile(r"\b(?:or|nor|and)\s*\ue000\d+\ue001[\s,)]*$", re.IGNORECASE)

# --- where the deciding words of a sentence stand -------------------------------------------------

_CUE_PATTERNS = {
    "negation": _NEGATION,
    "verb": VERB,
    "participle": _PARTICIPLE,
    "or": _OR,
    "would": _WOULD,
    "undecided before": _UNDECIDED_BEFORE,
    "undecided after": _UNDECIDED_AFTER,
    "none of": _NONE_OF,
}


class _Cues:
    """Where the words stand that decide what a sentence says."""

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence
        self.starts: dict[str, list[int]] = {}  # filled when first looked up
        self.denials = list(SUBJECT_NEGATION.finditer(sentence))
        self.starts["denial"] = [match.start() for match in self.denials]
        lists = [match.span() for match in _LIST_NEGATION.finditer(sentence)]
        self.starts["list"], self.list_ends = [a for a, _ in lists], [b for _, b in lists]

    def first(self, name: str, low: int, high: int | None) -> int | None:
        """The first cue in [low, high), None if there is none."""
        starts = self.starts.get(name)
        if starts is None:
            starts = [match.start() for match in _CUE_PATTERNS[name].finditer(self.sentence)]
            self.starts[name] = starts
        at = bisect_left(starts, low)
        return starts[at] if at < len(starts) and (high is None or starts[at] < high) else None

    def denial(self, low: int, high: int) -> re.Match[str] | None:
        """The first match of `SUBJECT_NEGATION` that starts in [low, high)."""
        at = bisect_left(self.starts["denial"], low)
        in_range = at < len(self.denials) and self.denials[at].start() < high
        return self.denials[at] if in_range else None

    def in_negated_list(self, start: int, at: int) -> bool:
        """Whether `at` is in the list behind "without", "instead of" ... of its clause."""
        last = bisect_right(self.list_ends, at) - 1
        return (
            last >= 0
            and self.starts["list"][last] >= start
            and not _is_bracket_closed(self.sentence, self.starts["list"][last], at)
            and self.first("verb", self.list_ends[last], at) is None
            and _LIST_END.search(self.sentence, self.list_ends[last], at) is None
        )

    def negative(self, start: int, cut: int) -> bool:
        """Whether something in [start, cut) negates what follows it."""
        return any(self.first(name, start, cut) is not None for name in ("negation", "list"))


def _in_brackets(sentence: str, at: int) -> bool:
    low = max(0, at - MAX_SUBJECT_CHARS)
    return sentence.rfind("(", low, at) > sentence.rfind(")", low, at)


def _is_bracket_closed(sentence: str, cue: int, at: int) -> bool:
    """Whether the bracket that a cue stands in is closed before `at`."""
    return sentence.find(")", cue, at) >= 0 and _in_brackets(sentence, cue)


# --- clauses --------------------------------------------------------------------------------------


def _clause_bounds(sentence: str, cues: _Cues) -> list[int]:
    """Where clauses start: at 0 and at each comma or "and" that begins a new statement. Those
    inside a list of muscles do not: "no AU4, AU7 or AU9 is seen" is one clause."""
    bounds = [0]
    cuts = [match.span() for match in _CLAUSE_BREAK.finditer(sentence)]
    stops = [*(cut for cut, _ in cuts), len(sentence)][1:]
    for (cut, inside), stop in zip(cuts, stops, strict=True):
        start = bounds[-1]
        if _in_brackets(sentence, cut) and (close := sentence.find(")", inside, stop)) >= 0:
            stop = close
        subject = _AU_SUBJECT.match(sentence, inside)
        if subject:
            new = _is_new_statement(sentence, cues, (start, cut), subject)
        elif cues.negative(start, cut):
            new = _leaves_negation(sentence, cues, start, (inside, stop))
        else:
            verb = cues.first("verb", inside, stop)
            new = verb is not None and cues.first("verb", start, cut) is not None
        if new:
            bounds.append(cut)
    return bounds


def _leaves_negation(sentence: str, cues: _Cues, start: int, segment: tuple[int, int]) -> bool:
    """Whether a segment is not part of the negation before it, in the clause from `start`: "no
    frown, lips parted" is two statements, "no lowered brows, raised cheeks or parted lips" one."""
    inside, stop = segment
    verb = cues.first("verb", inside, stop)
    if verb is not None and cues.first("or", inside, verb) is None:
        return True
    if cues.first("or", inside, None) is not None:
        return False
    if sentence[start:inside].count("\ue000") and _LIST_WITH_TOO.match(sentence, inside):
        return cues.first("negation", start, inside) is None
    if _AFFIRMED_NOUN.match(sentence, inside) and not _QUANTIFIER.search(sentence, start, inside):
        return True
    second = cues.first("list", inside, stop)
    names_au = second is not None and "\ue000" in sentence[inside:second]
    if names_au and cues.first("negation", start, inside) is None:
        return True  # "AU1 without AU2, and AU15 without AU17"
    if _CONSEQUENCE.match(sentence, inside) or _CONTRAST.search(
        sentence[max(start, inside - 40) : inside]
    ):
        return True
    participle = cues.first("participle", inside, stop) is not None
    return participle or _PRONOUN_SUBJECT.match(sentence, inside, stop) is not None


def _is_new_statement(
    sentence: str, cues: _Cues, clause: tuple[int, int], subject: re.Match[str]
) -> bool:
    """Whether a list of AUs with a predicate is the subject of a statement of its own, or
    continues the list of the clause before it."""
    start, cut = clause
    predicate = subject["predicate"]
    if not cues.negative(start, cut):
        return cues.first("verb", start, cut) is not None and not (
            PLURAL_VERB.match(predicate)
            and _REPORTED_LIST.search(sentence[max(start, cut - 200) : cut])
        )
    if _OR.search(sentence, cut, subject.start("predicate")):
        return False
    if _LIST_ENDED.search(sentence[max(start, cut - 60) : cut]):
        return True  # "neither AU4 nor AU7, and AU12 is strong"
    mark = sentence.find("\ue000", start, cut)
    denied = mark >= 0 and cues.first("denial", mark, cut) is not None
    finite = re.fullmatch(FINITE_VERB + r"|\w+n't", predicate, re.IGNORECASE)
    if re.fullmatch(r"strong|mild|weak|moderate|slight|intense", predicate, re.IGNORECASE):
        return True  # "no AU4, AU12 strong"
    if denied or (finite and cues.first("verb", start, cut) is not None):
        return True  # the clause before is complete: "AU6 not seen, AU12 seen"
    if cues.first("none of", start, cut) is not None:
        return False
    if sentence[cut] != "," and cues.first("list", start, cut) is not None:
        return False  # "the lack of AU4 and AU7 suggests ..."
    is_list = sentence[cut : cut + 3].lower() == "and" or _LIST_WORD.search(subject[0])
    alone = re.fullmatch(r"\s*(?:even\s+)?", sentence[start : cues.first("list", start, cut)], re.I)
    if alone and not is_list and sentence[cut] == ",":
        return True  # "Without AU6, AU12 makes a social smile."
    negation = cues.first("list", start, cut)
    if is_list and (negation is not None or PLURAL_VERB.match(predicate)):
        # "Instead of AU4, AU6 and AU12 are active", but "no AU4, AU6 and AU12 are seen"
        if negation is None or sentence[start:negation].strip(" ,") or sentence[cut] != ",":
            return False
        return sentence[negation].lower() in "iwru"  # instead, without, rather, unlike
    return bool(finite)


# --- verdicts -------------------------------------------------------------------------------------


def read_statement(sentence: str, verdicts: dict[int, str]) -> None:
    """Add a verdict for each mark of the statement that has none, by the grammar of its clauses."""
    new = []
    cues = _Cues(sentence)
    bounds = _clause_bounds(sentence, cues)
    for mention in MARK.finditer(sentence):
        number = int(mention[1])
        if number not in verdicts:
            clause = bisect_right(bounds, mention.start())
            end = bounds[clause] if clause < len(bounds) else len(sentence)
            verdicts[number] = _clause_verdict(sentence, mention, bounds[clause - 1], end, cues)
            new.append(number)
    if all(verdicts[number] == PRESENT for number in new) and _DENYING_WORD.search(sentence):
        verdicts.update(dict.fromkeys(new, UNDECIDED))


def _clause_verdict(
    sentence: str, mention: re.Match[str], start: int, end: int, cues: _Cues
) -> str:
    """What the clause from `start` to `end` says of a mention in it."""
    at, after = mention.span()
    if (
        cues.first("would", start, end) is not None
        or cues.first("undecided before", start, at) is not None
    ):
        return UNDECIDED
    if cues.in_negated_list(start, at):
        return ABSENT
    negation = cues.first("negation", start, at + 1)
    while negation is not None and _is_bracket_closed(sentence, negation, at):
        negation = cues.first("negation", negation + 1, at + 1)
    if negation is not None:
        colon = sentence.find(":", negation, at)
        # "AU26 is not needed: AU25 explains it"
        after_mention = "\ue000" in sentence[start:negation]
        if colon >= 0 and (after_mention or not _HEADING_WORD.search(sentence[start:colon])):
            return UNDECIDED  # "the smile does not reach the eyes: AU12"
        relation = cues.denial(negation, at) or cues.denial(max(start, negation - 12), at)
        return UNDECIDED if relation and _RELATION.match(sentence, relation.end()) else ABSENT
    if cues.first("undecided after", after, end) is not None:
        return UNDECIDED
    denial = cues.denial(after, end)
    if denial is None or cues.first("verb", after, denial.start()) is not None:
        return UNDECIDED if _has_unexplained_denial(sentence, after, end, cues) else PRESENT
    if denial.start() - after > MAX_SUBJECT_CHARS:
        return UNDECIDED
    return _verdict_of_subject(sentence, mention, denial)


def _has_unexplained_denial(sentence: str, after: int, end: int, cues: _Cues) -> bool:
    """Whether a denial that no rule explains stands between a mention and the next one, before any
    verb, and not right before the next one, about which it then is."""
    if sentence[after : after + 4].lstrip("\"'*`").startswith(")"):
        return False  # what is said of it stands before it
    mark = sentence.find("\ue000", after, end)
    stop = mark if mark >= 0 else end
    denial = _ANY_DENIAL.search(sentence, after, stop)
    if denial is None or cues.first("verb", after, denial.start()) is not None:
        return False
    return mark < 0 or not _NEXT_WORDS.fullmatch(sentence, denial.end(), stop)


def _verdict_of_subject(sentence: str, mention: re.Match[str], denial: re.Match[str]) -> str:
    """Whether a denial later in the clause is about the mention, or about another subject."""
    between = sentence[mention.end() : denial.start()]
    if _RELATION.match(sentence, denial.end()):
        return UNDECIDED  # "AU6 does not accompany AU12"
    bracketed = _in_brackets(sentence, mention.start())
    last = sentence.rfind("\ue001", mention.end(), denial.start())
    if last >= 0 and bracketed != _in_brackets(sentence, last):
        return PRESENT if bracketed else UNDECIDED  # "a smile (AU12), AU4 is absent"
    if denial["bare"] and not _ONLY_A_LIST.fullmatch(re.sub(r"\w+ly\s*$", "", between)):
        return PRESENT if last >= 0 else UNDECIDED  # "AU6, possibly with AU7 absent"
    is_list = bool(_LIST_WORD.search(between) or PLURAL_VERB.match(denial[0]))
    singular = not denial["bare"] or re.match(r"(?:is|was)\b", denial[0], re.IGNORECASE)
    if last >= 0 and not is_list and singular:
        return PRESENT if bracketed else UNDECIDED  # "AU6, AU4 is absent": one subject
    if last < 0 and _NEW_PERSON.search(between):
        return PRESENT if bracketed else UNDECIDED  # "a smile (AU12), the brows are not lowered"
    return ABSENT
