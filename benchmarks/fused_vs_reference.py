"""Times the fused operation against the eager and the compiled reference, and against a copy.

    python -m benchmarks.fused_vs_reference

The rows go to benchmarks/results, of which `python -m benchmarks.report` makes tables, or to the
file that --json names. The variants take turns, fifty calls each, so that a change of the machine's
speed meets all of them. Figures are medians of forward + backward through autograd;
`fused_and_grad` is the one-launch function for loops that call `logits.backward(grad)`.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness.environment import environment
from benchmarks.harness.results import FOLDER, ResultFile
from benchmarks.harness.timing import take_turns
from benchmarks.kernels.problem import CASES, TINY_CASES, Case, Problem, dtype_name

# Calls of a variant before the next one has its turn: enough to get over the threads that the last
# one leaves spinning (compiled code brings an OpenMP runtime of its own).
_TURN = 50

VARIANTS = ("fused", "fused_and_grad", "eager", "compiled", "copy")


def measure(case: Case, device: str, seconds: float, bank_rows: int) -> dict[str, object]:
    """Times all variants of a case, in turn.

    Returns:
        A row: the shape, `{variant}_ms` medians, 20th and 80th percentiles, the environment.
    """
    problem = Problem(case, device, bank_rows)
    problem.check()
    for variant in VARIANTS:
        problem.step(variant)
    turns = take_turns({variant: partial(_turn, problem, variant) for variant in VARIANTS}, seconds)
    times = {variant: [time for turn in turns[variant] for time in turn] for variant in VARIANTS}
    row: dict[str, object] = {
        "batch": case.batch,
        "classes": case.classes,
        "dtype": dtype_name(case.dtype),
    }
    for variant in VARIANTS:
        row[f"{variant}_ms"] = statistics.median(times[variant])
    for variant in VARIANTS:
        fifths = statistics.quantiles(times[variant], n=5)
        row[f"{variant}_p20_p80_ms"] = [fifths[0], fifths[3]]
    row["calls"] = len(times["copy"])
    row["environment"] = environment(device)
    return row


def _turn(problem: Problem, variant: str) -> list[float]:
    return [_timed(problem, variant) for _ in range(_TURN)]


def _timed(problem: Problem, variant: str) -> float:
    """Milliseconds of one step."""
    if problem.device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        problem.step(variant)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    begin = time.perf_counter()
    problem.step(variant)
    return (time.perf_counter() - begin) * 1e3


def table(rows: Sequence[dict]) -> Table:
    """The rows with their ratios, and the geometric means."""
    shown = Table(title="forward + backward, milliseconds (median), and how many times slower")
    for name in ("B", "K", "dtype", "fused", "eager", "compiled", "copy", "fused / copy"):
        shown.add_column(name, justify="right")
    slower: dict[str, list[float]] = {"eager": [], "compiled": []}
    for row in rows:
        cells = [str(row["batch"]), str(row["classes"]), row["dtype"], f"{row['fused_ms']:.3f}"]
        for variant, ratios in slower.items():
            ratios.append(row[f"{variant}_ms"] / row["fused_ms"])
            cells.append(f"{row[f'{variant}_ms']:.3f} ({ratios[-1]:.1f}x)")
        cells += [f"{row['copy_ms']:.3f}", f"{row['fused_ms'] / row['copy_ms']:.2f}"]
        shown.add_row(*cells)
    means = [f"{math.exp(statistics.fmean(map(math.log, r))):.1f}x" for r in slower.values()]
    shown.add_row("geometric mean", "", "", "", *means, "", "")
    return shown


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the rows there alone")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU (default 2)")
    parser.add_argument(
        "--seconds", type=float, default=10, help="time for each shape (default 10)"
    )
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the command")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    bank_rows = 64 if arguments.tiny else 20_000
    rows = [
        measure(case, arguments.device, arguments.seconds, bank_rows)
        for case in (TINY_CASES if arguments.tiny else CASES)
    ]
    Console().print(table(rows))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=1)
    elif not arguments.tiny:
        named = [{"suite": "fused_vs_reference", **row} for row in rows]
        print(f"rows in {ResultFile(FOLDER, rows[0]['environment']).write(named)}")


if __name__ == "__main__":
    main()
