"""How the cost grows with processes, samples, classes and batch, on the CPU.

    python -m benchmarks.scaling

ranks
    Images per second of 1, 2 and 4 gloo processes that share the CPUs and one batch, through
    `alr_fast.training.trainer.Trainer`, beside one process with as many threads as each of them. A step is
    timed with the others, alone (all are busy, nobody waits), and the sum of the gradients by
    itself. Before that, all must have the same weights after a step. The groups take turns.
bank
    A label bank's life: made, updated, summarised, saved, loaded, exported; bytes on the disk, and
    by how much the anonymous memory of a process rises. Each bank has a process of its own, and
    what each phase left is looked at. Files are in the page cache as far as they fit.
step_cost
    The fused operation over N, K and B around one point. Each is compared with the reference in
    float64 before; they take turns.

Rows go to benchmarks/results, of which `python -m benchmarks.report` makes tables; those of --tiny
go to the file that --json names, or nowhere.
"""

import argparse
import json
import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness.environment import environment
from benchmarks.harness.results import FOLDER, ResultFile, percentiles
from benchmarks.harness.timing import host_turn, take_turns
from benchmarks.kernels.problem import Case, Problem
from benchmarks.scaling import bank as scaling_bank
from benchmarks.scaling import ranks as scaling_ranks
from benchmarks.scaling.bank import measure_bank
from benchmarks.scaling.ranks import measure_ranks
from benchmarks.tables.markdown import show
from benchmarks.tables.training import bank_cells, ranks_cells, step_cost_cells

SUITES = ("ranks", "bank", "step_cost")
# What the terminal shows: title, cells, and the columns that only the report has.
_SHOWN = {
    "ranks": ("processes together", ranks_cells, ("batch of each",)),
    "bank": (
        "a bank's life",
        bank_cells,
        ("MB", "summarise, s", "check, s", "write, s", "checkpoint, MB", "export, MB"),
    ),
    "step_cost": ("microseconds of the fused operation", step_cost_cells, ()),
}

# N, K, B: one of them changes at a time.
POINT = (50_000, 100, 256)
POINTS = (
    *((n, POINT[1], POINT[2]) for n in (2_000, 50_000, 1_000_000)),
    *((POINT[0], k, POINT[2]) for k in (10, 1000)),
    *((POINT[0], POINT[1], b) for b in (64, 1024, 4096)),
)
TINY_POINTS = ((64, 3, 8), (64, 5, 8), (32, 3, 8))
_INDICES = 4096  # batches of rows in rotation: more of a bank than the caches hold
_STEPS = 20  # a turn


def measure_step_cost(
    points: Sequence[tuple[int, int, int]], seconds: float
) -> list[dict[str, object]]:
    """Times the fused loss and gradient at each point, in turn.

    Args:
        points: N, K and B of each.
        seconds: Time for all turns.

    Returns:
        A row for each point.
    """
    problems = {}
    for samples, classes, batch in points:
        problem = Problem(Case(batch, classes), "cpu", samples)
        problem.check(["fused_and_grad"])
        count = min(samples // batch, _INDICES)
        problem.index = list(torch.randperm(samples)[: count * batch].view(count, batch))
        problems[samples, classes, batch] = problem
    turns = {
        point: partial(host_turn, partial(problem.step, "fused_and_grad"), _STEPS, "cpu")
        for point, problem in problems.items()
    }
    for turn in turns.values():
        turn()
    times = take_turns(turns, seconds, at_least=3)
    facts = environment("cpu")
    rows = []
    for point, measured in times.items():
        row = percentiles(total for total, _ in measured)
        samples, classes, batch = point
        rows.append(
            {
                "suite": "step_cost",
                "samples": samples,
                "classes": classes,
                "batch": batch,
                "bank_bytes": samples * classes * 4,
                "index_pattern": problems[point].index_pattern,
                **row,
                "ns_per_element": row["p50_us"] * 1e3 / (classes * batch),
                "calls": len(measured) * _STEPS,
                "environment": facts,
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the rows there alone")
    parser.add_argument("--suite", nargs="+", choices=SUITES, default=SUITES, metavar="SUITE",
                        help=f"these alone, of {', '.join(SUITES)}")  # fmt: skip
    parser.add_argument("--large", action="store_true",
                        help="the bank of WebVision, too: 9.6 GB in a file, 20 GB of disk and "
                        "some minutes")  # fmt: skip
    parser.add_argument("--folder", type=Path, metavar="DIR",
                        help="where banks and checkpoints are made, on a disk (default: that of "
                        "temporary files)")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=40, metavar="S",
                        help="time for the turns of ranks, and half of it for those of step_cost "
                        "(default 40)")  # fmt: skip
    parser.add_argument(
        "--threads",
        type=int,
        default=2,
        help="of bank and step_cost; ranks shares out the CPUs (default 2)",
    )
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the command")
    arguments = parser.parse_args(argv)
    if arguments.threads < 1:
        parser.error(f"--threads {arguments.threads}: pass 1 or more")
    if not (math.isfinite(arguments.seconds) and arguments.seconds >= 0):
        parser.error(f"--seconds {arguments.seconds}: pass 0 or more")
    if arguments.folder is not None and not os.access(arguments.folder, os.W_OK):
        parser.error(f"--folder {arguments.folder}: there is no such folder to write in")
    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        parser.error(f"--json {arguments.json}: there is no such folder")
    tiny, seconds = arguments.tiny, arguments.seconds
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, object]] = []
    for suite in SUITES:
        if suite not in arguments.suite:
            continue
        if suite == "ranks":
            scale = scaling_ranks.TINY if tiny else scaling_ranks.Scale()
            found = measure_ranks(scale, seconds)
        elif suite == "bank":
            cases = scaling_bank.TINY_CASES if tiny else scaling_bank.CASES
            found = list(
                measure_bank(cases, arguments.folder, arguments.threads, large=arguments.large)
            )
        else:
            found = measure_step_cost(TINY_POINTS if tiny else POINTS, seconds / 2)
        title, cells, leave_out = _SHOWN[suite]
        show(title, *cells(found), leave_out)
        rows += found
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    elif not tiny:
        print(f"rows in {ResultFile(FOLDER, rows[0]['environment']).write(rows)}")


if __name__ == "__main__":
    main()
