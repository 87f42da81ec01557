"""Finished runs that figures are drawn from."""

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
from alr_fast.training.output.run_folder import is_finished


@dataclass(frozen=True)
class FinishedRun:
    """A run that came to its end.

    Attributes:
        path: Its folder.
        summary: What its ``summary.json`` says.
    """

    path: Path
    summary: dict[str, Any]

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        """The methods it trained, with the results of each."""
        return self.summary["methods"]

    @property
    def noise(self) -> str:
        """``symmetric 20 %``, for example."""
        noise = self.summary["noise"]
        if noise["kind"] == "none":
            return "no noise added"
        return f"{noise['kind']} {100 * noise['requested_rate']:.3g} %"


def open_run(path: Path) -> FinishedRun:
    """Reads the summary of a run.

    Raises:
        UserError: There is no run in that folder, or it has not finished.
    """
    # Of os.path: the methods of Path raise where a folder on the way may not be read.
    if not os.path.isfile(path / "config.yaml"):
        raise UserError(
            f"{path}: not the folder of a run, it has no config.yaml; pass one that "
            "`python -m alr_fast.train` left, such as runs/latest"
        )
    if not is_finished(path):
        raise UserError(
            f"{path}: the run has not finished, it has no summary.json; finish it with --resume, "
            "or pass another run"
        )
    try:
        run = FinishedRun(path, json.loads((path / "summary.json").read_text(encoding="utf-8")))
        # All that is looked at later.
        _ = run.noise, run.summary["data"]["classes"]
        _ = [float(result["test_accuracy_last"]) for result in run.methods.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path / 'summary.json'}: cannot be read ({type(error).__name__}: {error}); train the "
            "run again"
        ) from error
    return run


def check_methods(run: FinishedRun, methods: Sequence[str], *, option: str) -> list[str]:
    """The methods, each once.

    Args:
        run: A run.
        methods: What the user asked for.
        option: The option that names them.

    Raises:
        UserError: The run did not train one of them.
    """
    for method in methods:
        if method not in run.methods:
            raise UserError(
                f"--{option} {method}: {run.path} did not train it; it has {', '.join(run.methods)}"
            )
    return list(dict.fromkeys(methods))


def read_metrics(
    run: FinishedRun, method: str, columns: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Columns of ``metrics.csv``, epoch by epoch; NaN where a field is empty.

    Args:
        run: A run.
        method: A method that it trained.
        columns: Names of the columns.

    Raises:
        UserError: The file is missing, or has no such lines or columns.
    """
    path = run.path / "metrics.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["method"] == method]
        found = {name: np.array([float(row[name] or "nan") for row in rows]) for name in columns}
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}; train the run again with csv among --log.to, as "
            "it is by default"
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
    """Finds out before any work whether a file can be written there.

    Raises:
        UserError: It cannot.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"--output {path}: a PNG is written; pass a name that ends in .png")
    if os.path.isdir(path):
        raise UserError(f"--output {path}: is a folder; pass the name of a file")
    if not os.path.isdir(path.parent):
        raise UserError(f"--output {path}: there is no folder {path.parent}; make it first")
