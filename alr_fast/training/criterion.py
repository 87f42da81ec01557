"""The loss of a method for a run: banks, teachers and transition matrices that it needs."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alr_fast.data.index import SampleIndex
from alr_fast.errors import UserError, naming_options
from alr_fast.losses import Loss
from alr_fast.noise import read_matrix
from alr_fast.noise.transition import (
    estimate_anchor,
    estimate_confident,
    known_transition,
    transition_error,
)
from alr_fast.training.config.schema import ESTIMATES, TransitionConfig
from alr_fast.training.methods import METHODS, _arguments, _made, _stand_in
from alr_fast.training.teacher import teacher_probabilities
from alr_fast.utils.files import replacing

if TYPE_CHECKING:
    from alr_fast.data.index import SampleIndex
    from alr_fast.training.config.schema import Config
    from alr_fast.training.run import Run


def check_methods(config: "Config", index: "SampleIndex", *, channels: int, size: int) -> None:
    """Finds out before training what the methods want of files, nets and noise.

    Args:
        config: Resolved configuration.
        index: Training samples.
        channels: Channels of the images.
        size: Their side in pixels.

    Raises:
        UserError: It cannot be had, or does not fit the data.
    """
    from alr_fast.data.label_table import is_label_table, read_probabilities
    from alr_fast.training.config.schema import ESTIMATES
    from alr_fast.training.teacher import load_net

    def check_net(net: str, option: str) -> None:
        if net not in METHODS:  # else it will have the shape of this run's
            load_net(
                Path(net),
                num_classes=index.num_classes,
                channels=channels,
                image_size=size,
                option=option,
            )

    for name in config.methods:

        def provide(parameter: inspect.Parameter, option: str | None, name: str = name) -> Any:
            if parameter.name == "transition":
                if config.transition.source not in ESTIMATES:
                    return torch.from_numpy(given_transition(config.transition, index))
                check_net(config.transition.net, "transition.net")
            elif parameter.name == "teacher":
                if is_label_table(option):
                    with naming_options(table=f"{name}.teacher"):
                        for _ in read_probabilities(option, index):
                            pass  # all of it, before other methods are trained
                else:
                    check_net(option, f"{name}.teacher")
            elif parameter.annotation is Tensor:
                return torch.from_numpy(
                    read_square(option, index.num_classes, option=f"{name}.{parameter.name}")
                )
            return _stand_in(parameter, index.num_classes)

        _made(name, _arguments(name, config.options[name], provide))


def make_loss(name: str, run: "Run") -> Loss:
    """The loss of a method, for the samples of this process. All processes make theirs.

    Args:
        name: Key of `METHODS`.
        run: The run, which has trained the methods before this one.

    Raises:
        SharedError: A file, net or bank that it needs cannot be had, or does not fit.
    """
    from alr_fast.training.config.schema import soft_labels
    from alr_fast.training.sharded_bank import new_bank
    from alr_fast.training.teacher import teacher_probabilities

    world, index = run.world, run.index

    def provide(parameter: inspect.Parameter, option: str | None) -> Any:
        if parameter.name == "bank":
            return new_bank(
                run.config.bank,
                index,
                run.loaders.train.sampler.rows,
                world,
                folder=run.path,
                log=run.console.log,
                one_hot=not METHODS[name].bank_at_zero,
                soft_labels=soft_labels(run.config),
            )
        if parameter.name == "all_sum":
            return world.sum if world.size > 1 else None
        if parameter.name == "transition":
            return torch.from_numpy(find_transition(run, name))
        option_name = f"{name}.{parameter.name}"
        if parameter.name == "teacher":
            return teacher_probabilities(option, run, option=option_name)
        return torch.from_numpy(
            world.on_all_ranks(lambda: read_square(option, index.num_classes, option=option_name))
        )

    arguments = _arguments(name, run.config.options[name], provide)
    return world.on_all_ranks(lambda: _made(name, arguments)).to(world.device)


TRANSITION = "_transition.csv"
MOST_ESTIMATED = 1 << 26  # probabilities that an estimate is made from: 67,108 samples of 1,000


def find_transition(run: "Run", method: str) -> NDArray[np.float64]:
    """The transition matrix that ``--transition`` asks for. All processes call this.

    It is written to METHOD_transition.csv in the folder of the run, and where the true labels are
    known, its error is said.

    Args:
        run: The run.
        method: For which method.

    Raises:
        SharedError: A file or net that it needs cannot be had, or does not fit.
    """
    matrix = _transition(run)
    index, source = run.index, run.config.transition.source
    path = run.path / f"{method}{TRANSITION}"

    def write(folder: object) -> None:
        with replacing(path) as fresh:
            np.savetxt(fresh, matrix, delimiter=",", fmt="%.9g")

    run.in_folder(write)
    if index.clean_labels is not None and source != "known":
        known = known_transition(index.clean_labels, index.labels, index.num_classes)
        error = transition_error(matrix, known)
        run.console.log(f"{method}: transition matrix ({source}) with an error of {error:.3f}")
    return matrix


def _transition(run: "Run") -> NDArray[np.float64]:
    options, index = run.config.transition, run.index
    if options.source not in ESTIMATES:
        return run.world.on_all_ranks(lambda: given_transition(options, index))
    own = teacher_probabilities(options.net, run, option="transition.net")
    # Of a very large set a part will do: the rows of a process are in random order.
    most = max(MOST_ESTIMATED // index.num_classes // run.world.size, 1)
    rows = run.loaders.train.sampler.rows[:most]
    parts = run.world.gather((own[:most].float().cpu().numpy(), index.labels[rows]))
    probabilities = np.concatenate([p for p, _ in parts])
    labels = np.concatenate([given for _, given in parts])
    if options.source == "anchor":
        with naming_options(percentile="transition.percentile"):
            return estimate_anchor(probabilities, percentile=options.percentile)
    return estimate_confident(probabilities, labels)


def given_transition(options: TransitionConfig, index: SampleIndex) -> NDArray[np.float64]:
    """A transition matrix that asks no net: counted, or from a file.

    Raises:
        UserError: Nobody knows the true labels, or the file cannot be read or has another size.
    """
    if options.source != "known":
        return read_square(options.source, index.num_classes, option="transition.source")
    if index.clean_labels is None:
        raise UserError(
            "--transition.source known: nobody knows the true labels of this data set; pass anchor "
            "or confident with --transition.net, or a file with the matrix"
        )
    return known_transition(index.clean_labels, index.labels, index.num_classes)


def read_square(file: str, num_classes: int, *, option: str) -> NDArray[np.float64]:
    """A matrix [K, K] from a file of numbers.

    Raises:
        UserError: It cannot be read, or has another size.
    """
    matrix = read_matrix(file)
    if matrix.shape != (num_classes, num_classes):
        shape = " x ".join(map(str, matrix.shape))
        raise UserError(
            f"--{option} {file}: {shape} numbers; the data set needs {num_classes} x {num_classes}"
        )
    return matrix
