"""The results of runs with several seeds: a table, a file and a plot.

runs/20260131-235959-digits-seeds/
    seeds.csv      a line for each method and seed, with the folder of its run, and a line for each
                   method with mean and sample standard deviation
    metrics.png    mean test accuracy and label accuracy per epoch, the band is one deviation
"""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alr_fast.errors import UserError
from alr_fast.training.output.averages import FIGURES, mean_row
from alr_fast.training.output.run_folder import new_folder, read_summary
from alr_fast.utils.files import open_regular, write_text
from alr_fast.utils.text import error_text

_MOST_BYTES = 64 << 20  # of metrics.csv
_COLUMNS = ("method", "seed", "run", "seeds", *(f"{f}{s}" for f in FIGURES for s in ("", "_std")))


@dataclass(frozen=True)
class SeedResults:
    """Finished runs that differ in their seed only.

    Attributes:
        seeds: Seed of each run.
        runs: Folder of each run.
        methods: For each method its entry in ``summary.json`` of each run.
        epochs: Number of epochs.
    """

    seeds: Sequence[int]
    runs: Sequence[Path]
    methods: dict[str, list[dict[str, Any]]]
    epochs: int

    @classmethod
    def read(cls, seeds: Sequence[int], runs: Sequence[Path]) -> "SeedResults":
        """Reads the summaries of finished runs.

        Raises:
            UserError: One of them cannot be read.
        """
        summaries = [_summary(run) for run in runs]
        names = summaries[0]["methods"].keys()
        for run, summary in zip(runs, summaries, strict=True):
            if summary["methods"].keys() != names:
                raise UserError(f"{run}: has not the methods {', '.join(names)}; train {run} again")
        methods = {name: [s["methods"][name] for s in summaries] for name in names}
        return cls(seeds, runs, methods, summaries[0]["epochs"])

    def means(self) -> dict[str, dict[str, Any]]:
        """For each method the means over the seeds, see `mean_row`."""
        return {name: mean_row(results) for name, results in self.methods.items()}

    def save(self, runs: Path, recipe: str, *, warn: Callable[[str], None]) -> Path:
        """Writes table and plot to a new folder; returns it.

        Args:
            runs: Folder of the new folder.
            recipe: Name of the recipe, a part of its name.
            warn: Takes a line of text if there is no plot.

        Raises:
            UserError: The table cannot be written.
        """
        from alr_fast.training.output.plot_seeds import plot_seeds

        folder = new_folder(runs, f"{recipe}-seeds")
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for name, results in self.methods.items():
            for seed, run, result in zip(self.seeds, self.runs, results, strict=True):
                writer.writerow({**result, "method": name, "seed": seed, "run": run.name})
        for name, mean in self.means().items():
            writer.writerow({**mean, "method": name, "seed": "mean"})
        write_text(folder / "seeds.csv", text.getvalue())
        try:
            curves = [_records(run) for run in self.runs]
            if all(curves):
                plot_seeds(curves, folder / "metrics.png")
        except Exception as error:  # a metrics.csv may have other columns; the table is complete
            warn(f"{error_text(error)}; the seeds have no plot")
        return folder


def _summary(run: Path) -> dict[str, Any]:
    try:
        summary = read_summary(run)
        known = all(map(_is_figure, _figures(summary))) and type(summary["epochs"]) is int
    except UserError as error:
        raise UserError(f"{error}; train {run} again") from error
    except (KeyError, AttributeError):
        known = False
    if not known:
        raise UserError(f"{run}: its summary.json has no such figures; train {run} again")
    return summary


def _figures(summary: dict[str, Any]) -> list[Any]:
    return [result.get(figure) for result in summary["methods"].values() for figure in FIGURES]


def _is_figure(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))


def _records(run: Path) -> list[dict[str, str]]:
    """The lines of ``metrics.csv``; none without the file."""
    path = run / "metrics.csv"
    if not path.is_file():
        return []
    try:
        with open_regular(path, _MOST_BYTES) as file:
            return list(csv.DictReader(file.read().decode("utf-8").splitlines()))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error_text(error)}); train it again") from error
