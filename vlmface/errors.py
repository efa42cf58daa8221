"""The one exception that is meant for people, and its kind that costs a row only."""


class UserError(Exception):
    """Something outside the program is wrong: a file, a setting, a label.

    The message says the cause, the value that was found and the fix. Command lines print it as
    `error: <message>` and exit with code 2; a traceback would only hide it.
    """


class RefusedError(UserError):
    """A row that cannot be encoded; `reason` is the word that rows are counted under."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
