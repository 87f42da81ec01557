"""The candidates, the shapes that they are compared at, and who takes part in a stage."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.kernels.problem import Case
from benchmarks.kernels.suites import BANDWIDTH_SHAPES
from benchmarks.kernels.task import first_columns

SUITE = "tournament"
# Stage -> its share of the time.
STAGES = {
    "correctness": 2.0,
    "direct": 2.0,
    "cut_down": 3.0,
    "sources": 2.0,
    "exponential": 1.5,
    "latency": 1.0,
}

_DTYPES = (torch.float32, torch.bfloat16)
BANDWIDTH = tuple(
    Case(*shape, dtype) for dtype in _DTYPES for shape in (*BANDWIDTH_SHAPES, (8192, 8192))
)
LATENCY = tuple(Case(256, classes, dtype) for dtype in _DTYPES for classes in (14, 100, 1000))

# Where a kernel takes its row from, the simplest first; part of a regime's name.
SOURCES = ("direct", "prefetched", "staged", "ring")
# As `Arithmetic` of csrc/cuda/memory.cuh: with the correction of the exponential, without it, and
# cut down to a copy, which has the same accesses.
WHOLE, PLAIN, COPY = ARITHMETIC = ("whole", "plain exponential", "copy")
# As `Finish` of csrc/cuda/regimes.h: how the losses of all blocks become that of a batch.
FINISHES = ("arrivals", "cluster", "polled")

_FINALISTS = 3  # of a shape, compared with a plain exponential
# A candidate takes part where it holds the row, and not much more than it.
_MOST_UNUSED = 2.6
_SHORT_ROW = 64


@dataclass(frozen=True)
class Candidate:
    """A regime of csrc/cuda/regimes.h with a number of blocks that share a row."""

    line: int  # in the library's list
    regime: str
    blocks_per_row: int
    columns: int  # of the longest row that it holds

    def __str__(self) -> str:
        return self.regime + (f" x {self.blocks_per_row}" if self.blocks_per_row > 1 else "")

    @property
    def source(self) -> str:
        words = self.regime.split("_")
        return next((source for source in SOURCES if source in words), SOURCES[0])

    def takes(self, case: Case) -> bool:
        most = _MOST_UNUSED * max(case.classes, _SHORT_ROW)
        return case.classes <= self.columns <= most


def candidates_of(lines: str) -> list[Candidate]:
    """The candidates from the text of the library: regime, blocks and columns in each line."""
    words = [line.split() for line in lines.splitlines()]
    return [
        Candidate(n, regime, int(blocks), int(columns))
        for n, (regime, blocks, columns) in enumerate(words)
    ]


@dataclass(frozen=True)
class Entrant:
    """A variant of a candidate; ``any_index``: without the promise of distinct indices."""

    candidate: Candidate
    arithmetic: str = WHOLE
    any_index: bool = False
    finish: str = FINISHES[0]

    def __str__(self) -> str:
        extras = [self.arithmetic] if self.arithmetic != WHOLE else []
        extras += ["any index"] if self.any_index else []
        extras += [self.finish] if self.finish != FINISHES[0] else []
        return ", ".join((str(self.candidate), *extras))


@dataclass(frozen=True)
class Unit:
    """What is measured together: the entrants of a stage at one shape."""

    stage: str
    case: Case
    entrants: tuple[Entrant, ...]

    def __str__(self) -> str:
        return f"{self.stage} {self.case}"

    def row(self, entrant: Entrant) -> dict:
        """The first columns of an entrant's row."""
        candidate = entrant.candidate
        return {
            **first_columns(SUITE, self.case, str(candidate)),
            "what": "forward",
            "stage": self.stage,
            "line": candidate.line,
            "regime": candidate.regime,
            "source": candidate.source,
            "blocks_per_row": candidate.blocks_per_row,
            "columns": candidate.columns,
            "arithmetic": entrant.arithmetic,
            "any_index": entrant.any_index,
            "finish": entrant.finish,
        }

    def failed(self, entrant: Entrant, why: str, *, wrong: bool = True) -> dict:
        """The row of an entrant that is wrong or did not run."""
        return {**self.row(entrant), "skipped": " ".join(why.split())[:200], "wrong": wrong}


