"""Arguments that the commands have in common."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from alr_fast.errors import UserError
from alr_fast.utils.command import CommandParser
from alr_fast.utils.machine import usable_cores


class BenchmarkParser(CommandParser):
    """A parser that ends the command with one line and status 2 if its arguments are wrong."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        try:
            return super().parse_known_args(args, namespace)
        except UserError as error:
            self.exit(2, f"error: {error}\n")

    def error(self, message: str) -> NoReturn:
        try:
            super().error(message)
        except UserError as error:
            self.exit(2, f"error: {error}\n")


def new_parser(
    doc: str,
    *,
    json: bool = True,
    device: str | None = None,
    threads: str | None = None,
    seconds: tuple[float, str] | None = None,
    tiny: str | None = None,
) -> BenchmarkParser:
    """A parser with the common arguments that a command has.

    Args:
        doc: Docstring of the command; its first line is the description.
        json: Whether there is ``--json``.
        device: Default of ``--device``.
        threads: Help text of ``--threads``.
        seconds: Default and help text of ``--seconds``.
        tiny: What is small with ``--tiny``.
    """
    parser = BenchmarkParser(description=doc.splitlines()[0])
    if json:
        parser.add_argument("--json", metavar="FILE", help="write the rows to this file only")
    if device:
        parser.add_argument("--device", default=device, choices=("cpu", "cuda"))
    if threads:
        parser.add_argument("--threads", type=int, default=2, help=f"{threads} (default 2)")
    if seconds:
        default, text = seconds
        parser.add_argument("--seconds", type=float, default=default, metavar="S",
                            help=f"{text} (default {default})")  # fmt: skip
    if tiny:
        parser.add_argument("--tiny", action="store_true", help=f"{tiny}, to try the command")
    return parser


def new_grid_parser(
    doc: str, suites: Mapping[str, Any], folder: str, *, gpu_jobs: int = 4
) -> BenchmarkParser:
    """A parser for a command that trains the runs of a suite.

    Args:
        doc: See `new_parser`.
        suites: The suites by name.
        folder: Default of ``--folder``.
        gpu_jobs: Number of parallel trainings on a GPU, see `parallel_jobs`.
    """
    parser = new_parser(doc)
    parser.add_argument("--suite", required=True, choices=suites)
    parser.add_argument(
        "--data-root",
        metavar="DIR",
        help="the data, for all suites but digits: a folder, or a file of features",
    )
    parser.add_argument("--epochs", type=int, metavar="N",
                        help="instead of the suite's, to try the command")  # fmt: skip
    parser.add_argument("--jobs", type=int, metavar="N", help="parallel trainings (default: one a "
                        f"core, {gpu_jobs} on a GPU)")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--folder", default=folder, help="folder for rows and unfinished runs")
    parser.set_defaults(gpu_jobs=gpu_jobs)
    return parser


def parse(
    parser: BenchmarkParser,
    argv: Sequence[str] | None,
    suites: Mapping[str, Any] | None = None,
) -> argparse.Namespace:
    """Parses and checks the arguments, and sets the number of threads.

    Args:
        parser: Parser of the command.
        argv: Words of the command line.
        suites: The suites of `new_grid_parser`; their ``needs_root`` determines whether
            ``--data-root`` is needed.
    """
    arguments = parser.parse_args(argv)
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
    if suites:
        needs_root = suites[arguments.suite].needs_root
        if needs_root and not arguments.data_root:
            parser.error(f"--suite {arguments.suite}: pass --data-root DIR, the folder of its data")
        if arguments.data_root and not needs_root:
            parser.error(f"--suite {arguments.suite}: brings its own data; leave --data-root out")
    if "threads" in given:
        torch.set_num_threads(arguments.threads)
    return arguments


def data_words(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Words of the command line of the trainer for ``--data-root``."""
    root = arguments.data_root
    return ("--data-root", str(Path(root).absolute())) if root else ()


def suite_folder(arguments: argparse.Namespace) -> Path:
    """The folder of the runs of a suite."""
    return Path(arguments.folder).absolute() / arguments.suite


def parallel_jobs(arguments: argparse.Namespace) -> tuple[int, int]:
    """Number of parallel trainings, and threads of each."""
    cores = usable_cores()
    on_gpu = arguments.device.startswith("cuda")
    jobs = arguments.jobs or (arguments.gpu_jobs if on_gpu else cores)
    return jobs, max(cores // jobs, 1)
