"""Suite "latency" of `benchmarks.kernels`: small batches, called and in a CUDA graph."""

from collections.abc import Callable, Iterable
from functools import partial

from benchmarks.harness.averages import percentiles
from benchmarks.harness.timing import capture, device_turn, host_turn, kernel_times, take_turns
from benchmarks.kernels.problem import Case, Problem
from benchmarks.kernels.task import COMPILED, Preparation, Task, first_columns

COMPILED_BATCH = 256  # the only batch size for which variants are compiled
# Variants that can be captured: without masks whose size the host has to wait for.
CAPTURED = ("fused", "fused_and_grad", "plain", "triton")

_STEPS = 50  # consecutive calls of a turn
_GRAPH_STEPS = 20  # steps in a graph
_REPLAYS = 5  # of a graph in a turn
_PROFILED_STEPS = 20


def latency(task: Task) -> Callable[[], list[dict]]:
    """Checks the variants; returns a function that measures the cost of a step for host and device.

    The cases of the task have small batches.
    """
    on_gpu = task.device == "cuda"
    preparation = Preparation(task)
    problems = [Problem(case, task.device, 64 if task.tiny else 50_000) for case in task.cases]
    variants: dict[Case, list[str]] = {}
    replays: dict[Case, dict[str, Callable]] = {}
    for problem in problems:
        names = ["fused", "fused_and_grad", "eager", "plain", *(["triton"] if on_gpu else [])]
        variants[problem.case] = preparation.check(problem, names)
    for problem in problems:
        case = problem.case
        if case.batch == COMPILED_BATCH:
            variants[case] += preparation.check(problem, COMPILED if on_gpu else COMPILED[:2])
        variants[case].append("native_one_op")
        replays[case] = _captured(preparation, problem, variants[case]) if on_gpu else {}

    def measure() -> list[dict]:
        rows = []
        seconds = task.seconds / len(problems)
        for problem in problems:
            case = problem.case
            rows += _rows(problem, variants[case], replays[case], preparation, seconds)
        if on_gpu:  # last, as the profiler slows down everything after it
            rows += _add_kernels(problems, variants, rows)
        return rows + preparation.rows

    return measure


def _captured(
    preparation: Preparation, problem: Problem, variants: Iterable[str]
) -> dict[str, Callable]:
    """Graphs of the variants that can be captured."""
    replays = {}
    for variant in variants:
        if variant == "eager":
            why = "its masks make the host wait, which a graph cannot contain"
            preparation.skip(problem, variant, why, mode="CUDA graph")
        elif variant in CAPTURED:
            try:
                replays[variant] = capture(partial(problem.step, variant), _GRAPH_STEPS)
            except RuntimeError as error:
                fused = variant.startswith("fused")
                preparation.skip(problem, variant, str(error), wrong=fused, mode="CUDA graph")
    return replays


def _rows(
    problem: Problem,
    variants: list[str],
    replays: dict[str, Callable],
    preparation: Preparation,
    seconds: float,
) -> list[dict]:
    calls = {
        variant: partial(host_turn, partial(problem.step, variant), _STEPS, problem.device)
        for variant in variants
    }
    graphs = {
        f"graph {variant}": partial(device_turn, replay, _REPLAYS, 100.0)
        for variant, replay in replays.items()
    }
    for turn in (*calls.values(), *graphs.values()):
        turn()
    times = take_turns({**calls, **graphs}, seconds, at_least=3)
    rows = []
    for variant in variants:
        columns = first_columns("latency", problem.case, variant, problem)
        totals, hosts = zip(*times[variant], strict=True)
        called = {
            "mode": "eager call",
            **percentiles(totals),
            "host_p50_us": percentiles(hosts)["p50_us"],
            "calls": len(totals) * _STEPS,
            "launches": None,
        }
        rows.append({**columns, **called, **preparation.note(problem, variant)})
        if variant in replays:
            turns = [replay / _GRAPH_STEPS for replay in times[f"graph {variant}"]]
            calls_made = len(turns) * _REPLAYS * _GRAPH_STEPS
            found = {**percentiles(turns), "calls": calls_made, "launches": None}
            rows.append({**columns, "mode": "CUDA graph", **found})
    return rows


def _add_kernels(
    problems: list[Problem], variants: dict[Case, list[str]], rows: list[dict]
) -> list[dict]:
    """Adds the number of launches to the rows; returns rows of the forward kernel alone."""
    named = [(problem, variant) for problem in problems for variant in variants[problem.case]]
    alone = [problem for problem in problems if problem.case.batch == COMPILED_BATCH]
    named += [(problem, "fused_forward") for problem in alone]
    steps = [partial(problem.step, variant) for problem, variant in named]
    profiled = zip(named, kernel_times(steps, _PROFILED_STEPS), strict=True)
    kernels = {(problem.case.batch, variant): times for (problem, variant), times in profiled}

    def launches(row: dict) -> float | None:
        times = kernels[row["batch"], row["variant"]]
        return sum(map(len, times)) / len(times) or None

    for row in rows:
        row["launches"] = launches(row)
    more = []
    for problem in alone:
        row = first_columns("latency", problem.case, "fused_forward", problem)
        row["mode"] = "kernel alone"
        if launches(row) is None:
            row |= {"skipped": "the profiler sees no kernels", "wrong": False}
        else:
            times = [sum(call) for call in kernels[problem.case.batch, "fused_forward"]]
            row |= {**percentiles(times), "calls": len(times), "launches": launches(row)}
        more.append(row)
    return more
