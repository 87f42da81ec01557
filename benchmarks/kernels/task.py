"""A task of a suite, the check of its variants, and the beginning of its rows."""

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.kernels.problem import WHAT, Case, Problem, dtype_name

COMPILED = (
    "compiled",
    "compiled_plain",
    "compiled_max-autotune-no-cudagraphs",
    "compiled_reduce-overhead",
)


@dataclass(frozen=True)
class Task:
    """The work of one process: the cases of one K of a suite."""

    suite: str
    cases: tuple[Case, ...]
    device: str  # cpu or cuda
    tiny: bool  # whether the banks are small, to try the command
    seconds: float  # time to measure
    compile_seconds: float  # age of the process after which no compilation starts
    threads: int  # on the CPU

    def __str__(self) -> str:
        return f"{self.suite} K={self.cases[0].classes}"


def first_columns(
    suite: str, case: Case, variant: str, problem: Problem | None = None
) -> dict[str, object]:
    """The entries that every row begins with."""
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


def skipped(task: Task, why: str | None, *, wrong: bool = False) -> dict[str, object]:
    """The row of a task that was not measured."""
    return {**first_columns(task.suite, task.cases[0], "all"), "skipped": why, "wrong": wrong}


class Preparation:
    """Checks the variants of a task, and compiles those that need it.

    Attributes:
        rows: Rows of the variants that are skipped.
        notes: Remarks on the others.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._end = time.perf_counter() + task.compile_seconds
        self.rows: list[dict] = []
        self.notes: dict[tuple[Case, str], str] = {}

    def check(self, problem: Problem, variants: Iterable[str]) -> list[str]:
        """The variants whose results are right."""
        right = []
        for variant in variants:
            if variant in COMPILED and time.perf_counter() > self._end:
                limit = f"{self._task.compile_seconds:g}"
                self.skip(problem, variant, f"not compiled: it was over {limit} seconds")
                continue
            skips = _graph_skips()
            try:
                problem.check([variant])
            except AssertionError as error:
                self.skip(problem, variant, f"wrong: {error}", wrong=True)
                continue
            except Exception as error:
                if variant.startswith("fused"):
                    raise
                self.skip(problem, variant, f"{type(error).__name__}: {error}")
                continue
            if variant == "compiled_reduce-overhead" and _graph_skips() > skips:
                self.notes[problem.case, variant] = "the compiler used no CUDA graph"
            right.append(variant)
        return right

    def skip(self, problem: Problem, variant: str, why: str, *, wrong: bool = False, **more):
        """Adds a row with the reason."""
        row = first_columns(self._task.suite, problem.case, variant, problem)
        why = " ".join(why.split())[:200]
        self.rows.append({**row, **more, "skipped": why, "wrong": wrong})

    def note(self, problem: Problem, variant: str) -> dict[str, str]:
        """The remark on a variant as an entry of its row."""
        note = self.notes.get((problem.case, variant))
        return {} if note is None else {"note": note}


def _graph_skips() -> int:
    """How often the compiler has decided against a CUDA graph."""
    # Not imported here: that takes seconds, which are wasted if nothing is compiled.
    utils = sys.modules.get("torch._dynamo.utils")
    return utils.counters["inductor"]["cudagraph_skips"] if utils else 0
