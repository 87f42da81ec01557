"""Writes the label bank of a run as a table of samples.

    alr-fast export runs/latest                # labels.parquet in the folder of the run
    alr-fast export runs/latest --csv          # labels.csv
    alr-fast export RUN --soft --output FILE   # with all probabilities, .parquet or .csv

One row for each training sample, ascending by id:

    id, path             identify the sample
    given_label          label in training, a class number
    refined_label        most probable class in the label bank
    given_name, refined_name
                         names of the two classes
    score                suspicion of the given label, 0 to 1; the share of scores above 1/2 is the
                         estimated noise rate (`alr_fast.labels.suspicion`)
    given_probability, refined_probability
                         of the two labels, in the bank
    margin               probability of the given label minus the largest of another, -1 to 1
    entropy              of the row of the bank, in nats
    changes              changes of the refined label in the last 10 epochs
    given_loss           mean cross entropy of the given label over all epochs, in nats
    clean_label          true label, if known
    probabilities        row of the bank, with --soft (in CSV a column for each class)

`alr-fast train --labels FILE` reads the table, see docs/labels.md. An unfinished run is
exported from its newest checkpoint. The bank is read in pieces.
"""

import argparse
import sys
from collections.abc import Sequence

from alr_fast.data.paths import path_option
from alr_fast.data.tables.writing import SUFFIXES
from alr_fast.errors import UserError, naming_options
from alr_fast.labels.table import export, save_transition, summary_lines
from alr_fast.training.open_run import NEEDED, add_run_arguments, open_run
from alr_fast.utils.command import CommandParser, exit_status, need, show


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, or 2 for a wrong input."""
    return exit_status(lambda: run(parser().parse_args(argv)))


@naming_options(root="data-root")
def run(options: argparse.Namespace) -> None:
    """Writes the table and, with ``--transition``, the matrix.

    Raises:
        UserError: A wrong input; nothing is written.
    """
    need(NEEDED, "train", what="the export")
    if options.csv and options.output:
        raise UserError("--csv: --output names the file already; leave one of them out")
    output = options.output or options.run / ("labels.csv" if options.csv else "labels.parquet")
    if output.suffix not in SUFFIXES:
        raise UserError(f"--output {output}: name a file that ends with .parquet or .csv")
    for option, file in (("output", options.output), ("transition", options.transition)):
        if file and not file.absolute().parent.is_dir():
            raise UserError(f"--{option} {file}: no folder {file.parent}; make it first")
    if options.transition and options.transition.suffix != ".csv":
        raise UserError(f"--transition {options.transition}: name a file that ends with .csv")
    with open_run(
        options.run, method=options.method, data_root=options.data_root, log=show
    ) as labels:
        if options.transition:
            with naming_options(path="transition"):
                save_transition(labels, options.transition)
        export(labels, output, soft=options.soft)
        for line in summary_lines(labels):
            show(line)
    show(str(output))


def parser() -> CommandParser:
    """The arguments of the command."""
    parser = CommandParser(module="alr_fast.export", description=__doc__.splitlines()[0])
    add_run_arguments(parser)
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=path_option,
        help="file to write, .parquet or .csv (default RUN/labels.parquet)",
    )
    parser.add_argument("--csv", action="store_true", help="write RUN/labels.csv")
    parser.add_argument(
        "--transition",
        metavar="FILE",
        type=path_option,
        help="also write the estimated transition matrix, a .csv for --transition.source of "
        "training",
    )
    parser.add_argument("--soft", action="store_true", help="add the probability of each class")
    return parser


if __name__ == "__main__":
    sys.exit(main())
