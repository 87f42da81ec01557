"""Nets that were trained before, as teachers: what they predict for the training samples, and the
transition matrices that follow from it."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from alr_fast.config import TransitionConfig
from alr_fast.data.index import SampleIndex
from alr_fast.data.label_table import is_label_table
from alr_fast.data.loader import Loader
from alr_fast.errors import UserError
from alr_fast.methods import METHODS
from alr_fast.models import build_model
from alr_fast.noise import read_matrix
from alr_fast.runs import replacing
from alr_fast.sharded_bank import fill_rows
from alr_fast.transition import (
    estimate_anchor,
    estimate_confident,
    known_transition,
    transition_error,
)

if TYPE_CHECKING:
    from alr_fast.run import Run

WEIGHTS = ".safetensors"
TRANSITION = "_transition.csv"
ESTIMATES = ("anchor", "confident")  # sources of a transition matrix that ask a net
MOST_ESTIMATED = 1 << 26  # probabilities that an estimate is made from: 67,108 samples of 1,000


def weights_file(net: str, folder: Path) -> Path:
    """Where the weights of a net are that an option names.

    Args:
        net: A method, which the run in ``folder`` has trained, or the file of the weights.
        folder: Folder of a run.
    """
    return folder / f"{net}{WEIGHTS}" if net in METHODS else Path(net)


def check_teacher(net: str, earlier: list[str], *, option: str, tables: bool = False) -> None:
    """Finds out before training whether a net will be there.

    Args:
        net: A method, or a file of weights.
        earlier: Methods that the run trains before.
        option: The option that names the net.
        tables: Whether a table of soft labels will do, too.

    Raises:
        UserError: It will not.
    """
    if net in METHODS:
        if net not in earlier:
            raise UserError(
                f"--{option} {net}: is not trained by this run before; put {net} first in "
                f"--methods, or pass the weights of a finished run, RUN/{net}{WEIGHTS}"
            )
    elif not Path(net).is_file() or not (net.endswith(WEIGHTS) or (tables and is_label_table(net))):
        raise UserError(
            f"--{option} {net}: neither a method ({', '.join(METHODS)}) nor a file of weights that "
            f"a run left, RUN/METHOD{WEIGHTS}" + (", nor a table of soft labels" if tables else "")
        )


def load_net(
    weights: Path, *, num_classes: int, channels: int, image_size: int, option: str
) -> nn.Module:
    """A net with the weights that a run left, on the CPU, ready for evaluation.

    Args:
        weights: RUN/METHOD.safetensors; RUN/config.yaml tells which net it is.
        num_classes: Number of classes K that it must have.
        channels: Channels C of the images.
        image_size: Side of the images in pixels.
        option: The option that names the file.

    Raises:
        UserError: The file is missing, is no file of weights, or belongs to another kind of data.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = yaml.safe_load((weights.parent / "config.yaml").read_text(encoding="utf-8"))
        name = config["model"]["name"]
        saved = load_file(weights)
    except (OSError, yaml.YAMLError, SafetensorError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"--{option} {weights}: cannot be read ({reason}); pass the weights in the folder of a "
            "run, with its config.yaml beside them"
        ) from error
    model = build_model(name, num_classes=num_classes, in_channels=channels, image_size=image_size)
    try:
        model.load_state_dict(saved)
    except RuntimeError as error:
        raise UserError(
            f"--{option} {weights}: does not fit {num_classes} classes and images of {channels} "
            "channels; pass a net of the same data set"
        ) from error
    return model.eval()


@torch.no_grad()
def predict(
    model: nn.Module, loader: Loader, autocast: torch.autocast, *, dtype: torch.dtype
) -> Tensor:
    """Probabilities [n, K] that a net gives the samples of a loader, on its device.

    Args:
        model: Net in evaluation mode, on the device of the loader.
        loader: Batches in which every sample of this process comes once.
        autocast: What the net computes in.
        dtype: Of the result.

    Returns:
        Row i for the sample at position i of the loader; uniform where a file gave no image.
    """
    table: Tensor | None = None
    for batch in loader:
        with autocast:
            logits = model(batch["image"])
        if table is None:
            shape = len(loader.sampler.rows), logits.shape[1]
            table = torch.full(shape, 1 / shape[1], dtype=dtype, device=loader.device)
        keep = batch["index"] >= 0
        table[batch["index"][keep]] = logits[keep].float().softmax(-1).to(dtype)
    return table


def teacher_probabilities(net: str, run: "Run", *, option: str) -> Tensor:
    """What a net that was trained before says about the training samples of this process.

    The images as they are, without crops and flips. All processes call this.

    Args:
        net: A method that the run has trained, a file of weights, or a table of soft labels (see
            `alr_fast.data.label_table`); samples that it does not list keep their given label.
        run: The run.
        option: The option that names the net.

    Returns:
        Probabilities [n, K] in the type of the label bank, on the training device.

    Raises:
        SharedError: The net cannot be had, or does not fit.
    """
    dtype = getattr(torch, run.config.bank.dtype)
    if is_label_table(net):
        index, rows = run.index, run.loaders.train.sampler.rows
        table = torch.zeros(len(rows), index.num_classes, dtype=dtype, device=run.world.device)
        given = torch.from_numpy(index.labels[rows]).to(run.world.device)
        table.scatter_(1, given[:, None], 1)
        run.world.together(lambda: fill_rows(table, net, index, rows, option=option))
        return table
    loader = run.loaders.in_order()
    model = run.world.together(
        lambda: load_net(
            weights_file(net, run.path),
            num_classes=run.index.num_classes,
            channels=loader.split.channels,
            image_size=loader.transform.size,
            option=option,
        ).to(run.world.device, memory_format=torch.channels_last)
    )
    precision = getattr(torch, run.config.precision)
    autocast = torch.autocast(
        run.world.device.type, dtype=precision, enabled=precision != torch.float32
    )
    return predict(model, loader, autocast, dtype=dtype)


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
        run.console.say(f"{method}: transition matrix ({source}) with an error of {error:.3f}")
    return matrix


def _transition(run: "Run") -> NDArray[np.float64]:
    options, index = run.config.transition, run.index
    if options.source not in ESTIMATES:
        return run.world.together(lambda: given_transition(options, index))
    own = teacher_probabilities(options.net, run, option="transition.net")
    # Of a very large set a part will do: the rows of a process are in random order.
    most = max(MOST_ESTIMATED // index.num_classes // run.world.size, 1)
    rows = run.loaders.train.sampler.rows[:most]
    parts = run.world.gather((own[:most].float().cpu().numpy(), index.labels[rows]))
    probabilities = np.concatenate([p for p, _ in parts])
    labels = np.concatenate([given for _, given in parts])
    if options.source == "anchor":
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
