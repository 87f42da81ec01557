"""Prints a script with which a shell completes alr-fast: commands, options and their values.

    alr-fast completion bash > ~/.alr-fast.bash    # and "source ~/.alr-fast.bash" in ~/.bashrc
    alr-fast completion zsh > ~/.alr-fast.zsh      # and "source ~/.alr-fast.zsh" in ~/.zshrc
    alr-fast completion fish > ~/.config/fish/completions/alr-fast.fish
    alr-fast completion tcsh > ~/.alr-fast.tcsh    # and "source ~/.alr-fast.tcsh" in ~/.tcshrc

In zsh after compinit. Where bash-completion is installed, its folder
~/.local/share/bash-completion/completions takes the file, too, named alr-fast; in zsh a folder of
$fpath, named _alr-fast.
The script runs no Python. Print it again after an update of alr_fast.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from textwrap import shorten
from typing import Any

from alr_fast.__main__ import COMMANDS
from alr_fast.data.paths import path_option, text_option
from alr_fast.train import TRAIN_EXTRA
from alr_fast.training.methods import METHODS
from alr_fast.training.open_run import run_option
from alr_fast.utils.command import CommandParser, Offer, exit_status, need, show

SHELLS = ("bash", "zsh", "fish", "tcsh")
_PROG = "alr-fast"
_BRIEF = 60  # characters of the help that zsh and fish show

# bash splits --option=value into three words. Names of files and folders are completed by bash
# itself, which knows about spaces and ~: a function prints \1 and the option of compopt for it.
_BASH = r"""
_alr_fast_words() {
  local done=""
  if [[ -n "$3" && "$1" == *,* ]]; then done="${1%,*},"; fi
  compgen -P "$done" -W "$2" -- "${1#"$done"}"
}
_alr_fast() {
  local i
  local -a words=()
  for ((i = 0; i <= COMP_CWORD; i++)); do
    if [[ "${COMP_WORDS[i]}" == "=" && "${COMP_WORDS[i - 1]}" == --* ]]; then
      if ((i == COMP_CWORD)); then words+=(""); fi
    else
      words+=("${COMP_WORDS[i]}")
    fi
  done
  local -a COMP_WORDS=("${words[@]}")
  local COMP_CWORD=$((${#words[@]} - 1))
  _shtab_alr_fast
  if [[ "${COMPREPLY[0]-}" == $'\1'* ]]; then
    compopt -o "${COMPREPLY[0]#?}" 2>/dev/null
    COMPREPLY=()
  fi
}"""
# shtab knows eval and a file in $fpath only.
_ZSH_SOURCED = r"""
if [[ $zsh_eval_context[-1] == file ]]; then
  compdef _shtab_alr_fast alr-fast
  return
fi"""
_PREAMBLES = {"bash": _BASH, "zsh": _ZSH_SOURCED}
_COMPOPT = {"files": "default", "folders": "dirnames"}
_ZSH = {"files": "_files", "folders": "_files -/"}
_FISH = {
    "files": "(__fish_complete_path (commandline -ct))",
    "folders": "(__fish_complete_directories (commandline -ct))",
}
_TCSH = {"files": "f", "folders": "d"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, or 2 for a wrong input."""

    def action() -> None:
        shell = parser().parse_args(argv).shell
        need(("shtab", *TRAIN_EXTRA), "train", what="completion")
        show(script(shell))

    return exit_status(action)


def parser() -> CommandParser:
    """The arguments of the command."""
    parser = CommandParser(
        module="alr_fast.completion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    return parser


def script(shell: str) -> str:
    """The script for a shell."""
    import shtab

    whole = whole_parser()
    for parser in _parsers(whole):
        parser.description = brief(parser.description or "")
    for number, action in enumerate(arguments(whole)):
        if isinstance(action, argparse._SubParsersAction):
            continue
        action.help = brief(action.help or "")
        offered = offer_of(action)
        if offered.words or offered.paths:
            completers = _completers(f"_alr_fast_value_{number}", offered)
            action.complete = completers  # type: ignore[attr-defined]
        if shell == "zsh" and action.nargs is None:  # --option=value, too
            names = action.option_strings
            action.option_strings = [f"{n}=" if n.startswith("--") else n for n in names]
    text: str = shtab.complete(whole, shell, preamble=_PREAMBLES.get(shell, ""))
    if shell == "zsh":  # every further argument, not one
        text = text.replace('"(*):', '"*:')
    if shell == "bash":
        text += f"\ncomplete -o bashdefault -F _alr_fast {_PROG}"
    return text


def whole_parser() -> argparse.ArgumentParser:
    """A parser of all commands, with the parsers of their modules inside."""
    parser = argparse.ArgumentParser(prog=_PROG)
    parser.add_argument("--version", action="version", help="show the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, command in COMMANDS.items():
        inner = import_module(command.module).parser()
        commands.add_parser(
            name,
            help=command.purpose,
            description=command.purpose,
            parents=[inner],
            add_help=False,
        )
    return parser


def offer_of(action: argparse.Action) -> Offer:
    """What a shell offers for an argument."""
    offered: Offer | None = getattr(action, "offer", None)
    if offered is not None:
        return offered
    if action.type is run_option or action.metavar in ("DIR", "OUT"):
        return Offer(paths="folders")
    if action.type in (path_option, text_option):
        return Offer(paths="files")
    if action.metavar == "METHOD":
        return Offer(tuple(METHODS))
    return Offer(tuple(map(str, action.choices or ())))


def brief(text: str) -> str:
    """The first part of a help text, in one short line."""
    first = re.split(r"[.;:]\s|\.$", " ".join(text.split()))[0]
    return shorten(first, _BRIEF, placeholder=" ...")


def arguments(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a parser and of those inside."""
    for one in _parsers(parser):
        yield from one._actions


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _parsers(inner)


def _completers(name: str, offered: Offer) -> dict[str, Any]:
    """What shtab takes as `complete`: code for each shell.

    Args:
        name: Of a function, for shells that need one.
        offered: What it offers.
    """
    words, paths = " ".join(offered.words), offered.paths
    lines = []
    if words:
        several = "several" if offered.several else ""
        lines.append(f"_alr_fast_words \"$1\" '{words}' {several}".rstrip())
    if paths:
        lines.append(f"printf '\\1%s\\n' {_COMPOPT[paths]}")
    bash = "\n".join([f"{name}() {{", f"  {' || '.join(lines)}", "}"])
    if offered.several:
        zsh = f"{{_values -s , value {words}}}"
    elif words and paths:
        zsh = f"{{_alternative 'w\\:value\\:({words})' 'p\\:path\\:{_ZSH[paths]}'}}"
    else:
        zsh = f"({words})" if words else _ZSH[paths or "files"]
    fish = f"(__fish_append , {words})" if offered.several else words
    return {
        "bash": name,
        "zsh": zsh,
        "fish": f"{fish} {_FISH[paths] if paths else ''}".strip(),
        "tcsh": _TCSH[paths] if paths else f"({words})",
        "preamble": {"bash": bash},
    }


if __name__ == "__main__":
    sys.exit(main())
