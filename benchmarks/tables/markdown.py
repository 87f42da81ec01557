"""Tables of cells that are text: in Markdown, and on a terminal."""

from collections.abc import Collection, Iterable, Sequence

NOT_MEASURED = "not measured"


def markdown(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def show(
    title: str,
    names: Sequence[str],
    rows: Iterable[Sequence[str]],
    leave_out: Collection[str] = (),
) -> None:
    """Prints a table, without the columns that a terminal has no room for."""
    from rich.console import Console
    from rich.table import Table

    places = [place for place, name in enumerate(names) if name not in leave_out]
    shown = Table(title=title)
    for place in places:
        shown.add_column(names[place])
    for cells in rows:
        shown.add_row(*(cells[place].replace("`", "") for place in places))
    Console().print(shown)


def spread(row: dict, name: str, digits: int = 2) -> str:
    """Median and 20th to 80th percentile of a row, see `loading_rows.percentiles`."""
    values = (row[name], row[f"{name}_p20"], row[f"{name}_p80"])
    middle, low, high = (f"{value:,.{digits}f}" for value in values)
    return f"{middle} ({low}-{high})"
