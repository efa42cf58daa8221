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
import unicodedata
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace

from vlmface import facs
from vlmface.answers import notations

# --- action units --------------------------------------------------------------------------------

# A number may have a side before it, and an OpenFace column, a FACS grade or a side behind it:
# "L12", "04_r", "12C", "14R".
_NUMBER = r"[LR]?0?\d{1,2}(?:_[rc]\b)?(?:[A-E][LR]?\b|[LR][A-E]?\b)?(?![^\W_]|\.\d|\s?%)"
_IN_LIST = rf"(?:AU[\s_-]?)?{_NUMBER}"
_NAME = r"(?:\s*\([^()\d]{1,40}\))?"
_RANGE = r"[ \t]*(?:[-\u2013\u2014]|\bto\b|\bthrough\b|\bthru\b)[ \t]*"
_AND = r"\b(?:and|or)\b(?:/or\b)?"
_MORE = rf"(?:[ \t]*(?:,\s*(?:{_AND}\s*|&\s*)?|[+/&]|{_AND}|{_RANGE})\s*{_IN_LIST}{_NAME})"
# What may follow "AU6 and 12" for the 12 to be an AU: in "AU4 and 2 people" it is not.
_ENDS = (
    r"(?=\s*(?:$|[.;:)\n,|]|\b(?:are|is|were|was|do|have|both|together|all|with|co-occur|appear"
    r"|show|active|present|visible|absent|missing|inactive|not|combined?|combination)\b))"
)
_UNITS = (
    r"(?:(?:AUs|action\s+units)(?:\s*\(AUs?\))?(?:\s+(?:numbers?|nos?\.|codes?))?"
    r"|(?:AU|action\s+unit|FACS)\s+(?:numbers|codes))"
)
_STATE = (
    r"(?:\s+(?:(?:that|which)\s+are\s+)?((?:not\s+)?(?:present|active|activated|observed|detected|visible|identified|seen|coded"
    r"|found)|absent|inactive|missing)\s*[:=])?"
)
# "AU4", "AU 04", "AU12C", "AU1+2", "AU25/26", "action unit 4", "AUs 4, 7 and 23", "AU: 1, 2".
_AU = re.compile(
    rf"(?<![^\W_])(?:{_UNITS}{_STATE}[\s_#:=\[{{'\"\u2192-]*{_NUMBER}{_NAME}{_MORE}*"
    rf"|(?:AU|action\s+unit)\s*:\s*{_NUMBER}(?:\s*,\s*{_NUMBER})+"
    rf"|(?:AU|action\s+unit)[\s_#:-]*{_NUMBER}"
    rf"(?:(?:\s?[+/]\s?{_IN_LIST})+|{_RANGE}AU\s?{_NUMBER}|[-\u2013]{_NUMBER}"
    rf"|\s+(?:through|thru)\s+{_NUMBER}"
    rf"|{_NAME}(?:\s*,\s*{_NUMBER}{_NAME})*[ \t]?,?[ \t]?(?:and\b|&)\s*{_NUMBER}{_NAME}{_ENDS})?"
    # FACS codes without "AU": "6B+12C", "L12A", "R14"; but neither "2D" nor the "R2" of a fit.
    rf"|(?-i:(?=[\dLRA-E+]*\d[A-E]\b|[\d+]*[LR]\d)[LR]?\d{{1,2}}[A-E]?(?:\+[LR]?\d{{1,2}}[A-E]?)+"
    rf"|[LR]\d{{2}}[A-E]?|[LR]\d[A-E])(?![\w.]))",
    re.IGNORECASE,
)
_ONE = re.compile(
    r"(?<![^\W_])(?:AU[\s_-]?)?([LR]?)(\d{1,2})(?:_[rc])?[A-E]?([LR]?)[A-E]?(?!\d)", re.I
)
_ONE_RANGE = re.compile(rf"(\d{{1,2}})({_RANGE})(?:AU\s?)?(\d{{1,2}})\b", re.IGNORECASE)
_SEVERAL = re.compile(_UNITS, re.IGNORECASE)
_TOGETHER = re.compile(r"\s+(?:combination|pair|pairing|pattern|complex|co-\w+|coupling)", re.I)
_WIDE = 4  # "AU1-AU5" is a range; between the ends of a wider one without a plural is a guess
_SIDE_BEFORE = re.compile(
    r"(?:\b(?:left|right)(?:-?\s?sided)?|\bunilateral|\b(?:one|single)-sided"
    r"|(?-i:(?<![^\W_])[LR]))\s+$",
    re.IGNORECASE,
)
_SIDE_AFTER = re.compile(
    r"\s*\(?(?:(?:on|at|in)\s+)?(?:(?:the|his|her|their|one)\s+)?(?:left|right|one\s+side)\b"
    r"(?!\s+(?:here|away|now|after))",
    re.IGNORECASE,
)
_MARK = re.compile("\ue000(\\d+)\ue001")  # a group of AUs, by its position in a list


@dataclass(frozen=True)
class Group:
    """AUs that a text names together. `sided`: only of one half of the face;
    `graded`: with a FACS grade, which says that they are present."""

    aus: tuple[int, ...]
    sided: bool = False
    graded: bool = False


def clean(text: str) -> str:
    """Full-width letters and curly quotes made plain, invisible and private characters dropped."""
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'")
    if text.isascii():
        return text
    return "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Co", "Cs"))


def au_spans(text: str) -> list[tuple[int, int, tuple[int, ...]]]:
    """Where a text names action units, whatever it says of them: (start, end, the AUs)."""
    spans = []
    for match in _AU.finditer(text):
        aus = tuple(dict.fromkeys(au for _, _, group in _groups(match) for au in group.aus))
        if aus:
            spans.append((*match.span(), aus))
    return spans


def _groups(match: re.Match[str]) -> list[tuple[int, int, Group]]:
    """(start, end, AUs) of each number that a match of `_AU` lists; of a range, one for all."""
    text, base = match[0], match.start()
    plural = _SEVERAL.match(text) is not None
    groups, at = [], 0
    while number := _ONE.search(text, at):
        span = _ONE_RANGE.match(text, number.start(2))
        if span and int(span[1]) < int(span[3]):
            low, high = int(span[1]), int(span[3])
            whole = plural or high - low <= _WIDE or "thr" in span[2].lower()
            ends = not whole or bool(_TOGETHER.match(match.string, match.end()))
            numbers = (low, high) if ends else tuple(range(low, high + 1))
            at = span.end()
        else:
            numbers, at = (int(number[2]),), number.end()
        aus = tuple(n for n in numbers if n in facs.AUS)
        sided = bool(number[1] or number[3])
        graded = text[number.end() - 1] in "ABCDE"
        groups.append((base + number.start(), base + at, Group(aus, sided, graded)))
    return groups


