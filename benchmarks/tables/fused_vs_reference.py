"""Tables of `benchmarks.fused_vs_reference`."""

import math
import statistics

from benchmarks.tables.markdown import Cells, interval, markdown
from benchmarks.tables.section import Section

VARIANTS = ("fused", "fused_and_grad", "eager", "compiled", "copy")
SLOWER = ("eager", "compiled")  # their ratios to `fused` are shown


def _ratio(row: dict, variant: str) -> float:
    return row[f"{variant}_ms"] / row["fused_ms"]


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
    means = (
        math.exp(statistics.fmean(math.log(_ratio(row, variant)) for row in rows))
        for variant in SLOWER
    )
    lines.append(("geometric mean", "", "", "", *(f"{mean:.1f}x" for mean in means), "", ""))
    return names, lines


def _text(rows: list[dict]) -> str:
    def cell(row: dict, variant: str) -> str:
        shown = interval(row[f"{variant}_ms"], *row[f"{variant}_p20_p80_ms"], 3, thousands="")
        return shown + (f", {_ratio(row, variant):.1f}x" if variant in SLOWER else "")

    return markdown(
        ("B x K", "dtype", *VARIANTS),
        (
            (f"{row['batch']} x {row['classes']}", row["dtype"], *(cell(row, v) for v in VARIANTS))
            for row in rows
        ),
    )


SECTIONS = {
    "fused_vs_reference": Section(
        "Forward and backward on the CPU",
        "Milliseconds of loss and backward pass through autograd (`fused_and_grad`: without "
        "autograd), and the ratio to `fused`.",
        "fused_vs_reference",
        _text,
    )
}
