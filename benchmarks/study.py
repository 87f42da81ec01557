"""The settings of ALR: their effect, and how to choose them without clean labels.

    python -m benchmarks.study --suite digits

It varies momentum, entropy weight and length of the warm-up, one at a time around a central
setting, and some combinations. A tenth of the training samples, including wrong labels, is held
out; the best setting has the highest mean accuracy on them over all noises, so that no choice
depends on test labels. The seeds differ from those of `benchmarks.accuracy`. The command resumes
an interrupted grid, see `benchmarks.harness.grid`.
"""

from collections.abc import Sequence
from itertools import product

from benchmarks.accuracy import SUITES, run_cells
from benchmarks.harness.averages import mean_rows
from benchmarks.harness.command import new_grid_parser, parse
from benchmarks.harness.grid import Cell
from benchmarks.harness.results import FOLDER, ResultFile, as_results
from benchmarks.tables.accuracy import study_cells
from benchmarks.tables.markdown import show

VALIDATION = "0.1"
SEEDS = (100, 101, 102)
NOISES = {
    "digits": ("none", "symmetric-0.4", "symmetric-0.6", "symmetric-0.8", "asymmetric-0.4"),
    "cifar10": ("symmetric-0.4", "symmetric-0.8", "asymmetric-0.4"),
    "cifar10-small": ("symmetric-0.4",),
}
# Momentum, entropy weight, length of the warm-up as a share of the epochs.
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
    """The cells of a study, ordered by seed, then noise."""
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
    parser = new_grid_parser(__doc__, SUITES, "runs/study")
    parser.add_argument("--seeds", type=int, metavar="N", help="number of seeds")
    arguments = parse(parser, argv, SUITES)
    epochs = arguments.epochs or SUITES[arguments.suite].epochs
    cells = cells_of(arguments.suite, SEEDS[: arguments.seeds], epochs)
    rows = as_results(run_cells(parser, arguments, cells), f"study_{arguments.suite}")
    show("accuracy in %, the best setting by validation first", *study_cells(rows))
    if arguments.json:
        rows += mean_rows(rows)
    whole = not (arguments.epochs or arguments.seeds)
    ResultFile(FOLDER if whole else None, arguments.json).finish(rows)


if __name__ == "__main__":
    main()
