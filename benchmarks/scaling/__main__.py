"""Growth of the cost with the number of processes, samples, classes and the batch, on the CPU.

    python -m benchmarks.scaling

ranks
    Images per second of 1, 2 and 4 gloo processes that share the CPUs and one batch, through
    `alr_fast.training.trainer.Trainer`, relative to one process with as many threads as each of
    them. A step is timed together with the other processes, alone (all are busy, none waits), and
    the sum of the gradients by itself. First all processes must have the same weights after a
    step. The groups take turns.
bank
    The phases of a label bank: creation, updates, summary, saving, loading, export; bytes on the
    disk, and the rise of the anonymous memory of a process. Each bank has its own process, which
    checks the result of each phase. Files are in the page cache if they fit.
step_cost
    The fused operation over N, K and B around one point. Each case is compared with the reference
    in float64 first; they take turns.

Rows are written to benchmarks/results, from which `python -m benchmarks.report` generates tables.
With --tiny they are written to the file of --json only.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.command import new_parser, parse
from benchmarks.harness.results import FOLDER, ResultFile
from benchmarks.scaling import bank, ranks, step_cost
from benchmarks.tables.markdown import show
from benchmarks.tables.scaling import bank_cells, ranks_cells, step_cost_cells

SUITES = ("ranks", "bank", "step_cost")
# Columns of banks that are only in the report.
_REPORT_ONLY = ("MB", "summarise, s", "check, s", "write, s", "checkpoint, MB", "export, MB")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = new_parser(__doc__, threads="of bank and step_cost; ranks divides the CPUs",
                        seconds=(40, "time for the turns of ranks, and half of it for those of "
                                 "step_cost"), tiny="small sizes")  # fmt: skip
    parser.add_argument("--suite", nargs="+", choices=SUITES, default=SUITES, metavar="SUITE",
                        help=f"only these, of {', '.join(SUITES)}")  # fmt: skip
    parser.add_argument("--large", action="store_true",
                        help="also the bank of WebVision: 9.6 GB in a file, 20 GB of disk and some "
                        "minutes")  # fmt: skip
    parser.add_argument("--folder", type=Path, metavar="DIR",
                        help="folder for banks and checkpoints, on a disk (default: that of "
                        "temporary files)")  # fmt: skip
    arguments = parse(parser, argv)
    if arguments.folder is not None and not os.access(arguments.folder, os.W_OK):
        parser.error(f"--folder {arguments.folder}: there is no such folder to write in")
    tiny, seconds = arguments.tiny, arguments.seconds
    rows: list[dict[str, object]] = []
    if "ranks" in arguments.suite:
        found = ranks.measure_ranks(ranks.TINY if tiny else ranks.Scale(), seconds)
        show("several processes", *ranks_cells(found), leave_out=("batch of each",))
        rows += found
    if "bank" in arguments.suite:
        cases = bank.TINY_CASES if tiny else bank.CASES
        found = bank.measure_bank(cases, arguments.folder, arguments.threads, large=arguments.large)
        show("phases of a bank", *bank_cells(found), leave_out=_REPORT_ONLY)
        rows += found
    if "step_cost" in arguments.suite:
        points = step_cost.TINY_POINTS if tiny else step_cost.POINTS
        found = step_cost.measure_step_cost(points, seconds / 2)
        show("microseconds of the fused operation", *step_cost_cells(found))
        rows += found
    ResultFile(None if tiny else FOLDER, arguments.json).finish(rows)


if __name__ == "__main__":
    main()
