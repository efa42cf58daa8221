"""Values behind the name of an action unit: "AU4: 0", "AU4 (absent)", "AU4 - present"."""

from __future__ import annotations

import re

from vlmface.answers.au_numbers import AUGroup
from vlmface.answers.au_vocabulary import (
    ABSENT,
    AU_NAMES,
    BRACKETED_NAME,
    LINK,
    PLURAL_VERB,
    PRESENT,
    QUALIFIER,
    UNDECIDED,
    WRAP,
)

_VALUE_END = r"(?=[ \t]*(?:$|[\n,.;:|/()\[\]\n\"'*}\u2013\u2014-]))"
_GAP = r"[ \t]*"
_LINKING_VERB = (
    r"(?:is|are|was|were|at|as|scores?|scored|remains?|stays?|coded|rated|marked|given|measures?"
    r"|measured|reads?|gets?|got|receives?"
    r"|received|assigned)"
)
_QUANTITY = r"(?:(?:intensity|score|level|value|strength|activation|activity|grade|rating)\b\s*)"
_NAME_OR_QUANTITY = re.compile(rf"\([^()]*\)|\b{_QUANTITY}", re.IGNORECASE)
_NOT_JUDGED = (
    r"(?:applicable|clear|sure|certain|assess\w*|cod\w+|scor\w+|measur\w+|known|determin\w+"
    r"|evaluat\w+|available)\b"
)
# What may stand between an AU and its value: its name in brackets, a cell of a table, or dashes.
_DESCRIPTION = (
    r"[\"'*`)\]\u00bb]*"
    rf"(?:{_GAP}\([^()\n\d]{{1,60}}\)[\"'*`]*|[ \t]?\|[^|\n]{{1,40}}(?=\|)"
    rf"|{_GAP}[-:\u2013\u2014]{_GAP}(?:{AU_NAMES})\b(?={_GAP}[-:=(\u2013\u2014]))?"
)
# "AU4: ", "AU4 (", "AU4 -> ", or a word before a number, or nothing before a short value at an end.
_VALUE_SIGN = (
    rf"(?:(?:[ \t]+{_QUANTITY})?{_GAP}"
    r"(?P<sign>=>|\.{3,}|->|--|[\u2192\u21d2\u279c\u2248\u00b7~@]|[:=|(\[<\u2013\u2014-])"
    rf"{_GAP}[\"'*`]*(?:[^()\n\d]{{1,40}}[,;:][ \t]+(?=intensity))?"
    rf"|(?='s\s|[ \t]+(?:{_LINKING_VERB}|has|have|with|intensity|level|value|0[.,]\d)"
    rf"|[ \t]+(?:0|(?:none|off|nil|zero|no|n|y|yes|on|neg(?:ative)?|pos(?:itive)?)\b){_VALUE_END}))"
    rf"(?:'s)?{_GAP}(?:(?:has|have|with|shows)[ \t]+)?(?:an?[ \t]+)?{_QUANTITY}?"
    rf"(?:[:=]{_GAP}|(?:{_LINKING_VERB}|of|both|an?)[ \t]+){{0,4}}{_QUANTITY}?(?:of[ \t]+)?[\"'*`]*"
)
_VALUE = re.compile(
    rf"{_DESCRIPTION}{_VALUE_SIGN}"
    rf"(?:(?P<zero>(?:0(?:[.,]0+)?(?:{_GAP}/{_GAP}\d+|[ \t]?%)?(?![.,]?\d)|zero\b))"
    r"|(?P<some>(?:\d*[.,])?\d+)(?![^\W_])"
    r"|(?P<no>(?:false|none|absent|inactive|missing|undetected|undetectable|unobserved|invisible"
    r"|deactivated|dormant|neg(?:ative)?|off|nil|nope|nah"
    r"|nothing(?!\s+(?:else|more|other)))\b|[\u65e0\u7121\u6ca1\u5426]|\u306a\u3057"
    rf"|no(?:{_VALUE_END}|(?=\s+\ue000\d+\ue001\s*[:=]))|n(?={_GAP}(?:$|[,.;|)\n]))|(?<=\()-(?=\))"
    r"|no[ \t]+(?:visible|clear|obvious|noticeable|apparent|significant|signs?|evidence|trace"
    r"|movement|action|activity|activation|contraction|tension|\w+ing)\b"
    rf"|not(?![ \t]+\ue000)(?![ \t]+(?:{QUALIFIER}|{_NOT_JUDGED}))\b)"
    r"|(?P<yes>(?:yes|yep|yeah|true|present|active|activated|detected|observed|visible"
    r"|pos(?:itive)?)\b"
    rf"|y(?={_GAP}(?:$|[,.;|)\n]))|(?<=\()(?:\+|strong|weak|mild|moderate|slight|subtle"
    rf"|faint)(?=\)))"
    r"|(?P<open>\?|[\u2013\u2014-](?=\s*(?:$|[,;\n|.]))"
    r"|(?:relaxed|neutral|still|smooth|flat|at[ \t]+rest|unclear|unknown|uncertain"
    rf"|unsure|n/?a|null|maybe|undetermined|occluded|hidden)\b|not[ \t]+{_NOT_JUDGED}"
    r"|no[ \t]+(?!other|further|additional|doubt|less)\w+))",
    re.IGNORECASE,
)
_NEXT_IN_LIST = re.compile(
    rf"{WRAP}{BRACKETED_NAME}(?:{LINK}|\s*=\s*){WRAP}(?=\ue000)", re.IGNORECASE
)
_VERDICTS_BY_KIND = {
    "zero": ABSENT,
    "no": ABSENT,
    "some": PRESENT,
    "yes": PRESENT,
    "open": UNDECIDED,
}


def read_values(
    marked: str, mentions: list[re.Match[str]], groups: list[AUGroup]
) -> list[str | None]:
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
            values[-1] = _VERDICTS_BY_KIND[kind] if sign != "<" else UNDECIDED
            plural = PLURAL_VERB.match(marked[mention.end() : mention.end() + 9].lstrip())
            signs[-1] = bool(plural or (sign and sign not in "(["))
    for i in range(len(mentions) - 2, -1, -1):
        graded = groups[int(mentions[i][1])].graded
        if values[i] is None and values[i + 1] == ABSENT and signs[i + 1] and not graded:
            link = _NEXT_IN_LIST.match(marked, mentions[i].end())
            if link and link.end() == mentions[i + 1].start():
                values[i], signs[i] = ABSENT, True
    return values
