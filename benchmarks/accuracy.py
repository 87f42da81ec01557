"""Test accuracy of the methods under label noise: a grid of training runs.

    python -m benchmarks.accuracy --suite digits
    python -m benchmarks.accuracy --suite cifar10 --data-root DIR --device cuda --jobs 4
    python -m benchmarks.accuracy --suite cifar10-small --data-root DIR

`digits` trains all methods on the handwritten digits of scikit-learn with a small model and five
seeds; `cifar10` some of them with ResNet-34 on a GPU; `cifar10-small` the same ones with a small
model on 10,000 images, for a CPU. All methods of a suite have one recipe: model, schedule, batches.
Options of the methods follow their papers where these state them, see `VARIANTS`; smearing and the
corrections use the noise that was injected, which is unknown in practice.

The result is that of the last epoch. The best epoch is selected on test labels and is shown for
comparison only. The command resumes an interrupted grid, see `benchmarks.harness.grid`. Rows of a
whole suite are written to benchmarks/results, from which `python -m benchmarks.report` generates
tables and plots; the folder of the grid gets a table in Markdown and a plot of every grid.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from alr_fast.noise import NOISE_MODELS
from alr_fast.utils.machine import usable_cores
from benchmarks.harness.averages import mean_rows
from benchmarks.harness.command import Output, add_json_argument, check_arguments, data_words
from benchmarks.harness.grid import Cell, CellFailed, noise_words, run_grid, split_noise
from benchmarks.harness.results import FOLDER, as_results
from benchmarks.tables.accuracy import accuracy_cells, plot_accuracy
from benchmarks.tables.markdown import markdown, show

# Name -> methods that are trained, of which the last one is compared, and their options.
# Distillation trains its own teacher.
VARIANTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ce": (("ce",), ()),
    "label_smoothing": (("label_smoothing",), ()),
    "negative_smoothing": (("label_smoothing",), ("--label_smoothing.smoothing", "-0.5")),
    "smearing": (("smearing",), ()),
    "backward_correction": (("backward_correction",), ()),
    "forward_correction": (("forward_correction",), ()),
    "distillation": (("label_smoothing", "distillation"), ()),
    "selc": (("selc",), ()),
    "sat": (("sat",), ()),
    "elr": (("elr",), ()),
    "alr": (("alr",), ()),
    "alr_no_entropy": (("alr",), ("--alr.entropy_weight", "0")),
}


@dataclass(frozen=True)
class Suite:
    """A data set, a recipe for all cells, and the methods that are compared.

    Attributes:
        options: Words of the command line, the same for all cells.
        epochs: Epochs.
        methods: Names of `VARIANTS`.
        noises: See `benchmarks.harness.grid.split_noise`; the most important first.
        seeds: Number of seeds.
        needs_root: Whether it needs ``--data-root``.
    """

    options: tuple[str, ...]
    epochs: int
    methods: tuple[str, ...]
    noises: tuple[str, ...]
    seeds: int
    needs_root: bool = True


_CIFAR_METHODS = ("ce", "alr", "alr_no_entropy", "sat", "selc", "elr")
SUITES = {
    "digits": Suite(
        ("--recipe", "digits"),
        epochs=60,
        methods=tuple(name for name in VARIANTS if name != "alr_no_entropy"),
        noises=("symmetric-0.4", "symmetric-0.6", "none", "symmetric-0.2", "symmetric-0.8",
                "asymmetric-0.4", "instance-0.4"),
        seeds=5,
        needs_root=False,
    ),
    "cifar10": Suite(
        ("--recipe", "cifar10-accuracy"),
        epochs=100,
        methods=_CIFAR_METHODS,
        noises=("symmetric-0.4", "symmetric-0.8", "symmetric-0.2", "symmetric-0.6",
                "asymmetric-0.4"),
        seeds=1,
    ),
    "cifar10-small": Suite(
        # With so few images the model needs a longer warm-up to be better than its labels.
        ("--recipe", "cifar10-small", "--data.limit", "10000", "--data.test_limit", "2000",
         "--alr.warmup_epochs", "6", "--selc.warmup_epochs", "6", "--sat.warmup_epochs", "6"),
        epochs=16,
        methods=_CIFAR_METHODS,
        noises=("symmetric-0.4",),
        seeds=1,
    ),
}  # fmt: skip


def cells_of(
    suite: Suite,
    *,
    methods: Sequence[str],
    noises: Sequence[str],
    seeds: int,
    epochs: int,
    folder: Path,
) -> list[Cell]:
    """The cells, ordered by noise, then seed, then method.

    Args:
        suite: The suite.
        methods: Names of `VARIANTS`.
        noises: Kinds and rates.
        seeds: Number of seeds.
        epochs: Epochs.
        folder: Gets the matrices of smearing.
    """
    made = []
    for noise, seed, name in product(noises, range(seeds), methods):
        trained, options = VARIANTS[name]
        options = (*suite.options, "--optim.epochs", str(epochs), *options)
        if name == "negative_smoothing":  # as in its paper
            options += ("--label_smoothing.warmup_epochs", str(max(epochs // 6, 1)))
        if name == "smearing":
            options += ("--smearing.matrix", str(write_posterior(folder, noise, seed)))
        made.append(Cell(name, noise, seed, trained, options))
    return made


def write_posterior(folder: Path, noise: str, seed: int) -> Path:
    """Writes the matrix for smearing on the digits under a noise and seed; returns its file.

    Row y contains the share of each true class among the samples with the label y.
    """
    from alr_fast.noise.transition import known_transition
    from alr_fast.training.config.command_line import parse
    from alr_fast.training.run_data import inject_noise, load_data
    from alr_fast.utils.console import Console

    config = parse(noise_words(noise, seed))
    data = load_data(config.data, None, log=lambda text: None)
    noisy = inject_noise(config.noise, config.data, data, Console("quiet").track)
    # Inverted: from the given label to the true one.
    matrix = known_transition(noisy.labels, noisy.original, data.train.index.num_classes)
    path = folder / f"posterior-{noise}-{seed}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, matrix, delimiter=",", fmt="%.17g")
    return path


# The command. `benchmarks.study` has the same arguments.


def add_grid_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of a grid of a suite."""
    parser.add_argument("--suite", required=True, choices=SUITES)
    parser.add_argument("--data-root", metavar="DIR", help="the data, for all suites but digits")
    parser.add_argument("--seeds", type=int, metavar="N", help="number of seeds")
    parser.add_argument("--epochs", type=int, metavar="N",
                        help="instead of the suite's, to try the command")  # fmt: skip
    parser.add_argument("--jobs", type=int, metavar="N",
                        help="parallel trainings (default: one a core, 4 on a GPU)")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--folder", help="folder for rows and unfinished runs")
    add_json_argument(parser)


