"""Commands that messages name: `alr-fast data verify DIR`, for example."""

import re
import shlex

from alr_fast.utils.shell import python_command


def arguments(command: str) -> list[str]:
    """The arguments of `alr_fast.__main__.main` in a command."""
    start, words = shlex.split(python_command("alr_fast")), shlex.split(command)
    assert words[: len(start)] == start, command
    return words[len(start) :]


def commands(text: str) -> list[list[str]]:
    """The arguments of all commands between backticks, or at the end of a line, in a text."""
    start = re.escape(python_command("alr_fast"))
    found = re.findall(rf"`({start} [^`]*)`|(?<!`)({start} .*)$", text, flags=re.MULTILINE)
    return [arguments(quoted or bare) for quoted, bare in found]
