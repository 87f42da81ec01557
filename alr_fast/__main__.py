"""alr-fast, or python -m alr_fast: starts the commands of this package.

alr-fast train --data-root DIR
alr-fast --help
"""

import shutil
import sys
import textwrap
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from alr_fast.errors import UserError
from alr_fast.utils.command import VERSION, exit_status, program, show, version_line
from alr_fast.utils.text import did_you_mean


class Command(NamedTuple):
    """A command: a module with ``main(argv) -> exit status``.

    Attributes:
        module: Its name; imported only when the command is used.
        purpose: One line for the list of commands.
    """

    module: str
    purpose: str


COMMANDS = {
    "train": Command("alr_fast.train", "train a classifier on noisy labels, with several methods"),
    "export": Command("alr_fast.export", "write the labels of a run as a table"),
    "report": Command("alr_fast.report", "write a page of the suspicious labels of a run"),
    "review": Command(
        "alr_fast.review", "serve that page on this machine, and keep marks in the run"
    ),
    "predict": Command("alr_fast.predict", "classify images with the weights of a run"),
    "data": Command("alr_fast.data.__main__", "verify the files of a data set, or pack them"),
    "noise": Command("alr_fast.noise.__main__", "write noisy labels for a data set to a file"),
    "completion": Command(
        "alr_fast.completion", "print a script with which a shell completes commands"
    ),
    "info": Command("alr_fast.info", "print versions, build and machine, for a bug report"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status, 2 for an unknown one."""
    return exit_status(lambda: _run(list(sys.argv[1:] if argv is None else argv)))


def _run(words: list[str]) -> int:
    name, *arguments = words or ["--help"]
    if name in COMMANDS:
        main_of: int = import_module(COMMANDS[name].module).main(arguments)
        return main_of
    own = {"--help": _help, "-h": _help, **dict.fromkeys(VERSION, version_line)}
    if name not in own:
        hint = did_you_mean(name, [*COMMANDS, "--help", "--version"])
        raise UserError(f"{name}: no such command{hint}; --help lists all")
    if arguments and arguments[0] in COMMANDS and name not in VERSION:
        called = f"{program('alr_fast')} {arguments[0]} {name}"
        raise UserError(f"{name} {arguments[0]}: write the command first: {called}")
    if arguments:
        raise UserError(f"{arguments[0]}: {name} takes nothing else; leave it out")
    show(own[name]())
    return 0


def _help() -> str:
    called = program("alr_fast")
    width = max(40, min(80, shutil.get_terminal_size().columns))
    column = max(map(len, COMMANDS)) + 4

    def wrapped(text: str, hanging: int = 0) -> str:
        return textwrap.fill(text, width, subsequent_indent=" " * hanging, break_on_hyphens=False)

    entries = {f"  {name}".ljust(column): command.purpose for name, command in COMMANDS.items()}
    return "\n".join([
        wrapped(f"usage: {called} COMMAND [OPTIONS]", 7),
        "",
        wrapped("Adaptive Label Refinement: training with noisy labels, and their review."),
        "",
        "commands:",
        *(wrapped(name + purpose, column) for name, purpose in entries.items()),
        "",
        wrapped(f"{called} train trains on example data, about a minute;"),
        wrapped(f"{called} COMMAND --help lists the options of a command,"),
        wrapped(f"{called} --version prints the version."),
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
