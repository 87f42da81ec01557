"""Sections of `benchmarks.report` on the accuracy of the methods and on ALR's settings."""

from collections.abc import Callable, Sequence

from benchmarks.grid import mean_rows

Cells = tuple[Sequence[str], list[Sequence[str]]]


def accuracy_cells(rows: list[dict]) -> Cells:
    """Names and lines of the table of accuracies, a line for each method and noise."""
    names = ("noise", "method", "last", "best", "labels right before", "after", "seeds")
    lines = []
    for row in mean_rows(rows):
        lines.append(
            (
                row["noise"],
                f"`{row['method']}`",
                *(_percent(row, name) for name in (
                    "test_accuracy_last", "test_accuracy_best",
                    "label_accuracy_before", "label_accuracy_after",
                )),
                str(row["seeds"]),
            )
        )  # fmt: skip
    return names, lines


def _percent(row: dict, figure: str) -> str:
    if figure not in row:
        return ""
    deviation = row.get(f"{figure}_std")
    shown = f"{100 * row[figure]:.1f}"
    return shown if deviation is None else f"{shown} ± {100 * deviation:.1f}"


SECTIONS: dict[str, tuple[str, str, Callable[[list[dict]], str]]] = {}
