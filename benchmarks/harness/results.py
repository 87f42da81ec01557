"""Result files: one JSON list of rows for each run of a benchmark, never overwritten.

A row contains the name of its benchmark as `suite` and its environment as `environment`.
"""

import contextlib
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from alr_fast.utils.files import write_text

FOLDER = Path(__file__).parents[1] / "results"


def slug(name: str) -> str:
    """A name in lower-case letters, digits and hyphens, for file names."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def processor(environment: dict) -> str:
    """The GPU that the rows were measured on, or the CPU if there was none."""
    return environment["gpu"] or environment["cpu"]


def as_text(rows: Sequence[dict]) -> str:
    """JSON with one line for each row."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


def as_results(rows: Sequence[dict], suite: str) -> list[dict]:
    """The rows for a result file: with the name of their suite, without their command lines.

    Method, noise and seed identify a row; the command line may contain paths of this machine.
    """
    return [
        {"suite": suite, **{key: value for key, value in row.items() if key != "options"}}
        for row in rows
    ]


class ResultFile:
    """The rows of one run of a command: in the file of ``--json``, else in a new result file.

    A result file is called `<device>-<YYYY-MM-DD>-<commit>.json`, with -2, -3 ... if it exists.

    Args:
        folder: Folder of the result file; None for no result file.
        json: Value of ``--json``.

    Attributes:
        path: The result file; None before the first `write`, and if there is none.
    """

    def __init__(self, folder: Path | None, json: str | None = None) -> None:
        self._folder, self._json = folder, json
        self.path: Path | None = None

    def write(self, rows: Sequence[dict]) -> None:
        """Writes all rows measured so far, so that an interrupted run keeps them.

        Raises:
            UserError: The file cannot be written.
        """
        if self._json:
            write_text(Path(self._json), as_text(rows))
        elif self._folder:
            self.path = self.path or _new_path(self._folder, rows[0]["environment"])
            write_text(self.path, as_text(rows))

    def finish(self, rows: Sequence[dict]) -> None:
        """Writes all rows, and prints the path of the result file, if there is one."""
        self.write(rows)
        if self.path:
            print(f"rows in {self.path}")


def _new_path(folder: Path, environment: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    words = slug(processor(environment)), environment["date"][:10], environment["commit"]
    for number in itertools.count(1):
        path = folder / f"{'-'.join(words)}{f'-{number}' if number > 1 else ''}.json"
        with contextlib.suppress(FileExistsError):
            path.touch(exist_ok=False)
            return path


def latest(folder: Path) -> dict[tuple[str, str], tuple[str, list[dict]]]:
    """The rows of the latest file of each benchmark on each device.

    Returns:
        (device, suite) -> (name of the file, rows), sorted by device and suite.

    Raises:
        ValueError: A file contains no rows of a benchmark.
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
            # Of two files of the same second the longer name has the higher number.
            age = (rows[0]["environment"]["date"], len(path.name), path.name)
            if key not in found or found[key][0] < age:
                found[key] = (age, path.name, rows)
    return {key: found[key][1:] for key in sorted(found)}
