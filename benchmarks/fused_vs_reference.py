"""Times the fused operation against the eager and the compiled reference, and against a copy.

    python -m benchmarks.fused_vs_reference

Rows are written to benchmarks/results, from which `python -m benchmarks.report` generates tables,
or to the file of --json. The variants take turns of fifty calls each, so that changes of the
machine's speed affect all of them. Figures are medians of forward + backward through autograd;
`fused_and_grad` is the one-launch function for loops that call `logits.backward(grad)`.
"""

import argparse
import itertools
import statistics
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.harness.command import Output, add_json_argument, check_arguments
from benchmarks.harness.environment import environment
from benchmarks.harness.results import FOLDER
from benchmarks.harness.timing import event_time, host_turn, take_turns
from benchmarks.kernels.problem import CASES, TINY_CASES, Case, Problem, dtype_name
from benchmarks.tables.fused_vs_reference import VARIANTS, terminal_cells
from benchmarks.tables.markdown import show

# Calls of a turn: enough to outlast the spinning threads of the previous variant (compiled code
# uses its own OpenMP runtime).
_TURN = 50


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
    times = {variant: list(itertools.chain(*turns[variant])) for variant in VARIANTS}
    row: dict[str, object] = {
        "suite": "fused_vs_reference",
        "batch": case.batch,
        "classes": case.classes,
        "dtype": dtype_name(case.dtype),
    }
    for variant in VARIANTS:
        row[f"{variant}_ms"] = statistics.median(times[variant])
    for variant in VARIANTS:
        low, _, _, high = statistics.quantiles(times[variant], n=5)
        row[f"{variant}_p20_p80_ms"] = [low, high]
    return {**row, "calls": len(times["copy"]), "environment": environment(device)}


def _turn(problem: Problem, variant: str) -> list[float]:
    """Milliseconds of each call."""
    step = partial(problem.step, variant)
    if problem.device == "cuda":
        return [event_time(step, 1) / 1e3 for _ in range(_TURN)]
    return [host_turn(step, 1, "cpu")[0] / 1e3 for _ in range(_TURN)]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_json_argument(parser)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU (default 2)")
    parser.add_argument(
        "--seconds", type=float, default=10, help="time for each shape (default 10)"
    )
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the command")
    arguments = parser.parse_args(argv)
    check_arguments(parser, arguments)
    torch.set_num_threads(arguments.threads)
    bank_rows = 64 if arguments.tiny else 20_000
    rows = [
        measure(case, arguments.device, arguments.seconds, bank_rows)
        for case in (TINY_CASES if arguments.tiny else CASES)
    ]
    title = "forward + backward, milliseconds (median), and ratio to fused"
    show(title, *terminal_cells(rows), text_columns=0)
    output = Output(arguments.json, None if arguments.tiny else FOLDER)
    output.write(rows)
    output.print_path()


if __name__ == "__main__":
    main()
