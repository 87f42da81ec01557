"""Tables of `benchmarks.host_cost`."""

from benchmarks.tables.markdown import Cells, markdown, microseconds
from benchmarks.tables.section import Section

# Part -> description; "step" is compared with "native step".
PARTS = {
    "step": "`alr_loss`, then `backward`",
    "step, node in Python": "the same without `alr_fast._autograd`, as in a wheel",
    "forward": "`alr_loss` only",
    "loss and gradient": "`alr_loss_and_grad`",
    "operator": "the operator itself, on all rows",
    "operator, one row": "the same on one row: dispatch, checks, outputs, launch",
    "empty function, step": "an empty `autograd.Function`, then `backward`",
    "empty function, forward": "the same without `backward`",
    "leaf": "`logits.detach().requires_grad_()`, part of each step and forward",
    "native step": "`(x * 2).sum()`, then `backward`",
}


def terminal_cells(rows: list[dict]) -> Cells:
    """Table for the terminal."""
    names = {"p20_us": 1, "p50_us": 1, "p80_us": 1, "times_native": 2}
    lines = (
        (row["variant"], *(f"{row[name]:.{digits}f}" for name, digits in names.items()))
        for row in rows
    )
    return ("part", "p20", "p50", "p80", "of the native step"), lines


def _text(rows: list[dict]) -> str:
    return markdown(
        ("part", "description", "microseconds", "of the native step"),
        (
            (row["variant"], PARTS[row["variant"]], microseconds(row), f"{row['times_native']:.2f}")
            for row in rows
        ),
    )


SECTIONS = {
    "host_cost": Section(
        "Host time of a small step",
        "B = 256, K = 14, float32. On the CPU with one thread, where the times include the work of "
        "the operator. The goal is 1.5 times the native step.",
        "host_cost",
        _text,
    )
}
