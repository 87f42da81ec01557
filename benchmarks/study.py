"""ALR's own settings: what they do, and which to take where no clean labels choose.

    python -m benchmarks.study --suite digits

Momentum, entropy weight and length of the warm-up, one at a time around a middle, then the
crossings that matter. A tenth of the training samples, with their wrong labels, is put aside, and
the setting with the best mean accuracy on it over all noises is the one to take: nothing is chosen
on test labels. Seeds are others than those of `benchmarks.accuracy`. It goes on where it was
stopped, see `benchmarks.harness.grid`.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from benchmarks.accuracy import SUITES, add_grid_arguments, grid_arguments
from benchmarks.harness.grid import Cell, CellFailed, run_grid
from benchmarks.harness.results import FOLDER, ResultFile, as_results, as_text, mean_rows
from benchmarks.tables.accuracy import study_cells
from benchmarks.tables.markdown import show

VALIDATION = "0.1"
SEEDS = (100, 101, 102)
NOISES = {
    "digits": ("none", "symmetric-0.4", "symmetric-0.6", "symmetric-0.8", "asymmetric-0.4"),
    "cifar10": ("symmetric-0.4", "symmetric-0.8", "asymmetric-0.4"),
    "cifar10-small": ("symmetric-0.4",),
}
# Momentum, entropy weight, share of the epochs that are warm-up.
MIDDLE = (0.9, 0.1, 1 / 6)
MOMENTA = (0.5, 0.7, 0.9, 0.95, 0.99)
ENTROPY_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
WARMUPS = (1 / 12, 1 / 6, 1 / 3, 1 / 2)
CROSSINGS = tuple(product((0.7, 0.9), (0.1, 0.4, 0.8), (1 / 12, 1 / 6, 1 / 3)))


def settings() -> list[tuple[float, float, float]]:
    """The settings, each once."""
    momentum, weight, warmup = MIDDLE
    found = [
        MIDDLE,
        *((m, weight, warmup) for m in MOMENTA),
        *((momentum, w, warmup) for w in ENTROPY_WEIGHTS),
        *((momentum, weight, e) for e in WARMUPS),
        *CROSSINGS,
    ]
    return list(dict.fromkeys(found))


def cells_of(suite: str, seeds: Sequence[int], epochs: int) -> list[Cell]:
    """The cells of a study, noise by noise."""
    made = []
    for seed, noise, setting in product(seeds, NOISES[suite], settings()):
        momentum, weight, warmup = setting
        warmup_epochs = max(round(warmup * epochs), 1)
        options = [
            *SUITES[suite].options,
            "--optim.epochs", str(epochs),
            "--data.validation", VALIDATION,
            "--alr.momentum", str(momentum),
            "--alr.entropy_weight", str(weight),
            "--alr.warmup_epochs", str(warmup_epochs),
        ]  # fmt: skip
        name = f"a={momentum:g} lam={weight:g} warm-up={warmup_epochs}"
        made.append(Cell(name, noise, seed, ("alr",), tuple(options)))
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_grid_arguments(parser)
    parser.set_defaults(folder="runs/study")
    arguments = parser.parse_args(argv)
    options = grid_arguments(parser, arguments)
    suite = SUITES[arguments.suite]
    seeds = SEEDS[: arguments.seeds] if arguments.seeds else SEEDS
    cells = cells_of(arguments.suite, seeds, arguments.epochs or suite.epochs)
    try:
        rows = run_grid(cells, title=f"study, {arguments.suite}", **options)
    except CellFailed as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; the same command goes on\n")
    rows = as_results(rows, f"study_{arguments.suite}")
    show("accuracy in %, the best setting by validation first", *study_cells(rows))
    if arguments.json:
        Path(arguments.json).write_text(as_text([*rows, *mean_rows(rows)]), encoding="utf-8")
    elif arguments.epochs is None and arguments.seeds is None:
        print(f"rows in {ResultFile(FOLDER, rows[0]['environment']).write(rows)}")


if __name__ == "__main__":
    main()
