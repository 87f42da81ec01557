"""Result files: one JSON list of rows for each run of a benchmark, never overwritten.

A row names its benchmark as `suite` and holds what it depends on as `environment`.
"""

import json
import os
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.harness.grid import FIGURES

FOLDER = Path(__file__).parents[1] / "results"


def slug(name: str) -> str:
    """A name in small letters, digits and hyphens, for file names."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def processor(environment: dict) -> str:
    """What the rows were measured on: the GPU, else the CPU."""
    return environment["gpu"] or environment["cpu"]


def as_text(rows: Sequence[dict]) -> str:
    """JSON with a line for each row."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


class ResultFile:
    """The file of one run, `<device>-<YYYY-MM-DD>-<commit>.json`, or with -2, -3 ... at the end."""

    def __init__(self, folder: Path, environment: dict) -> None:
        """Takes a name that no file has, when the first rows come."""
        self._folder = folder
        self._stem = "-".join(
            (slug(processor(environment)), environment["date"][:10], environment["commit"])
        )
        self.path: Path | None = None

    def write(self, rows: Sequence[dict]) -> Path:
        """Writes all rows of the run so far: a run that is stopped leaves what it had.

        Raises:
            OSError: the folder cannot be written.
        """
        if self.path is None:
            self.path = self._new_path()
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(as_text(rows), encoding="utf-8")
        os.replace(unfinished, self.path)
        return self.path

    def _new_path(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = self._folder / f"{self._stem}{f'-{number}' if number > 1 else ''}.json"
            try:
                path.touch(exist_ok=False)
                return path
            except FileExistsError:
                number += 1


def latest(folder: Path) -> dict[tuple[str, str], tuple[str, list[dict]]]:
    """The rows of the latest file of each benchmark on each device.

    Returns:
        (device, suite) -> (name of the file, rows), sorted by device and suite.

    Raises:
        ValueError: a file holds no rows of a benchmark.
    """
    found: dict[tuple[str, str], tuple[tuple, str, list[dict]]] = {}
    for path in sorted(folder.glob("*.json")):
        rows_of: dict[tuple[str, str], list[dict]] = {}
        try:
            for row in json.loads(path.read_text(encoding="utf-8")):
                key = (processor(row["environment"]), row["suite"])
                rows_of.setdefault(key, []).append(row)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} holds no rows of a benchmark: {error!r}") from error
        for key, rows in rows_of.items():
            # Of files of one second the longer name has the higher number.
            age = (rows[0]["environment"]["date"], len(path.name), path.name)
            if key not in found or found[key][0] < age:
                found[key] = (age, path.name, rows)
    return {key: found[key][1:] for key in sorted(found)}


def percentiles(times: Iterable[float]) -> dict[str, float]:
    """The 20th, 50th and 80th percentile of times in microseconds, as entries of a row."""
    low, middle, high = fifths(times)
    return {"p20_us": low, "p50_us": middle, "p80_us": high}


def fifths(values: Iterable[float]) -> tuple[float, float, float]:
    """The 20th, 50th and 80th percentile; of one value that value."""
    values = list(values)
    if len(values) < 2:
        values *= 2
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return cuts[0], statistics.median(values), cuts[3]


def as_results(rows: Sequence[dict], suite: str) -> list[dict]:
    """The rows for a result file: with the name of their suite, without the words of their command.

    Name, noise and seed tell what was run, and the words may hold paths of this machine.
    """
    return [
        {"suite": suite, **{key: value for key, value in row.items() if key != "options"}}
        for row in rows
    ]


def mean_rows(rows: Sequence[dict]) -> list[dict]:
    """For each method and noise one row: means over the seeds, and sample standard deviations."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["noise"]), []).append(row)
    means = []
    for (method, noise), group in groups.items():
        mean: dict = {"method": method, "noise": noise, "seeds": len(group)}
        for figure in FIGURES:
            values = [row[figure] for row in group if row.get(figure) is not None]
            if len(values) == len(group):
                mean[figure], deviation = mean_and_deviation(values)
                if deviation is not None:
                    mean[f"{figure}_std"] = deviation
        means.append(mean)
    return means


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and sample standard deviation where there are two values or more."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
