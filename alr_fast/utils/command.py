"""What the commands of this package share: a mistake is one line, and the exit status tells."""

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from alr_fast.errors import SharedError, UserError


class CommandParser(argparse.ArgumentParser):
    """A parser whose complaint is a `UserError` of one line instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists every option")


def need(modules: Sequence[str], extra: str, *, what: str) -> None:
    """Raises `UserError` where modules are missing.

    Args:
        modules: Their names.
        extra: Extra of this package that installs them.
        what: What needs them.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{what} needs {', '.join(missing)}, not installed: pip install 'alr_fast[{extra}]'"
        )


def exit_status(action: Callable[[], int | None], *, interrupted: str = "interrupted") -> int:
    """Runs a command.

    Args:
        action: The command; returns its exit status, None for 0.
        interrupted: What to say when the user stops it.

    Returns:
        The status: what ``action`` returned, 2 for a wrong input, 130 when interrupted.
    """
    try:
        return action() or 0
    except UserError as error:
        rank = os.environ.get("RANK", "0")  # as torchrun sets it
        if rank == "0":
            print(f"error: {error}", file=sys.stderr)
        elif not isinstance(error, SharedError):
            print(f"error in process {rank}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
