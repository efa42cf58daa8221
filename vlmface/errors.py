"""User-facing errors, and the error that skips a single sample."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A problem outside the program: a file, a setting, a label.

    The message has the cause, the value and the fix. Command lines print it as `error: <message>`
    without a traceback and exit with code 2.
    """


class SkippedSampleError(UserError):
    """A row that cannot be encoded. `reason` is the word under which such rows are counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def did_you_mean(name: object, valid_names: Iterable[str], n: int = 1) -> str:
    """A hint for the message about an unknown name.

    Args:
        name: The unknown name.
        valid_names: The valid names.
        n: The most names to suggest.

    Returns:
        " (did you mean 'NAME'?)" with the most similar valid names, "" if none is similar.
    """
    similar = difflib.get_close_matches(str(name), list(valid_names), n)
    return f" (did you mean {', '.join(map(repr, similar))}?)" if similar else ""
