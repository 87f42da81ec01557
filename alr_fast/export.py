"""Writes what the label bank of a run says of each sample as a table.

    python -m alr_fast.export runs/latest                # labels.parquet in the folder of the run
    python -m alr_fast.export runs/latest --csv          # labels.csv
    python -m alr_fast.export RUN --soft --output FILE   # with all probabilities, .parquet or .csv

A row for each training sample, ascending by id:

    id, path             which sample
    given_label          the label that it was trained with, as a number
    refined_label        the most probable one in the label bank
    given_name, refined_name
    score                suspicion of the given label, 0 to 1; above 1/2 are as many as the
                         estimated noise rate says (`alr_fast.labels.suspicion`)
    given_probability, refined_probability
                         of the two labels, in the bank
    margin               probability of the given label minus the largest of another, -1 to 1
    entropy              of the row of the bank, in nats
    changes              how often the refined label changed in the last 10 epochs
    given_loss           mean cross entropy of the given label over all epochs, in nats
    clean_label          the true label, where it is known
    probabilities        the row of the bank, with --soft (in CSV a column for each class)

`python -m alr_fast.train --labels FILE` takes the table back; docs/labels.md says how. A run that
was not finished is exported from its newest checkpoint. The bank is read in pieces.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from alr_fast.data.label_table import SUFFIXES
from alr_fast.errors import UserError
from alr_fast.labels.table import export, save_transition, summary_lines
from alr_fast.training.open_run import NEEDED, add_run_arguments
from alr_fast.utils.command import CommandParser, exit_status, need
from alr_fast.utils.text import printable


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, or 2 for a wrong input."""

    def action() -> None:
        parser = CommandParser(
            prog="python -m alr_fast.export", description=__doc__.splitlines()[0]
        )
        add_run_arguments(parser)
        parser.add_argument(
            "--output",
            metavar="FILE",
            type=Path,
            help="file to write, .parquet or .csv (default RUN/labels.parquet)",
        )
        parser.add_argument("--csv", action="store_true", help="write RUN/labels.csv")
        parser.add_argument(
            "--transition",
            metavar="FILE",
            type=Path,
            help="write the estimated transition matrix, too, a .csv that --transition.source of "
            "the trainer takes",
        )
        parser.add_argument(
            "--soft", action="store_true", help="with the probability of each class"
        )
        arguments = parser.parse_args(argv)
        need(NEEDED, "train", what="the export")
        if arguments.csv and arguments.output:
            raise UserError("--csv: the name that --output gives decides; leave one of them out")
        name = "labels.csv" if arguments.csv else "labels.parquet"
        output = arguments.output or arguments.run / name
        if output.suffix not in SUFFIXES:
            raise UserError(f"--output {output}: name a file that ends with .parquet or .csv")
        for option, file in (("output", arguments.output), ("transition", arguments.transition)):
            if file and not file.absolute().parent.is_dir():
                raise UserError(f"--{option} {file}: no folder {file.parent}; make it first")
        if arguments.transition and arguments.transition.suffix != ".csv":
            raise UserError(f"--transition {arguments.transition}: name a file that ends with .csv")
        from alr_fast.training.open_run import open_run

        with open_run(
            arguments.run, method=arguments.method, data_root=arguments.data_root, log=print
        ) as labels:
            if arguments.transition:
                save_transition(labels, arguments.transition)
            export(labels, output, soft=arguments.soft)
            for line in summary_lines(labels):
                print(line)
        print(printable(str(output)))

    return exit_status(action)


if __name__ == "__main__":
    sys.exit(main())
