"""Times the fused operation against the eager and the compiled reference, and against a copy.

    python -m benchmarks.fused_vs_reference

Rows are written to benchmarks/results, from which `python -m benchmarks.report` generates tables,
or to the file of --json. The variants take turns of fifty calls each, so that changes of the
machine's speed affect all of them. Figures are medians of forward + backward through autograd;
`fused_and_grad` is the one-launch function for loops that call `logits.backward(grad)`. Plain and
smoothed cross entropy are compared with `torch.nn.functional.cross_entropy` in the same way.
"""

import itertools
import statistics
from collections.abc import Sequence
from functools import partial

from benchmarks.harness.command import new_parser, parse
from benchmarks.harness.environment import environment
from benchmarks.harness.results import FOLDER, ResultFile
from benchmarks.harness.timing import event_time, host_turn, take_turns
from benchmarks.kernels import cross_entropy
from benchmarks.kernels.problem import (
    BANK_ROWS,
    CASES,
    DAILY_CASES,
    TINY_CASES,
    Case,
    Problem,
    dtype_name,
)
from benchmarks.tables.fused_vs_reference import (
    VARIANTS,
    cross_entropy_cells,
    terminal_cells,
)
from benchmarks.tables.markdown import show

# Calls of a turn: enough to outlast the spinning threads of the previous variant (compiled code
# uses its own OpenMP runtime).
_TURN = 50
_CROSS_ENTROPY_TIME = 0.1  # for a shape with two variants, relative to the other shapes


def measure(case: Case, device: str, seconds: float, bank_rows: int) -> dict[str, object]:
    """Times all variants of a case in turn; returns a row with medians and percentiles."""
    problem = Problem(case, device, bank_rows)
    problem.check()
    for variant in VARIANTS:
        problem.step(variant)
    turns = take_turns({variant: partial(_turn, problem, variant) for variant in VARIANTS}, seconds)
    times = {variant: list(itertools.chain(*turns[variant])) for variant in VARIANTS}
    return {
        "suite": "fused_vs_reference",
        "batch": case.batch,
        "classes": case.classes,
        "dtype": dtype_name(case.dtype),
        "daily": case in DAILY_CASES,
        **{f"{variant}_ms": statistics.median(times[variant]) for variant in VARIANTS},
        **{
            f"{variant}_p20_p80_ms": statistics.quantiles(times[variant], n=5)[::3]
            for variant in VARIANTS
        },
        "calls": len(times["copy"]),
        "environment": environment(device),
    }


def _turn(problem: Problem, variant: str) -> list[float]:
    """Milliseconds of each call."""
    step = partial(problem.step, variant)
    on_gpu = problem.device == "cuda"
    times = (event_time(step, 1) if on_gpu else host_turn(step, 1, "cpu")[0] for _ in range(_TURN))
    return [microseconds / 1e3 for microseconds in times]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = new_parser(__doc__, device="cpu", threads="threads of the CPU",
                        seconds=(10, "time for each shape"), tiny="small shapes")  # fmt: skip
    arguments = parse(parser, argv)
    cases, bank_rows = (TINY_CASES, 64) if arguments.tiny else (CASES + DAILY_CASES, BANK_ROWS)
    shapes = cross_entropy.TINY_SHAPES if arguments.tiny else cross_entropy.SHAPES
    device, seconds = arguments.device, arguments.seconds
    rows = [measure(case, device, seconds, bank_rows) for case in cases]
    title = "forward + backward, milliseconds (median), and ratio to fused"
    show(title, *terminal_cells(rows), text_columns=0)
    compared = [
        cross_entropy.measure(*shape, smoothing, device, seconds * _CROSS_ENTROPY_TIME)
        for smoothing in cross_entropy.SMOOTHING
        for shape in shapes
    ]
    show("the same of cross entropy", *cross_entropy_cells(compared), text_columns=0)
    rows += compared
    ResultFile(None if arguments.tiny else FOLDER, arguments.json).finish(rows)


if __name__ == "__main__":
    main()
