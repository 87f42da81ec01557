"""Errors that a user can put right: shown as one line, never as a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A wrong input. The message names the input and how to fix it, in one line.

    Commands print it as ``error: ...`` and exit with status 2. A library function names its
    argument; a command that passed an option as this argument fills in the name of the option, see
    `naming_options`.

    Args:
        message: What is wrong and how to fix it. Without ``argument`` it names the input, too.
        argument: Name of the wrong argument.
        value: Its value; None to leave it out of the message.

    Attributes:
        option: Command-line option that the argument came from, if any, without its dashes.
    """

    def __init__(self, message: str, *, argument: str | None = None, value: object = None) -> None:
        super().__init__(message)
        self.argument = argument
        self.value = value
        self.option: str | None = None

    def __str__(self) -> str:
        message = super().__str__()
        if self.argument is None:
            return message
        name = self.argument if self.option is None else f"--{self.option}"
        value = "" if self.value is None else f" {self.value}"
        return f"{name}{value}: {message}"


class SharedError(UserError):
    """A `UserError` that is the same on all ranks of a run: one of them shows it."""


class NativeLibraryError(UserError, ImportError):
    """The native library is required (``ALR_FAST_NATIVE=1``) and is not in use."""


class FallbackWarning(UserWarning):
    """Losses are computed by plain PyTorch, because the native library is not in use."""


@contextmanager
def naming_options(**options: str) -> Iterator[None]:
    """Lets errors about arguments name the options that these came from.

        with naming_options(rate="noise.rate"):
            inject(labels, rate=config.noise.rate)  # its error begins with --noise.rate

    Args:
        options: The option of each argument, without its dashes. The innermost block that names
            an argument decides.
    """
    try:
        yield
    except UserError as error:
        if error.option is None and error.argument is not None:
            error.option = options.get(error.argument)
        raise
