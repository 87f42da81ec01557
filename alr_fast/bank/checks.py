"""Checks of the arguments of a label bank."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from alr_fast._inputs import as_labels
from alr_fast.errors import UserError

BANK_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_LABEL_ADVICE = (
    "is index shifted? Pass the sample's own index. If the label was corrected, call "
    "LabelBank.correct_labels(index, labels) first; check_labels=False turns this check off"
)


def check_dtype(dtype: torch.dtype) -> None:
    """Raises `TypeError` for a type that rows cannot have."""
    if dtype not in BANK_DTYPES:
        raise TypeError(f"bank dtype {dtype} is not supported: use float32, float16 or bfloat16")


def checked_labels(labels: Any, num_classes: int) -> Tensor:
    """A copy of the labels as int64 on the CPU.

    Raises:
        UserError: There are none, or they are not integers [N] in [0, K).
    """
    labels = as_labels(labels, "labels")
    if len(labels) == 0:
        raise UserError("there are none; pass one for each sample", argument="labels")
    copied: Tensor = labels.detach().to("cpu", torch.int64, copy=True)
    low, high = int(copied.min()), int(copied.max())
    if low < 0 or high >= num_classes:
        raise UserError(
            f"must lie in [0, {num_classes}); check num_classes, and drop samples without a label "
            "before making the bank",
            argument="labels",
            value=f"from {low} to {high}",
        )
    return copied


def checked_corrections(index: Any, labels: Any, num_classes: int) -> tuple[Tensor, Tensor]:
    """Index and label of each corrected sample, int64 [M] on the CPU.

    Raises:
        UserError: They differ in number, or a label is not in [0, K).
    """
    index, labels = as_labels(index, "index").cpu().long(), as_labels(labels, "labels").cpu()
    if len(index) != len(labels):
        raise UserError(
            f"must have {len(index)} entries, one for each index",
            argument="labels",
            value=f"with {len(labels)} entries",
        )
    return index, checked_labels(labels, num_classes) if len(labels) else labels


def check_rows(index: Tensor, num_rows: int) -> None:
    """Raises `UserError` for rows, int64 [M], that do not exist or occur twice."""
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= num_rows:
        raise UserError(
            f"must lie in [0, {num_rows})", argument="index", value=f"from {low} to {high}"
        )
    if len(np.unique(index.numpy())) < len(index):
        raise UserError("names a sample twice; pass each once", argument="index")


def wrong_label(row: int, index: int, label: int, given: int) -> ValueError:
    """The error about a batch row whose label is not the given label of its sample."""
    return ValueError(
        f"labels[{row}] is {label}, but sample {index} (index[{row}]) has the given label "
        f"{given}; {_LABEL_ADVICE}"
    )


def check_counts(out_of_range: int, wrong_labels: int, num_rows: int, shard: str | None) -> None:
    """Raises the error about batch rows that the kernels have counted.

    Args:
        out_of_range: Rows with an index beyond the bank.
        wrong_labels: Rows with another label than the given one.
        num_rows: N.
        shard: Why a shard refuses an index; None for a whole bank.

    Raises:
        IndexError, ValueError: There are such rows.
    """
    if out_of_range and shard is not None:
        raise IndexError(f"the index of {out_of_range} batch rows {shard}")
    if out_of_range:
        raise IndexError(
            f"{out_of_range} batch rows had an index beyond the bank's {num_rows} rows: index must "
            "be that of the sample in the training set that the bank was made for"
        )
    if wrong_labels:
        raise ValueError(
            f"{wrong_labels} batch rows had another label than the given label of their sample; "
            f"{_LABEL_ADVICE}"
        )
