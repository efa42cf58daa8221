"""Notations of action units other than sentences, turned into lines of text: JSON, tables, check
marks, and lists under a heading. "AU4: no" denies an AU.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from vlmface.answers.au_vocabulary import NEGATIVE_HEADING

_PUNCTUATION = str.maketrans(
    {"\u3002": ". ", "\u3001": ", "} | dict.fromkeys("\u300c\u300d\u300e\u300f\u00ab\u00bb", '"')
)
YES, NO = (
    "\u2713\u2714\u2705\u2611\u221a\U0001f5f8\U0001f44d\U0001f7e2",
    "\u2717\u2718\u2715\u2716\u274c\u2612\u274e\u00d7\u2610\U0001f44e\U0001f6ab\U0001f534",
)
_NAMES_AU = re.compile(r"(?<![^\W_])(?:AUs?|action\s+units?)[\s_#-]*[LR]?\d", re.IGNORECASE)
_ZERO_LINE = re.compile(
    r"^(AU[\s_-]?\d{1,2}(?:_[rc])?)[ \t]*[,;\t][ \t]*0(?:\.0+)?[ \t]*$", re.I | re.M
)


_SEEN = r"(?:active|activated|present|visible|observed|detected|engaged)\b"
_SHORT = {  # what a text with the short form has in it: the form, and the words that it stands for
    "w/": (re.compile(r"\bw/o(?:ut)?\b", re.I), "without"),
    "w/ ": (re.compile(r"\bw/(?=\s*AU)", re.I), "with "),
    "n/o": (re.compile(r"\bn/o\b", re.I), "not observed"),
    " abs": (re.compile(r"(?<=\d\s)abs(?:\.|(?=\s*(?:[,;)\n]|$)))", re.I), "absent"),
    " pres": (re.compile(r"(?<=\d\s)pres(?:\.|(?=\s*(?:[,;)\n]|$)))", re.I), "present"),
    ", no": (re.compile(r"(?<=\d),[ \t]+no(?=[ \t]*(?:[.;\n]|$))", re.I), ": no"),
    "/no": (re.compile(r"(?<=\d)/(yes|no)\b", re.I), r": \1."),
    "~": (re.compile(r"(?<!\w)~\s?(?=AU)", re.I), "no "),
    "!": (re.compile(r"(?<!\w)!\s?(?=AU)", re.I), "no "),
    "\u00ac": (re.compile(r"\u00ac\s?(?=AU)", re.I), "no "),
    "on-": (re.compile(rf"\bnon-{_SEEN}", re.I), "inactive"),
    "on ": (re.compile(rf"\bnon\s{_SEEN}", re.I), "inactive"),
    "nona": (re.compile(r"\bnonactive\b", re.I), "inactive"),
}
# "an intensity of 3 for AU12"
_VALUE_FIRST = re.compile(
    r"\b(?:intensity|score|value|level|grade)\s+(?:of\s+)?(\d(?:\.\d+)?)\s+(?:for"
    r"|on)\s+(AU\s?\d{1,2})\b",
    re.IGNORECASE,
)
_CLOSED = r"(?=[ \t]*(?:[,;\n|]|$))"
_PLUS = re.compile(
    rf"(AU\s?\d{{1,2}})(?:\s*:?\s*\+{_CLOSED}|\s*:\s*\+(?=\s*AU)|\+(?=\s+AU))", re.IGNORECASE
)
_MINUS = re.compile(
    rf"(AU\s?\d{{1,2}})(?:\s*:?\s*[-\u2013\u2212]{_CLOSED}|\s*:\s*[-\u2013\u2212](?=\s*AU)"
    r"|[-\u2013\u2212](?=\s+AU))",
    re.IGNORECASE,
)


def in_full(text: str) -> str:
    """The text with short forms of annotators in full: "AU4 abs.", "w/o AU4", "AU1 +, AU2 -"."""
    for sign, (short, words) in _SHORT.items():
        if sign in text:
            text = short.sub(words, text)
    if " for " in text or " on " in text:
        text = _VALUE_FIRST.sub(r"\2: \1", text)
    if "+" in text and _PLUS.search(text):
        text = _PLUS.sub(r"\1: yes.", _MINUS.sub(r"\1: no.", text))
    return text


_KEY_WORDS = re.compile(r"(?<=[A-Za-z])_(?=[A-Za-z])")  # "absent_aus: 4"


def as_lines(text: str) -> str:
    """The text with each notation as lines that name an AU and its value."""
    if not text.isascii():
        text = text.translate(_PUNCTUATION)
    if "{" in text or "[" in text:
        text = _without_json(text)
    if "_" in text:
        text = _KEY_WORDS.sub(" ", text)
    if "\n" not in text:
        return _check_marks(text)
    text = _ZERO_LINE.sub(r"\1: 0.", text)
    lines = text.split("\n")
    if "|" in text:
        lines = _table_rows(lines)
    if _AU_COLUMNS.search(text):
        lines = _columns(lines)
    text = _check_marks("\n".join(lines))
    return _under_headings(text) if NEGATIVE_HEADING.search(text) else text


# --- JSON -----------------------------------------------------------------------------------------

_JSON_STARTS = 20  # places where JSON may begin that are tried
_KEY_BEFORE = re.compile(r"[\"']?\b([A-Za-z]+(?:[_ ][A-Za-z]+){0,2})[\"']?[ \t]*[:=][ \t]*\Z")
_KEY_AU = re.compile(r"\s*(?:AU[\s_-]*)[LR]?0?(\d{1,2})(?:_[rc])?(?:\b|_).*", re.I | re.DOTALL)
_KEY_LIST = re.compile(r"(?:^|[\W_])(?:aus?|action[\W_]?units?|facs)(?:$|[\W_])", re.IGNORECASE)
_KEY_STATE = re.compile(
    r"(?:present|active|activated|detected|visible|observed|intensity|value|score|level|state"
    r"|status"
    r"|activation|is_active|is_present)",
    re.IGNORECASE,
)


def _without_json(text: str) -> str:
    """The text with each JSON object or list that parses as lines."""
    decoder = json.JSONDecoder()
    parts, last, tried = [], 0, 0
    for start in re.finditer(r"[{\[]", text):
        if start.start() < last or tried == _JSON_STARTS:
            continue
        tried += 1
        try:
            value, end = decoder.raw_decode(text, start.start())
            key = (
                _KEY_BEFORE.search(text, max(last, start.start() - 60), start.start())
                if value
                else None
            )
            lines = list(_json_lines(value, key[1] if key else "", ""))
        except (ValueError, RecursionError):
            continue
        if not isinstance(value, dict) and not any(map(_NAMES_AU.search, lines)):
            continue
        parts += [text[last : key.start() if key else start.start()], "\n", "\n".join(lines), "\n"]
        last = end
    return "".join((*parts, text[last:]))


def _json_lines(value: Any, key: str, parent: str) -> Iterator[str]:
    """Lines for a JSON value; `parent` is the key of the list or object that holds it."""
    words = key.replace("_", " ")
    lists = _KEY_LIST.search(key) or _KEY_LIST.search(parent)
    if isinstance(value, dict):
        if (number := _au_of(value, key)) is not None:
            yield f"AU{number}: {_state(value)}."
            return
        for name, part in value.items():
            part_key = (
                name if not name.strip().isdigit() or not _KEY_LIST.search(key) else f"AU{name}"
            )
            yield from _json_lines(part, part_key, key)
    elif isinstance(value, list):
        for part in value:
            if isinstance(part, dict | list):
                yield from _json_lines(part, key, parent)
            elif _is_number(part) and lists:
                yield f"{_prefix(words)}AU{part}."
            elif isinstance(part, str):
                is_numbered = lists and part.strip().isdigit()
                yield f"{_prefix(words)}{'AU' if is_numbered else ''}{part.strip()}."
    elif match := _KEY_AU.fullmatch(key):
        state = _word(value)
        denied = NEGATIVE_HEADING.search(parent.replace("_", " ")) is not None
        yield f"AU{match[1]}: {'?' if denied else state}."
    elif isinstance(value, str) and _ONLY_AUS.fullmatch(value):
        yield f"{_prefix(words)}{value}."
    elif isinstance(value, str):
        yield f"{words}: {value}" if _KEY_LIST.search(key) and value[:1].isdigit() else value


_ONLY_AUS = re.compile(r"\s*AUs?\s?\d{1,2}(?:\s*(?:[,;&+]|and)\s*(?:AU\s?)?\d{1,2}){0,40}\s*", re.I)


def _prefix(words: str) -> str:
    return "Absent: " if NEGATIVE_HEADING.search(words) else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 100


def _au_of(record: dict[str, Any], key: str) -> int | None:
    """The AU that an object is about: {"au": 12, "intensity": 3}, or "AU12": {"present": true}."""
    for name in ("au", "AU", "action_unit", "unit", "id", "name", "code", "number"):
        value = record.get(name)
        if isinstance(value, str) and (match := _KEY_AU.fullmatch(value)):
            return int(match[1])
        is_number = name.lower() in ("au", "action_unit") or _KEY_LIST.search(key)
        if is_number and str(value).strip().isdecimal() and name != "name":
            return int(str(value).strip()[:3])
    match = _KEY_AU.fullmatch(key)
    return int(match[1]) if match else None


def _state(record: dict[str, Any]) -> str:
    """The value of an object about one AU; "?" where its fields disagree."""
    words = [_word(value) for name, value in record.items() if _KEY_STATE.fullmatch(name)]
    words += [
        "no" if value else "yes"
        for name, value in record.items()
        if name.lower() in ("absent", "inactive") and isinstance(value, bool)
    ]
    denied = {
        bool(re.fullmatch(r"0(?:\.0+)?|no|none|" + NEGATIVE_HEADING.pattern, word, re.I))
        for word in words
        if word != "?"
    }
    return "?" if len(denied) > 1 or (words and not denied) else "no" if denied == {True} else "yes"


def _word(value: Any) -> str:
    if value is None:
        return "?"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | dict):
        return "?"
    return str(value)


# --- tables ---------------------------------------------------------------------------------------

_RULE = re.compile(r"[\s|:+=-]*-[\s|:+=-]*")
_VALUE_COLUMN = re.compile(
    r"present|active|activ|detect|status|state|observ|visib|value|intens|score|level|grade|\?", re.I
)
_ABSENT_COLUMN = re.compile(r"absent|inactive|missing|not\b", re.IGNORECASE)
_CELL = re.compile(
    r"(?:yes|true|y|x|present|active|observed|detected|visible)|(?P<no>no|n|false|none|absent"
    r"|inactive|missing|undetected|not\s+\w+|0(?:[.,]0+)?(?:/\d+|\s?%)?)|(?P<number>\d+(?:[.,]\d+)?"
    r"(?:/\d+|\s?%)?|[A-E])",
    re.IGNORECASE,
)


_YES_NO = re.compile(r"yes|no|true|false|present|absent|active|inactive", re.IGNORECASE)
_AU_COLUMN = re.compile(r"(?:AUs?|action\s+units?)(?:\s*(?:#|no\.?|number))?", re.IGNORECASE)


def _cells(line: str) -> list[str]:
    line = "".join("yes" if c in YES else "no" if c in NO else c for c in line)
    return [cell.strip(" *_`\t") for cell in line.strip().strip("|").split("|")]


def _table_rows(lines: list[str]) -> list[str]:
    """Lines with each row of a table as "AU4: value"."""
    rewritten: list[str] = []
    header: list[str] = []
    for number, line in enumerate(lines):
        if "|" not in line:
            header = []
            rewritten.append(line)
            continue
        cells = _cells(line)
        for i, (name, cell) in enumerate(zip(header, cells, strict=False)):
            if _AU_COLUMN.fullmatch(name) and cell.isdigit():
                cells[i] = f"AU{cell}"
        au_columns = [i for i, cell in enumerate(cells) if _NAMES_AU.match(cell)]
        follows = number + 1 < len(lines) and "|" in lines[number + 1]
        if _RULE.fullmatch(line):
            continue
        if not header and follows and (len(au_columns) != 1 or _RULE.fullmatch(lines[number + 1])):
            header = cells
            continue
        columns = [header[i] if i < len(header) else "" for i in au_columns]
        if au_columns and any(map(_ABSENT_COLUMN.match, columns)):
            for i, column in zip(au_columns, columns, strict=True):
                rewritten.append(f"{'Absent: ' if _ABSENT_COLUMN.match(column) else ''}{cells[i]}.")
        elif len(au_columns) == 1 and len(cells) > 1:
            rewritten.append(f"{cells[au_columns[0]]}: {_row_value(cells, au_columns[0], header)}.")
            rewritten += [
                cell
                for i, cell in enumerate(cells)
                if i > au_columns[0] and len(cell.split()) > 2 and not _CELL.fullmatch(cell)
            ]
        elif sum(bool(_NAMES_AU.match(cell)) for cell in header) > 1:
            pairs = zip(header, cells, strict=False)
            rewritten += [f"{name}: {value}." for name, value in pairs if _NAMES_AU.match(name)]
        else:
            rewritten.append(line)
    return rewritten


def _row_value(cells: list[str], au: int, header: list[str]) -> str:
    """The value of a row's AU in the other cells: "yes", "no", or "?" if they disagree."""
    verdicts = set()
    unsure = False
    for i, cell in enumerate(cells):
        name = header[i] if i < len(header) else ""
        match = _CELL.fullmatch(cell)
        if i != au and cell in ("-", "\u2013", "\u2014", "?", "n/a", "N/A"):
            unsure = True
        if i == au or match is None:
            continue
        if header and not _is_value_column(name) and not _YES_NO.fullmatch(cell):
            unsure = unsure or bool(match["no"])  # "| AU9 | 0 | 0 |" below the names of coders
            continue
        if match["number"] and i < au:
            continue
        present = not match["no"]
        if _ABSENT_COLUMN.search(name) and not _VALUE_COLUMN.search(name.replace("inactive", "")):
            present = not present
        verdicts.add(present)
    if len(verdicts) > 1 or (unsure and not verdicts):
        return "?"
    return "no" if verdicts == {False} else "yes"


