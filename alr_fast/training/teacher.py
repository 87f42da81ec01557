"""Trained models as teachers: their predictions for the training samples."""

from pathlib import Path

import torch
from torch import Tensor, nn

from alr_fast.data.loaders.base import Loader
from alr_fast.training.config.check import is_soft_labels
from alr_fast.training.config.schema import WEIGHTS
from alr_fast.training.methods import METHODS
from alr_fast.training.models import precision_of
from alr_fast.training.prediction import predicted_logits
from alr_fast.training.run import Run
from alr_fast.training.sharded_bank import fill_rows
from alr_fast.training.trained_model import load_for_data


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
    for index, logits in predicted_logits(model, loader, autocast):
        table[index] = logits.softmax(-1).to(dtype)
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
            load_for_data(
                run.path / f"{teacher}{WEIGHTS}" if teacher in METHODS else Path(teacher),
                num_classes=run.index.num_classes,
                class_names=run.index.class_names,
                input_shape=loader.input_shape,
            )
            .to(device)
            .to(memory_format=torch.channels_last)
        )
    )
    return predict(model, loader, precision_of(run.config.precision, device), dtype=dtype)
