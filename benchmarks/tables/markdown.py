"""Tables of text cells: as Markdown and on a terminal."""

import sys
from collections.abc import Collection, Iterable, Sequence

NOT_MEASURED = "not measured"

# Names and lines of a table.
Cells = tuple[Sequence[str], Iterable[Sequence[str]]]


def markdown(names: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [names, ["---"] * len(names), *lines]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def show(
    title: str,
    names: Sequence[str],
    lines: Iterable[Sequence[str]],
    leave_out: Collection[str] = (),
    *,
    text_columns: int | None = None,
) -> None:
    """Prints a table on the terminal.

    Args:
        title: Title of the table.
        names: Names of the columns.
        lines: Cells of the lines; the last ones of a line may be missing.
        leave_out: Columns for which a terminal has no room.
        text_columns: Number of left-aligned columns; the others are right-aligned. None for all.
    """
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title)
    columns = [number for number, name in enumerate(names) if name not in leave_out]
    for number in columns:
        right = text_columns is not None and number >= text_columns
        shown.add_column(names[number], justify="right" if right else "left")
    for cells in lines:
        shown.add_row(*(cells[n].replace("`", "") for n in columns if n < len(cells)))
    # The width of an output that is not a terminal is unknown.
    Console(width=None if sys.stdout.isatty() else 160).print(shown)


def spread(row: dict, name: str, digits: int = 2) -> str:
    """Median and 20th to 80th percentile, see `benchmarks.harness.averages.percentiles`."""
    return interval(row[name], row[f"{name}_p20"], row[f"{name}_p80"], digits)


def microseconds(row: dict | None) -> str:
    """Median and 20th to 80th percentile of a time in microseconds."""
    if row is None:
        return NOT_MEASURED
    return interval(row["p50_us"], row["p20_us"], row["p80_us"], 1, thousands="")


def interval(middle: float, low: float, high: float, digits: int, *, thousands: str = ",") -> str:
    """A value and the interval around it."""
    middle, low, high = (f"{value:{thousands}.{digits}f}" for value in (middle, low, high))
    return f"{middle} ({low}-{high})"


def deviation(mean: float, std: float | None, digits: int) -> str:
    """A mean and its sample standard deviation, if there is one."""
    return f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def measured(rows: Iterable[dict]) -> list[dict]:
    """The rows that were not skipped."""
    return [row for row in rows if "skipped" not in row]


def list_of(facts: Iterable[str]) -> str:
    """A list in Markdown."""
    return "".join(f"- {fact}\n" for fact in facts)
