"""The choice: which candidate wins the rows of a range of K."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.tournament.candidates import BANDWIDTH, LATENCY, SOURCES, SUITE, is_plain, scores

TIE = 0.01  # a simpler candidate wins if it is slower by less


@dataclass(frozen=True)
class Range:
    """Rows of more than ``low`` and up to ``high`` classes, which one shape stands for."""

    low: int
    high: int
    batch: int
    classes: int


# Other K keep what they have.
RANGES = (
    Range(0, 32, 256, 14),
    Range(32, 128, 256, 100),
    Range(128, 256, 65536, 256),
    Range(256, 1024, 16384, 1000),
    Range(2048, 4096, 4096, 4096),
    Range(4096, 8192, 8192, 8192),
    Range(16384, 32768, 1024, 21841),
    Range(65536, 131072, 128, 131072),
)


def winners(rows: Sequence[dict]) -> list[dict]:
    """A row for each range and type that was measured: the columns of the winner, and the range."""
    cases = {(case.batch, case.classes) for case in BANDWIDTH + LATENCY}
    assert all((some.batch, some.classes) in cases for some in RANGES)
    found = []
    for dtype in ("float32", "bfloat16"):
        for some in RANGES:
            of_shape = [
                row
                for row in rows
                if (row["batch"], row["classes"], row["logits_dtype"])
                == (some.batch, some.classes, dtype)
                and row["stage"] != "winner"
            ]
            if winner := _winner(of_shape):
                found.append({**winner, "suite": SUITE, "stage": "winner", "low": some.low,
                              "high": min(some.high, winner["columns"])})  # fmt: skip
    return found


def _winner(rows: Sequence[dict]) -> dict | None:
    """The row of the fastest candidate at one shape, or of a simpler one that is as good."""
    by_line = scores(rows)
    if not by_line:
        return None
    best = max(by_line.values())
    good = {line for line, score in by_line.items() if score >= (1 - TIE) * best}
    measured = (row for row in rows if "p50_us" in row and row.get("line") in good)
    return min(filter(is_plain, measured), key=_simplicity)


def _simplicity(row: dict) -> tuple:
    return SOURCES.index(row["source"]), row["blocks_per_row"], row["line"]
