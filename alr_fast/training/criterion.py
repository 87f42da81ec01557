"""The losses of a run, with the label banks, teachers and transition matrices that they need."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alr_fast.data.index import SampleIndex
from alr_fast.data.label_files.label_table import read_probabilities
from alr_fast.errors import UserError, naming_options
from alr_fast.losses import Loss
from alr_fast.noise import read_matrix
from alr_fast.noise.classes import rows_line
from alr_fast.noise.transition import (
    estimate_anchor,
    estimate_confident,
    known_transition,
    transition_error,
)
from alr_fast.training.config.check import is_soft_labels
from alr_fast.training.config.schema import ESTIMATES, Config, TransitionConfig
from alr_fast.training.methods import METHODS, build_loss, file_options, stand_ins
from alr_fast.training.run import Run
from alr_fast.training.sharded_bank import new_bank
from alr_fast.training.teacher import teacher_probabilities
from alr_fast.training.trained_model import load_for_data
from alr_fast.utils.files import replacing

TRANSITION = "_transition.csv"  # suffix of a method's transition matrix in the folder of a run
MOST_ESTIMATED = 1 << 26  # probabilities that an estimate uses: 67,108 samples of 1,000 classes


def check_methods(
    config: Config, index: SampleIndex, *, input_shape: tuple[int, ...], samples: int = 1
) -> dict[str, Loss]:
    """Checks before training that files, models and noise meet the needs of the methods.

    Args:
        config: Resolved configuration.
        index: Training samples.
        input_shape: Shape of a sample, see `build_model`.
        samples: Rows of the label banks of the result.

    Returns:
        The loss of each method, with a label bank and a teacher of its own; for trials only.

    Raises:
        UserError: A file or model is not available, or does not fit the data.
    """
    classes = index.num_classes

    def check_model(model: str, option: str) -> None:
        if model not in METHODS:  # a model of this run fits
            with naming_options(weights=option):
                load_for_data(
                    Path(model),
                    num_classes=classes,
                    input_shape=input_shape,
                    class_names=index.class_names,
                )

    losses = {}
    for name in config.methods:
        options, needs = config.options[name], METHODS[name].needs
        provided = stand_ins(name, classes, samples) | _matrices(name, options, classes)
        if "transition" in needs and config.transition.source in ESTIMATES:
            check_model(config.transition.net, "transition.net")
        elif "transition" in needs:
            provided["transition"] = torch.from_numpy(_given_transition(config.transition, index))
        if "teacher" in needs and is_soft_labels(options.teacher):
            with naming_options(table=f"{name}.teacher"):
                for _ in read_probabilities(options.teacher, index):
                    pass  # read to the end before other methods are trained
        elif "teacher" in needs:
            check_model(options.teacher, f"{name}.teacher")
        losses[name] = build_loss(name, options, provided)
    return losses


def make_loss(name: str, run: Run) -> Loss:
    """The loss of a method, for the samples of this process. All processes call this.

    Args:
        name: Key of `METHODS`.
        run: The run, which has trained the methods before this one.

    Raises:
        SharedError: A file, model or bank that it needs is not available, or does not fit.
    """
    options, loss = run.config.options[name], METHODS[name]
    world, index = run.world, run.index
    for option in file_options(name):
        _log_rows(str(getattr(options, option)), run)
    providers: dict[str, Callable[[], Any]] = {
        "bank": lambda: new_bank(run, one_hot=not loss.bank_at_zero),
        "transition": lambda: torch.from_numpy(_find_transition(run, name)),
        "teacher": lambda: teacher_probabilities(options.teacher, run),
        "all_sum": lambda: world.sum if world.size > 1 else None,
    }
    # In the order of the providers: some of them communicate with the other processes.
    with naming_options(weights=f"{name}.teacher", table=f"{name}.teacher"):
        provided = {need: provide() for need, provide in providers.items() if need in loss.needs}
    criterion = world.on_all_ranks(
        lambda: build_loss(
            name,
            options,
            provided | _matrices(name, options, index.num_classes),
            # Samples of rare classes are repeated.
            unique_index=run.config.data.balance == "none",
        )
    )
    return criterion.to(world.device)


def _matrices(name: str, options: Any, num_classes: int) -> dict[str, Tensor]:
    """The matrices [K, K] in the files that the options of a method name."""
    matrices = {}
    for option in file_options(name):
        with naming_options(file=f"{name}.{option}"):
            matrices[option] = torch.from_numpy(_read_square(getattr(options, option), num_classes))
    return matrices


def _find_transition(run: Run, method: str) -> NDArray[np.float64]:
    """The transition matrix that a method uses. All processes call this.

    It is written to METHOD_transition.csv in the folder of the run. If the true labels are known,
    its error is logged.
    """
    matrix, path = _transition(run), run.path / f"{method}{TRANSITION}"
    index, source = run.index, run.config.transition.source

    def write(folder: object) -> None:
        with replacing(path) as fresh:
            np.savetxt(fresh, matrix, delimiter=",", fmt="%.9g")

    run.in_folder(write, without="the method has its matrix all the same")
    if source not in (*ESTIMATES, "known"):
        _log_rows(source, run)
    if index.clean_labels is not None and source != "known":
        known = known_transition(index.clean_labels, index.labels, index.num_classes)
        error = transition_error(matrix, known)
        run.console.log(f"{method}: transition matrix ({source}) with an error of {error:.3f}")
    return matrix


def _log_rows(file: str, run: Run) -> None:
    """Logs which classes the rows of a file of numbers stand for, unless they are called so."""
    line = rows_line(file, run.index.class_names)
    if line is not None:
        run.console.log(line)


def _transition(run: Run) -> NDArray[np.float64]:
    options, index = run.config.transition, run.index
    if options.source not in ESTIMATES:
        return run.world.on_all_ranks(lambda: _given_transition(options, index))
    with naming_options(weights="transition.net"):
        own = teacher_probabilities(options.net, run)
    # A part of a very large data set is enough: the rows of a process are in random order.
    most = max(MOST_ESTIMATED // index.num_classes // run.world.size, 1)
    parts = run.world.gather((own[:most].float().cpu().numpy(), index.labels[run.rows[:most]]))
    probabilities = np.concatenate([p for p, _ in parts])
    labels = np.concatenate([given for _, given in parts])
    if options.source == "anchor":
        with naming_options(percentile="transition.percentile"):
            return estimate_anchor(probabilities, percentile=options.percentile)
    return estimate_confident(probabilities, labels)


def _given_transition(options: TransitionConfig, index: SampleIndex) -> NDArray[np.float64]:
    """A transition matrix that is counted, or read from a file."""
    if options.source != "known":
        with naming_options(file="transition.source"):
            return _read_square(options.source, index.num_classes)
    if index.clean_labels is None:
        raise UserError(
            "--transition.source known: the true labels of this data set are unknown; pass anchor "
            "or confident with --transition.net, or a file with the matrix"
        )
    return known_transition(index.clean_labels, index.labels, index.num_classes)


def _read_square(file: str, num_classes: int) -> NDArray[np.float64]:
    """A matrix [K, K] from a file of numbers."""
    matrix = read_matrix(file)
    if matrix.shape != (num_classes, num_classes):
        shape = " x ".join(map(str, matrix.shape))
        problem = f"{shape} numbers; the data set needs {num_classes} x {num_classes}"
        raise UserError(problem, argument="file", value=file)
    return matrix
