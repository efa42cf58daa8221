"""Text from outside (file names, answers of models, messages of servers), fit for a terminal.

Escape sequences in it could otherwise change the screen, the window's title or the clipboard, and
marks that turn the direction of writing could make a name look like another.
"""

from __future__ import annotations

import json
import re
from typing import Any

# Control characters (C0, DEL, C1), marks of direction, separators of lines, lone surrogates.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)


def printable(text: object, *, lines: bool = False) -> str:
    r"""Text in which what a terminal would obey is written out, such as \x1b for an escape.

    Args:
        text: Anything; `str` of it is taken.
        lines: Whether ends of lines and tabs are kept, for text of several lines.
    """

    def written_out(match: re.Match[str]) -> str:
        mark = match[0]
        if lines and mark in "\n\t":
            return mark
        return mark.encode("unicode_escape").decode("ascii")

    return _UNSAFE.sub(written_out, str(text))


def json_line(value: Any) -> str:
    """`value` as JSON on one line, in which those marks are escaped as JSON does it."""
    text = json.dumps(value, ensure_ascii=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def one_line(text: object) -> str:
    """`printable`, with white space of any kind and length as one space."""
    return printable(re.sub(r"\s+", " ", str(text)).strip())