def _mark(text: str) -> tuple[str, list[Group]]:
    """The text with a mark for each AU that it names, and what the marks stand for."""
    groups: list[Group] = []
    parts: list[str] = []
    last = 0
    for match in _AU.finditer(text):
        listed = _groups(match)
        if _SIDE_BEFORE.search(text, last, match.start()) or _SIDE_AFTER.match(text, match.end()):
            listed = [(a, b, replace(group, sided=True)) for a, b, group in listed]
        joined = "+" in match[0] or "/" in match[0].replace("and/or", "").replace("or/and", "")
        if joined or len(listed) == 1:
            aus = tuple(dict.fromkeys(au for _, _, group in listed for au in group.aus))
            listed = [
                (
                    match.start(),
                    match.end(),
                    Group(aus, any(g.sided for *_, g in listed), listed[0][2].graded),
                )
            ]
        parts.append(text[last : match.start()])
        if match[1]:
            parts.append(f"{match[1]}: ")  # "AUs absent: 4, 7"
        last = listed[0][0] if listed else match.start()
        for start, end, group in listed:
            parts.append(f"{text[last:start]}\ue000{len(groups)}\ue001")
            groups.append(group)
            last = end
    return "".join((*parts, text[last:])), groups


# --- values: "AU4: 0", "AU4 (absent)", "AU4 - present" --------------------------------------------

_AU_NAMES = "|".join(re.escape(unit.name) for unit in facs.AUS.values())
_END = r"(?=[ \t]*(?:$|[\n,.;:|/()\[\]\n\"'*}\u2013\u2014-]))"
_GAP = r"[ \t]*"
_IS = (
    r"(?:is|are|was|were|at|as|scores?|scored|remains?|stays?|coded|rated|marked|given|measures?|measured|reads?|gets?|got|receives?"
    r"|received|assigned)"
)
_QUANTITY = r"(?:(?:intensity|score|level|value|strength|activation|activity|grade|rating)\b\s*)"
_NAME_OR_QUANTITY = re.compile(rf"\([^()]*\)|\b{_QUANTITY}", re.IGNORECASE)
_NOT_JUDGED = (
    r"(?:applicable|clear|sure|certain|assess\w*|cod\w+|scor\w+|measur\w+|known|determin\w+"
    r"|evaluat\w+|available)\b"
)
_NOT_FULLY = (
    r"(?:only|just|merely|simply|very|too|so|fully|strong|strongly|particularly|entirely|quite|as"
    r"|less|absent|missing|inactive)\b"
)
# What may stand between an AU and its value: its name in brackets, a cell of a table, or dashes.
_DESCRIBED = (
    r"[\"'*`)\]\u00bb]*"
    rf"(?:{_GAP}\([^()\n\d]{{1,60}}\)[\"'*`]*|[ \t]?\|[^|\n]{{1,40}}(?=\|)"
    rf"|{_GAP}[-:\u2013\u2014]{_GAP}(?:{_AU_NAMES})\b(?={_GAP}[-:=(\u2013\u2014]))?"
)
# "AU4: ", "AU4 (", "AU4 -> ", or a word before a number, or nothing before a short value at an end.
_SIGN = (
    rf"(?:(?:[ \t]+{_QUANTITY})?{_GAP}"
    r"(?P<sign>=>|\.{3,}|->|--|[\u2192\u21d2\u279c\u2248\u00b7~@]|[:=|(\[<\u2013\u2014-])"
    rf"{_GAP}[\"'*`]*(?:[^()\n\d]{{1,40}}[,;:][ \t]+(?=intensity))?"
    rf"|(?='s\s|[ \t]+(?:{_IS}|has|have|with|intensity|level|value|0[.,]\d)"
    rf"|[ \t]+(?:0|(?:none|off|nil|zero|no|n|y|yes|on|neg(?:ative)?|pos(?:itive)?)\b){_END}))"
    rf"(?:'s)?{_GAP}(?:(?:has|have|with|shows)[ \t]+)?(?:an?[ \t]+)?{_QUANTITY}?"
    rf"(?:[:=]{_GAP}|(?:{_IS}|of|both|an?)[ \t]+){{0,4}}{_QUANTITY}?(?:of[ \t]+)?[\"'*`]*"
)
_VALUE = re.compile(
    rf"{_DESCRIBED}{_SIGN}"
    rf"(?:(?P<zero>(?:0(?:[.,]0+)?(?:{_GAP}/{_GAP}\d+|[ \t]?%)?(?![.,]?\d)|zero\b))"
    r"|(?P<some>(?:\d*[.,])?\d+)(?![^\W_])"
    r"|(?P<no>(?:false|none|absent|inactive|missing|undetected|undetectable|unobserved|invisible"
    r"|deactivated|dormant|neg(?:ative)?|off|nil|nope|nah"
    r"|nothing(?!\s+(?:else|more|other)))\b|[\u65e0\u7121\u6ca1\u5426]|\u306a\u3057"
    rf"|no(?:{_END}|(?=\s+\ue000\d+\ue001\s*[:=]))|n(?={_GAP}(?:$|[,.;|)\n]))|(?<=\()-(?=\))"
    r"|no[ \t]+(?:visible|clear|obvious|noticeable|apparent|significant|signs?|evidence|trace"
    r"|movement|action|activity|activation|contraction|tension|\w+ing)\b"
    rf"|not(?![ \t]+\ue000)(?![ \t]+(?:{_NOT_FULLY}|{_NOT_JUDGED}))\b)"
    r"|(?P<yes>(?:yes|yep|yeah|true|present|active|activated|detected|observed|visible"
    r"|pos(?:itive)?)\b"
    rf"|y(?={_GAP}(?:$|[,.;|)\n]))|(?<=\()(?:\+|strong|weak|mild|moderate|slight|subtle|faint)(?=\)))"
    r"|(?P<open>\?|[\u2013\u2014-](?=\s*(?:$|[,;\n|.]))"
    r"|(?:relaxed|neutral|still|smooth|flat|at[ \t]+rest|unclear|unknown|uncertain"
    rf"|unsure|n/?a|null|maybe|undetermined|occluded|hidden)\b|not[ \t]+{_NOT_JUDGED}"
    r"|no[ \t]+(?!other|further|additional|doubt|less)\w+))",
    re.IGNORECASE,
)
# What stands between the AUs of a list.
_LINK = (
    r"\s*(?:,\s*(?:(?:and|or|nor|also)\s+)*|;\s*|[&/+]"
    r"|\b(?:and/or|and|or|nor|as\s+well\s+as|plus)\b(?:\s+also\b)?)\s*"
)
_WRAP = r"[\"'*`()\[\]\s]*"
_ITEM = r"\ue000\d+\ue001[\"'*`)\]]*" + _NAME
_LISTED_ON = re.compile(rf"{_WRAP}{_NAME}(?:{_LINK}|\s*=\s*){_WRAP}(?=\ue000)", re.IGNORECASE)

PRESENT, ABSENT, OPEN = "present", "absent", "open"
_SAYS = {"zero": ABSENT, "no": ABSENT, "some": PRESENT, "yes": PRESENT, "open": OPEN}


