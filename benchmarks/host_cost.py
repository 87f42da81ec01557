"""The host time of a small step, by parts.

    python -m benchmarks.host_cost

B = 256, K = 14: the whole step, its parts by themselves, and for comparison an autograd graph with
a single native operation. Calls follow each other without waiting for the device.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from alr_fast import _operators, functional
from benchmarks.harness.averages import percentiles
from benchmarks.harness.command import new_parser, parse
from benchmarks.harness.environment import environment
from benchmarks.harness.results import FOLDER, ResultFile
from benchmarks.harness.timing import host_turn, take_turns
from benchmarks.kernels.problem import OPTIONS, Case, Problem
from benchmarks.tables.host_cost import terminal_cells
from benchmarks.tables.markdown import show

CASE = Case(256, 14)
_STEPS = 100  # of a turn


class _Empty(torch.autograd.Function):
    """As many arguments as the loss, and no work."""

    @staticmethod
    def forward(ctx, logits: Tensor, loss: Tensor, grad: Tensor, *others: None) -> Tensor:
        ctx.save_for_backward(grad)
        return loss.view(())

    @staticmethod
    def backward(ctx, grad_loss: Tensor):
        return ctx.saved_tensors[0], *(None,) * 14


def _parts(problem: Problem) -> dict[str, Callable[[], object]]:
    logits, index, bank = problem.logits[0], problem.index[0], problem.bank
    loss, grad = functional.alr_loss_and_grad(logits, bank, index, **OPTIONS)
    # In the order of the schema, as in alr_fast._operators; 1: mean.
    options = (*(None,) * 7, OPTIONS["momentum"], OPTIONS["entropy_weight"], 1, True, 1)
    operator = partial(torch.ops.alr_fast.alr_loss.default, logits, bank, index, *options)
    one_row = partial(torch.ops.alr_fast.alr_loss.default, logits[:1], bank, index[:1], *options)

    def leaf() -> Tensor:
        return logits.detach().requires_grad_()

    def empty() -> Tensor:
        return _Empty.apply(leaf(), loss, grad, *(None,) * 12)

    def forward() -> Tensor:
        return functional.alr_loss(leaf(), bank, index, **OPTIONS)

    def step() -> None:
        forward().backward()

    def step_in_python() -> None:
        fused = _operators._ALR_LOSS
        record, fused.record = fused.record, fused.record_in_python
        try:
            step()
        finally:
            fused.record = record

    return {
        "step": step,
        "step, node in Python": step_in_python,
        "forward": forward,
        "loss and gradient": lambda: functional.alr_loss_and_grad(logits, bank, index, **OPTIONS),
        "operator": operator,
        "operator, one row": one_row,
        "empty function, step": lambda: empty().backward(),
        "empty function, forward": empty,
        "leaf": leaf,
        "native step": partial(problem.step, "native_one_op"),
    }


def measure(device: str, seconds: float) -> list[dict]:
    """One row for each part: percentiles of the host's microseconds for a call, with one thread."""
    torch.set_num_threads(1)
    problem = Problem(CASE, device)
    problem.check(["fused", "fused_and_grad"])
    parts = _parts(problem)
    turns = {name: partial(host_turn, part, _STEPS, device) for name, part in parts.items()}
    for turn in turns.values():
        turn()
    measured = take_turns(turns, seconds, at_least=3)
    times = {name: percentiles(host for _, host in measured[name]) for name in parts}
    facts = environment(device)
    return [
        {
            "suite": "host_cost",
            "variant": name,
            "batch": CASE.batch,
            "classes": CASE.classes,
            **found,
            "times_native": found["p50_us"] / times["native step"]["p50_us"],
            "calls": len(measured[name]) * _STEPS,
            "environment": facts,
        }
        for name, found in times.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = new_parser(__doc__, json=False, seconds=(10, "in total"))
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is a GPU")
    parser.add_argument("--results-dir", type=Path, default=FOLDER, help="folder of the rows")
    arguments = parse(parser, argv)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    rows = measure(device, arguments.seconds)
    show("microseconds of the host", *terminal_cells(rows), text_columns=1)
    ResultFile(arguments.results_dir).finish(rows)


if __name__ == "__main__":
    main()
