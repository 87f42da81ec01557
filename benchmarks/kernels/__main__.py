"""Times the fused kernels on a GPU against eager, compiled and Triton code, a copy and a graph.

    python -m benchmarks.kernels

There are three suites, in float32 unless stated otherwise:

latency
    Typical B x K of training with noisy labels: microseconds of forward + backward, in consecutive
    calls without waiting (with the share of the host) and inside a CUDA graph; launches; the time
    of the forward kernel alone at B = 256; for comparison an autograd graph with a single native
    operation.
bandwidth
    B * K of at least 1e7 over a bank of 1 GB: device time a step against a copy that reads two and
    writes two tensors of the same size. Steps are queued ahead of the device. The time of variants
    that make the host wait, because of the masks of the reference, includes that wait.
pinned
    The bank in pinned host memory, against copies of as many bytes over the host's link.

Loss, gradient and bank of every variant are compared with the float64 reference before any timing,
inputs rotate over three times the L2 cache, and the variants take turns. torch.compile is applied
to the reference in three modes and, in the default mode, to the operation without masks: for each K
of the bandwidth suite, and for each K at B = 256 of the latency suite. Every K of a suite has its
own process. The processes of a wave compile and check at the same time, then measure one after the
other while the rest wait. A compilation that has not started after --compile-seconds is skipped; a
row records this.

Rows are written to benchmarks/results/<gpu>-<date>-<commit>.json after each wave; no file is
overwritten. `python -m benchmarks.report` generates the tables.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.command import new_parser, parse
from benchmarks.harness.environment import environment
from benchmarks.harness.results import FOLDER, ResultFile
from benchmarks.kernels.suites import SUITES, tasks
from benchmarks.kernels.waves import run
from benchmarks.tables.kernels import terminal_cells
from benchmarks.tables.markdown import show


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        The exit status: 1 if a variant was wrong or a process failed.
    """
    parser = new_parser(__doc__, json=False, device="cuda", threads="threads of the CPU",
                        seconds=(4, "time to measure each K of a suite"),
                        tiny="small shapes")  # fmt: skip
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--suite", default=",".join(SUITES),
                        help="suites, separated by commas (default %(default)s)")  # fmt: skip
    parser.add_argument("--compile-seconds", type=float, default=30,
                        help="age of a process in seconds after which no compilation starts "
                        "(default 30)")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=4, help="processes of a wave (default 4)")
    parser.add_argument("--results-dir", type=Path,
                        help=f"folder of the rows (default {FOLDER.parent.name}/{FOLDER.name}; "
                        "none with --tiny)")  # fmt: skip
    arguments = parse(parser, argv)
    suites = arguments.suite.split(",")
    if unknown := [name for name in suites if name not in SUITES]:
        parser.error(f"unknown suite {unknown[0]!r}: choose from {', '.join(SUITES)}")
    options = {
        name: getattr(arguments, name)
        for name in ("device", "tiny", "seconds", "compile_seconds", "threads")
    }
    todo = [task for suite in suites for task in tasks(suite, **options)]
    file = ResultFile(arguments.results_dir or (None if arguments.tiny else FOLDER))
    rows = run(todo, arguments.jobs, environment(arguments.device), file.write)
    show("microseconds a step", *terminal_cells(rows), text_columns=5)
    file.finish(rows)
    return int(any(row.get("wrong") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
