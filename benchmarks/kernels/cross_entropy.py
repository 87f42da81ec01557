"""Plain and smoothed cross entropy: this package's loss, and the same by torch."""

import itertools
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from alr_fast.functional import label_smoothing_cross_entropy
from benchmarks.harness.compare import check_step
from benchmarks.harness.environment import environment
from benchmarks.harness.timing import event_time, host_turn, take_turns

SMOOTHING = (0.0, 0.1)
BATCHES = (256, 4096)
CLASSES = (2, 4, 8, 10, 14, 16, 24, 32, 50, 64, 100, 256, 1000)
TINY_SHAPES = ((8, 3),)
SHAPES = tuple(itertools.product(BATCHES, CLASSES))

_TURN = 20  # calls of a turn

Loss = Callable[[Tensor, Tensor], Tensor]


def losses(smoothing: float) -> dict[str, Loss]:
    """The two losses, both with reduction "mean"."""
    return {
        "fused": partial(label_smoothing_cross_entropy, smoothing=smoothing),
        "torch": partial(torch.nn.functional.cross_entropy, label_smoothing=smoothing),
    }


def measure(
    batch: int, classes: int, smoothing: float, device: str, seconds: float
) -> dict[str, object]:
    """Times forward + backward of both in turn; returns a row with medians and percentiles.

    Raises:
        AssertionError: Loss or gradient is wrong.
    """
    torch.manual_seed(0)
    logits = 3 * torch.randn(batch, classes, device=device)
    labels = torch.randint(classes, (batch,), device=device)
    compared = losses(smoothing)
    exact = _step(compared["torch"], logits.double(), labels)
    for name, loss in compared.items():
        check_step(name, _step(loss, logits, labels), exact)

    def turn(loss: Loss) -> list[float]:
        step = partial(_step, loss, logits, labels)
        on_gpu = device == "cuda"
        times = (event_time(step, 1) if on_gpu else host_turn(step, 1, device)[0]
                 for _ in range(_TURN))  # fmt: skip
        return [microseconds / 1e3 for microseconds in times]

    turns = take_turns({name: partial(turn, loss) for name, loss in compared.items()}, seconds)
    times = {name: list(itertools.chain(*turns[name])) for name in compared}
    return {
        "suite": "cross_entropy",
        "batch": batch,
        "classes": classes,
        "smoothing": smoothing,
        **{f"{name}_ms": statistics.median(times[name]) for name in compared},
        **{f"{name}_p20_p80_ms": statistics.quantiles(times[name], n=5)[::3] for name in compared},
        "calls": len(times["fused"]),
        "environment": environment(device),
    }


def _step(loss: Loss, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().requires_grad_()
    value = loss(leaf, labels)
    return value.detach(), torch.autograd.grad(value, leaf)[0]