def run_cells(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, cells: Sequence[Cell]
) -> list[dict]:
    """Trains the cells with the arguments of `add_grid_arguments`; ends the command on failure."""
    cores = usable_cores()
    jobs = arguments.jobs or (4 if arguments.device.startswith("cuda") else cores)
    try:
        return run_grid(
            cells,
            folder_of(arguments),
            title=arguments.suite,
            jobs=jobs,
            device=arguments.device,
            threads=max(cores // jobs, 1),
            extra=data_words(arguments),
        )
    except CellFailed as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; repeat the command to resume\n")


def folder_of(arguments: argparse.Namespace) -> Path:
    """The folder of a grid."""
    return Path(arguments.folder).absolute() / arguments.suite


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_grid_arguments(parser)
    parser.set_defaults(folder="runs/accuracy")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", choices=VARIANTS,
                        help=f"only these, of {', '.join(VARIANTS)}")  # fmt: skip
    parser.add_argument("--noise", nargs="+", metavar="NOISE",
                        help="only these: none, or kind and rate, symmetric-0.4")  # fmt: skip
    arguments = parser.parse_args(argv)
    suite, folder = SUITES[arguments.suite], folder_of(arguments)
    check_arguments(parser, arguments, needs_root=suite.needs_root)
    for noise in arguments.noise or ():
        try:
            kind, _ = split_noise(noise)
        except ValueError as error:
            parser.error(f"--noise {error}")
        if kind not in NOISE_MODELS or kind == "matrix":
            known = ", ".join(name for name in NOISE_MODELS if name != "matrix")
            parser.error(f"--noise {noise}: no such kind; choose from {known}")
    if "smearing" in (arguments.methods or ()) and suite.needs_root:
        parser.error("--methods smearing: its matrix exists for the suite digits only")
    cells = cells_of(
        suite,
        methods=arguments.methods or suite.methods,
        noises=arguments.noise or suite.noises,
        seeds=arguments.seeds or suite.seeds,
        epochs=arguments.epochs or suite.epochs,
        folder=folder,
    )
    rows = as_results(run_cells(parser, arguments, cells), f"accuracy_{arguments.suite}")
    show(f"{arguments.suite}: test accuracy in %", *accuracy_cells(rows))
    table, plot = folder / "accuracy.md", folder / "accuracy.png"
    table.write_text(markdown(*accuracy_cells(rows)), encoding="utf-8")
    plot_accuracy(plot, [(arguments.suite, rows)])
    print(f"the same in Markdown: {table}; as a plot: {plot}")
    if arguments.json and len({row["seed"] for row in rows}) > 1:
        rows += mean_rows(rows)
    whole = not (arguments.methods or arguments.noise or arguments.seeds or arguments.epochs)
    output = Output(arguments.json, FOLDER if whole else None)
    output.write(rows)
    output.print_path()


if __name__ == "__main__":
    main()
