"""Suite "step_cost" of `benchmarks.scaling`: the fused operation over N, K and B."""

from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.harness.averages import percentiles
from benchmarks.harness.environment import environment
from benchmarks.harness.timing import host_turn, take_turns
from benchmarks.kernels.problem import Case, Problem

# N, K, B: one of them changes at a time.
POINT = (50_000, 100, 256)
POINTS = (
    *((n, POINT[1], POINT[2]) for n in (2_000, 50_000, 1_000_000)),
    *((POINT[0], k, POINT[2]) for k in (10, 1000)),
    *((POINT[0], POINT[1], b) for b in (64, 1024, 4096)),
)
TINY_POINTS = ((64, 3, 8), (64, 5, 8), (32, 3, 8))

_INDICES = 4096  # batches of rows in rotation: more of a bank than the caches hold
_STEPS = 20  # of a turn


def measure_step_cost(
    points: Sequence[tuple[int, int, int]], seconds: float
) -> list[dict[str, object]]:
    """One row for each point (N, K, B): time of the fused loss and gradient, in turn."""
    problems, turns = {}, {}
    for point in points:
        samples, classes, batch = point
        problem = problems[point] = Problem(Case(batch, classes), "cpu", samples)
        problem.check(["fused_and_grad"])
        count = min(samples // batch, _INDICES)
        problem.index = list(torch.randperm(samples)[: count * batch].view(count, batch))
        turns[point] = partial(host_turn, partial(problem.step, "fused_and_grad"), _STEPS, "cpu")
    for turn in turns.values():
        turn()
    times = take_turns(turns, seconds, at_least=3)
    facts = environment("cpu")
    rows = []
    for (samples, classes, batch), measured in times.items():
        found = percentiles(total for total, _ in measured)
        rows.append(
            {
                "suite": "step_cost",
                "samples": samples,
                "classes": classes,
                "batch": batch,
                "bank_bytes": samples * classes * 4,
                "index_pattern": problems[samples, classes, batch].index_pattern,
                **found,
                "ns_per_element": found["p50_us"] * 1e3 / (classes * batch),
                "calls": len(measured) * _STEPS,
                "environment": facts,
            }
        )
    return rows