def _is_value_column(name: str) -> bool:
    return bool(_VALUE_COLUMN.search(name) or _ABSENT_COLUMN.search(name))


_AU_COLUMNS = re.compile(r"AU[\s_-]?\d{1,2}(?:_[rc])?[\s\"'*]*[,;\t][\s\"'*]*AU", re.IGNORECASE)


def _columns(lines: list[str]) -> list[str]:
    """A line of AU names above a line of as many numbers, as OpenFace writes, as "AU4: value"."""
    rewritten: list[str] = []
    names: list[str] = []
    for line in lines:
        cells = [cell.strip(" \"'*") for cell in re.split(r"[,;\t]", line)]
        if sum(bool(_KEY_AU.fullmatch(cell)) for cell in cells) > 1:
            names = cells if all(len(cell) < 16 for cell in cells) else []
            rewritten.append(line)
            continue
        if names and len(cells) == len(names) and all(map(_CELL.fullmatch, cells)):
            if (
                rewritten
                and rewritten[-1]
                and re.split(r"[,;\t]", rewritten[-1])[0].strip(" \"'*") == names[0]
            ):
                rewritten.pop()
            rewritten += [
                f"{name}: {value}."
                for name, value in zip(names, cells, strict=True)
                if _KEY_AU.fullmatch(name)
            ]
            continue
        names = []
        rewritten.append(line)
    return rewritten


