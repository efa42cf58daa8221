"""Model text -> Answer: the only parser, and the answer formats that it reads.

Rewards, metrics, tables and the demo all use this one result. A label is given in two cases only:

- strict: the text has exactly the requested format and contains a label of the space, letter by
  letter;
- lenient: the text breaks the format, but states one label by a rule that cannot be wrong: the
  place of the answer contains a label or alias and nothing else, or a clause that consists of
  filler words and the label ("The person looks happy"), and no other label is mentioned.

Everything else is ambiguous (labels compete, or one is mentioned and not stated), refused or none.

MULTI_LABEL_FORMATS are for all the labels that apply, "Engagement, Happiness". Strict is a list of
labels, each once, in any order; lenient a list in other letters or with other separators, or
between filler words ("The person feels engagement and happiness"). If the list contains a word that
is not a label, a negation, an "or" or a question, no label counts, because the intended ones could
only be guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import regex

from vlmface.answers import au_mentions, notations
from vlmface.answers.au_numbers import normalise_characters
from vlmface.errors import UserError
from vlmface.label_spaces import WORD_CHARACTERS, LabelSpace, normalise

FORMATS = ("think_answer", "three_part", "label", "labels", "think_labels")
MULTI_LABEL_FORMATS = ("labels", "think_labels")
STATUSES = ("strict", "lenient", "ambiguous", "refused", "none")


@dataclass(frozen=True)
class Answer:
    """What a text answers.

    Attributes:
        label: the only label; None if there are none or several.
        aus: action units that the text affirms, sorted.
        status: one of STATUSES.
        rationale: the text that is not the answer.
        negated_aus: action units that the text denies, sorted; none of them is in `aus`.
        labels: in the order of their space; () unless `status` is strict or lenient. Several of
            them only in MULTI_LABEL_FORMATS.
    """

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
    def text_labels(self) -> str | None:
        """The labels as one text; None if there are none."""
        return join_labels(self.labels) or None


# --- the formats, written -------------------------------------------------------------------------

SUFFIX = {
    "think_answer": "</answer>",
    "three_part": "",
    "label": "",
    "labels": "",
    "think_labels": "</answer>",
}
# The format for one label with the same frame.
_FRAME = {"labels": "label", "think_labels": "think_answer"}
_SEPARATOR = ", "
_OBSERVED, _OVERALL, _CONCLUDED = (
    f"**{heading}:**"
    for heading in ("Key Observations", "Overall Emotional Interpretation", "Conclusion")
)


def has_rationale(format: str) -> bool:
    """Whether a rationale comes before the labels."""
    return _FRAME.get(format, format) != "label"


def has_think(format: str) -> bool:
    """Whether the rationale is between <think> tags."""
    return _FRAME.get(format, format) == "think_answer"


def join_labels(labels: Sequence[str]) -> str:
    """Labels as MULTI_LABEL_FORMATS write them."""
    return _SEPARATOR.join(labels)


def completion_prefix(rationale: str, format: str) -> str:
    """The completion up to where the label starts. In the three-part format (ExpLLM) the last
    sentence of a plain rationale is the interpretation and the others are the observations."""
    rationale, format = rationale.strip(), _FRAME.get(format, format)
    if format == "label":
        return ""
    if format == "think_answer":
        return f"<think>{rationale}</think>\n<answer>"
    if format != "three_part":
        raise UserError(f"unknown answer format {format!r}: use one of {', '.join(FORMATS)}")
    if _OBSERVED not in rationale:
        observed, _, overall = rationale.rpartition(". ")
        observed = f"{observed}." if observed else rationale
        rationale = f"{_OBSERVED} {observed}\n{_OVERALL} {overall}"
    return f"{rationale}\n{_CONCLUDED} "


def constraint_regex(space: LabelSpace, format: str) -> str:
    """A regular expression that only strict answers match, for guided decoding. It uses neither
    look-around nor flags. Several labels come in the order of the space, as in the targets, so each
    occurs at most once."""
    words = [re.escape(label) for label in space.labels]
    if format in MULTI_LABEL_FORMATS:
        more = [f"(?:{_SEPARATOR}{word})?" for word in words]
        words = [word + "".join(more[i:]) for i, word in enumerate(words, 1)]
    labels, format = "|".join(words), _FRAME.get(format, format)
    if format == "label":
        return f"(?:{labels})"
    if format == "think_answer":
        return rf"<think>[^<>*\s][^<>*]*</think>\n<answer>(?:{labels})</answer>"
    headings = (re.escape(heading) for heading in (_OBSERVED, _OVERALL, _CONCLUDED))
    observed, overall, concluded = headings
    text = r"[^<>*\s][^<>*]*"
    return rf"{observed} {text}\n{overall} {text}\n{concluded} (?:{labels})"


# --- the formats, read ----------------------------------------------------------------------------


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


def parse(text: str, space: LabelSpace, format: str) -> Answer:
    """Read a text as an answer.

    Args:
        text: any text.
        space: the labels to read.
        format: one of FORMATS.

    Raises:
        UserError: the format is unknown. No text raises an error.
    """
    if format not in FORMATS:
        raise UserError(f"unknown answer format {format!r}: use one of {', '.join(FORMATS)}")
    multi_label = format in MULTI_LABEL_FORMATS
    match = _STRICT[_FRAME.get(format, format)].fullmatch(text.strip())
    words = match[2].strip() if match else ""
    candidates = words.split(_SEPARATOR) if multi_label else [words]
    if match and set(candidates) <= set(space.labels) and len(set(candidates)) == len(candidates):
        labels, status, rationale = set(candidates), "strict", match[1]
    else:
        labels, status, rationale = _lenient(normalise_characters(text), space, multi_label)
    present, negated = mentioned_aus(text)
    ordered = tuple(label for label in space.labels if label in labels)
    label = ordered[0] if len(ordered) == 1 else None
    return Answer(label, present, status, rationale.strip(), negated, ordered)


def matches_format(text: str, space: LabelSpace, format: str) -> bool:
    """Whether the text has the format for one label, in any spelling that the space accepts."""
    match = _STRICT[format].fullmatch(text.strip())
    return match is not None and space.match(match[2]) is not None


def _lenient(text: str, space: LabelSpace, multi_label: bool) -> tuple[set[str], str, str]:
    """(labels, status, rationale)."""
    decide = _decide_multi_label if multi_label else _decide
    rationale, answers, outside = split_tags(text)
    before, *concluded = _CONCLUSION.split(outside)
    if not answers and any(part.strip() for part in concluded):
        answers, outside = concluded, before
    if answers:
        decisions = [decide(answer, space) for answer in answers if answer.strip()]
        readings = {frozenset(labels) for labels, _ in decisions if labels}
        statuses = {status for _, status in decisions} - {"none"}
        if statuses == {"lenient"} and len(readings) == 1:
            return set(readings.pop()), "lenient", rationale or outside
        if statuses == {"refused"}:
            return set(), "refused", rationale or outside
        return set(), "ambiguous" if statuses else "none", rationale or outside
    # No answer was marked. The text between <think> tags is not an answer; the other text may be.
    labels, status = decide(outside, space)
    bare = _label_list(outside, space) if multi_label else space.match(outside)
    return labels, status, rationale or ("" if bare else outside)


def split_tags(text: str) -> tuple[str, list[str], str]:
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
# Between two words for one label: "happy, i.e. happiness", "anger or rage".
_EQUATING = _words("i e g that is or and namely also called aka eg ie even")
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
_REFUTING = _words("rather instead of than and but")
_DENIALS = _words("false wrong incorrect untrue")
_BETWEEN = _words("a an the any be being feeling showing really of signs sign expression")
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


def _decide(text: str, space: LabelSpace) -> tuple[set[str], str]:
    """Label and status of a text that stands in the place of the answer."""
    if _CROSS.search(text) or _TICK.search(text):
        return _decide_marked(text, space)
    whole = space.match(text)
    if whole and "?" not in text:
        return {whole}, "lenient"
    refusal = _REFUSAL.search(text)
    if refusal and _HEDGE.match(refusal[0]):
        unhedged = _without_hedge(text)
        labels, status = (
            _decide(unhedged, space) if unhedged.strip() != text.strip() else (set(), "")
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
    return " ".join(clause for clause in clauses if not _REFUSAL.search(clause))


def _decide_marked(text: str, space: LabelSpace) -> tuple[set[str], str]:
    """Of a text with check marks: the labels of crossed lines are refuted."""
    lines = [line for line in text.split("\n") if line.strip()]
    crossed = [line for line in lines if _CROSS.search(line)]
    remaining = [_TICK.sub("", line) for line in lines if not _CROSS.search(line)]
    if any(_TICK.search(line) for line in crossed):
        return set(), "ambiguous"
    refuted = {label for line in crossed for label in _labels(line, space)}
    if not remaining:
        return set(), "none" if len(refuted) < 2 else "ambiguous"
    labels, status = _decide("\n".join(remaining), space)
    return (set(), "ambiguous") if labels & refuted else (labels, status)


def _labels(text: str, space: LabelSpace) -> set[str]:
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
        denied = denied or bool(_DENIALS & set(others)) or _NEGATORS.issuperset(words)
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
        allowed = allowed | _NEGATORS | _REFUTING
    return all(word in allowed for word in others)


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


def _decide_multi_label(text: str, space: LabelSpace) -> tuple[set[str], str]:
    """Labels and status of a text that stands in the place of an answer of several labels."""
    if _CROSS.search(text):
        return set(), "ambiguous" if _labels(text, space) else "none"
    if whole := _label_list(text, space):
        return whole, "lenient"
    if _REFUSAL.search(text):
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


def _label_list(text: str, space: LabelSpace) -> set[str]:
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
        no = bool(before) and (before[-1] in _NEGATORS or before[-1].endswith("n't"))
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


# --- action units --------------------------------------------------------------------------------


def mentioned_aus(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(AUs that the text affirms, AUs that it denies), sorted and disjoint; see `au_mentions`.
    Numbers that are not in FACS count as neither."""
    return au_mentions.read(_TAG.sub("\n", normalise_characters(text)))
