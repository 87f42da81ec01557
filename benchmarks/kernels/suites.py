"""The suites of `benchmarks.kernels`: which cases and variants, and how their rows come about.

A suite is a function of a task: it makes the inputs, compiles and checks, and returns a function
that times and returns the rows.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.harness.results import percentiles
from benchmarks.harness.timing import (
    capture,
    device_turn,
    host_turn,
    kernel_times,
    queue_time,
    synchronize,
    take_turns,
)
from benchmarks.kernels.problem import LOOP_ROW_LIMIT, WHAT, Case, Problem, dtype_name

LATENCY_BATCHES = (64, 128, 256, 512, 1024)
LATENCY_CLASSES = (10, 14, 50, 100, 1000)
COMPILED_BATCH = 256  # of the latency suite
BANDWIDTH_SHAPES = ((65536, 256), (16384, 1000), (4096, 4096), (1024, 21841), (128, 131072))
BANDWIDTH_BANK_BYTES = 1 << 30
SIXTEEN_BIT_CLASSES = 1000  # where 16-bit logits and banks are measured, too
PINNED_SHAPE = (1024, 1000)

COMPILED = (
    "compiled",
    "compiled_plain",
    "compiled_max-autotune-no-cudagraphs",
    "compiled_reduce-overhead",
)
# Without a mask whose size the host has to wait for: what can be captured.
CAPTURED = ("fused", "fused_and_grad", "plain", "triton")

_STEPS = 50  # a turn of calls one after the other
_GRAPH_STEPS = 20  # in a graph
_REPLAYS = 5  # a turn
_QUEUED_STEPS = 10  # a turn of the bandwidth suite
_PROFILED_STEPS = 20


@dataclass(frozen=True)
class Task:
    """What one process does: the cases of one K of a suite.

    Attributes:
        seconds: time to measure.
        compile_seconds: age of the process after which no compilation begins.
    """

    suite: str
    cases: tuple[Case, ...]
    device: str
    tiny: bool
    seconds: float
    compile_seconds: float
    threads: int

    def __str__(self) -> str:
        return f"{self.suite} K={self.cases[0].classes}"


def tasks(suite: str, *, tiny: bool, **options) -> list[Task]:
    """The tasks of a suite; `options` are those of `Task`."""
    if suite == "latency":
        batches, classes = ((4, 8), (3,)) if tiny else (LATENCY_BATCHES, LATENCY_CLASSES)
        cases = [tuple(Case(batch, k) for batch in batches) for k in classes]
    elif suite == "bandwidth":
        shapes = ((8, 40),) if tiny else BANDWIDTH_SHAPES
        cases = [(Case(*shape), *_sixteen_bit(*shape)) for shape in shapes]
    else:
        cases = [(Case(*((8, 40) if tiny else PINNED_SHAPE)),)]
    return [Task(suite=suite, cases=some, tiny=tiny, **options) for some in cases]


def _sixteen_bit(batch: int, classes: int) -> tuple[Case, ...]:
    if classes != SIXTEEN_BIT_CLASSES:
        return ()
    return tuple(
        Case(batch, classes, torch.bfloat16, bank) for bank in (torch.float32, torch.bfloat16)
    )


def latency(task: Task) -> Callable[[], list[dict]]:
    """Small batches: what a step costs the host and the device, called and in a graph."""
    bank_rows = 64 if task.tiny else 50_000
    problems = [Problem(case, task.device, bank_rows) for case in task.cases]
    preparation = _Preparation(task)
    variants, replays = {}, {}
    for problem in problems:
        names = ["fused", "fused_and_grad", "eager", "plain"]
        names += ["triton"] * (task.device == "cuda")
        variants[problem.case] = preparation.check(problem, names)
    for problem in problems:
        case = problem.case
        if case.batch == COMPILED_BATCH:
            names = COMPILED if task.device == "cuda" else COMPILED[:2]
            variants[case] += preparation.check(problem, names)
        variants[case].append("native_one_op")
        if task.device == "cuda":
            replays[case] = _captured(preparation, problem, variants[case])

    def measure() -> list[dict]:
        rows = []
        for problem in problems:
            rows += _latency_rows(
                problem,
                variants[problem.case],
                replays.get(problem.case, {}),
                preparation.notes,
                task.seconds / len(problems),
            )
        if task.device == "cuda":  # last, as the profiler slows down what follows
            rows += _add_kernels(problems, variants, rows)
        return rows + preparation.rows

    return measure


def bandwidth(task: Task) -> Callable[[], list[dict]]:
    """Large batches over a bank of 1 GB: device time a step, against a copy."""
    problems = []
    preparation = _Preparation(task)
    variants = {}
    for case in task.cases:
        bank_rows = BANDWIDTH_BANK_BYTES // (case.classes * case.stored.itemsize)
        bank_rows = 64 if task.tiny else max(2 * case.batch, bank_rows)
        problem = Problem(case, task.device, bank_rows)
        problems.append(problem)
        names = ["fused_forward", "fused_and_grad"]
        if case.dtype == torch.float32:
            names += ["fused", "fused_forward_any_index", "eager", "plain"]
            if task.device == "cuda":
                names.append("triton")
                if case.classes > LOOP_ROW_LIMIT:
                    names.append("triton_loop")
        variants[case] = preparation.check(problem, names)
    for problem in problems:
        if problem.case.dtype == torch.float32:
            names = COMPILED if task.device == "cuda" else COMPILED[:1]
            variants[problem.case] += preparation.check(problem, names)

    def measure() -> list[dict]:
        rows = []
        for problem in problems:
            # The 16-bit cases have three variants, where float32 has ten.
            share = 1 if len(problems) == 1 else 0.6 if problem is problems[0] else 0.2
            rows += _bandwidth_rows(
                problem,
                [*variants[problem.case], "copy"],
                ("copy",),
                preparation.notes,
                task.seconds * share,
            )
        return rows + preparation.rows

    return measure


def pinned(task: Task) -> Callable[[], list[dict]]:
    """The bank in host memory, against copies over the host's link."""
    if task.device == "cpu":
        return lambda: [skipped(task, "needs a GPU")]
    (case,) = task.cases
    problem = Problem(case, task.device, 64 if task.tiny else 50_000, pinned=True)
    preparation = _Preparation(task)
    variants = preparation.check(problem, ["fused_and_grad"])

    def measure() -> list[dict]:
        copies = ("copy_in_turn", "copy_at_once")
        # Only the rows of the bank cross the link.
        link_bytes = 2 * case.batch * case.classes * case.stored.itemsize
        rows = _bandwidth_rows(problem, [*variants, *copies], copies, {}, task.seconds, link_bytes)
        return rows + preparation.rows

    return measure


