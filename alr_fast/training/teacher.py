"""Trained models as teachers: their predictions for the training samples."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from alr_fast.data.loaders.base import Loader
from alr_fast.errors import UserError
from alr_fast.training.config.check import is_soft_labels
from alr_fast.training.config.schema import WEIGHTS
from alr_fast.training.methods import METHODS
from alr_fast.training.models import build_model
from alr_fast.training.output.run_folder import read_config
from alr_fast.training.run import Run
from alr_fast.training.sharded_bank import fill_rows
from alr_fast.utils.files import open_regular
from alr_fast.utils.text import error_text, printable

_LONGEST_SUMMARY = 64 << 20  # bytes


def load_model(
    weights: Path,
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    class_names: tuple[str, ...] = (),
) -> nn.Module:
    """A model with the weights of a run, on the CPU, in evaluation mode.

    Args:
        weights: RUN/METHOD.safetensors; RUN/config.yaml contains the name of the model.
        num_classes: Number of classes K that it must have.
        input_shape: Shape of a sample, see `build_model`.
        class_names: Names of the K classes; with them, a run with the same classes in another order
            is refused.

    Raises:
        UserError: The file is missing, is no file of weights, or belongs to another kind of data.
    """
    _check_order(weights, class_names)
    try:
        name = read_config(weights.parent)["model"]["name"]
        if not isinstance(name, str):
            raise TypeError("the name of its model is not a text")
        open_regular(weights).close()  # the library would wait for a pipe
        saved = load_file(weights)
    except (UserError, OSError, SafetensorError, KeyError, TypeError) as error:
        problem = (
            f"cannot be read ({error_text(error)}); pass the weights in the folder of a run, with "
            "its config.yaml beside them"
        )
        raise UserError(problem, argument="weights", value=weights) from error
    try:
        model = build_model(name, num_classes=num_classes, input_shape=input_shape)
        model.load_state_dict(saved)
    except RuntimeError as error:  # also if the memory is too small for the model
        images = len(input_shape) == 3
        inputs = f"images of {input_shape[0]} channels" if images else f"{input_shape[0]} features"
        problem = (
            f"does not fit {num_classes} classes and {inputs}; pass a model of the same data set"
        )
        raise UserError(problem, argument="weights", value=weights) from error
    return model.eval()


def _check_order(weights: Path, class_names: tuple[str, ...]) -> None:
    """Refuses a model of classes of which one has another number here: what it predicts for one
    class would be taken for another."""
    try:
        with open_regular(weights.parent / "summary.json", _LONGEST_SUMMARY) as file:
            names = json.loads(file.read())["data"]["classes"]
        places = {name: k for k, name in enumerate(names)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # a run that has not finished, or of an earlier version
    for k, name in enumerate(class_names):
        if places.get(name, k) != k:
            problem = (
                f"was trained with {printable(name)} as class {places[name]}, in this data set it "
                f"is class {k}; pass a model of the same classes in the same order"
            )
            raise UserError(problem, argument="weights", value=weights)


@torch.no_grad()
def predict(
    model: nn.Module, loader: Loader, autocast: torch.autocast, *, dtype: torch.dtype
) -> Tensor:
    """Probabilities [n, K] that a model predicts for the samples of a loader, on its device.

    Args:
        model: Model in evaluation mode, on the device of the loader.
        loader: Batches that contain every sample of this process once.
        autocast: Precision of the model.
        dtype: Type of the result.

    Returns:
        Row i for the sample at position i of the loader; uniform for unreadable images.
    """
    rows, classes = len(loader.sampler.rows), loader.split.index.num_classes
    table = torch.full((rows, classes), 1 / classes, dtype=dtype, device=loader.device)
    for batch in loader:
        with autocast:
            logits = model(batch["image"])
        keep = batch["index"] >= 0
        table[batch["index"][keep]] = logits[keep].float().softmax(-1).to(dtype)
    return table


def teacher_probabilities(teacher: str, run: Run) -> Tensor:
    """Probabilities of a teacher for the training samples of this process.

    The images are neither cropped nor flipped. All processes call this.

    Args:
        teacher: A method that the run has trained, a file of weights, or a table of soft labels
            (see `alr_fast.data.label_files.label_table`); samples that it does not list keep their
            given label.
        run: The run.

    Returns:
        Probabilities [n, K] in the type of the label bank, on the training device.

    Raises:
        SharedError: The teacher is not available, or does not fit.
    """
    dtype, device = getattr(torch, run.config.bank.dtype), run.world.device
    if is_soft_labels(teacher):
        table = torch.zeros(len(run.rows), run.index.num_classes, dtype=dtype, device=device)
        given = torch.from_numpy(run.index.labels[run.rows]).to(device)
        table.scatter_(1, given[:, None], 1)

        def log(text: str) -> None:
            run.console.log(f"{teacher}: {text}")

        run.world.on_all_ranks(lambda: fill_rows(table, teacher, run.index, run.rows, log))
        return table
    loader = run.loaders.in_order()

    model = run.world.on_all_ranks(
        lambda: (
            load_model(
                run.path / f"{teacher}{WEIGHTS}" if teacher in METHODS else Path(teacher),
                num_classes=run.index.num_classes,
                class_names=run.index.class_names,
                input_shape=loader.input_shape,
            )
            .to(device)
            .to(memory_format=torch.channels_last)
        )
    )
    precision = getattr(torch, run.config.precision)
    autocast = torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)
    return predict(model, loader, autocast, dtype=dtype)
