"""Common parts of the commands: errors of one line, and exit statuses."""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, TextIO

from alr_fast.errors import SharedError, UserError
from alr_fast.utils.files import naming_files
from alr_fast.utils.requirements import extra_of, install_command, missing_modules
from alr_fast.utils.shell import quoted
from alr_fast.utils.streams import lasting_output
from alr_fast.utils.text import did_you_mean, printable_lines, shortened
from alr_fast.utils.torchrun import report_failure

DEVICES = ("auto", "cpu", "cuda")
VERSION = ("-V", "--version")
_LONGEST = 10_000  # characters of an error; a table may name anything


# What argparse and jsonargparse say about a value, and how it is said here.
_REWRITES = (
    (r"argument (?:-\w/)?(\S+): expected (?:at least )?one argument", r"\1: needs a value"),
    (r"argument (?:-\w/)?(\S+): ignored explicit argument '(.*)'", r"\1=\2: takes no value"),
    (r"argument (\S+): invalid (\w+) value: '(.*)'", r"\1 \3: must be {\2}"),
    (r"(--\S+): Expected (?:one of|an?) (.+)\. Got value: (.*)", r"\1 \3: must be {\2}"),
)
_TYPES = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "list[int]": "a list of integers",
    "list[float]": "a list of numbers",
    "list[str]": "a list of texts",
}


class Offer(NamedTuple):
    """What a shell offers as the value of an argument.

    Attributes:
        words: Values; others may be right, too.
        paths: Whether it names a file, or a folder only.
        several: Whether several of the words can be named, with commas between them.
    """

    words: Sequence[str] = ()
    paths: Literal["files", "folders"] | None = None
    several: bool = False


def offer(action: argparse.Action, offered: Offer) -> None:
    """Sets what a shell offers for an argument, where its choices and type do not tell."""
    action.offer = offered  # type: ignore[attr-defined]


class CommandParser(argparse.ArgumentParser):
    """A parser that raises a `UserError` of one line instead of printing its usage.

    An option must be written out, and a word that is no option is answered with the nearest one.
    No value may be empty. Of an option that is repeated the last value counts.

    Args:
        module: The module of the command, for usage and help; None for a parser inside of another.
        **settings: Of `argparse.ArgumentParser`.
    """

    def __init__(self, module: str | None = None, **settings: Any) -> None:
        if module is not None:
            settings["prog"] = program(module)
        super().__init__(**{"allow_abbrev": False, **settings})
        if self.add_help:
            hidden: dict[str, Any] = dict.fromkeys(("dest", "default", "help"), argparse.SUPPRESS)
            self.add_argument(*VERSION, action=_ShowVersion, nargs=0, **hidden)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        check_options(words, self.options())
        check_values(words)
        return super().parse_known_args(words, namespace)

    def options(self) -> list[str]:
        """All options, those of the parsers inside of this one, too."""
        found = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    found += parser.options()
        return found

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = action.option_strings[0] if action.option_strings else action.metavar
            choices = [str(choice) for choice in action.choices]
            raise UserError(
                f"{name} {value}: must be one of {', '.join(choices)}"
                f"{did_you_mean(str(value), choices)}"
            )

    def error(self, message: str) -> NoReturn:
        hint = data_hint(message) if "--data-root" in self._option_string_actions else ""
        raise UserError(f"{readable_error(message)}{hint}; --help lists every option")


class _ShowVersion(argparse.Action):
    """Prints the version and ends the command, wherever the option stands."""

    def __call__(self, *_: Any) -> NoReturn:
        show(version_line())
        raise SystemExit(0)


def version_line() -> str:
    """What ``--version`` prints."""
    return f"alr-fast {sys.modules['alr_fast'].__version__}"  # a layer above


def check_options(words: Sequence[str], known: Sequence[str]) -> None:
    """Checks that each word that looks like an option is one.

    Raises:
        UserError: An option does not exist; the message names the nearest ones.
    """
    for word in words:
        option = word.partition("=")[0]
        if word == "--":
            return
        if is_option(word) and option not in known:
            hint = did_you_mean(option, list(dict.fromkeys(known)))  # once for several parsers
            raise UserError(f"{option}: no such option{hint}; --help lists every option")


