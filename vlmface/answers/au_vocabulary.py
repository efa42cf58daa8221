"""Words and patterns that the readers of action units share.

Patterns are texts for `re`, compiled where a name is used as it stands. In a marked text each group
of AUs that is named together is a mark (`au_numbers.mark_mentions`): "\\ue0003\\ue001" is group 3.
"""

from __future__ import annotations

import re

from vlmface import facs

PRESENT, ABSENT, UNDECIDED = "present", "absent", "undecided"  # verdicts on a mention
MAX_SUBJECT_CHARS = 600  # between a mention and the predicate that may be about it


# --- marks and lists of them ----------------------------------------------------------------------

MARK = re.compile("\ue000(\\d+)\ue001")  # a group of AUs, by its position in a list
AU_NAMES = "|".join(re.escape(unit.name) for unit in facs.AUS.values())
BRACKETED_NAME = r"(?:\s*\([^()\d]{1,40}\))?"
# What stands between the AUs of a list.
LINK = (
    r"\s*(?:,\s*(?:(?:and|or|nor|also)\s+)*|;\s*|[&/+]"
    r"|\b(?:and/or|and|or|nor|as\s+well\s+as|plus)\b(?:\s+also\b)?)\s*"
)
WRAP = r"[\"'*`()\[\]\s]*"
MARKED_AU = r"\ue000\d+\ue001[\"'*`)\]]*" + BRACKETED_NAME
MARKED_LIST = rf"{MARKED_AU}(?>{LINK}{WRAP}{MARKED_AU}){{0,30}}+"
MARKED_RUN = rf"{MARKED_AU}(?>{LINK}{WRAP}{MARKED_AU})*+"  # of any length

# --- words that deny ------------------------------------------------------------------------------

# Adjectives of a muscle that does not act. The patterns add their own to them.
_ABSENT = (
    "absent|missing|inactive|undetected|undetectable|unobserved|unseen|invisible|deactivated"
    "|dormant|nonexistent|unengaged|unactivated"
)
# What an annotator decided: "ruled out: AU4".
_REJECTED = r"excluded|ruled\s+out|denied|rejected|zero"
ABSENT_ADJECTIVE = f"(?:{_ABSENT}|lacking|imperceptible|non-existent|nowhere)"
NEGATIVE_ADJECTIVE = f"(?:{_ABSENT}|{_REJECTED}|negative)"
# In headings and keys: "not observed: AU4", "absent_aus".
NEGATIVE_HEADING = re.compile(
    rf"\b(?:{_ABSENT}|{_REJECTED}|negated?|no|none|not(?!\s+only)|without|off|false)\b"
    r"|\bnegatives?(?:\s+(?:aus?|action\s+units?))?\W*$",
    re.IGNORECASE,
)
# Words after "not" or "no" that leave the muscle at work: "not only", "not very strong".
_QUALIFIERS = (
    "only|just|merely|simply|very|too|so|fully|strong|strongly|particularly|entirely|quite|as|less"
    "|absent|missing|inactive"
)
QUALIFIER = rf"(?:{_QUALIFIERS})\b"
NOT_QUALIFIED = rf"(?!\s+(?:{_QUALIFIERS}|doubt|closed|shut)\b)"

ANY_NEGATION = re.compile(
    rf"\b(?:no|none|not|nothing|never|neither|without|still|rest|neutral|{ABSENT_ADJECTIVE}"
    rf"|lacks?)\b|n't\b",
    re.I,
)

# --- verbs ----------------------------------------------------------------------------------------

# "is", "appears to be", "was clearly": what links a subject to its predicate.
COPULA = (
    r"\b(?:is|are|was|were|be|been|remains?|stays?|(?:appears?|seems?|looks?)(?:\s+to\s+be)?)\s+"
    r"(?:(?:\w+ly|also|still|all|both|marked|coded|rated|scored|labell?ed|considered|judged|deemed"
    r"|as)\s+){0,2}"
)
FINITE_VERB = (
    r"(?:is|are|was|were|has|have|had|do|does|did|can|cannot|could|shows?|appears?|seems?|looks?"
    r"|remains?|stays?|gets?|receives?|moves?|indicates?|suggests?|drops|pulls|tightens|opens"
    r"|closes|rises?|lifts"
    r"|raises|lowers|widens)"
)
VERB = re.compile(
    rf"\b(?:{FINITE_VERB}|needs?|requires?|active|inactive|present|absent|visible|missing"
    rf"|evident)\b|n't\b",
    re.IGNORECASE,
)
PLURAL_VERB = re.compile(
    r"(?:are|were|have|do|show|appear|seem|remain|stay|aren't|weren't|don't)\b", re.I
)

# --- texts that deny nothing ----------------------------------------------------------------------

# The stems of all words of the patterns that do more than state AUs.
_DENIAL_STEM = re.compile(
    rf"\b(?:{_ABSENT}|no|neither|never|cannot|lack|fail|rul|exclu|dismiss|absen|false|wrong|untrue"
    r"|claim|deny|denie|suppress|negative|negligible|without|free|rather|instead|devoid|in\s+place"
    r"|as\s+opposed|reject|contradict|relax|at\s+rest|off|out|zero|nil|would|whether|if|usually"
    r"|typically|normally|generally|commonly|often|need|requir|un|doubt|question|hardly|scarcely"
    r"|except|other|apart|aside|save|besides|imperceptible|kein|ohne|sans|pas|nicht|senza"
    r"|with\s+the|possible|gone|silent|quiet|discount|discard|disappear|vanish|provided|supposing"
    r"|assuming|in\s+case|remove|delete|expect|refut|eliminat|eras|ignor|blank|crossed|struck"
    r"|anything\s+but|in\s+contrast|(?:hard|difficult|impossible)\s+to|(?:but|only)\s+\ue000"
    r"|0(?:\.0+)?\s+(?:for|of|in|on)\s|against\s*(?::|(?:the\s+)?\ue000)"
    r"|(?:had|were|should)\s+(?:the\s+|there\s+)?(?:been\s+)?\ue000)|n't|\?"
)


def may_deny(text: str) -> bool:
    """Whether a marked text may do more than state AUs; if not, all AUs in it are present."""
    return _DENIAL_STEM.search(text.lower()) is not None
