"""Serves the report of a run on this machine, and writes marks to the run as they are made.

    alr-fast review runs/latest          # prints the address of the page
    alr-fast review RUN --most 2000 --port 8000 --open

The page is that of `alr-fast report`. Each mark is written to RUN/marks.csv at once, in
the format that the page exports; marks that are there already are shown. Ctrl-C ends the review and
prints the command that trains with the marks:

    alr-fast train --config RUN/config.yaml --data.marks RUN/marks.csv

Only this machine can connect, with the address that is printed; see docs/review.md and
docs/security.md.
"""

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from alr_fast.errors import UserError, naming_options
from alr_fast.labels.issues import LabelIssues
from alr_fast.labels.report.model import Report
from alr_fast.report import add_most, check, report_of
from alr_fast.training.open_run import add_run_arguments, marks_of_run, open_run, plugins_of_run
from alr_fast.training.output.run_folder import CONFIG
from alr_fast.utils.command import CommandParser, exit_status, show
from alr_fast.utils.files import locked
from alr_fast.utils.shell import python_command, quoted
from alr_fast.utils.system import user_name
from alr_fast.utils.text import printable

if TYPE_CHECKING:
    from alr_fast.labels.report.marks_file import MarksFile
    from alr_fast.labels.report.views import Views

FILE, LOCK = "marks.csv", ".marks.lock"  # in the folder of the run
_LARGEST_PORT = 65_535


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, or 2 for a wrong input."""
    return exit_status(lambda: run(parser().parse_args(argv)))


@naming_options(root="data-root")
def run(options: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C or SIGTERM.

    Raises:
        UserError: A wrong input, marks of other data, or another review of the run.
    """
    if not 0 <= options.port <= _LARGEST_PORT:
        raise UserError(f"--port {options.port}: must lie between 0 and {_LARGEST_PORT}, 0 for any")
    check(options)
    from alr_fast.labels.report.marks_file import MarksFile
    from alr_fast.labels.report.page import render
    from alr_fast.labels.report.server import IMAGES, MARKS, ReviewServer
    from alr_fast.labels.report.views import Views

    with (
        open_run(
            options.run, method=options.method, data_root=options.data_root, log=show
        ) as labels,
        contextlib.ExitStack() as stack,
    ):
        folder = options.run.resolve()  # runs/latest may point to another run later
        stack.callback(_lock(folder).close)
        marks = MarksFile(folder / FILE, labels)
        _take_over(marks, folder)
        views = Views(labels.images)
        if labels.images is not None:
            views = replace(views, address=lambda row: f"{IMAGES}{labels.sample_ids[row]}")
        report = report_of(folder, labels, views, most=options.most)
        page = render(report, server={"marks": MARKS, "file": printable(str(marks.path))})
        try:
            server = ReviewServer(page, _pictures(report, labels, views), marks, port=options.port)
        except OSError as error:
            raise UserError(
                f"--port {options.port}: {error.strerror or error}; leave it out for a free one"
            ) from error
        stack.callback(server.server_close)
        with _until_stopped():
            _begin(server.address, server.server_port, marks)
            if options.open:
                webbrowser.open(server.address)
            server.serve_forever(poll_interval=0.2)
        marks.close()
        _end(marks, folder)


def _lock(folder: Path) -> IO[Any]:
    """The lock of the marks of a run; without one where the folder cannot be written to."""
    busy = f"{folder}: is being reviewed already; go on there, or end that review first"
    try:
        return locked(folder / LOCK, busy=busy)
    except UserError as error:
        if str(error) == busy:
            raise
        show(f"marks cannot be written, and stay in the browser: {error}")
        return io.StringIO()


def _take_over(marks: "MarksFile", folder: Path) -> None:
    """Shows the marks that a run was trained with, until it has some of its own."""
    earlier = marks_of_run(folder)
    if earlier is None or marks.path.exists():
        return
    if not Path(earlier).is_file():
        show(
            f"{earlier} is gone, the marks that the run was trained with; restore it now if the "
            "next training is to use them, too"
        )
        return
    marks.take_over(Path(earlier))
    show(f"{_counted(len(marks))} taken over from {earlier}")


def _pictures(
    report: Report, labels: LabelIssues, views: "Views"
) -> Callable[[int], tuple[bytes | None, str]]:
    """A function of an id that returns the whole image of a sample on the page."""
    from alr_fast.labels.report.server import SIZE

    ids = [suspect.id for suspect in report.suspects]
    rows = dict(zip(ids, np.searchsorted(labels.sample_ids, ids).tolist(), strict=True))
    return lambda id: views.picture(rows[id], *SIZE) if id in rows else (None, "not on the page")


@contextlib.contextmanager
def _until_stopped() -> Iterator[None]:
    """Ends the block at Ctrl-C and SIGTERM."""
    if threading.current_thread() is not threading.main_thread():  # signals are not for it
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _begin(address: str, port: int, marks: "MarksFile") -> None:
    show(f"marks are written to {marks.path}" + (f", {len(marks):,} so far" if len(marks) else ""))
    login = _login()
    if login is not None:
        show(f"on your own machine first: ssh -N -L {port}:127.0.0.1:{port} {login}")
    show("open this address; Ctrl-C here ends the review:")
    show(address)
    sys.stdout.flush()  # a program may wait for the address


def _login() -> str | None:
    """How this machine is reached by ssh, as words of a command; None if it is not."""
    words = os.environ.get("SSH_CONNECTION", "").split()  # addresses and ports of both sides
    if len(words) != 4:
        return None
    user = user_name()
    user_at_host = quoted(words[2] if user is None else f"{user}@{words[2]}")
    return user_at_host if words[3] == "22" else f"-p {quoted(words[3])} {user_at_host}"


def _end(marks: "MarksFile", folder: Path) -> None:
    if not marks.path.is_file():
        show("no marks were made")
        return
    words = ("--config", str(folder / CONFIG), "--data.marks", str(marks.path))
    command = python_command("alr_fast.train", *words)
    plugins = plugins_of_run(folder)
    if plugins:  # of somebody else, perhaps
        show(
            f"the training runs programs that the run names: {', '.join(plugins)}; read them first"
        )
    show(f"{_counted(len(marks))} in {marks.path}; this trains with them: {command}")


def _counted(count: int) -> str:
    return "1 mark is" if count == 1 else f"{count:,} marks are"


def parser() -> CommandParser:
    """The arguments of the command."""
    parser = CommandParser(module="alr_fast.review", description=__doc__.splitlines()[0])
    add_run_arguments(parser)
    add_most(parser)
    parser.add_argument(
        "--port",
        metavar="PORT",
        type=int,
        default=0,
        help="port of the address (default: a free one)",
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    return parser


if __name__ == "__main__":
    sys.exit(main())
