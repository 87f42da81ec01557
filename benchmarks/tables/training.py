"""Tables of `benchmarks.train_step`."""

from collections.abc import Sequence

from benchmarks.tables.markdown import NOT_MEASURED, Cells, markdown, measured, spread
from benchmarks.tables.section import Section

# Highest cost of ALR over cross entropy: case, kind of device, percent.
STEP_GOALS = (("resnet50", "GPU", 1), ("digits", "CPU", 2))


def train_step_cells(rows: list[dict]) -> Cells:
    """Table of the variants of each model."""
    lines = []
    for row in rows:
        model = f"{row['case']}, {row['image'][1]} x {row['image'][2]}, B {row['batch']}, "
        model += f"K {row['classes']}, {row['precision']}"
        if "skipped" in row:
            lines.append((model, "all", "", NOT_MEASURED, f"({row['skipped']})", ""))
            continue
        over = (shown_percent(row.get(f"over_{base}_percent")) for base in ("ce", "plain"))
        lines.append((model, f"`{row['variant']}`", row["what"], spread(row, "ms"), *over))
    return ("model", "variant", "description", "ms", "% over `ce`", "% over `plain`"), lines


def shown_percent(found: Sequence[float] | None) -> str:
    if found is None:
        return ""
    middle, low, high = (f"{value:+.1f}" for value in found)
    return f"{middle} ({low} to {high})"


def _verdict(found: Sequence[float] | None, limit: float) -> str:
    if found is None:
        return ""
    _, low, high = found
    # An interval that contains the limit decides nothing.
    return "reached" if high < limit else "missed" if low >= limit else "undecided"


def _text(rows: list[dict]) -> str:
    here = "GPU" if rows[0]["environment"]["gpu"] else "CPU"
    found = {row["case"]: row["over_ce_percent"] for row in rows if row["variant"] == "alr"}
    goals = []
    for case, kind, limit in STEP_GOALS:
        percent = found.get(case) if kind == here else None
        goal, shown = f"`alr` over `ce`, {case} on a {kind}", shown_percent(percent) or NOT_MEASURED
        goals.append((goal, f"< {limit} %", shown, _verdict(percent, limit)))
    rounds = sorted({row["rounds"] for row in measured(rows)})
    return (
        f"{markdown(*train_step_cells(rows))}\n"
        f"Rounds of each model: {', '.join(map(str, rounds)) or NOT_MEASURED}.\n\n"
        f"{markdown(('goal', 'limit', 'measured', ''), goals)}"
    )


SECTIONS = {
    "train_step": Section(
        "A whole training step",
        "Milliseconds of zero_grad, forward, loss, backward, optimizer, scheduler and sums, with "
        "images in memory. Percentages are medians over rounds and compare two variants in the "
        "same round, with the 95 % interval of a bootstrap. `ce_again` repeats `ce`: its "
        "difference, ideally 0, is the error of the comparison.",
        "train_step",
        _text,
    )
}
