"""Model text -> Answer: the only parser, and the home of the answer forms it reads.

Rewards, metrics, tables and the demo all read this one result. A label is given in two cases only:

- strict: the text is exactly the asked form and holds a label of the space, letter by letter;
- lenient: the text breaks the form, but states one label by a rule that cannot be wrong: the place
  of the answer holds a label or alias and nothing else, or a clause built of nothing but filler
  words and the label ("The person looks happy"), while no other label is in play.

Everything else is ambiguous (labels compete, or one is mentioned and not stated), refused or none.

The forms of SEVERAL ask for all the labels that apply, "Engagement, Happiness". Strict is a list of
labels, each once, in any order; lenient a list in other letters or with other separators, or
between filler words ("The person feels engagement and happiness"). One word that is no label, a
negation, an "or" or a question, and nothing of the list counts: what was meant by the rest would be
a guess.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from vlmface import facs
from vlmface.errors import UserError
from vlmface.taxonomy import LabelSpace, normalise

FORMS = ("think_answer", "three_part", "label", "labels", "think_labels")
SEVERAL = ("labels", "think_labels")
STATUSES = ("strict", "lenient", "ambiguous", "refused", "none")


@dataclass(frozen=True)
class Answer:
    """`labels` are those that count, in the order of their space: () unless `status` is strict or
    lenient, then one, or in a form of SEVERAL one at least. `label` is the only one, None where
    there are none or several. `aus` are the action units that the text says are there,
    `negated_aus` those it says are not (both sorted and disjoint)."""

    label: str | None
    aus: tuple[int, ...]
    status: str
    rationale: str
    negated_aus: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.label is not None and not self.labels:
            object.__setattr__(self, "labels", (self.label,))

    @property
    def said(self) -> str | None:
        """The labels as a text for people, None if there are none."""
        return listed(self.labels) or None


# --- the forms, written --------------------------------------------------------------------------

SUFFIX = {
    "think_answer": "</answer>", "three_part": "", "label": "",
    "labels": "", "think_labels": "</answer>",
}  # fmt: skip
_FRAME = {"labels": "label", "think_labels": "think_answer"}  # the form that is like it for one
_SEPARATOR = ", "
_OBSERVED, _OVERALL, _CONCLUDED = (
    f"**{heading}:**"
    for heading in ("Key Observations", "Overall Emotional Interpretation", "Conclusion")
)


def reasons(form: str) -> bool:
    """Whether a rationale stands before the labels."""
    return _FRAME.get(form, form) != "label"


def listed(labels: Sequence[str]) -> str:
    """Labels as the forms of SEVERAL have them."""
    return _SEPARATOR.join(labels)


def prefix(rationale: str, form: str) -> str:
    """The completion up to where the label starts. In the three-part form (ExpLLM) the last
    sentence of a plain rationale is the interpretation and the rest are the observations."""
    rationale, form = rationale.strip(), _FRAME.get(form, form)
    if form == "label":
        return ""
    if form == "think_answer":
        return f"<think>{rationale}</think>\n<answer>"
    if form != "three_part":
        raise UserError(f"there is no answer form {form!r}: use one of {', '.join(FORMS)}")
    if _OBSERVED not in rationale:
        observed, _, overall = rationale.rpartition(". ")
        observed = f"{observed}." if observed else rationale
        rationale = f"{_OBSERVED} {observed}\n{_OVERALL} {overall}"
    return f"{rationale}\n{_CONCLUDED} "


def pattern(space: LabelSpace, form: str) -> str:
    """A regular expression that only strict answers match, for servers that can be held to one. It
    needs no look-around and no flags. Several labels come in the order of the space, as in the
    targets: so none comes twice."""
    words = [re.escape(label) for label in space.labels]
    if form in SEVERAL:
        more = [f"(?:{_SEPARATOR}{word})?" for word in words]
        words = [word + "".join(more[i:]) for i, word in enumerate(words, 1)]
    labels, form = "|".join(words), _FRAME.get(form, form)
    if form == "label":
        return f"(?:{labels})"
    if form == "think_answer":
        return rf"<think>[^<>*\s][^<>*]*</think>\n<answer>(?:{labels})</answer>"
    headings = (re.escape(heading) for heading in (_OBSERVED, _OVERALL, _CONCLUDED))
    observed, overall, concluded = headings
    text = r"[^<>*\s][^<>*]*"
    return rf"{observed} {text}\n{overall} {text}\n{concluded} (?:{labels})"


# --- the forms, read -----------------------------------------------------------------------------


def _until(stop: str) -> str:
    """Text that is not blank and runs up to `stop`; one way to match, so no backtracking."""
    return rf"(?!\s*{stop})(?:(?!{stop}).)*"


_ANY_TAG = r"</?(?:think|answer)>"
_ANY_HEADING = "|".join(map(re.escape, (_OBSERVED, _OVERALL, _CONCLUDED))).join(("(?:", ")"))
_STRICT = {
    "think_answer": re.compile(
        rf"<think>({_until(_ANY_TAG)})</think>\s*<answer>([^<>]*)</answer>", re.DOTALL
    ),
    "three_part": re.compile(
        rf"({re.escape(_OBSERVED)}{_until(_ANY_HEADING)}{re.escape(_OVERALL)}{_until(_ANY_HEADING)})"
        rf"{re.escape(_CONCLUDED)}([^*]*)",
        re.DOTALL,
    ),
    "label": re.compile(r"()(.*)", re.DOTALL),
}
_TAG = re.compile(r"<\s*(/?)\s*(think|answer)\s*>", re.IGNORECASE)
_CONCLUSION = re.compile(
    r"(?:^[ \t#*_>-]*|\*\*[ \t]*)conclusion[ \t*_]*(?::[ \t*_]*|$)", re.IGNORECASE | re.MULTILINE
)
_REFUSAL = re.compile(
    r"\b(?:can\s?not|can'?t|could\s+not|couldn'?t|unable\s+to|not\s+able\s+to|won'?t|will\s+not"
    r"|(?:not\s+|im)possible\s+to|(?:difficult|hard)\s+to)\s+(?:\w+\s+)?"
    r"(?:determine|identify|tell|recogni[sz]e|say|assess|answer|provide|infer|analy[sz]e|help"
    r"|assist|comply|judge|classify|discern|process)\b"
    r"|\bi(?:'m|\s+am)\s+sorry\b|\bas\s+an\s+ai\b|\bno\s+(?:visible\s+)?face\b"
    r"|^\W*(?:unknown|unclear|uncertain|undetermined|n/?a|not\s+sure)\W*$",
    re.IGNORECASE,
)


def parse(text: str, space: LabelSpace, form: str) -> Answer:
    """Read `text` as an answer in `form` with a label of `space`. Never raises on any text; raises
    UserError for an unknown form."""
    if form not in FORMS:
        raise UserError(f"there is no answer form {form!r}: use one of {', '.join(FORMS)}")
    several = form in SEVERAL
    match = _STRICT[_FRAME.get(form, form)].fullmatch(text.strip())
    words = match[2].strip() if match else ""
    found = words.split(_SEPARATOR) if several else [words]
    if match and set(found) <= set(space.labels) and len(set(found)) == len(found):
        labels, status, rationale = set(found), "strict", match[1]
    else:
        labels, status, rationale = _lenient(_clean(text), space, several)
    present, negated = mentioned_aus(text)
    ordered = tuple(label for label in space.labels if label in labels)
    label = ordered[0] if len(ordered) == 1 else None
    return Answer(label, present, status, rationale.strip(), negated, ordered)


def _clean(text: str) -> str:
    """Full-width letters and curly quotes made plain, invisible and private characters dropped."""
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'")
    return "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Co", "Cs"))


def _lenient(text: str, space: LabelSpace, several: bool) -> tuple[set[str], str, str]:
    """(labels, status, rationale)."""
    decide = _decide_several if several else _decide
    thought, answers, rest = regions(text)
    before, *concluded = _CONCLUSION.split(rest)
    if not answers and any(part.strip() for part in concluded):
        answers, rest = concluded, before
    if answers:
        found = [decide(answer, space) for answer in answers if answer.strip()]
        readings = {frozenset(labels) for labels, _ in found if labels}
        statuses = {status for _, status in found} - {"none"}
        if statuses == {"lenient"} and len(readings) == 1:
            return set(readings.pop()), "lenient", thought or rest
        if statuses == {"refused"}:
            return set(), "refused", thought or rest
        return set(), "ambiguous" if statuses else "none", thought or rest
    # No answer was marked. What was only thought is no answer; the rest of the text may be one.
    labels, status = decide(rest, space)
    bare = _listed(rest, space) if several else space.canonical(rest)
    return labels, status, thought or ("" if bare else rest)


def regions(text: str) -> tuple[str, list[str], str]:
    """(inside think, the pieces inside answer tags, outside both); the innermost tag decides, a
    missing closing tag ends with the text, a missing opening <think> was part of the prompt."""
    tags = list(_TAG.finditer(text))
    first = next((tag for tag in tags if tag[2].lower() == "think"), None)
    open_tags = ["think"] if first and first[1] else []
    pieces: dict[str, list[str]] = {"think": [], "answer": [], "": []}
    start = 0
    for tag in tags:
        pieces[open_tags[-1] if open_tags else ""].append(text[start : tag.start()])
        start, kind = tag.end(), tag[2].lower()
        if not tag[1]:
            open_tags.append(kind)
        elif kind in open_tags:
            del open_tags[len(open_tags) - 1 - open_tags[::-1].index(kind) :]
    pieces[open_tags[-1] if open_tags else ""].append(text[start:])
    return " ".join(pieces["think"]).strip(), pieces["answer"], " ".join(pieces[""])


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that may stand around a label without changing what is stated.
_MARKERS = _words(
    "is are was be looks look appears appear seems seem feels feel feeling shows showing expresses"
    " expressing conveys conveying displays displaying suggests indicates emotion emotions"
    " expression label answer conclusion prediction class category"
)
_FILLERS = _MARKERS | _words(
    "the a an of in to as this that it it's its he he's she she's they their his her i my being"
    " person person's man man's woman woman's individual individual's subject subject's face face's"
    " facial emotional state image picture photo shown depicted here final primary predominant"
    " dominant main most likely probably overall clearly definitely very therefore thus hence"
    " one sense think believe best described classified identified recognized predicted detected"
    " assistant boxed text json"
)
_NEGATORS = _words("not no nor neither never without than instead non")
_DENIALS = _words("false wrong incorrect untrue")
_BETWEEN = _words("a an the any be being feeling showing really of signs sign expression")
_WORD = re.compile(r"[^\W_]+(?:[-\u2013'][^\W_]+)*")


def _decide(text: str, space: LabelSpace) -> tuple[set[str], str]:
    """Label and status of a text that stands in the place of the answer."""
    whole = space.canonical(text)
    if whole:
        return {whole}, "lenient"
    if _REFUSAL.search(text):
        return set(), "refused"
    stated: set[str] = set()
    mentioned: set[str] = set()
    negated: set[str] = set()
    denied = False
    clauses = _clauses(text)
    for clause, question in clauses:
        words, others, named, refuted = _read_clause(clause, space)
        labels = named + refuted
        mentioned.update(named)
        negated.update(refuted)
        # "The person is happy. That is wrong.", "happy, not"
        denied = denied or bool(_DENIALS & set(others)) or _NEGATORS.issuperset(words)
        plain = not question and all(w in _FILLERS for w in others)
        if len(labels) == 1 and plain and (_MARKERS & set(others) or len(clauses) == 1):
            stated.add(labels[0])
    if len(mentioned) == 1 and stated == mentioned and not mentioned & negated and not denied:
        return mentioned, "lenient"
    return set(), "ambiguous" if mentioned else "none"


# What divides a list, with the marks before its items: "1. ", "- ", "* ", "(a) " need a line each.
_DIVIDERS = re.compile(r"(?i)[,;&+|\n]|\band\b")
_ITEM = re.compile(r"^\s*(?:[-*\u2022]|\(?(?:\d{1,2}|[a-z])[.)])\s+")
# Fewer words than of _FILLERS: "one of these: anger, fear" and "most likely anger" state no list.
_AROUND_A_LIST = _words(
    "is are looks look appears appear seems seem feels feel feeling shows showing expresses"
    " expressing conveys conveying displays displaying emotion emotions category categories label"
    " labels answer answers the a an this these that he she they it his her their person person's"
    " man man's woman woman's individual individual's subject subject's face emotional state of in"
    " image picture photo following final both as well also"
)


def _decide_several(text: str, space: LabelSpace) -> tuple[set[str], str]:
    """Labels and status of a text that stands in the place of an answer of several labels."""
    if whole := _listed(text, space):
        return whole, "lenient"
    if _REFUSAL.search(text):
        return set(), "refused"
    stated: set[str] = set()
    plain = "?" not in text
    for piece in _DIVIDERS.split(text):
        _, others, named, refuted = _read_clause(piece, space)
        stated.update(named)
        # Two labels without a divider may be alternatives: "fear/sadness".
        lone = len(named) <= 1 and not refuted
        plain = plain and lone and _AROUND_A_LIST.issuperset(others)
    if stated and plain:
        return stated, "lenient"
    return set(), "ambiguous" if stated else "none"


def _listed(text: str, space: LabelSpace) -> set[str]:
    """The labels of a text that is a list of labels and nothing else; else none."""
    found: set[str] = set()
    for line in text.split("\n"):
        for piece in _DIVIDERS.split(_ITEM.sub("", line)):
            if not normalise(piece):
                continue
            label = space.canonical(piece)
            if label is None:
                return set()
            found.add(label)
    return found if "?" not in text else set()


def _read_clause(
    clause: str, space: LabelSpace
) -> tuple[list[str], list[str], list[str], list[str]]:
    """(words, those that are no labels, labels, labels right behind a negation)."""
    words = _WORD.findall(clause.casefold())
    others: list[str] = []
    named: list[str] = []
    refuted: list[str] = []
    for word in _fold_labels(words, space):
        if not isinstance(word, tuple):
            others.append(word)
            continue
        before = [w for w in others if w not in _BETWEEN]
        no = bool(before) and (before[-1] in _NEGATORS or before[-1].endswith("n't"))
        (refuted if no else named).append(word[0])
    return words, others, named, refuted


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
            label = space.index.get(re.sub(r"[\W_]+", " ", " ".join(words[at : at + size])))
            if label:
                folded.append((label,))
                at += size
                break
        else:
            folded.append(words[at])
            at += 1
    return folded


# --- action units --------------------------------------------------------------------------------

# "AU4", "AU 04", "AU12C", "AU1+2", "AU25/26", "action unit 4", "AUs 4, 7 and 23". Only the plural
# goes on over commas: in "AU4, 2 people" the 2 is no action unit.
_NUMBER = r"0?\d{1,2}(?:[A-E]\b)?(?![^\W_]|\.\d|\s?%)"
_AU = re.compile(
    rf"(?<![^\W_])(?:(?:AUs|action\s+units)[\s_#:-]*{_NUMBER}"
    rf"(?:\s*(?:,\s*(?:and\s|or\s|&)?|[+/&]|\band\s|\bor\s)\s*(?:AU\s?)?{_NUMBER})*"
    rf"|(?:AU|action\s+unit)[\s_#:-]*{_NUMBER}(?:\s?[+/]\s?(?:AU\s?)?{_NUMBER})*)",
    re.IGNORECASE,
)
_MARK = re.compile("\ue000(\\d+)\ue001")  # a group of AUs that was found, by its position in a list

# Words after "not" or "no" that leave the muscle at work: "not only", "not very strong".
_STILL = (
    r"(?!\s+(?:only|just|merely|simply|very|too|so|fully|strong|strongly|particularly|entirely"
    r"|quite|as|doubt|less|absent|missing|inactive|closed|shut)\b)"
)
# Negates what follows in its clause.
_NEGATES_NEXT = re.compile(
    rf"(?:\b(?:no|not|without(?!\s+(?:a\s+)?doubt)|neither|nor|never|lacks?|lacking|cannot|none\s+of"
    rf"|(?:absence|lack)\s+of|free\s+of|rather\s+than|instead\s+of|fails?\s+to|rules?\s+out)"
    rf"|n't)\b{_STILL}"
    rf"|\b(?:absent|missing|inactive)\s*[:=]|\b(?:absent|missing|inactive)\s+(?=\ue000)",
    re.IGNORECASE,
)
# Negates the subject before it: "AU4 is not active", "AU4 and AU7 are absent", "AU4 not visible".
_COPULA = r"\b(?:is|are|was|were|be|remains?|stays?|appears?|seems?)\s+(?:(?:\w+ly|also|still)\s+)?"
_NEGATES_SUBJECT = re.compile(
    rf"(?:(?:{_COPULA}|\b(?:do|does|did|has|have|can|could)\s+)(?:not|never|no\s+longer)"
    rf"|\b\w{{2,6}}n't|\bcannot)\b{_STILL}"
    rf"|\b(?:shows?|has|have)\s+no\s+(?:movement|action|activity|activation|sign)\b"
    rf"|\bnot\s+(?:present|visible|active|activated|seen|detected|observed|found|shown|engaged)\b"
    rf"|(?:{_COPULA})?(?<!not\s)\b(?:absent|missing|lacking|inactive|undetected|invisible)\b",
    re.IGNORECASE,
)
# A value that says absent: "AU4: 0", "AU4 (absent)", "| AU4 | brow lowerer | no |", '"AU4": false'.
_ZERO = re.compile(
    r"[\"'*`)\]]*(?:\s?\([^()\n]{1,60}\)|\s?\|[^|\n]{1,40}(?=\|))?\s*[:=|(\[\u2013\u2014-]\s*[\"'*]*"
    r"(?:0(?:\.0+)?(?!\.?\d)|(?:false|no|none|not|absent|inactive|missing)\b)",
    re.IGNORECASE,
)
_SENTENCE = re.compile(
    r"(?<=[.!?;])[\s\"'*)]+|\n+|\u2014"
    r"|\b(?:but|however|while|whereas|although|though|yet|because|since|so|which|except)\b",
    re.IGNORECASE,
)
_SEGMENT = re.compile(r"[,:]|\band\b|\bwith\b|\bplus\b", re.IGNORECASE)
_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|do|does|did|can|cannot|could|shows?|appears?|seems?|looks?"
    r"|remains?|stays?|moves?|indicates?|suggests?|drops|pulls|tightens|opens|closes|rises?|lifts"
    r"|raises|lowers|widens|active|inactive|present|absent|visible|missing|evident)\b|n't\b",
    re.IGNORECASE,
)
# What starts a new statement without a verb: "no frown, lips parted" or "no frown, the mouth open".
_PARTICIPLE = re.compile(r"\b\w+ed\b|\bdrawn\b", re.IGNORECASE)
_SUBJECT = re.compile(r"\s*(?:the|his|her|their|she|he|they)\s", re.IGNORECASE)
_OR = re.compile(r"\b(?:or|nor)\b", re.IGNORECASE)
_HYPOTHETICAL = re.compile(r"\bwould\s+(?:be|have|show|need|require|include|involve)\b", re.I)


def mentioned_aus(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(AUs that the text says are present, AUs that it says are absent), sorted and disjoint.

    An AU counts as absent when a negation governs its mention within the clause or its value is 0;
    a denial outweighs another mention. AUs of "would be" clauses and numbers that FACS does not
    have count as neither.
    """
    groups: list[list[int]] = []

    def mark(match: re.Match[str]) -> str:
        numbers = [int(n) for n in re.findall(r"\d+", match[0])]
        groups.append([n for n in numbers if n in facs.AUS])
        return f"\ue000{len(groups) - 1}\ue001"

    marked = _AU.sub(mark, _TAG.sub("\n", _clean(text)))
    present: set[int] = set()
    negated: set[int] = set()
    for sentence in _SENTENCE.split(marked):
        mentions = list(_MARK.finditer(sentence))
        if not mentions:
            continue
        words = {name: _starts(pattern, sentence) for name, pattern in _CUES.items()}
        bounds = _clause_bounds(sentence, words)
        for mention in mentions:
            at, after = mention.span()
            clause = bisect_right(bounds, at)
            start, end = bounds[clause - 1], bounds[clause] if clause < len(bounds) else None
            if _first(words["would"], start, end) is not None:
                continue
            denial = _first(words["not subject"], after, end)
            absent = (
                _first(words["not next"], start, at + 1) is not None
                or _ZERO.match(sentence, after) is not None
                or (denial is not None and _first(words["verb"], after, denial) is None)
            )
            (negated if absent else present).update(groups[int(mention[1])])
    return tuple(sorted(present - negated)), tuple(sorted(negated))