SUITES = {"latency": latency, "bandwidth": bandwidth, "pinned": pinned}


def skipped(task: Task, why: str | None, *, wrong: bool = False) -> dict[str, object]:
    """The row of a task that gave none."""
    return {**_facts(task.suite, task.cases[0], "all"), "skipped": why, "wrong": wrong}


class _Preparation:
    """Checks variants, compiling those that need it.

    Attributes:
        rows: of those that fall out.
        notes: what is to be said of those that do not.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._end = time.perf_counter() + task.compile_seconds
        self.rows: list[dict] = []
        self.notes: dict[tuple[Case, str], str] = {}

    def check(self, problem: Problem, variants: list[str] | tuple[str, ...]) -> list[str]:
        """The variants that are right."""
        right = []
        for variant in variants:
            if variant in COMPILED and time.perf_counter() > self._end:
                limit = f"{self._task.compile_seconds:g}"
                self.leave_out(problem, variant, f"not compiled: it was over {limit} seconds")
                continue
            skips = _graph_skips()
            try:
                problem.check([variant])
            except AssertionError as error:
                self.leave_out(problem, variant, f"wrong: {error}", wrong=True)
                continue
            except Exception as error:
                if variant.startswith("fused"):
                    raise
                self.leave_out(problem, variant, f"{type(error).__name__}: {error}")
                continue
            if variant == "compiled_reduce-overhead" and _graph_skips() > skips:
                self.notes[problem.case, variant] = "the compiler used no CUDA graph"
            right.append(variant)
        return right

    def leave_out(self, problem: Problem, variant: str, why: str, *, wrong: bool = False, **facts):
        """Adds a row that says why."""
        row = _facts(self._task.suite, problem.case, variant, problem)
        why = " ".join(why.split())[:200]
        self.rows.append({**row, **facts, "skipped": why, "wrong": wrong})


def _graph_skips() -> int:
    """How often the compiler has declined to use a CUDA graph."""
    # Not imported here: it takes seconds where nothing is compiled.
    utils = sys.modules.get("torch._dynamo.utils")
    return utils.counters["inductor"]["cudagraph_skips"] if utils else 0


def _facts(
    suite: str, case: Case, variant: str, problem: Problem | None = None
) -> dict[str, object]:
    """What every row begins with."""
    return {
        "suite": suite,
        "variant": variant,
        "what": WHAT.get(variant, variant),
        "batch": case.batch,
        "classes": case.classes,
        "logits_dtype": dtype_name(case.dtype),
        "bank_dtype": dtype_name(case.stored),
        "index_dtype": "int64",
        "index_pattern": problem.index_pattern if problem else None,
    }


def _captured(
    preparation: _Preparation, problem: Problem, variants: list[str]
) -> dict[str, Callable]:
    """Graphs of the variants that can be captured."""
    replays = {}
    for variant in variants:
        if variant == "eager":
            why = "its masks make the host wait, which no graph can hold"
            preparation.leave_out(problem, variant, why, mode="CUDA graph")
        elif variant in CAPTURED:
            try:
                replays[variant] = capture(partial(problem.step, variant), _GRAPH_STEPS)
            except RuntimeError as error:
                fused = variant.startswith("fused")
                preparation.leave_out(problem, variant, str(error), wrong=fused, mode="CUDA graph")
    return replays


def _latency_rows(
    problem: Problem,
    variants: list[str],
    replays: dict[str, Callable],
    notes: dict[tuple[Case, str], str],
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
        facts = _facts("latency", problem.case, variant, problem)
        turns = times[variant]
        row = {
            **facts,
            "mode": "eager call",
            **percentiles([total for total, _ in turns]),
            "host_p50_us": percentiles([host for _, host in turns])["p50_us"],
            "calls": len(turns) * _STEPS,
            "launches": None,
        }
        if note := notes.get((problem.case, variant)):
            row["note"] = note
        rows.append(row)
        if variant in replays:
            turns = [replay / _GRAPH_STEPS for replay in times[f"graph {variant}"]]
            calls_made = len(turns) * _REPLAYS * _GRAPH_STEPS
            row = {**facts, "mode": "CUDA graph", **percentiles(turns), "calls": calls_made}
            rows.append({**row, "launches": None})
    return rows


def _add_kernels(
    problems: list[Problem], variants: dict[Case, list[str]], rows: list[dict]
) -> list[dict]:
    """Counts the launches of the rows; returns rows of the forward kernel alone."""
    named = [(problem, variant) for problem in problems for variant in variants[problem.case]]
    alone = [problem for problem in problems if problem.case.batch == COMPILED_BATCH]
    named += [(problem, "fused_forward") for problem in alone]
    steps = [partial(problem.step, variant) for problem, variant in named]
    kernels = {
        (problem.case.batch, variant): times
        for (problem, variant), times in zip(
            named, kernel_times(steps, _PROFILED_STEPS), strict=True
        )
    }

    def launches(batch: int, variant: str) -> float | None:
        times = kernels[batch, variant]
        return sum(map(len, times)) / len(times) or None

    for row in rows:
        row["launches"] = launches(row["batch"], row["variant"])
    more = []
    for problem in alone:
        batch = problem.case.batch
        row = _facts("latency", problem.case, "fused_forward", problem)
        row["mode"] = "kernel alone"
        if launches(batch, "fused_forward") is None:
            more.append({**row, "skipped": "the profiler sees no kernels", "wrong": False})
            continue
        times = [sum(call) for call in kernels[batch, "fused_forward"]]
        row |= {**percentiles(times), "calls": len(times)}
        more.append({**row, "launches": launches(batch, "fused_forward")})
    return more


def _bandwidth_rows(
    problem: Problem,
    variants: list[str],
    copies: tuple[str, ...],
    notes: dict[tuple[Case, str], str],
    seconds: float,
    ideal_bytes: int | None = None,
) -> list[dict]:
    """Rows with the speed in ideal bytes, and the share of the fastest of the copies."""
    ideal_bytes = ideal_bytes or problem.case.ideal_bytes
    turns = {}
    for variant in variants:
        step = partial(problem.step, variant)
        step()
        if problem.device == "cuda":
            queue_us = queue_time(step, _QUEUED_STEPS)
            turns[variant] = partial(device_turn, step, _QUEUED_STEPS, queue_us)
        else:
            turns[variant] = lambda step=step: host_turn(step, 1, "cpu")[0]
    synchronize(problem.device)
    steps = _QUEUED_STEPS if problem.device == "cuda" else 1
    times = take_turns(turns, seconds, at_least=3)
    medians = {variant: percentiles(times[variant])["p50_us"] for variant in variants}
    roof = min(medians[copy] for copy in copies)
    suite = "pinned" if problem.pinned else "bandwidth"
    return [
        {
            **_facts(suite, problem.case, variant, problem),
            **percentiles(times[variant]),
            "calls": len(times[variant]) * steps,
            "ideal_bytes": ideal_bytes,
            "gigabytes_per_second": ideal_bytes / medians[variant] / 1e3,
            "share_of_copy": roof / medians[variant],
            **({"note": notes[problem.case, variant]} if (problem.case, variant) in notes else {}),
        }
        for variant in variants
    ]
