"""Suites "bandwidth" and "pinned" of `benchmarks.kernels`: the speed compared with copies."""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.harness.averages import percentiles
from benchmarks.harness.timing import device_turn, host_turn, queue_time, synchronize, take_turns
from benchmarks.kernels.problem import LOOP_ROW_LIMIT, Problem
from benchmarks.kernels.task import COMPILED, Preparation, Task, first_columns, skipped

BANK_BYTES = 1 << 30

_QUEUED_STEPS = 10  # of a turn on a GPU


def bandwidth(task: Task) -> Callable[[], list[dict]]:
    """Checks the variants; returns a function that compares them with a copy on the device.

    Args:
        task: Cases with large batches; the first one is float32, others have 16-bit logits.
    """
    on_gpu = task.device == "cuda"
    preparation = Preparation(task)
    problems, variants = [], {}
    for case in task.cases:
        rows = max(2 * case.batch, BANK_BYTES // (case.classes * case.stored.itemsize))
        problem = Problem(case, task.device, 64 if task.tiny else rows)
        problems.append(problem)
        names = ["fused_forward", "fused_and_grad"]
        if case.dtype == torch.float32:
            names += ["fused", "fused_forward_any_index", "eager", "plain"]
            if on_gpu:
                names += ["triton", *(["triton_loop"] if case.classes > LOOP_ROW_LIMIT else [])]
        variants[case] = preparation.check(problem, names)
    for problem in problems:
        if problem.case.dtype == torch.float32:
            names = COMPILED if on_gpu else COMPILED[:1]
            variants[problem.case] += preparation.check(problem, names)

    def measure() -> list[dict]:
        rows = []
        for problem in problems:
            # The 16-bit cases have three variants, the float32 case has ten.
            share = 1 if len(problems) == 1 else 0.6 if problem is problems[0] else 0.2
            names = [*variants[problem.case], "copy"]
            rows += _rows(problem, names, ("copy",), preparation, task.seconds * share)
        return rows + preparation.rows

    return measure


def pinned(task: Task) -> Callable[[], list[dict]]:
    """The same for a bank in host memory, compared with copies over the host's link."""
    if task.device == "cpu":
        return lambda: [skipped(task, "needs a GPU")]
    (case,) = task.cases
    problem = Problem(case, task.device, 64 if task.tiny else 50_000, pinned=True)
    preparation = Preparation(task)
    variants = preparation.check(problem, ["fused_and_grad"])

    def measure() -> list[dict]:
        copies = ("copy_in_turn", "copy_at_once")
        rows = _rows(problem, [*variants, *copies], copies, preparation, task.seconds)
        return rows + preparation.rows

    return measure


def _rows(
    problem: Problem,
    variants: list[str],
    copies: tuple[str, ...],
    preparation: Preparation,
    seconds: float,
) -> list[dict]:
    """Rows with the speed in ideal bytes, and the share of the fastest of the copies."""
    case, on_gpu = problem.case, problem.device == "cuda"
    suite, ideal_bytes = "bandwidth", case.ideal_bytes
    if problem.pinned:  # only the rows of the bank cross the link
        suite, ideal_bytes = "pinned", 2 * case.batch * case.classes * case.stored.itemsize
    turns: dict[str, Callable[[], float]] = {}
    for variant in variants:
        step = partial(problem.step, variant)
        step()
        if on_gpu:
            queue_us = queue_time(step, _QUEUED_STEPS)
            turns[variant] = partial(device_turn, step, _QUEUED_STEPS, queue_us)
        else:
            turns[variant] = lambda step=step: host_turn(step, 1, "cpu")[0]
    synchronize(problem.device)
    times = take_turns(turns, seconds, at_least=3)
    medians = {variant: percentiles(times[variant])["p50_us"] for variant in variants}
    roof = min(medians[copy] for copy in copies)
    return [
        {
            **first_columns(suite, case, variant, problem),
            **percentiles(times[variant]),
            "calls": len(times[variant]) * (_QUEUED_STEPS if on_gpu else 1),
            "ideal_bytes": ideal_bytes,
            "gigabytes_per_second": ideal_bytes / medians[variant] / 1e3,
            "share_of_copy": roof / medians[variant],
            **preparation.note(problem, variant),
        }
        for variant in variants
    ]
