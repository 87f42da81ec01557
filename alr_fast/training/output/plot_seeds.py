"""The plot of runs with several seeds: means, and a band of one standard deviation."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alr_fast.labels.report.model import Panel
from alr_fast.training.output.plot import draw_panels
from alr_fast.training.output.records import ACCURACIES, LABEL_STATES, first_measured

Record = Mapping[str, str]  # a line of metrics.csv


def plot_seeds(runs: Sequence[Sequence[Record]], path: Path) -> None:
    """Draws the panels of a run's ``metrics.png`` with means over the seeds as a PNG.

    Args:
        runs: For each seed the lines of ``metrics.csv``.
        path: File to write.
    """
    warmup = dict.fromkeys((record["method"] for record in runs[0]), 0)
    for record in runs[0]:
        warmup[record["method"]] += record.get("warming_up") == "True"
    panels, bands = [], []
    for measures in (ACCURACIES, LABEL_STATES):
        title, column = first_measured(list(chain(*runs)), measures)
        series: dict[str, tuple[list[int], list[float | None]]] = {}
        band = {}
        for method in warmup:
            epochs, mean, deviation = curve(runs, method, column)
            series[method], band[method] = (epochs.tolist(), mean.tolist()), deviation.tolist()
        title = f"{title}\nmean of {len(runs)} seeds ± standard deviation"
        panels.append(Panel(title, "%", series, warmup))
        bands.append(band)
    draw_panels(panels, path, bands=bands)


def curve(
    runs: Sequence[Sequence[Record]], method: str, column: str
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Epochs that all runs have, mean and sample standard deviation in percent, each [E].

    The deviation of a single run is 0.
    """
    series = [
        {int(r["epoch"]): float(r[column]) for r in run if r["method"] == method} for run in runs
    ]
    epochs = sorted(set(series[0]).intersection(*series[1:]))
    values = 100 * np.array([[one[epoch] for epoch in epochs] for one in series])
    deviation = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(epochs))
    return np.array(epochs, dtype=np.int64), values.mean(axis=0), deviation
