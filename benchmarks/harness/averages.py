"""Percentiles of timings, and means over seeds."""

import statistics
from collections.abc import Iterable

from alr_fast.training.output.averages import FIGURES, mean_row


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


def mean_rows(rows: Iterable[dict]) -> list[dict]:
    """One row for each method and noise: means over the seeds, and sample standard deviations."""
    return [
        {"method": method, "noise": noise, **mean_row(group, (*FIGURES, "noise_rate"))}
        for (method, noise), group in grouped(rows, "method", "noise").items()
    ]
