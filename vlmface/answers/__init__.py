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

Of a scale of numbers, strict is a number at a step as the prompt lists them, lenient one in another
notation ("7/10", "7,5") or between two steps, which counts as the nearest step (see
`number_statements`). A number outside the range is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlmface.answers import au_mentions, number_statements
from vlmface.answers.au_numbers import normalise_characters
from vlmface.answers.label_statements import decide, decide_multi_label, label_list
from vlmface.errors import UserError
from vlmface.label_spaces import LabelSpace
from vlmface.scales import Scale

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
        scale: of which the label is a number; None for labels that are words.
    """

    label: str | None
    aus: tuple[int, ...]
    status: str
    rationale: str
    negated_aus: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    scale: Scale | None = None

    def __post_init__(self) -> None:
        if self.label is not None and not self.labels:
            object.__setattr__(self, "labels", (self.label,))

    @property
    def value(self) -> float | None:
        """The label as a number of a scale; None without one."""
        return None if self.scale is None or self.label is None else float(self.label)

    @property
    def text_labels(self) -> str | None:
        """The labels as one text; None if there are none."""
        return join_labels(self.labels) or None


# --- the forms, written --------------------------------------------------------------------------

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
    return Answer(label, present, status, rationale.strip(), negated, ordered, space.scale)


def matches_format(text: str, space: LabelSpace, format: str) -> bool:
    """Whether the text has the format for one label, in any spelling that the space accepts."""
    match = _STRICT[format].fullmatch(text.strip())
    return match is not None and space.match(match[2]) is not None


def _lenient(text: str, space: LabelSpace, multi_label: bool) -> tuple[set[str], str, str]:
    """(labels, status, rationale)."""
    decide_one = decide if space.scale is None else number_statements.decide
    read_labels = decide_multi_label if multi_label else decide_one
    rationale, answers, outside = split_tags(text)
    before, *concluded = _CONCLUSION.split(outside)
    if not answers and any(part.strip() for part in concluded):
        answers, outside = concluded, before
    if answers:
        decisions = [read_labels(answer, space) for answer in answers if answer.strip()]
        readings = {frozenset(labels) for labels, _ in decisions if labels}
        statuses = {status for _, status in decisions} - {"none"}
        if statuses == {"lenient"} and len(readings) == 1:
            return set(readings.pop()), "lenient", rationale or outside
        if statuses == {"refused"}:
            return set(), "refused", rationale or outside
        return set(), "ambiguous" if statuses else "none", rationale or outside
    # No answer was marked. The text between <think> tags is not an answer; the other text may be.
    labels, status = read_labels(outside, space)
    bare = label_list(outside, space) if multi_label else space.match(outside)
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


# --- action units --------------------------------------------------------------------------------


def mentioned_aus(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(AUs that the text affirms, AUs that it denies), sorted and disjoint; see `au_mentions`.
    Numbers that are not in FACS count as neither."""
    return au_mentions.read(_TAG.sub("\n", normalise_characters(text)))
