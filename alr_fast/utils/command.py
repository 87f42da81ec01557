"""Common parts of the commands: errors of one line, and exit statuses."""

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TextIO

from alr_fast.errors import SharedError, UserError
from alr_fast.utils.text import printable_lines, shortened

_LONGEST = 10_000  # characters of an error; a table may name anything


class CommandParser(argparse.ArgumentParser):
    """A parser that raises a `UserError` of one line instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists every option")


def need(modules: Sequence[str], extra: str, *, what: str) -> None:
    """Checks that modules are installed.

    Args:
        modules: Their names.
        extra: Extra of this package that installs them.
        what: The subject of the message, "training" for example.

    Raises:
        UserError: A module is missing.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{what} needs {', '.join(missing)}, not installed: pip install 'alr_fast[{extra}]'"
        )


def show(text: str, *, file: TextIO | None = None) -> None:
    """Prints a message, by default on standard output; see `printable_lines`."""
    print(printable_lines(text), file=file)


def exit_status(action: Callable[[], int | None], *, interrupted: str = "interrupted") -> int:
    """Runs a command.

    Args:
        action: The command; returns its exit status, None for 0.
        interrupted: Message when the user interrupts it.

    Returns:
        The status of ``action``, 2 for a wrong input, 130 if interrupted.
    """
    try:
        return action() or 0
    except UserError as error:
        rank = os.environ.get("RANK", "0")  # set by torchrun
        if rank == "0":
            show(f"error: {shortened(str(error), _LONGEST)}", file=sys.stderr)
        elif not isinstance(error, SharedError):
            show(f"error in process {rank}: {shortened(str(error), _LONGEST)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
