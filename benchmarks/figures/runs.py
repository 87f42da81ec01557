"""Finished runs, the input of the figures."""

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.errors import UserError
from alr_fast.training.run_paths import is_finished


@dataclass(frozen=True)
class FinishedRun:
    """A finished run."""

    path: Path  # its folder
    summary: dict[str, Any]  # the content of its summary.json

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        """The methods that it trained, with their results."""
        return self.summary["methods"]

    @property
    def noise(self) -> str:
        """The noise in words, for example ``symmetric 20 %``."""
        noise = self.summary["noise"]
        if noise["kind"] == "none":
            return "no noise added"
        return f"{noise['kind']} {100 * noise['requested_rate']:.3g} %"


def open_run(path: Path) -> FinishedRun:
    """Reads the summary of a run.

    Raises:
        UserError: The folder contains no run, or an unfinished one.
    """
    # os.path, as the methods of Path raise if a parent folder may not be read.
    if not os.path.isfile(path / "config.yaml"):
        raise UserError(
            f"{path}: not the folder of a run, it has no config.yaml; pass one that "
            "`python -m alr_fast.train` wrote, such as runs/latest"
        )
    if not is_finished(path):
        raise UserError(
            f"{path}: the run has not finished, it has no summary.json; finish it with --resume, "
            "or pass another run"
        )
    try:
        run = FinishedRun(path, json.loads((path / "summary.json").read_text(encoding="utf-8")))
        # Everything that is used later.
        _ = run.noise, run.summary["data"]["classes"]
        _ = [float(result["test_accuracy_last"] or 0) for result in run.methods.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path / 'summary.json'}: cannot be read ({type(error).__name__}: {error}); train the "
            "run again"
        ) from error
    return run


def check_tested(run: FinishedRun) -> None:
    """Checks that a run has test samples.

    Raises:
        UserError: It has none.
    """
    if any(result["test_accuracy_last"] is None for result in run.methods.values()):
        raise UserError(
            f"{run.path}: its data has no test samples, which this figure needs; pass a run on "
            "data with a test split"
        )


def check_methods(run: FinishedRun, methods: Sequence[str]) -> list[str]:
    """The methods, each once.

    Raises:
        UserError: The run did not train one of them.
    """
    for method in methods:
        if method not in run.methods:
            raise UserError(
                f"{run.path} did not train it; it has {', '.join(run.methods)}",
                argument="methods",
                value=method,
            )
    return list(dict.fromkeys(methods))


def read_metrics(
    run: FinishedRun, method: str, columns: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Columns of ``metrics.csv`` for a method, one value for each epoch; NaN for an empty field.

    Raises:
        UserError: The file is missing, or lacks these lines or columns.
    """
    path = run.path / "metrics.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["method"] == method]
        found = {name: np.array([float(row[name] or "nan") for row in rows]) for name in columns}
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}; train the run again with csv among --log.to, "
            "which is the default"
        ) from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        reason = f"no column {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"{path}: not the metrics of a run of this version ({reason}); train the run again"
        ) from error
    if not rows:
        raise UserError(f"{path}: no line of method {method}; train the run again")
    return found


def check_output(path: Path) -> None:
    """Checks before any work whether a figure can be written to this path.

    Raises:
        UserError: It cannot.
    """
    if path.suffix.lower() != ".png":
        why = "a PNG is written; pass a name that ends in .png"
    elif os.path.isdir(path):
        why = "is a folder; pass the name of a file"
    elif not os.path.isdir(path.parent):
        why = f"there is no folder {path.parent}; make it first"
    else:
        return
    raise UserError(why, argument="output", value=path)
