"""Writes a page about the suspicious labels of a run.

    python -m alr_fast.report runs/latest      # report.html in the folder of the run
    python -m alr_fast.report RUN --most 2000 --output FILE

The page is one file that needs no network: summary, curves, confusion of given and refined labels,
noise of each class, and the most suspicious images, to be searched, filtered, sorted and marked
with keep, fix or unsure. The browser keeps the marks; the page exports them as a table that
`python -m alr_fast.train --labels` and `--data.exclude` take.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from alr_fast.errors import UserError
from alr_fast.labels.table import summary_lines
from alr_fast.training.open_run import NEEDED, add_run_arguments
from alr_fast.utils.command import CommandParser, exit_status, need
from alr_fast.utils.files import replacing
from alr_fast.utils.text import printable

LARGEST = 20_000  # suspects on a page: a browser has to hold them


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, or 2 for a wrong input."""

    def action() -> None:
        parser = CommandParser(
            prog="python -m alr_fast.report", description=__doc__.splitlines()[0]
        )
        add_run_arguments(parser)
        parser.add_argument(
            "--output", metavar="FILE", type=Path, help="file to write (default RUN/report.html)"
        )
        parser.add_argument(
            "--most",
            metavar="N",
            type=int,
            default=500,
            help="suspicious samples on the page (default %(default)s)",
        )
        arguments = parser.parse_args(argv)
        if not 0 <= arguments.most <= LARGEST:
            raise UserError(f"--most {arguments.most}: must lie between 0 and {LARGEST}")
        output = arguments.output or arguments.run / "report.html"
        if arguments.output and not output.absolute().parent.is_dir():
            raise UserError(f"--output {output}: no folder {output.parent}; make it first")
        need((*NEEDED, "PIL"), "train", what="the report")
        need(("jinja2", "plotly", "itables"), "report", what="the report")
        from alr_fast.labels.report.content import make_report
        from alr_fast.labels.report.page import render
        from alr_fast.training.open_run import open_run

        with open_run(
            arguments.run, method=arguments.method, data_root=arguments.data_root, log=print
        ) as labels:
            report = make_report(arguments.run, labels, most=arguments.most)
            for line in summary_lines(labels):
                print(line)
        with replacing(output) as fresh:
            fresh.write_text(render(report), encoding="utf-8")
        print(printable(str(output)))

    return exit_status(action)


if __name__ == "__main__":
    sys.exit(main())
