"""Percentiles of timings, and means over seeds."""

import statistics
from collections.abc import Iterable, Sequence

# Figures of a training run that are averaged over the seeds.
FIGURES = (
    "test_accuracy_last",
    "test_accuracy_best",
    "validation_accuracy_last",
    "label_accuracy_before",
    "label_accuracy_after",
    "noise_rate",
    "seconds",
)


def percentiles(values: Iterable[float], name: str | None = None) -> dict[str, float]:
    """The 20th, 50th and 80th percentile, as entries of a row; of one value that value.

    Args:
        values: At least one.
        name: Key of the median; the others are ``name_p20`` and ``name_p80``. None for times in
            microseconds with the keys ``p20_us``, ``p50_us`` and ``p80_us``.
    """
    values = list(values)
    if len(values) < 2:
        values *= 2
    low, _, _, high = statistics.quantiles(values, n=5, method="inclusive")
    middle = statistics.median(values)
    if name is None:
        return {"p20_us": low, "p50_us": middle, "p80_us": high}
    return {name: middle, f"{name}_p20": low, f"{name}_p80": high}


def grouped(rows: Iterable[dict], *keys: str) -> dict[tuple, list[dict]]:
    """The rows by their values of some keys, in the order in which the values first appear."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return groups


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and sample standard deviation if there are at least two values."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def mean_rows(rows: Iterable[dict]) -> list[dict]:
    """One row for each method and noise: means over the seeds, and sample standard deviations."""
    means = []
    for (method, noise), group in grouped(rows, "method", "noise").items():
        mean: dict = {"method": method, "noise": noise, "seeds": len(group)}
        for figure in FIGURES:
            values = [row[figure] for row in group if row.get(figure) is not None]
            if len(values) == len(group):
                mean[figure], deviation = mean_and_deviation(values)
                if deviation is not None:
                    mean[f"{figure}_std"] = deviation
        means.append(mean)
    return means
