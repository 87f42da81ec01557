"""Test accuracy of the methods under label noise: a grid of training runs.

    python -m benchmarks.accuracy --suite digits
    python -m benchmarks.accuracy --suite cifar10 --data-root DIR --device cuda --jobs 4
    python -m benchmarks.accuracy --suite cifar10-small --data-root DIR
    python -m benchmarks.accuracy --suite features --data-root FILE.npz

`digits` trains all methods on the handwritten digits of scikit-learn with a small model and five
seeds; `cifar10` some of them with ResNet-34 on a GPU; `cifar10-small` the same ones with a small
model on 10,000 images, for a CPU; `features` some of them with an MLP on a file of features. All
methods of a suite have one recipe: model, schedule, batches. Options of the methods follow their
papers where these state them, see `VARIANTS`; smearing and the corrections use the noise that was
injected, which is unknown in practice.

The result is that of the last epoch. The best epoch is selected on test labels and is shown for
comparison only. The command resumes an interrupted grid, see `benchmarks.harness.grid`. Rows of a
whole suite are written to benchmarks/results, from which `python -m benchmarks.report` generates
tables and plots. A table in Markdown and a plot of every grid are written to its folder.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from alr_fast.noise import NOISE_MODELS
from alr_fast.utils.files import replacing, write_text
from benchmarks.harness.averages import mean_rows
from benchmarks.harness.command import (
    data_words,
    new_grid_parser,
    parallel_jobs,
    parse,
    suite_folder,
)
from benchmarks.harness.grid import Cell, CellFailed, noise_words, run_grid, split_noise
from benchmarks.harness.results import FOLDER, ResultFile, as_results
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
    """A data set, a recipe for all cells, and the methods that are compared."""

    options: tuple[str, ...]  # words of the command line, the same for all cells
    epochs: int
    methods: tuple[str, ...]  # names of `VARIANTS`
    noises: tuple[str, ...]  # as `split_noise` reads them; the most important first
    seeds: int  # number of seeds
    needs_root: bool = True  # whether it needs --data-root


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
    "features": Suite(
        ("--recipe", "features"),
        epochs=60,
        methods=("ce", "selc", "sat", "elr", "alr"),
        noises=("symmetric-0.4", "none", "symmetric-0.2", "instance-0.4"),
        seeds=5,
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
        suite: Its options are those of all cells.
        methods: Names of `VARIANTS`.
        noises: Kinds and rates.
        seeds: Number of seeds.
        epochs: Number of epochs.
        folder: Folder to which the matrices of smearing are written.
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
    with replacing(path) as fresh:
        np.savetxt(fresh, matrix, delimiter=",", fmt="%.17g")
    return path


def run_cells(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, cells: Sequence[Cell]
) -> list[dict]:
    """Trains the cells, also those of `benchmarks.study`; ends the command on failure."""
    jobs, threads = parallel_jobs(arguments)
    try:
        return run_grid(
            cells,
            suite_folder(arguments),
            title=arguments.suite,
            jobs=jobs,
            device=arguments.device,
            threads=threads,
            extra=data_words(arguments),
        )
    except CellFailed as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; repeat the command to resume\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = new_grid_parser(__doc__, SUITES, "runs/accuracy")
    parser.add_argument("--seeds", type=int, metavar="N", help="number of seeds")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", choices=VARIANTS,
                        help=f"only these, of {', '.join(VARIANTS)}")  # fmt: skip
    parser.add_argument("--noise", nargs="+", metavar="NOISE",
                        help="only these: none, or kind and rate, symmetric-0.4")  # fmt: skip
    arguments = parse(parser, argv, SUITES)
    suite, folder = SUITES[arguments.suite], suite_folder(arguments)
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
    write_text(table, markdown(*accuracy_cells(rows)))
    plot_accuracy(plot, [(arguments.suite, rows)])
    print(f"the same in Markdown: {table}; as a plot: {plot}")
    if arguments.json and len({row["seed"] for row in rows}) > 1:
        rows += mean_rows(rows)
    whole = not (arguments.methods or arguments.noise or arguments.seeds or arguments.epochs)
    ResultFile(FOLDER if whole else None, arguments.json).finish(rows)


if __name__ == "__main__":
    main()