def units_of(stage: str, candidates: Sequence[Candidate], rows: Sequence[dict]) -> list[Unit]:
    """What is left to do in a stage.

    Args:
        stage: A key of `STAGES`.
        candidates: All of them.
        rows: Those measured so far, of this stage and earlier ones.
    """
    units = []
    for case in {"correctness": BANDWIDTH + LATENCY, "latency": LATENCY}.get(stage, BANDWIDTH):
        of_case = [row for row in rows if _is_of(row, case)]
        done = {_key(row) for row in of_case if row["stage"] == stage}
        if stage == "correctness":
            fitting = [candidate for candidate in candidates if candidate.takes(case)]
            all_of = [Entrant(c, arithmetic) for c in fitting for arithmetic in ARITHMETIC]
            if case in LATENCY:
                all_of += _finishing(fitting)
            entrants = [e for e in all_of if _key_of(e) not in done]
        elif done:
            continue
        else:
            right = {
                _key(row)[:3]
                for row in of_case
                if row["stage"] == "correctness" and "skipped" not in row
            }
            entrants = [
                entrant
                for entrant in _entrants(stage, candidates, of_case)
                if _key_of(entrant)[:3] in right
            ]
            if stage == "sources" and all(_is_direct(entrant.candidate) for entrant in entrants):
                continue
        if entrants:
            units.append(Unit(stage, case, tuple(entrants)))
    return units


def _entrants(stage: str, candidates: Sequence[Candidate], rows: Sequence[dict]) -> list[Entrant]:
    measured = scores(rows)
    by_speed = sorted(
        (c for c in candidates if c.line in measured), key=lambda c: -measured[c.line]
    )
    if stage == "direct":
        return [Entrant(candidate) for candidate in candidates if _is_direct(candidate)]
    if stage == "cut_down":
        return [Entrant(candidate, COPY) for candidate in candidates]
    if stage == "sources":  # with the best direct one, which they have to beat
        fastest = [candidate for candidate in by_speed if _is_direct(candidate)][:1]
        others = [candidate for candidate in candidates if not _is_direct(candidate)]
        return [Entrant(candidate) for candidate in (*fastest, *others)]
    if stage == "exponential":
        finalists = by_speed[:_FINALISTS]
        compared = [Entrant(c, arithmetic) for c in finalists for arithmetic in (WHOLE, PLAIN)]
        return compared + [Entrant(candidate, any_index=True) for candidate in finalists[:1]]
    return [*map(Entrant, candidates), *_finishing(candidates)]


def _finishing(candidates: Iterable[Candidate]) -> list[Entrant]:
    """The candidates with other ways to finish a batch."""
    return [Entrant(c, finish=finish) for c in candidates for finish in FINISHES[1:]]


def _is_direct(candidate: Candidate) -> bool:
    return candidate.source == SOURCES[0]


def is_plain(row: dict) -> bool:
    """Whether the row is one of a kernel as it would be shipped, with distinct indices."""
    return _key(row)[1:] == (WHOLE, FINISHES[0], False)


def scores(rows: Iterable[dict]) -> dict[int, float]:
    """Line of a candidate -> how fast it is at the shape of the rows, the higher the better.

    The share of the copy's speed, where a copy was measured, else calls a microsecond; the median
    if several stages have measured it.
    """
    found: dict[int, list[float]] = {}
    for row in rows:
        if "p50_us" in row and is_plain(row):
            score = row.get("share_of_copy") or 1 / row["p50_us"]
            found.setdefault(row["line"], []).append(score)
    return {line: statistics.median(some) for line, some in found.items()}


def _is_of(row: dict, case: Case) -> bool:
    columns = first_columns(SUITE, case, "")
    names = ("batch", "classes", "logits_dtype", "bank_dtype")
    return all(row[name] == columns[name] for name in names)


def _key(row: dict) -> tuple:
    return row["variant"], row["arithmetic"], row["finish"], row["any_index"]


def _key_of(entrant: Entrant) -> tuple:
    return str(entrant.candidate), entrant.arithmetic, entrant.finish, entrant.any_index
