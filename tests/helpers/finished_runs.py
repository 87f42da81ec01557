"""Finished runs for the tests of figures, and changes to their files."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from alr_fast import train
from benchmarks.figures import features, runs

EPOCHS = 3


def trained(folder: Path, *options: str) -> Path:
    """Trains ce and alr; returns the folder of the run."""
    words = ["--methods", "ce,alr", "--log.show", "quiet", "--runs", str(folder), *options]
    assert train.main(words) == 0
    return (folder / "latest").resolve()


def _rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def metrics(run: Path, method: str) -> list[dict[str, str]]:
    """Lines of ``metrics.csv``."""
    return [row for row in _rows(run) if row["method"] == method]


def summary(run: Path) -> dict:
    """Content of ``summary.json``."""
    return json.loads((run / "summary.json").read_text())


def column(run: Path, method: str, name: str) -> np.ndarray:
    """A column of ``metrics.csv``."""
    return np.array([float(row[name]) for row in metrics(run, method)])


def change_metrics(**values: str | None) -> Callable[[Path], None]:
    """Sets columns of ``metrics.csv`` to a text, or removes them."""

    def damage(run: Path) -> None:
        rows = [{**row, **values} for row in _rows(run)]
        names = [name for name in rows[0] if rows[0][name] is not None]
        with (run / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    return damage


def change_summary(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Changes the content of ``summary.json``."""

    def damage(run: Path) -> None:
        content = summary(run)
        change(content)
        (run / "summary.json").write_text(json.dumps(content))

    return damage


def assert_png(path: Path) -> None:
    """A readable figure of moderate size, alone in its folder."""
    assert path.stat().st_size < 300_000
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width == 1000
        assert 400 <= picture.height <= 1500
        # The figure is not empty: it has more colours than text.
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 50
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file


def percent(share: float) -> str:
    """A fraction of 1 as in the figures."""
    return f"{100 * share:.1f} %"


def loader_of(run: Path, samples: int = 1000, seed: int = 0, data_root: str | None = None):
    """Batches of the test images of a run, on the CPU."""
    cpu = torch.device("cpu")
    return features.image_loader(
        runs.open_run(run), samples=samples, seed=seed, data_root=data_root, device=cpu
    )


def summary_of(runs: Path) -> dict:
    """``summary.json`` of the last run in a folder of runs."""
    return summary(runs / "latest")


def metrics_of(runs: Path) -> list[dict[str, str]]:
    """Lines of ``metrics.csv`` of the last run in a folder of runs."""
    return _rows(runs / "latest")
