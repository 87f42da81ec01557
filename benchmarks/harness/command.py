"""Arguments and output that the commands have in common."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.harness.results import ResultFile, as_text


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write the rows to this file only")


def check_arguments(
    parser: argparse.ArgumentParser,
    arguments: argparse.Namespace,
    *,
    needs_root: bool | None = None,
) -> None:
    """Checks the common arguments that a command has; ends it if one of them is wrong.

    Args:
        parser: Parser of the command.
        arguments: Its arguments.
        needs_root: Whether the suite needs ``--data-root``; None for a command without suites of
            this kind.
    """
    given = vars(arguments)
    for name in ("threads", "jobs", "seeds", "epochs"):
        value = given.get(name)
        if isinstance(value, int) and value < 1:
            parser.error(f"--{name} {value}: pass 1 or more")
    seconds = given.get("seconds", 0)
    if not (math.isfinite(seconds) and seconds >= 0):
        parser.error(f"--seconds {seconds}: pass 0 or more")
    if (given.get("device") or "cpu").startswith("cuda") and not torch.cuda.is_available():
        parser.error("no GPU was found: pass --device cpu")
    if given.get("json") and not Path(given["json"]).absolute().parent.is_dir():
        parser.error(f"--json {given['json']}: there is no such folder")
    if needs_root and not arguments.data_root:
        parser.error(f"--suite {arguments.suite}: pass --data-root DIR, the folder of its data")
    if needs_root is False and arguments.data_root:
        parser.error(f"--suite {arguments.suite}: brings its own data; leave --data-root out")


def data_words(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Words of the command line of the trainer for ``--data-root``."""
    if not arguments.data_root:
        return ()
    return "--data-root", str(Path(arguments.data_root).absolute())


class Output:
    """Writes the rows of a command: to the file of ``--json``, else to a new result file.

    Args:
        json: Value of ``--json``.
        folder: Folder of the result file; None for no result file.
    """

    def __init__(self, json: str | None, folder: Path | None) -> None:
        self._json, self._folder = json, folder
        self._file: ResultFile | None = None

    def write(self, rows: Sequence[dict]) -> None:
        """Writes all rows measured so far, so that an interrupted command keeps them."""
        if self._json:
            Path(self._json).write_text(as_text(rows), encoding="utf-8")
        elif self._folder:
            self._file = self._file or ResultFile(self._folder, rows[0]["environment"])
            self._file.write(rows)

    def print_path(self) -> None:
        """Prints the path of the result file, if one was written."""
        if self._file:
            print(f"rows in {self._file.path}")