def _values(marked: str, mentions: list[re.Match[str]], groups: list[Group]) -> list[str | None]:
    """What a value behind each mark says; None without one. "AU1, AU2: 0" is about both."""
    values: list[str | None] = []
    signs: list[bool] = []
    for mention in mentions:
        values.append(None)
        signs.append(False)
        match = _VALUE.match(marked, mention.end())
        if match is None:
            continue
        kind, sign = str(match.lastgroup), match["sign"]
        between = _NAME_OR_QUANTITY.sub("", marked[mention.end() : match.start(kind)])
        bare = not re.search(r"\w", between)
        if sign or bare or kind in ("zero", "some"):
            values[-1] = _SAYS[kind] if sign != "<" else OPEN
            plural = _PLURAL.match(marked[mention.end() : mention.end() + 9].lstrip())
            signs[-1] = bool(plural or (sign and sign not in "(["))
    for i in range(len(mentions) - 2, -1, -1):
        graded = groups[int(mentions[i][1])].graded
        if values[i] is None and values[i + 1] == ABSENT and signs[i + 1] and not graded:
            link = _LISTED_ON.match(marked, mentions[i].end())
            if link and link.end() == mentions[i + 1].start():
                values[i], signs[i] = ABSENT, True
    return values


# --- the grammar of a clause ----------------------------------------------------------------------

