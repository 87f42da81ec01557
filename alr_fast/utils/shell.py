"""Commands in messages: texts that can be pasted into any shell, in any folder."""

import os
import re
import shlex
import shutil
import sys

_PLAIN = re.compile(r"[A-Za-z0-9_./:,+-][A-Za-z0-9_./:,+@%=-]*")  # zsh looks up =WORD
_SCRIPT = "alr-fast"
_PACKAGE = "alr_fast"
_LONGEST_START = 4096  # bytes of a script that are read


def python_command(module: str, *words: str | os.PathLike[str]) -> str:
    """The command that runs a module of this package, in the Python that runs now.

    Args:
        module: ``alr_fast.data``, for example.
        words: Arguments, quoted as far as necessary. A path becomes absolute, a text stays as it
            is.

    Returns:
        ``alr-fast data verify '/data/my images'``; the path of the script if it is not on PATH, and
        ``/bin/python3 -m alr_fast data verify ...`` if this Python has none.
    """
    package, _, name = module.partition(".")
    if package == _PACKAGE:
        start = [*_program(), *filter(None, [name])]
    else:
        start = [sys.executable or "python", "-m", module]
    absolute = (word if isinstance(word, str) else os.path.abspath(word) for word in words)
    return " ".join(map(quoted, (*start, *absolute)))


def _program() -> list[str]:
    """The words that start the command of this package."""
    python = sys.executable or "python"
    named = shutil.which(_SCRIPT)
    if named is not None and _starts(named, python):
        return [_SCRIPT]
    beside = os.path.join(os.path.dirname(os.path.abspath(python)), _SCRIPT)
    if os.access(beside, os.X_OK) and _starts(beside, python):
        return [beside]
    return [python, "-m", _PACKAGE]


def _starts(script: str, python: str) -> bool:
    """Whether a script names this interpreter in its first lines, as installers write them."""
    try:
        with open(script, "rb") as file:
            lines = os.fsdecode(file.read(_LONGEST_START)).splitlines()
        first = lines[0].removeprefix("#!").strip()
        if first == "/bin/sh":  # for a long path or one with blanks: '''exec' "/a b/python" "$0"
            first = shlex.split(lines[1].replace("'''exec'", "", 1))[0]
        same_folder = os.path.dirname(first) == os.path.dirname(os.path.abspath(python))
        return same_folder and os.path.samefile(first, python)
    except (OSError, ValueError, IndexError):
        return False


def quoted(word: str | os.PathLike[str]) -> str:
    """A word on one line for sh, bash, dash, zsh and fish."""
    text = os.fspath(word)
    if _PLAIN.fullmatch(text):
        return text
    if text.isprintable():  # no control characters, no bytes that are not UTF-8
        # Not as `shlex.quote`: in fish a backslash between single quotes may escape.
        return (
            "".join(
                f'"{part}"' if part == "'" else '"\\\\"' if part == "\\" else f"'{part}'"
                for part in re.findall(r"'|\\|[^'\\]+", text)
            )
            or "''"
        )
    octal = re.sub(rb"[^A-Za-z0-9_./:,+@= ]", lambda m: b"\\%03o" % m[0][0], os.fsencode(text))
    if text.endswith("\n"):  # which $(...) removes; not in sh and fish
        return f"$'{octal.decode()}'"
    return f"\"$(printf '{octal.decode()}')\""