# --- check marks ----------------------------------------------------------------------------------

_TICK = re.compile(rf"[{YES}{NO}]\ufe0f?|\[[xX]\]|\[ \]")


def _check_marks(text: str) -> str:
    """Check marks as words: before an AU "Absent: AU4", behind it "AU4: no"."""
    if ("[" not in text and text.isascii()) or not _TICK.search(text):
        return text
    return "\n".join(_check_line(line) if _TICK.search(line) else line for line in text.split("\n"))


def _check_line(line: str) -> str:
    first = _TICK.search(line)
    au = _NAMES_AU.search(line)
    assert first
    leads = au is not None and first.start() < au.start()

    def word(match: re.Match[str]) -> str:
        no = match[0][0] in NO or match[0] == "[ ]"
        if leads:
            return "\nAbsent: " if no else "\nPresent: "
        return (": " if _bare_before(line, match) else "") + ("no." if no else "yes.")

    return _TICK.sub(word, line)


def _bare_before(line: str, match: re.Match[str]) -> bool:
    """Whether no sign stands between an AU and its mark."""
    return (
        not line[: match.start()].rstrip().endswith((":", "=", "-", "|", "(", "\u2013", "\u2014"))
    )


# --- lists under a heading ------------------------------------------------------------------------

_BULLET = re.compile(
    r"(\s*(?:[-*\u2022\u2013+]|\d{1,2}[.)])?[\s*_`]*)(?=AU|action\s+unit|[LR]?\d)", re.I
)
_HEADING = re.compile(r"\s*(?:#+\s*(.*)|[-*\u2022\d.\s]*\**([^.!?\n]*?)\**:\**)\s*")


def _under_headings(text: str) -> str:
    """The items below a heading such as "Not observed:" as lines "Absent: AU4 ..."."""
    rewritten: list[str] = []
    denied = False
    empty = True  # whether the heading has no items yet
    for line in text.split("\n"):
        heading = None if _NAMES_AU.search(line) else _HEADING.fullmatch(line)
        if heading:
            denied = bool(NEGATIVE_HEADING.search(heading[1] or heading[2] or ""))
            empty = True
        elif not line.strip():
            denied = denied and empty
        elif denied and (item := _BULLET.match(line)) and _NAMES_AU.search(line, item.end()):
            line = f"{item[1]}Absent: {line[item.end() :]}"
            empty = False
        else:
            denied = False
        rewritten.append(line)
    return "\n".join(rewritten)
