"""Tables of `benchmarks.fused_vs_reference`."""

import math
import statistics
from collections.abc import Sequence

from benchmarks.tables.markdown import Cells, interval, markdown
from benchmarks.tables.section import Section

VARIANTS = ("fused", "fused_and_grad", "eager", "compiled", "copy")
SLOWER = ("eager", "compiled")  # their ratios to `fused` are shown


def _ratio(row: dict, variant: str) -> float:
    return row[f"{variant}_ms"] / row["fused_ms"]


def mean_ratio(rows: Sequence[dict], variant: str) -> float:
    """Geometric mean of the ratios, without the daily shapes, which older rows do not have."""
    ratios = [_ratio(row, variant) for row in rows if not row.get("daily")]
    return math.exp(statistics.fmean(map(math.log, ratios)))


def terminal_cells(rows: list[dict]) -> Cells:
    """Table for the terminal: medians, ratios and the geometric means of the ratios."""
    names = ("B", "K", "dtype", "fused", *SLOWER, "copy", "fused / copy")
    lines = [
        (
            str(row["batch"]),
            str(row["classes"]),
            row["dtype"],
            f"{row['fused_ms']:.3f}",
            *(f"{row[f'{v}_ms']:.3f} ({_ratio(row, v):.1f}x)" for v in SLOWER),
            f"{row['copy_ms']:.3f}",
            f"{row['fused_ms'] / row['copy_ms']:.2f}",
        )
        for row in rows
    ]
    means = (f"{mean_ratio(rows, variant):.1f}x" for variant in SLOWER)
    count = sum(not row.get("daily") for row in rows)
    lines.append((f"geometric mean of the first {count}", "", "", "", *means, "", ""))
    return names, lines


def cross_entropy_cells(rows: list[dict]) -> Cells:
    """The rows of cross entropy, for the terminal."""
    names = ("B", "K", "smoothing", "fused", "torch")
    lines = [
        (
            str(row["batch"]),
            str(row["classes"]),
            f"{row['smoothing']:g}",
            f"{row['fused_ms']:.4f}",
            f"{row['torch_ms']:.4f} ({_ratio(row, 'torch'):.2f}x)",
        )
        for row in rows
    ]
    return names, lines


def _cross_entropy_text(rows: list[dict]) -> str:
    def cell(row: dict, variant: str) -> str:
        return interval(row[f"{variant}_ms"], *row[f"{variant}_p20_p80_ms"], 4, thousands="")

    return markdown(
        ("B x K", "smoothing", "`alr_fast`", "torch", "torch / `alr_fast`"),
        (
            (
                f"{row['batch']} x {row['classes']}",
                f"{row['smoothing']:g}",
                cell(row, "fused"),
                cell(row, "torch"),
                f"{_ratio(row, 'torch'):.2f}",
            )
            for row in rows
        ),
    )


def _text(rows: list[dict]) -> str:
    def cell(row: dict, variant: str) -> str:
        shown = interval(row[f"{variant}_ms"], *row[f"{variant}_p20_p80_ms"], 3, thousands="")
        return shown + (f", {_ratio(row, variant):.1f}x" if variant in SLOWER else "")

    table = markdown(
        ("B x K", "dtype", *VARIANTS),
        (
            (f"{row['batch']} x {row['classes']}", row["dtype"], *(cell(row, v) for v in VARIANTS))
            for row in rows
        ),
    )
    means = ", ".join(f"{variant} {mean_ratio(rows, variant):.1f}x" for variant in SLOWER)
    count = sum(not row.get("daily") for row in rows)
    return f"{table}\nGeometric mean of the first {count} shapes: {means}.\n"


SECTIONS = {
    "fused_vs_reference": Section(
        "Forward and backward on the CPU",
        "Milliseconds of loss and backward pass through autograd (`fused_and_grad`: without "
        "autograd), and the ratio to `fused`.",
        "fused_vs_reference",
        _text,
    ),
    "cross_entropy": Section(
        "Cross entropy on the CPU",
        "Milliseconds of forward and backward of `label_smoothing_cross_entropy`, and of "
        '`torch.nn.functional.cross_entropy`, both with reduction "mean", in one run.',
        "fused_vs_reference",
        _cross_entropy_text,
    ),
}