def au_spans(text: str) -> list[tuple[int, int, tuple[int, ...]]]:
    """Where a text names action units, whatever it says of them: (start, end, the AUs)."""
    found = []
    for match in _AU.finditer(text):
        aus = tuple(n for n in map(int, re.findall(r"\d+", match[0])) if n in facs.AUS)
        if aus:
            found.append((*match.span(), aus))
    return found


_CUES = {
    "not next": _NEGATES_NEXT,
    "not subject": _NEGATES_SUBJECT,
    "verb": _VERB,
    "participle": _PARTICIPLE,
    "or": _OR,
    "would": _HYPOTHETICAL,
}


def _starts(pattern: re.Pattern[str], text: str) -> list[int]:
    return [match.start() for match in pattern.finditer(text)]


def _first(starts: list[int], low: int, high: int | None) -> int | None:
    """The first of the sorted `starts` in [low, high), None if there is none."""
    at = bisect_left(starts, low)
    return starts[at] if at < len(starts) and (high is None or starts[at] < high) else None


def _clause_bounds(sentence: str, words: dict[str, list[int]]) -> list[int]:
    """Where clauses start: at 0 and at each comma or "and" that begins a new statement. Those
    inside a list of muscles do not: "no AU4, AU7 or AU9 is seen" is one clause."""
    bounds = [0]
    cuts = [match.span() for match in _SEGMENT.finditer(sentence)]
    stops = [*(cut for cut, _ in cuts), len(sentence)][1:]
    for (cut, inside), stop in zip(cuts, stops, strict=True):
        negative = _first(words["not next"], bounds[-1], cut) is not None
        verb = _first(words["verb"], inside, stop)
        new = verb is not None and (
            _first(words["or"], inside, verb) is None
            if negative
            else _first(words["verb"], bounds[-1], cut) is not None
        )
        # "no frown, lips parted" is two statements, "no lowered brows, raised cheeks or parted
        # lips" is one.
        if negative and _first(words["or"], inside, None) is None:
            participle = _first(words["participle"], inside, stop) is not None
            new = new or participle or _SUBJECT.match(sentence, inside, stop) is not None
        if new:
            bounds.append(cut)
    return bounds
