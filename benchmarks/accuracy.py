"""Test accuracy of the methods under label noise: a grid of training runs.

    python -m benchmarks.accuracy --suite digits
    python -m benchmarks.accuracy --suite cifar10 --data-root DIR --device cuda --jobs 4
    python -m benchmarks.accuracy --suite cifar10-small --data-root DIR

`digits` has all methods on the handwritten digits of scikit-learn, a small net, five seeds;
`cifar10` some of them with ResNet-34 on a GPU; `cifar10-small` these with a small net on 10,000
images, for a CPU. All methods of a suite have one recipe: net, schedule, batches. Options of the
methods are those of their papers where they tell, see `VARIANTS`; smearing and the corrections are
told the noise that was injected, which nobody knows in practice.

The last epoch is the result; the best one is found with test labels and stands beside it only for
comparison. The command goes on where it was stopped, see `benchmarks.harness.grid`. Rows of a whole suite
go to benchmarks/results, of which `python -m benchmarks.report` makes tables and plots; a table in
Markdown and a plot of whatever was run lie in the folder of the grid.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch

from alr_fast.noise import NOISE_MODELS
from alr_fast.utils.machine import usable_cores
from benchmarks.harness.grid import Cell, CellFailed, run_grid, split_noise
from benchmarks.harness.results import FOLDER, ResultFile, as_results, as_text, mean_rows
from benchmarks.tables.accuracy import accuracy_cells, plot_accuracy
from benchmarks.tables.markdown import markdown, show

# What is compared: methods that are trained, the one that counts last, and their options. A
# distillation trains its teacher itself.
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
_WARM_UP = "warmup_epochs"


@dataclass(frozen=True)
class Suite:
    """A data set, a recipe for all cells, and what is compared on it.

    Attributes:
        options: Words of the command line, the same for all cells.
        epochs: Epochs.
        methods: Names of `VARIANTS`.
        noises: See `benchmarks.harness.grid.split_noise`; the most telling first.
        seeds: How many.
        needs_root: Whether it wants ``--data-root``.
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
        noises=(
            "symmetric-0.4",
            "symmetric-0.6",
            "none",
            "symmetric-0.2",
            "symmetric-0.8",
            "asymmetric-0.4",
            "instance-0.4",
        ),
        seeds=5,
        needs_root=False,
    ),
    "cifar10": Suite(
        ("--recipe", "cifar10-accuracy"),
        epochs=100,
        methods=_CIFAR_METHODS,
        noises=(
            "symmetric-0.4",
            "symmetric-0.8",
            "symmetric-0.2",
            "symmetric-0.6",
            "asymmetric-0.4",
        ),
        seeds=1,
    ),
    "cifar10-small": Suite(
        # A net that sees so little is better than its labels only after a longer warm-up.
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
    """The cells, noise by noise: for each the seeds, for each of these the methods."""
    made = []
    for noise, seed, name in product(noises, range(seeds), methods):
        trained, options = VARIANTS[name]
        options = (*suite.options, "--optim.epochs", str(epochs), *options)
        if name == "negative_smoothing":  # as its paper does
            options += (f"--label_smoothing.{_WARM_UP}", str(max(epochs // 6, 1)))
        if name == "smearing":
            options += ("--smearing.matrix", str(_write_posterior(folder, noise, seed)))
        made.append(Cell(name, noise, seed, trained, options))
    return made


def _write_posterior(folder: Path, noise: str, seed: int) -> Path:
    """A smearing matrix: row y holds the share of each true class among the labels y.

    Of the noise that is injected into the digits under this seed.
    """
    from alr_fast.noise.transition import known_transition
    from alr_fast.training.config.command_line import parse
    from alr_fast.training.run_data import inject_noise, load_data
    from alr_fast.utils.console import Console

    kind, rate = split_noise(noise)
    words = ["--seed", str(seed), "--noise.kind", kind]
    config = parse(words + (["--noise.rate", str(rate)] if rate else ["--noise.rate", "0"]))
    data = load_data(config.data, None, log=lambda text: None)
    noisy = inject_noise(config.noise, config.data, data, Console("quiet").track)
    # The other way round: from the given label to the true one.
    matrix = known_transition(noisy.labels, noisy.original, data.train.index.num_classes)
    path = folder / f"posterior-{noise}-{seed}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, matrix, delimiter=",", fmt="%.17g")
    return path


# The command. `benchmarks.study` has the same arguments.


def add_grid_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of a grid of a suite."""
    parser.add_argument("--suite", required=True, choices=SUITES)
    parser.add_argument("--data-root", metavar="DIR", help="the data, for all suites but digits")
    parser.add_argument("--seeds", type=int, metavar="N", help="how many seeds")
    parser.add_argument("--epochs", type=int, metavar="N", help="other than the suite's, to try")
    parser.add_argument("--jobs", type=int, metavar="N",
                        help="cells at once (default: one for each core, 4 on a GPU)")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--folder", help="where rows and unfinished runs are kept")
    parser.add_argument("--json", metavar="FILE", help="write the rows there alone")


def grid_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict:
    """Checked arguments of `benchmarks.harness.grid.run_grid`, those of `add_grid_arguments`."""
    for name in ("seeds", "epochs", "jobs"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} {value}: pass 1 or more")
    on_gpu = arguments.device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        parser.error("no GPU was found: pass --device cpu, with a suite made for it")
    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        parser.error(f"--json {arguments.json}: there is no such folder")
    extra: tuple[str, ...] = ()
    if SUITES[arguments.suite].needs_root:
        if not arguments.data_root:
            parser.error(f"--suite {arguments.suite}: pass --data-root DIR, the folder of its data")
        extra = ("--data-root", str(Path(arguments.data_root).absolute()))
    elif arguments.data_root:
        parser.error(f"--suite {arguments.suite}: brings its own data; leave --data-root out")
    cores = usable_cores()
    jobs = arguments.jobs or (4 if on_gpu else cores)
    return {
        "folder": Path(arguments.folder).absolute() / arguments.suite,
        "jobs": jobs,
        "device": arguments.device,
        "threads": max(cores // jobs, 1),
        "extra": extra,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_grid_arguments(parser)
    parser.set_defaults(folder="runs/accuracy")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", choices=VARIANTS,
                        help=f"these alone, of {', '.join(VARIANTS)}")  # fmt: skip
    parser.add_argument("--noise", nargs="+", metavar="NOISE",
                        help="these alone: none, or kind and rate, symmetric-0.4")  # fmt: skip
    arguments = parser.parse_args(argv)
    options = grid_arguments(parser, arguments)
    suite = SUITES[arguments.suite]
    for noise in arguments.noise or ():
        try:
            kind, _ = split_noise(noise)
        except ValueError as error:
            parser.error(f"--noise {error}")
        if kind not in NOISE_MODELS or kind == "matrix":
            known = ", ".join(name for name in NOISE_MODELS if name != "matrix")
            parser.error(f"--noise {noise}: no such kind; there is {known}")
    if "smearing" in (arguments.methods or ()) and suite.needs_root:
        parser.error("--methods smearing: its matrix is made for the suite digits alone")
    cells = cells_of(
        suite,
        methods=arguments.methods or suite.methods,
        noises=arguments.noise or suite.noises,
        seeds=arguments.seeds or suite.seeds,
        epochs=arguments.epochs or suite.epochs,
        folder=options["folder"],
    )
    try:
        rows = run_grid(cells, title=arguments.suite, **options)
    except CellFailed as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; the same command goes on\n")
    rows = as_results(rows, f"accuracy_{arguments.suite}")
    means = mean_rows(rows) if len({row["seed"] for row in rows}) > 1 else []
    show(f"{arguments.suite}: test accuracy in %", *accuracy_cells(rows))
    table, plot = options["folder"] / "accuracy.md", options["folder"] / "accuracy.png"
    table.write_text(markdown(*accuracy_cells(rows)), encoding="utf-8")
    plot_accuracy(plot, [(arguments.suite, rows)])
    print(f"the same in Markdown: {table}; as a plot: {plot}")
    if arguments.json:
        Path(arguments.json).write_text(as_text([*rows, *means]), encoding="utf-8")
    elif not (arguments.methods or arguments.noise or arguments.seeds or arguments.epochs):
        print(f"rows in {ResultFile(FOLDER, rows[0]['environment']).write(rows)}")


if __name__ == "__main__":
    main()
