"""The exceptions for what a user can put right: shown as one line, never as a traceback."""


class UserError(ValueError):
    """A wrong input. The message names the input and the way out, in one line.

    Commands print it as ``error: ...`` and leave with exit status 2.
    """


class SharedError(UserError):
    """A `UserError` that all processes of a run meet alike: one of them shows it."""
