"""Where the host's microseconds of a small step go.

    python -m benchmarks.host_cost

B = 256, K = 14: the whole step, its parts by themselves, and an autograd graph with a single native
operation beside them. Calls follow each other without waiting for the device.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from alr_fast import functional
from benchmarks.harness.environment import environment
from benchmarks.harness.results import FOLDER, ResultFile, percentiles
from benchmarks.harness.timing import host_turn, take_turns
from benchmarks.kernels.problem import OPTIONS, Case, Problem

CASE = Case(256, 14)
_STEPS = 100  # a turn


class _Empty(torch.autograd.Function):
    """As many arguments as the loss has, and nothing to do."""

    @staticmethod
    def forward(ctx, logits: Tensor, loss: Tensor, grad: Tensor, *others: None) -> Tensor:
        ctx.save_for_backward(grad)
        return loss.view(())

    @staticmethod
    def backward(ctx, grad_loss: Tensor):
        return ctx.saved_tensors[0], *(None,) * 12


def _parts(problem: Problem) -> dict[str, Callable[[], object]]:
    logits, index, bank = problem.logits[0], problem.index[0], problem.bank
    loss, grad = functional.alr_loss_and_grad(logits, bank, index, **OPTIONS)
    # In the order of the schema, as alr_fast._operators calls it; 1: mean.
    options = (*(None,) * 5, OPTIONS["momentum"], OPTIONS["entropy_weight"], 1, True, 1)
    operator = partial(torch.ops.alr_fast.alr_loss.default, logits, bank, index, *options)
    one_row = partial(torch.ops.alr_fast.alr_loss.default, logits[:1], bank, index[:1], *options)

    def leaf() -> Tensor:
        return logits.detach().requires_grad_()

    def empty() -> Tensor:
        return _Empty.apply(leaf(), loss, grad, *(None,) * 10)

    def forward() -> Tensor:
        return functional.alr_loss(leaf(), bank, index, **OPTIONS)

    return {
        "step": lambda: forward().backward(),
        "forward": forward,
        "loss and gradient": lambda: functional.alr_loss_and_grad(logits, bank, index, **OPTIONS),
        "operator": operator,
        "operator, one row": one_row,
        "empty function, step": lambda: empty().backward(),
        "empty function, forward": empty,
        "leaf": leaf,
        "native step": partial(problem.step, "native_one_op"),
    }


def measure(device: str, seconds: float) -> list[dict[str, object]]:
    """Times the parts in turn; one thread on the CPU.

    Returns:
        A row for each part: percentiles of the host's microseconds a call.
    """
    torch.set_num_threads(1)
    problem = Problem(CASE, device)
    problem.check(["fused", "fused_and_grad"])
    turns = {
        name: partial(host_turn, part, _STEPS, device) for name, part in _parts(problem).items()
    }
    for turn in turns.values():
        turn()
    times = take_turns(turns, seconds, at_least=3)
    facts = environment(device)
    native = percentiles(host for _, host in times["native step"])["p50_us"]
    rows = []
    for name, measured in times.items():
        row = percentiles(host for _, host in measured)
        rows.append(
            {
                "suite": "host_cost",
                "variant": name,
                "batch": CASE.batch,
                "classes": CASE.classes,
                **row,
                "times_native": row["p50_us"] / native,
                "calls": len(measured) * _STEPS,
                "environment": facts,
            }
        )
    return rows


def table(rows: Sequence[dict]) -> Table:
    """The rows, for a terminal."""
    shown = Table(title="microseconds of the host")
    for name in ("part", "p20", "p50", "p80", "of the native step"):
        shown.add_column(name, justify="left" if name == "part" else "right")
    for row in rows:
        figures = (f"{row[name]:.1f}" for name in ("p20_us", "p50_us", "p80_us"))
        shown.add_row(row["variant"], *figures, f"{row['times_native']:.2f}")
    return shown


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=float, default=10, help="in all (default 10)")
    parser.add_argument("--results-dir", type=Path, default=FOLDER, help="where rows go")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU was found: pass --device cpu to time what runs on a CPU")
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    rows = measure(device, arguments.seconds)
    Console().print(table(rows))
    print(f"rows in {ResultFile(arguments.results_dir, rows[0]['environment']).write(rows)}")


if __name__ == "__main__":
    main()
