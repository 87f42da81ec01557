"""Tables of `benchmarks.tournament`."""

from collections.abc import Iterable, Sequence

from benchmarks.harness.averages import grouped
from benchmarks.tables.markdown import NOT_MEASURED, Cells, list_of, markdown
from benchmarks.tables.section import Section

_SHAPE = ("classes", "batch", "logits_dtype")
# Column -> arithmetic, finish, and whether any index is accepted.
_COLUMNS = {
    "whole": ("whole", "arrivals", False),
    "plain exponential": ("plain exponential", "arrivals", False),
    "cut down to a copy": ("copy", "arrivals", False),
    "any index": ("whole", "arrivals", True),
    "one cluster": ("whole", "cluster", False),
    "polled": ("whole", "polled", False),
}


def terminal_cells(rows: Sequence[dict]) -> Cells:
    """Table for the terminal: a line for each candidate at each shape."""
    names = ("B", "K", "dtype", "candidate", "source", *_COLUMNS)
    lines = []
    for (classes, batch, dtype), group in grouped(_timed(rows), *_SHAPE).items():
        for cells in _lines(group):
            lines.append((str(batch), str(classes), dtype, *cells))
    return names, [*lines, *_failures(rows)]


def winner_cells(rows: Sequence[dict]) -> Cells:
    """Table of the winners."""
    names = ("K", "dtype", "winner", "source", "at", "share of the copy, or time")
    lines = (
        (
            f"{row['low'] + 1} to {row['high']}",
            row["logits_dtype"],
            row["variant"],
            row["source"],
            f"{row['batch']} x {row['classes']}",
            _cell(row),
        )
        for row in rows
        if row["stage"] == "winner"
    )
    return names, lines


def _timed(rows: Iterable[dict]) -> list[dict]:
    """Rows of candidates that were timed."""
    return [row for row in rows if "p50_us" in row and "line" in row and row["stage"] != "winner"]


def _lines(rows: Iterable[dict]) -> list[tuple[str, ...]]:
    """Cells of the candidates at one shape, the fastest first."""
    lines = []
    for (variant, source), group in grouped(rows, "variant", "source").items():
        # The last stage that has measured it.
        latest = {(row["arithmetic"], row["finish"], row["any_index"]): row for row in group}
        whole = latest.get(_COLUMNS["whole"])
        cells = (_cell(latest.get(key)) for key in _COLUMNS.values())
        lines.append((whole["p50_us"] if whole else float("inf"), (variant, source, *cells)))
    return [cells for _, cells in sorted(lines, key=lambda line: line[0])]


def _cell(row: dict | None) -> str:
    if row is None:
        return ""
    share = row.get("share_of_copy")
    return f"{share:.1%} ({row['p50_us']:.1f})" if share else f"{row['p50_us']:.2f}"


def _failures(rows: Sequence[dict]) -> list[tuple[str, ...]]:
    return [
        (str(row["batch"]), str(row["classes"]), row["logits_dtype"], row["variant"],
         row["source"], row["skipped"])
        for row in rows
        if row.get("wrong")
    ]  # fmt: skip


def _text(rows: list[dict]) -> str:
    parts = [f"Winners:\n\n{markdown(*winner_cells(rows))}"]
    for (classes, batch, dtype), group in grouped(_timed(rows), *_SHAPE).items():
        copies = [row["gigabytes_per_second"] for row in rows if row["variant"] == "copy"
                  and (row["classes"], row["batch"], row["logits_dtype"])
                  == (classes, batch, dtype)]  # fmt: skip
        copy = f", copy {max(copies):.0f} GB/s" if copies else ""
        table = markdown(("candidate", "source", *_COLUMNS), _lines(group))
        parts.append(f"{batch} x {classes}, {dtype}{copy}:\n\n{table}")
    why = [f"{cells[3]} ({cells[0]} x {cells[1]}, {cells[2]}): {cells[5]}"
           for cells in _failures(rows)]  # fmt: skip
    if why:
        parts.append(f"Left out:\n\n{list_of(why)}")
    return "\n".join(parts) if len(parts) > 1 else f"{NOT_MEASURED}\n"


SECTIONS = {
    "tournament": Section(
        "Choice of the kernels",
        "Forward pass of the candidates for the launch table, logits and bank of one type, "
        "distinct indices unless stated otherwise. Cells: share of the speed of the copy in the "
        "same run, and time; for batches of 256 the time in a CUDA graph, also with other ways to "
        "finish a batch. The fastest with a "
        "simpler one that is less than 1 % slower: the simpler one wins.",
        "tournament",
        _text,
        gpu_only=True,
    ),
}
