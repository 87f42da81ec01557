"""Means and deviations of runs that differ in the seed only."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Figures of a method in ``summary.json`` that are averaged over the seeds.
FIGURES = (
    "test_accuracy_last",
    "test_accuracy_best",
    "validation_accuracy_last",
    "label_accuracy_before",
    "label_accuracy_after",
    "labels_changed",
    "seconds",
)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and sample standard deviation if there are at least two values."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def mean_row(rows: Sequence[Mapping[str, Any]], figures: Iterable[str] = FIGURES) -> dict[str, Any]:
    """Means of the figures that every row has, and with the suffix ``_std`` sample standard
    deviations if there are at least two rows."""
    mean: dict[str, Any] = {"seeds": len(rows)}
    for figure in figures:
        values = [row[figure] for row in rows if row.get(figure) is not None]
        if values and len(values) == len(rows):
            mean[figure], deviation = mean_and_deviation(values)
            if deviation is not None:
                mean[f"{figure}_std"] = deviation
    return mean