def is_option(word: str) -> bool:
    """Whether a word looks like an option, -option too, and not like a negative number."""
    return re.match("-+[A-Za-z_]", word) is not None and " " not in word.partition("=")[0]


def check_values(words: Sequence[str], *, lists: Sequence[str] = ()) -> None:
    """Checks that no value is empty.

    Args:
        words: The command line.
        lists: Options for which it is the empty list.

    Raises:
        UserError: One is, perhaps because a variable of the shell is not set.
    """
    for before, word in zip(["", *words], words, strict=False):
        if before == "--":
            return
        option = before if word == "" else word.removesuffix("=") if word.endswith("=") else ""
        if (word and not (option.startswith("--") and "=" not in option)) or option in lists:
            continue
        what = option if option.startswith("--") else "an argument"
        raise UserError(
            f"{what}: the value is empty (a variable that is not set?); pass one or leave it out"
        )


def readable_error(message: str) -> str:
    """An error of argparse or jsonargparse in the form of all others: ``--option value: text``."""
    for pattern, form in _REWRITES:
        if found := re.fullmatch(pattern, message, re.DOTALL):
            text = found.expand(form)
            return re.sub(r"\{(.+)\}$", lambda types: _type_words(types[1]), text)
    return message


def data_hint(message: str) -> str:
    """``; did you mean --data-root PATH?`` if a word too many is the path of something."""
    words = message.partition("unrecognized arguments: ")[2]
    for path in (words, words.partition(" ")[0]):
        if path and os.path.exists(path):
            return f"; did you mean --data-root {quoted(path)}?"
    return ""


def _type_words(types: str) -> str:
    """``int, null`` as ``an integer or null``."""
    return " or ".join(_TYPES.get(name, name) for name in types.split(", "))


def program(module: str) -> str:
    """How this command was called, for its usage and help.

    Args:
        module: Its module.

    Returns:
        ``alr-fast train``, ``python -m alr_fast train`` or ``python -m alr_fast.train``.
    """
    package, _, name = module.partition(".")
    called = Path(sys.argv[0]) if sys.argv else Path()
    python = Path(sys.executable or "python").name
    if called.parent.name == package and called.name == "__main__.py":
        return f"{python} -m {package} {name}".rstrip()
    if called.suffix == ".py" and called.with_suffix("").parts[-2:] == (package, name):
        return f"{python} -m {module}"
    if called.name == "__main__.py" and called.parts[-3:-1] == (package, name):
        return f"{python} -m {module}"
    return f"alr-fast {name}".rstrip()


def need(modules: Sequence[str], extra: str, *, what: str) -> None:
    """Checks that modules are installed.

    Args:
        modules: Their names.
        extra: Extra of this package that they belong to.
        what: The subject of the message, "training" for example.

    Raises:
        UserError: A module is missing.
    """
    missing = missing_modules(modules)
    if missing:
        raise UserError(
            f"{what} needs {', '.join(missing)}, not installed: {install_command(missing, extra)}"
        )


def show(text: str, *, file: TextIO | None = None) -> None:
    """Prints a message, by default on standard output; see `printable_lines`."""
    print(printable_lines(text), file=file)


@contextmanager
def _naming_packages() -> Iterator[None]:
    """Names the package of a module that cannot be imported, and how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        extra = extra_of(module)
        if extra is None:
            raise
        command = install_command([module], extra, complete=True)  # not one after the other
        raise UserError(f"{module} is not installed: {command}") from error


def exit_status(action: Callable[[], int | None], *, interrupted: str = "interrupted") -> int:
    """Runs a command.

    Args:
        action: The command; returns its exit status, None for 0.
        interrupted: Message when the user interrupts it.

    Returns:
        The status of ``action``, 2 for a wrong input, 130 if interrupted.
    """
    with lasting_output():
        try:
            with naming_files(), _naming_packages():
                return action() or 0
        except UserError as error:
            text = shortened(str(error), _LONGEST)
            rank = os.environ.get("RANK") or "0"  # set by torchrun
            if rank == "0":
                show(f"error: {text}", file=sys.stderr)
            elif not isinstance(error, SharedError):
                show(f"error in process {rank}: {text}", file=sys.stderr)
            report_failure(printable_lines(text))
            return 2
        except KeyboardInterrupt:
            print(interrupted, file=sys.stderr)
            return 130
        except Exception:
            report_failure(traceback.format_exc())
            raise