# Words after "not" or "no" that leave the muscle at work: "not only", "not very strong".
_STILL = (
    r"(?!\s+(?:only|just|merely|simply|very|too|so|fully|strong|strongly|particularly|entirely"
    r"|quite|as|doubt|less|absent|missing|inactive|closed|shut)\b)"
)
_CANNOT = (
    r"\b(?:(?:not[ \t]+possible|impossible|unable)[ \t]+to|can[ \t]?not|can't|could[ \t]?not"
    r"|couldn't|should[ \t]not|shouldn't|never|not)\b"
)
# "AU12 cannot be ruled out", "not absent": two negations.
_TWICE = re.compile(
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
_NEGATIVE = (
    "absent missing inactive undetected unobserved unseen excluded ruled\\s+out negative dormant"
    " denied rejected invisible deactivated unactivated unengaged undetectable nonexistent zero"
)
_NEGATIVE_WORD = f"(?:{'|'.join(_NEGATIVE.split())})"
# "AU4, which signals anger, is absent": what stands between a subject and its predicate.
_ASIDE = re.compile(
    r",[ \t]*(?:which|that|who)[ \t][^,.;\n\ue000]*,"
    r"[ \t]*(?=(?:is|are|was|were|do|does|has|have)\b)"
    r"|\([ \t]*(?:which|that)[ \t][^()\ue000]*\)|\(not[ \t]+to[ \t]+be[ \t]+confused[^()]*\)",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"</?[A-Za-z][\w-]{0,20}>")
_DASHED_HEADING = re.compile(rf"\b({_NEGATIVE_WORD}|not\s+\w+)\s*\u2014\s*(?=AU)", re.IGNORECASE)
# Negates what follows in its clause.
_NEGATES_NEXT = re.compile(
    rf"(?:\b(?:no(?!\s*,|\s+others?\b(?!\s+\w))|not|neither|nor|never|lacks?(?!\s+of)|lacking|cannot|none\s+of"
    rf"|fails?\s+to(?!\s+(?:appear|activate|engage|fire|occur|show\s+up|accompan|co-?occur|join))"
    rf"|(?:rul(?:e|es|ed|ing)\s+out|exclud(?:e|es|ing)|dismiss(?:es|ing)?)(?=\s+[^\W_]|\s*\ue000))"
    rf"|n't)\b{_STILL}"
    rf"|(?:^|(?<=[,;:.]\s)|(?<=[,;:.]))\s*{_NEGATIVE_WORD}\s+(?:is|are|was|were)\b(?=[^.;]*\ue000)"
    r"|\b(?:zero|nil|0(?:\.0+)?)\s+(?:\w+\s+)?(?:for|of|in|on)\s+(?=(?:the\s+)?\ue000)"
    rf"|(?:^|[,;:.(|])\s*{_NEGATIVE_WORD}\s+(?=\ue000)"
    r"|\b(?:evidence|argues?|speaks?|signs?)\s+against\s+(?=(?:the\s+)?\ue000)|\bagainst\s*:"
    r"|\b(?:reject|dismiss|discard|refut|discount|exclud|eliminat|rul)(?:s|es|ed|ing)(?:\s+out)?\s+(?=(?:the\s+)?\ue000)"
    rf"|\b{_NEGATIVE_WORD}\s+(?:facial\s+)?(?:AUs?|(?:action\s+)?units?|muscles?|codes?|ones)\s+(?:is|are|was|were|includes?|included|comprises?)\b"
    r"|\bnothing\s+(?:suggests?|indicates?|points\s+to|speaks\s+for|hints\s+at|supports?)\b"
    rf"|\b{_NEGATIVE_WORD}\s*(?:(?:facial\s+)?(?:AUs?|action\s+units?|muscles?)\s*)?"
    rf"(?:[:=]|\s[-\u2013]\s)|\b(?:absent|missing|inactive)\s+(?:(?:AUs?|action\s+units?)\s*)?(?=\ue000)",
    re.IGNORECASE,
)
# Negates the list right behind it, and nothing that comes after a verb.
_NEGATES_LIST = re.compile(
    rf"\b(?:without(?!\s+(?:a\s+)?doubt)|(?:absence|lack)\s+of|free\s+of|rather\s+than"
    rf"|instead\s+of|unlike|devoid\s+of|in\s+place\s+of|as\s+opposed\s+to|unaccompanied\s+by)\b{_STILL}",
    re.IGNORECASE,
)
_LIST_ENDS = re.compile(
    r"\b(?:means?|implies|makes?|leaves?|points?|speaks?|confirms?|hints?|argues?|with|where|when)\b",
    re.IGNORECASE,
)
# Negates the subject before it: "AU4 is not active", "AU4 and AU7 are absent", "AU4 not visible".
_COPULA = (
    r"\b(?:is|are|was|were|be|been|remains?|stays?|(?:appears?|seems?|looks?)(?:\s+to\s+be)?)\s+"
    r"(?:(?:\w+ly|also|still|all|both|marked|coded|rated|scored|labell?ed|considered|judged|deemed"
    r"|as)\s+){0,2}"
)
_GONE = (
    r"(?:absent|missing|lacking|inactive|undetected|undetectable|imperceptible"
    r"|unobserved|unseen|invisible|deactivated|dormant|nonexistent"
    r"|non-existent|unengaged|unactivated|nowhere)"
)
_NEGATES_SUBJECT = re.compile(
    rf"(?:(?:{_COPULA}|\b(?:do|does|did|has|have|had|can|could|may|might|must|should|will)\s+)(?:not|never|no\s+longer)"
    rf"|\b\w{{2,6}}n't|\bcannot)\b{_STILL}"
    rf"|\bnever\s+(?=\w)|'s\s+(?:absence|lack|inactivity)\b"
    rf"|\b(?:shows?|has|have|exhibits?|displays?|with)\s+(?:no|zero|little\s+to\s+no)\s+(?:\w+\s+)?(?:movement|action|activity|activation|contraction|sign|intensity)\b"
    rf"|\black(?:s|ed)?\s+(?:\w+\s+)?(?:movement|action|activity|activation|intensity)\b"
    rf"|\bfails?\s+to(?=\s+(?:appear|activate|engage|fire|occur|show\s+up|accompan|co-?occur|join))"
    rf"|(?:{_COPULA}|\b(?:can|could|may|must|should|has|have)\s+(?:\w+\s+)?(?:be|been)\s+)(?:\w+ly\s+)?"
    rf"(?:ruled\s+out|excluded|dismissed|rejected|contradicted|relaxed|at\s+rest|(?:switched\s+|turned\s+)?off|out(?!\s+of)|zero|nil"
    r"|false|denied|suppressed|gone|silent|quiet|discounted|discarded)\b"
    r"|(?:\b(?:has|have|had)\s+)?\b(?:disappear|vanish)(?:s|es|ed)?\b"
    r"|\b(?:plays?|has|have)\s+no\s+(?:role|part)\b|\bshows?\s+nothing\b"
    r"|,?\s*there\s+(?:is|was)\s+none\b|\b(?:is|are)\s+out\s+of\s+the\s+question\b"
    rf"|(?P<bare>\b(?:ruled\s+out|excluded|dismissed)\b|\bnot\s+(?:present|visible|active|activated|seen|detected|observed|found|shown"
    r"|engaged|noted|evident|involved|recruited)\b|\bnot(?=\s*(?:[.;!)\n]|$))"
    rf"|(?:{_COPULA})?(?<!not\s)\b{_GONE}\b(?!\s*(?:AUs?|action\s+units?)?\s*[:=\ue000]))",
    re.IGNORECASE,
)
_SENTENCE = re.compile(
    r"(?<=[.!?;])[\s\"'*)]+|\n+|\u2014|\s\|\s"
    r"|\b(?:but|however|while|whereas|although|though|yet|because|since|so|which)\b",
    re.IGNORECASE,
)
_SEGMENT = re.compile(r"[,:]|\band\b|\bwith\b|\bplus\b", re.IGNORECASE)
_FINITE = (
    r"(?:is|are|was|were|has|have|had|do|does|did|can|cannot|could|shows?|appears?|seems?|looks?"
    r"|remains?|stays?|gets?|receives?|moves?|indicates?|suggests?|drops|pulls|tightens|opens|closes|rises?|lifts"
    r"|raises|lowers|widens)"
)
_VERB = re.compile(
    rf"\b(?:{_FINITE}|needs?|requires?|active|inactive|present|absent|visible|missing|evident)\b|n't\b",
    re.IGNORECASE,
)
# What starts a new statement without a verb: "no frown, lips parted" or "no frown, the mouth open".
_PARTICIPLE = re.compile(r"\b\w+ed\b|\bdrawn\b", re.IGNORECASE)
_SUBJECT = re.compile(
    r"\s*(?:the|this|his|her|their|she|he|they|we|i|one|there|it)(?:'\w+)?\s", re.IGNORECASE
)
# "no AU12 and a clear AU15", but not "without a frown and a smile".
_STATED = re.compile(
    r"\s*(?:(?:with|only|just|instead|hence|thus|therefore|ergo|so)\s+)?(?:(?:an?|some)\s|(?:very\s+)?(?:clear|obvious|strong|slight|pronounced|distinct"
    r"|definite|marked|mild|moderate|intense|noticeable|evident|weak|faint)(?:ly)?\s)",
    re.IGNORECASE,
)
_TOO = re.compile(rf"{_WRAP}{_ITEM}(?>{_LINK}{_WRAP}{_ITEM})*+,?\s*(?:too|also|as\s+well)\b", re.I)
_HENCE = re.compile(r"\s*(?:instead|hence|thus|therefore|ergo|so|leaving)\b", re.IGNORECASE)
_NOT_SO = re.compile(r",\s*not\s+\w+\s*:$", re.IGNORECASE)  # "down, not up: AU15"
_DENIES_A = re.compile(
    r"\b(?:an?|any|clear|obvious|strong|slight|pronounced|distinct|noticeable|evident)\s", re.I
)
_OR = re.compile(r"\b(?:or|nor)\b", re.IGNORECASE)
# A list of AUs that is the subject of a new statement.
_NEW_SUBJECT = re.compile(
    rf"(?:\s|\b(?:the|both|also|only)\b)*{_ITEM}(?>{_LINK}{_WRAP}{_ITEM}){{0,30}}+\s*(?:\b(?:all|both|also|clearly|alone|activation|activity|action|movement)\s+)*"
    rf"(?P<predicate>\b(?:{_FINITE}|\w{{2,6}}n't)\b"
    r"|\b(?:seen|observed|detected|noted|present|active|visible|engaged|activated|dominates?"
    r"|means?|points?|gives?|makes?|tells?|strong|mild|clear|weak|moderate|slight|intense)\b)",
    re.IGNORECASE,
)
_PLURAL = re.compile(
    r"(?:are|were|have|do|show|appear|seem|remain|stay|aren't|weren't|don't)\b", re.I
)
_OPEN_BEFORE = re.compile(
    r"\b(?:whether|(?<!as\s)if|(?:usually|typically|normally|generally|commonly|often)(?!\s*[,.;:)])|needs?|hardly|scarcely"
    r"|(?:false|wrong|untrue)\s+that|claims?|den(?:y|ies)"
    r"|kein\w*|ohne|sans|pas|nicht|senza"
    r"|requires?|unclear|uncertain|unsure|unlikely|doubtful|questionable"
    r"|not\s+(?:clear|sure|certain))\b"
    r"|(?:might|would|could|may)\s+(?:have\s+)?expect(?:ed)?\b|\b(?:cannot|can't)\s+(?:say|claim|conclude)\b|\b(?:unless|in\s+case|removed|deleted)\b",
    re.IGNORECASE,
)
_OPEN_AFTER = re.compile(
    r"\b(?:unclear|uncertain|unlikely|doubtful|questionable|hardly|scarcely|negligible|removed|deleted"
    r"|not\s+(?:clear|certain|sure)\b|(?:can)?not\s+be\s+(?:determined|judged|assessed|scored|coded|rated|measured))\b",
    re.IGNORECASE,
)
_WOULD = re.compile(
    r"\bwould\s+(?:also\s+)?(?:be|have|show|need|require|include|involve|appear|occur|act|fire|come"
    r"|accompany|join|follow|add|contract|activate)\b",
    re.IGNORECASE,
)
_EXCEPT = re.compile(
    r"\b(?:except(?:\s+for)?|other\s+(?:\w+\s+){1,3}than|other\s+than(?!\s+that)|apart\s+from|aside\s+from|save(?:\s+for)?|excluding|besides"
    r"|with\s+the\s+exceptions?\s+of)\s*:?\s*(?:the\s+)?(?=\W*\ue000)",
    re.IGNORECASE,
)
_RUN = re.compile(rf"{_WRAP}{_ITEM}(?>{_LINK}{_WRAP}{_ITEM})*+", re.I)
_NONE = re.compile(
    rf"\b(?:no|none|not|nothing|never|neither|without|still|rest|neutral|{_GONE}|lacks?)\b|n't\b",
    re.I,
)
_MAY_EXCEPT = re.compile("[Ee]xc|[Oo]ther|[Aa]part|[Aa]side|[Ss]ave|[Bb]esides")
_COPULA_NEXT = re.compile(r"\s*(?:is|are|was|were|has|have|remains?|stays?|at)\b", re.IGNORECASE)
_AT_REST = re.compile(r"\b(?:zero|nil|off|relaxed|silent|quiet|ruled\s+out|excluded)\b", re.I)
_ALL_BUT = re.compile(
    r"\b((?:all|every|any|no|none|nothing|everything)(?:\s+(?:of|the|them|other|AUs?|(?:action\s+)?units?"
    r"|muscles?)){0,4})\s+but\s+(?=(?:the\s+)?\ue000)",
    re.IGNORECASE,
)
_RULED_OUT_BUT_NOT = re.compile(
    rf"(\brul(?:e|es|ed|ing)\s+out\s+(?:the\s+)?{_WRAP}{_ITEM}(?>{_LINK}{_WRAP}{_ITEM}){{0,30}}+),?\s+but\s+not(?=\s+\ue000)",
    re.IGNORECASE,
)
_RULE_OUT = re.compile(
    rf"\b(rul(?:e|es|ed|ing))\s+((?:the\s+)?{_WRAP}{_ITEM}(?>{_LINK}{_WRAP}{_ITEM}){{0,30}}+)\s+out\b",
    re.I,
)
# "AU24 but no AU23, AU17 but no AU15": what is right before "but no" is affirmed.
_BEFORE_BUT_NO = re.compile(
    rf",(?=\s*(?:and\s+)?{_ITEM}(?>{_LINK}{_WRAP}{_ITEM}){{0,30}}+,?\s+but\s+(?:no|not|without)\b)",
    re.IGNORECASE,
)
# "Had AU4 been active, ..." and "of AU1, AU2 and AU4, only ...": what is only considered.
_CONSIDERED = re.compile(
    rf"^\W*(?:(?:(?:had|were|should)\s+(?:the\s+|there\s+)?(?:been\s+)?(?=\ue000)|(?:if|unless|provided|supposing|assuming|in\s+case)\b)"
    rf"[^;]*?(?:,(?!\s*(?:and\s+|or\s+)?\ue000)|$)|(?:out\s+)?(?:of|among)\s+(?:the\s+)?{_WRAP}{_ITEM}(?>{_LINK}{_WRAP}{_ITEM})*+,\s*(?:only|just)\b)",
    re.IGNORECASE,
)
_NONE_OF = re.compile(r"\b(?:none\s+of|neither)\b", re.IGNORECASE)
_EVERY = re.compile(
    r"\b(?:all|every|each|everything|both|active|present|visible|engaged)\b|\ue000", re.I
)
# "AU2: the outer brows are not raised, so it is absent": prose behind the name of an AU.
_PROSE = re.compile(
    rf"[\"'*`)\]]*{_NAME}[\"'*`]*\s*"
    r"(?::|\s[-\u2013\u2014]\s)[\"'*\s]*([^\n\ue000.!?;]*)",
    re.IGNORECASE,
)
_IT_IS_NOT = re.compile(
    rf"\b(?:it|this(?:\s+(?:AU|unit|action\s+unit|muscle))?)\s+(?:(?:is|was)(?:n't|\s+not)\b{_STILL}|(?:is|was)\s+{_GONE}\b)",
    re.I,
)
_DOES_NOT = re.compile(
    r"(?:(?:the|both|his|her|their)\s+)?(?:\w+\s+){1,4}?(?:is|are|do|does|remain|remains)"
    r"(?:n't|\s+not)\s+(?:\w+ly\s+)?(\w{4})",
    re.IGNORECASE,
)


# In each sentence that does more than state AUs: the stems of all words of the patterns above.
_TRIGGER = re.compile(
    r"\b(?:no|not|none|nor|neither|never|cannot|lack|fail|rul|exclu|dismiss|absen|missing|inactive"
    r"|unobserved|undetected|unaccomp|false|wrong|untrue|claim|deny|denies|suppress|negative|dormant|denied|without|free|rather|instead|unlike|devoid"
    r"|in\s+place|as\s+opposed|invisible|deactivated|nonexistent|non|unengaged|unactivated|nowhere"
    r"|reject|contradict|relax|at\s+rest|off|zero|nil|would|whether|if|usually|typically|normally"
    r"|generally|commonly|often|need|requir|un|doubt|question|hardly|scarcely|except|other|apart"
    r"|aside|save|besides|imperceptible|negligible|kein|ohne|sans|pas|nicht|senza|with\s+the|(?:had|were|should)\s+(?:the\s+|there\s+)?(?:been\s+)?\ue000"
    r"|0(?:\.0+)?\s+(?:for|of|in|on)\s|possible|gone|silent|quiet|out|discount|discard|disappear|vanish|unless|(?:hard|difficult|impossible)\s+to|provided|supposing|assuming|in\s+case|remove|delete"
    r"|expect|against\s*(?::|(?:the\s+)?\ue000)|reject|refut|eliminat|eras|ignor|blank|crossed|struck|anything\s+but|in\s+contrast|but\s+\ue000|only\s+\ue000)|n't|\?"
)
_ELIDED_NAME = re.compile(
    r"(?<=[,;]\s)((?:but|and|while)\s+)?(?=\d{1,2}\s+(?:is|was)(?:n't|\s+not)\s*(?:[.,;]|$))",
    re.IGNORECASE,
)
_SPACES = re.compile(r"[^\S\n]{2,}")


def read(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(AUs that the text says are present, AUs that it says are absent), sorted and disjoint. A
    denial outweighs another mention, but that of one side of the face only another denial."""
    text = notations.as_lines(notations.in_full(_SPACES.sub(" ", text)))
    if (
        (" not" in text or "n't" in text) and _ELIDED_NAME.search(text) and _AU.search(text)
    ):  # "AUs 1 and 2 are raised, 4 is not"
        text = _ELIDED_NAME.sub(r"\1AU", text)
    if "\u2014" in text:
        text = _DASHED_HEADING.sub(r"\1: ", text)
    if "<" in text:
        text = _MARKUP.sub(" ", text)
    marked, groups = _mark(text)
    if not groups:
        return (), ()
    verdicts = _verdicts(marked, groups)
    present: set[int] = set()
    absent: set[int] = set()
    one_side: set[int] = set()
    for number, group in enumerate(groups):
        verdict = verdicts.get(number, OPEN)
        if verdict == PRESENT:
            present.update(group.aus)
        elif verdict == ABSENT:
            (one_side if group.sided else absent).update(group.aus)
    absent |= one_side - present
    return tuple(sorted(present - absent)), tuple(sorted(absent))


def _verdicts(marked: str, groups: list[Group]) -> dict[int, str]:
    """{number of a group: what the marked text says of it}."""
    verdicts: dict[int, str] = {}
    any_denial = _TRIGGER.search(marked.lower()) is not None
    if any_denial:
        marked = _RULED_OUT_BUT_NOT.sub(r"\1; one cannot rule out", marked)
        marked = _RULE_OUT.sub(r"\1 out \2", marked)
        marked = _ASIDE.sub(" ", _TWICE.sub(" possible ", marked))
        if "but" in marked:
            marked = _BEFORE_BUT_NO.sub(";", marked)
            marked = _ALL_BUT.sub(r"\1 except ", marked).replace("anything but", "not")
    mentions = list(_MARK.finditer(marked))
    excepted = _excepted(marked) if any_denial and _MAY_EXCEPT.search(marked) else set()
    for mention, value in zip(mentions, _values(marked, mentions, groups), strict=True):
        number = int(mention[1])
        verdict = value
        if number in excepted:
            continue
        if verdict is None:
            verdict = _prose_verdict(marked, mention, groups[number]) if any_denial else PRESENT
        if verdict:
            verdicts[number] = verdict
    last = ""
    for sentence in _SENTENCE.split(marked) if any_denial else ():
        if "\ue000" in sentence:
            _read_sentence(sentence, verdicts)
        elif reply := _later_verdict(last, sentence):
            before = [int(mention[1]) for mention in _MARK.finditer(last)]
            verdicts.update(dict.fromkeys(before, reply if len(before) == 1 else OPEN))
        last = sentence
    if any_denial:
        _elided(marked, verdicts)
    return verdicts


def _later_verdict(last: str, sentence: str) -> str | None:
    """What a sentence that names no AU says of the one before: "AU4? No.", "It is absent.",
    "That is hard to tell."; None if it says nothing of it."""
    if _TAKEN_BACK.match(sentence):
        return ABSENT
    if _UNDECIDED.match(sentence):
        return OPEN
    reply = _REPLY.match(sentence)
    if reply is None or not last.rstrip(" \"'*)").endswith("?"):
        return None
    if _NONE.search(last):
        return OPEN  # "Is AU4 absent? No."
    return ABSENT if reply["no"] else PRESENT


def _elided(marked: str, verdicts: dict[int, str]) -> None:
    """Decide "AU4 cannot" and "AU4 is too" by the verb before: "AU1 can be excluded; AU4 cannot."
    denies nothing of AU4."""
    for match in _ELLIPSIS.finditer(marked):
        before = marked[max(0, match.start() - _LONGEST_SUBJECT) : match.start()]
        before = before[before.rfind("\ue001") + 1 :]
        told = _ANTECEDENT.search(before)
        if told is None or (_STOP.search(before) and "can" not in match[0].lower()):
            continue
        alike = match["also"] and not match["no"] and "possible" not in told[0].lower()
        for mention in _MARK.finditer(match[0]):
            verdicts[int(mention[1])] = ABSENT if alike else OPEN
    for match in _AS_BEFORE.finditer(marked) if _MAY_BE_AS_BEFORE.search(marked) else ():
        before = marked[max(0, match.start() - _LONGEST_SUBJECT) : match.start()]
        before = before[before.rfind("\ue001") + 1 :]
        told = _ANTECEDENT.search(before) or _NONE.search(before)
        if told is None:
            continue
        sure = "with" not in match[0] and "possible" not in before
        for mention in _MARK.finditer(match[0]):
            if verdicts.get(int(mention[1])) == PRESENT:
                verdicts[int(mention[1])] = ABSENT if sure else OPEN


def _excepted(marked: str) -> set[int]:
    """The marks that a predicate behind them is not about: "all except AU4 and AU12 are at 0"."""
    numbers: set[int] = set()
    for exception in _EXCEPT.finditer(marked):
        run = _RUN.match(marked, exception.end())
        if run and _COPULA_NEXT.match(marked, run.end()):
            numbers.update(int(mention[1]) for mention in _MARK.finditer(run[0]))
    return numbers


def _prose_verdict(marked: str, mention: re.Match[str], group: Group) -> str | None:
    """What prose behind the name of an AU says of it, if it denies something; None if it does not:
    ABSENT if it denies the AU's own movement, OPEN if what it denies may be another one."""
    match = _PROSE.match(marked, mention.end())
    if not match or not _NONE.search(match[1]):
        return None
    if _IT_IS_NOT.search(match[1]):
        return ABSENT
    movement = _DOES_NOT.match(match[1])
    names = " ".join(f"{facs.AUS[au].name} {facs.AUS[au].cue}" for au in group.aus)
    if movement and movement[1].lower() in names:
        return ABSENT
    denial = _NEGATES_SUBJECT.search(match[1])
    return OPEN if denial and denial.start() > 0 else None


def _read_sentence(sentence: str, verdicts: dict[int, str]) -> None:
    """Add a verdict for each mark of the sentence that has none."""
    if not _TRIGGER.search(sentence.lower()):
        for mention in _MARK.finditer(sentence):
            verdicts.setdefault(int(mention[1]), PRESENT)
        return
    if sentence.rstrip(" \"'*)").endswith("?"):
        for mention in _MARK.finditer(sentence):
            verdicts.setdefault(int(mention[1]), OPEN)
        return
    if considered := _CONSIDERED.match(sentence):
        for mention in _MARK.finditer(considered[0]):
            verdicts.setdefault(int(mention[1]), OPEN)
    exception = _EXCEPT.search(sentence)
    if exception is None:
        _read_statement(sentence, verdicts)
        return
    before = sentence[: exception.start()]
    run = _RUN.match(sentence, exception.end())
    end = run.end() if run else exception.end()
    comma = sentence.find(",", exception.end(), end)
    if not before.strip() and comma >= 0 and _VERB.search(sentence, end):
        end = comma  # "Except for AU4, AU6 and AU12 are absent."
    whole = before if before.strip() else sentence[end:]
    if before.strip() and not _VERB.search(before):  # "All AUs other than AU12 are inactive."
        whole += re.split("[,;\ue000]", sentence[end:], maxsplit=1)[0]
    none, every = _NONE.search(whole) or _AT_REST.search(whole), _EVERY.search(whole)
    verdict = PRESENT if none else ABSENT if every else OPEN
    if exception[0].lower().startswith("besides") and not none:
        verdict = OPEN if re.search(r"\b(?:all|every)", whole, re.IGNORECASE) else PRESENT
    elif not before.strip() and every and "\ue000" in every[0]:
        verdict = OPEN  # "Apart from AU6, AU12 is active": as well as, or without?
    for mention in _MARK.finditer(sentence, exception.end(), end):
        verdicts.setdefault(int(mention[1]), verdict)
    for part in (before, sentence[end:]):
        if "\ue000" in part:
            _read_statement(part, verdicts)


# Words that deny, wherever they stand: if no AU of a statement is denied, which one is unclear.
_DENIES = re.compile(
    r"\b(?:absen\w*|inactiv\w*|missing|nothing(?!\s+(?:else|more|other|further))|anything\s+but|in\s+contrast\s+to|neither"
    r"|(?:reject|refut|eliminat|discard|discount|exclud|dismiss|fail|vanish|disappear|eras|ignor)(?:e|s|es|ed|ing)?"
    r"|dormant|gone|blank|unmoved|untouched|unaffected|unmarked|unticked|unscored|uncoded|crossed\s+out|struck)\b",
    re.IGNORECASE,
)


def _read_statement(sentence: str, verdicts: dict[int, str]) -> None:
    new = []
    cues = _Cues(sentence)
    bounds = _clause_bounds(sentence, cues)
    for mention in _MARK.finditer(sentence):
        number = int(mention[1])
        if number not in verdicts:
            clause = bisect_right(bounds, mention.start())
            end = bounds[clause] if clause < len(bounds) else len(sentence)
            verdicts[number] = _verdict(sentence, mention, bounds[clause - 1], end, cues)
            new.append(number)
    if all(verdicts[number] == PRESENT for number in new) and _DENIES.search(sentence):
        verdicts.update(dict.fromkeys(new, OPEN))


def _verdict(sentence: str, mention: re.Match[str], start: int, end: int, cues: _Cues) -> str:
    """What the clause from `start` to `end` says of a mention in it."""
    at, after = mention.span()
    if cues.first("would", start, end) is not None or cues.first("open", start, at) is not None:
        return OPEN
    if cues.in_negated_list(start, at):
        return ABSENT
    negation = cues.first("not next", start, at + 1)
    while negation is not None and _is_closed(sentence, negation, at):
        negation = cues.first("not next", negation + 1, at + 1)
    if negation is not None:
        colon = sentence.find(":", negation, at)
        own = "\ue000" in sentence[start:negation]  # "AU26 is not needed: AU25 explains it"
        if colon >= 0 and (own or not _HEADS.search(sentence[start:colon])):
            return OPEN  # "the smile does not reach the eyes: AU12"
        relation = cues.denial(negation, at) or cues.denial(max(start, negation - 12), at)
        return OPEN if relation and _RELATION.match(sentence, relation.end()) else ABSENT
    if cues.first("open after", after, end) is not None:
        return OPEN
    denial = cues.denial(after, end)
    if denial is None or cues.first("verb", after, denial.start()) is not None:
        return OPEN if _denies_something(sentence, after, end, cues) else PRESENT
    if denial.start() - after > _LONGEST_SUBJECT:
        return OPEN
    return _as_subject(sentence, mention, denial)


_DENIAL_LEFT = re.compile(
    rf"\b(?:no|not|never|none|zero|nil|off|absen\w*|inactiv\w*|lack\w*|missing|without|nicht|pas|kein\w*)\b{_STILL}"
    rf"(?!\s+(?:others?|further|additional|more|else)\b)|n't\b{_STILL}",
    re.IGNORECASE,
)
_NEXT_WORDS = re.compile(r"\s*(?:[\w']+\s+){0,4}\W*")


def _denies_something(sentence: str, after: int, end: int, cues: _Cues) -> bool:
    """Whether a denial that no rule explains stands between a mention and the next one, before any
    verb, and not right before the next one, about which it then is."""
    if sentence[after : after + 4].lstrip("\"'*`").startswith(")"):
        return False  # what is said of it stands before it
    mark = sentence.find("\ue000", after, end)
    stop = mark if mark >= 0 else end
    denial = _DENIAL_LEFT.search(sentence, after, stop)
    if denial is None or cues.first("verb", after, denial.start()) is not None:
        return False
    return mark < 0 or not _NEXT_WORDS.fullmatch(sentence, denial.end(), stop)


_LONGEST_SUBJECT = 600  # characters
_ELLIPSIS = re.compile(
    rf"{_ITEM}(?>{_LINK}{_WRAP}{_ITEM}){{0,30}}+\s*\b(?:is|are|was|were|do|does|did|has|have|can|could|should|may|might)"
    rf"(?P<no>n't|\s*not)?\b(?P<also>,?\s+(?:too|also|as\s+well|either|likewise))?(?=\s*(?:$|[.,;!)\n]|\b(?:but|and|while|though)\b))",
    re.IGNORECASE,
)
_AS_BEFORE = re.compile(
    rf"\b(?:so|as|(?:the\s+)?same\s+(?:goes|holds|applies|is\s+true))\s+(?:is|are|was|were|for|to|of)\s+{_WRAP}{_ITEM}(?>{_LINK}{_WRAP}{_ITEM})*+"
    rf"|\b(?:along|together)\s+with\s+{_WRAP}{_ITEM}",
    re.IGNORECASE,
)
_MAY_BE_AS_BEFORE = re.compile("so |as |same |with ")
_TAKEN_BACK = re.compile(
    rf"\W*(?:here\s+|[\w\s]{{1,30}},\s*)?(?:(?:it|they|this|these)?\s*(?:is|are|was|were)(?:\s+(?:actually|really|completely|entirely))?\s*(?:{_GONE}"
    r"|(?:not|n't)\s+(?:present|active|visible|found|seen|detected|observed|there))"
    r"|(?-i:not)\s+(?:found|seen|detected|observed|visible|there))\s*(?:[.,;!)]|$|(?:here|at|in|on)\b)",
    re.IGNORECASE,
)
_UNDECIDED = re.compile(
    r"\W*(?:(?:it|this|that)(?:\s+is|'s)|I\s+(?:am|find\s+it))\s+(?:\w+\s+)?(?:hard|difficult|impossible|unsure"
    r"|uncertain|unclear|too\s+\w+)\b",
    re.IGNORECASE,
)
_REPLY = re.compile(r"\W*(?:yes|yep|(?P<no>no|nope))\b(?=\s*(?:[.,;:!]|$))", re.IGNORECASE)
_STOP = re.compile(r"[.!?]\s|\n")
_ANTECEDENT = re.compile(
    rf"\b(?:{_GONE}|possible|ruled\s+out|excluded|dismissed|relaxed|at\s+rest|off|zero|nil|denied|suppressed|lacks?)\b",
    re.IGNORECASE,
)
# What may stand between the AU of a list and "absent" or "not seen" without a verb.
_ONLY_A_LIST = re.compile(
    rf"(?:\([^()]*\)|[\s\"'*`,&/+()\[\]:|-]|\ue000\d+\ue001|\b(?:and|or|nor|the|also|both|as\s+well\s+as"
    rf"|is|are|was|were|remains?|stays?|est|ist|activity|activation|movement|action|{_AU_NAMES})\b)*+",
    re.IGNORECASE,
)
_LIST_WORD = re.compile(r"\b(?:and|or|nor|as\s+well\s+as|both|neither)\b|[&+/]", re.IGNORECASE)


_RELATION = re.compile(
    r"\s*(?:\w+ly\s+)?(?:accompan|co-?occur|join|pair|combin|coupl|match|associat|follow|explain|caus"
    r"|due\b|support|go\s+with|be\s+(?:accompan|pair|combin|explain))\w*",
    re.IGNORECASE,
)


def _in_brackets(sentence: str, at: int) -> bool:
    low = max(0, at - _LONGEST_SUBJECT)
    return sentence.rfind("(", low, at) > sentence.rfind(")", low, at)


_HEADS = re.compile(
    rf"\ue000|\b(?:AUs?|units?|muscles?|codes?|{_NEGATIVE_WORD}|following|these|activ\w*|engage\w*|present|visible"
    r"|seen|observed|detected|found|noted|shown|identified|scored|coded|movement|signs?|evidence|trace|activity|no|none|zero)\b",
    re.IGNORECASE,
)


def _is_closed(sentence: str, cue: int, at: int) -> bool:
    """Whether the bracket that a cue stands in is closed before `at`."""
    return sentence.find(")", cue, at) >= 0 and _in_brackets(sentence, cue)


def _as_subject(sentence: str, mention: re.Match[str], denial: re.Match[str]) -> str:
    """Whether a denial later in the clause is about the mention, or about another subject."""
    between = sentence[mention.end() : denial.start()]
    if _RELATION.match(sentence, denial.end()):
        return OPEN  # "AU6 does not accompany AU12"
    bracketed = _in_brackets(sentence, mention.start())
    last = sentence.rfind("\ue001", mention.end(), denial.start())
    if last >= 0 and bracketed != _in_brackets(sentence, last):
        return PRESENT if bracketed else OPEN  # "a smile (AU12), AU4 is absent"
    if denial["bare"] and not _ONLY_A_LIST.fullmatch(re.sub(r"\w+ly\s*$", "", between)):
        return PRESENT if last >= 0 else OPEN  # "AU6, possibly with AU7 absent"
    is_list = bool(_LIST_WORD.search(between) or _PLURAL.match(denial[0]))
    singular = not denial["bare"] or re.match(r"(?:is|was)\b", denial[0], re.IGNORECASE)
    if last >= 0 and not is_list and singular:
        return PRESENT if bracketed else OPEN  # "AU6, AU4 is absent": one subject
    if last < 0 and _NEW_PERSON.search(between):
        return PRESENT if bracketed else OPEN  # "a smile (AU12), the brows are not lowered"
    return ABSENT


_NEW_PERSON = re.compile(r",\s*(?:the|his|her|their|she|he|they|it)\s", re.IGNORECASE)
_CUES = {
    "not next": _NEGATES_NEXT, "verb": _VERB, "participle": _PARTICIPLE, "or": _OR,
    "would": _WOULD, "open": _OPEN_BEFORE, "open after": _OPEN_AFTER, "none of": _NONE_OF,
}  # fmt: skip


class _Cues:
    """Where the words stand that decide what a sentence says."""

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence
        self.starts: dict[str, list[int]] = {}  # filled when first looked up
        self.denials = list(_NEGATES_SUBJECT.finditer(sentence))
        self.starts["denial"] = [match.start() for match in self.denials]
        lists = [match.span() for match in _NEGATES_LIST.finditer(sentence)]
        self.starts["list"], self.list_ends = [a for a, _ in lists], [b for _, b in lists]

    def first(self, name: str, low: int, high: int | None) -> int | None:
        """The first cue in [low, high), None if there is none."""
        starts = self.starts.get(name)
        if starts is None:
            starts = [match.start() for match in _CUES[name].finditer(self.sentence)]
            self.starts[name] = starts
        at = bisect_left(starts, low)
        return starts[at] if at < len(starts) and (high is None or starts[at] < high) else None

    def denial(self, low: int, high: int) -> re.Match[str] | None:
        """The first match of `_NEGATES_SUBJECT` that starts in [low, high)."""
        at = bisect_left(self.starts["denial"], low)
        found = at < len(self.denials) and self.denials[at].start() < high
        return self.denials[at] if found else None

    def in_negated_list(self, start: int, at: int) -> bool:
        """Whether `at` is in the list behind "without", "instead of" ... of its clause."""
        last = bisect_right(self.list_ends, at) - 1
        return (
            last >= 0
            and self.starts["list"][last] >= start
            and not _is_closed(self.sentence, self.starts["list"][last], at)
            and self.first("verb", self.list_ends[last], at) is None
            and _LIST_ENDS.search(self.sentence, self.list_ends[last], at) is None
        )

    def negative(self, start: int, cut: int) -> bool:
        return any(self.first(name, start, cut) is not None for name in ("not next", "list"))


def _clause_bounds(sentence: str, cues: _Cues) -> list[int]:
    """Where clauses start: at 0 and at each comma or "and" that begins a new statement. Those
    inside a list of muscles do not: "no AU4, AU7 or AU9 is seen" is one clause."""
    bounds = [0]
    cuts = [match.span() for match in _SEGMENT.finditer(sentence)]
    stops = [*(cut for cut, _ in cuts), len(sentence)][1:]
    for (cut, inside), stop in zip(cuts, stops, strict=True):
        start = bounds[-1]
        if _in_brackets(sentence, cut) and (close := sentence.find(")", inside, stop)) >= 0:
            stop = close
        subject = _NEW_SUBJECT.match(sentence, inside)
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
    """Whether a segment is no part of the negation before it, in the clause from `start`: "no
    frown, lips parted" is two statements, "no lowered brows, raised cheeks or parted lips" one."""
    inside, stop = segment
    verb = cues.first("verb", inside, stop)
    if verb is not None and cues.first("or", inside, verb) is None:
        return True
    if cues.first("or", inside, None) is not None:
        return False
    if sentence[start:inside].count("\ue000") and _TOO.match(sentence, inside):
        return cues.first("not next", start, inside) is None
    if _STATED.match(sentence, inside) and not _DENIES_A.search(sentence, start, inside):
        return True
    second = cues.first("list", inside, stop)
    named = second is not None and "\ue000" in sentence[inside:second]
    if named and cues.first("not next", start, inside) is None:
        return True  # "AU1 without AU2, and AU15 without AU17"
    if _HENCE.match(sentence, inside) or _NOT_SO.search(sentence[max(start, inside - 40) : inside]):
        return True
    participle = cues.first("participle", inside, stop) is not None
    return participle or _SUBJECT.match(sentence, inside, stop) is not None


_THAT = re.compile(
    rf"\b(?:meaning|mean[s]?|suggest(?:s|ing)|impl(?:y|ies|ying)|indicat(?:es|ing)|confirm(?:s|ing)|that|so|i\.e\.,?)"
    rf"\s+(?:that\s+|the\s+)?{_WRAP}{_ITEM}(?>{_LINK}{_WRAP}{_ITEM})*+\s*$",
    re.IGNORECASE,
)
_LIST_ENDED = re.compile(r"\b(?:or|nor|and)\s*\ue000\d+\ue001[\s,)]*$", re.IGNORECASE)


def _is_new_statement(
    sentence: str, cues: _Cues, clause: tuple[int, int], subject: re.Match[str]
) -> bool:
    """Whether a list of AUs with a predicate is the subject of a statement of its own, or goes on
    with the list that the clause before it has begun."""
    start, cut = clause
    predicate = subject["predicate"]
    if not cues.negative(start, cut):
        return cues.first("verb", start, cut) is not None and not (
            _PLURAL.match(predicate) and _THAT.search(sentence[max(start, cut - 200) : cut])
        )
    if _OR.search(sentence, cut, subject.start("predicate")):
        return False
    if _LIST_ENDED.search(sentence[max(start, cut - 60) : cut]):
        return True  # "neither AU4 nor AU7, and AU12 is strong"
    mark = sentence.find("\ue000", start, cut)
    denied = mark >= 0 and cues.first("denial", mark, cut) is not None
    finite = re.fullmatch(_FINITE + r"|\w+n't", predicate, re.IGNORECASE)
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
    if is_list and (negation is not None or _PLURAL.match(predicate)):
        # "Instead of AU4, AU6 and AU12 are active", but "no AU4, AU6 and AU12 are seen"
        if negation is None or sentence[start:negation].strip(" ,") or sentence[cut] != ",":
            return False
        return sentence[negation].lower() in "iwru"  # instead, without, rather, unlike
    return bool(finite)
