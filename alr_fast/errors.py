"""The exception for what a user can put right: shown as one line, never as a traceback."""


class UserError(ValueError):
    """A wrong input. The message names the input and the way out, in one line.

    Commands print it as ``error: ...`` and leave with exit status 2.
    """
