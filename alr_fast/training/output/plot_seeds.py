"""The plot of runs with several seeds: means, and a band of one standard deviation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alr_fast.training.output.records import ACCURACIES, LABEL_STATES
from alr_fast.utils.files import replacing

Record = Mapping[str, str]  # a line of metrics.csv


def plot_seeds(runs: Sequence[Sequence[Record]], path: Path) -> None:
    """Draws the panels of a run's ``metrics.png`` with means over the seeds as a PNG.

    Args:
        runs: For each seed the lines of ``metrics.csv``.
        path: File to write.
    """
    from matplotlib.figure import Figure  # pyplot would need a display and keep state

    figure = Figure(figsize=(10, 4), layout="constrained")
    methods = list(dict.fromkeys(record["method"] for record in runs[0]))
    for axes, panels in zip(figure.subplots(1, 2), (ACCURACIES, LABEL_STATES), strict=True):
        title, column = _first_measured(runs, panels)
        for method in methods:
            epochs, mean, deviation = curve(runs, method, column)
            (line,) = axes.plot(epochs, mean, label=method)
            band = mean - deviation, mean + deviation
            axes.fill_between(epochs, *band, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(title=f"{title}\nmean of {len(runs)} seeds ± standard deviation", xlabel="epoch")
        axes.set_ylabel("%")
        axes.grid(alpha=0.3)
        axes.legend()
    with replacing(path) as fresh:
        figure.savefig(fresh, dpi=120, format="png")


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


def _first_measured(
    runs: Sequence[Sequence[Record]], panels: Sequence[tuple[str, str]]
) -> tuple[str, str]:
    """Title and column of the first panel with a value in every epoch of every run."""
    return next(
        (title, column)
        for title, column in panels
        if all(record.get(column) for run in runs for record in run)
    )
