"""The one exception that is meant for people."""


class UserError(Exception):
    """Something outside the program is wrong: a file, a setting, a label.

    The message says the cause, the value that was found and the fix. Command lines print it as
    `error: <message>` and exit with code 2; a traceback would only hide it.
    """
