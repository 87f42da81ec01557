"""What a loss is given: checks and conversions of labels, index, prior, bank and momentum."""

from typing import Any

import torch
from torch import Tensor

from alr_fast._inputs import as_integers, as_labels, as_weights, check_device
from alr_fast._operators import LossOptions
from alr_fast.bank import LabelBank
from alr_fast.errors import UserError


def check_bank(bank: Any) -> None:
    """Refuses an object that is not a `LabelBank` with a `UserError`."""
    if not isinstance(bank, LabelBank):
        raise UserError(
            "must be a LabelBank: make one with LabelBank.from_labels(labels, num_classes)",
            argument="bank",
            value=f"of type {type(bank).__name__}",
        )


def check_momentum(momentum: float) -> None:
    """Refuses a momentum outside [0, 1] with a `UserError`."""
    if not 0 <= momentum <= 1:
        raise UserError("must lie in [0, 1]", argument="momentum", value=momentum)


def can_raise(values: Tensor) -> bool:
    """Whether values can be looked at for nothing: on the CPU, and not while code is traced."""
    return (
        values.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and type(values) is Tensor  # a fake tensor has no values
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def check_classes(logits: Tensor, classes: int) -> None:
    """Refuses logits of another number of classes with a `UserError`."""
    if logits.shape[1] != classes:
        raise UserError(
            f"must have {classes} columns, one for each class of the loss",
            argument="logits",
            value=f"of shape {tuple(logits.shape)}",
        )


def check_range(labels: Tensor, classes: int) -> None:
    """Refuses labels beyond the classes with an `IndexError`, where that costs nothing."""
    if not can_raise(labels) or labels.numel() == 0:
        return
    highest = int(labels.max())
    if highest >= classes:
        raise IndexError(
            f"label {highest} is out of range for {classes} classes: labels must lie in [0, "
            f"{classes}), or below 0 to ignore a row"
        )


def targets_of_batch(logits: Tensor, labels: Any, index: Any) -> tuple[Tensor, Tensor | None]:
    """Labels [B] and index [B] or None, also of pairs [B, 2] in the place of the labels."""
    if index is None:
        labels = as_integers(labels, "labels", device=logits.device)
        if labels.ndim == 2 and labels.shape[1] == 2:
            labels, index = labels[:, 0], labels[:, 1]
    labels = _of_batch(labels, "labels", logits)
    return labels, None if index is None else _of_batch(index, "index", logits)


def _of_batch(value: Any, name: str, logits: Tensor) -> Tensor:
    """Integers [B] on the device of the logits."""
    device = logits.device
    found = as_labels(value, name, device=device)
    count = logits.shape[0]  # len() of a tensor takes three times as long
    if found.shape[0] != count:
        raise UserError(
            f"must have {count} entries, one for each row of the logits",
            argument=name,
            value=f"with {len(found)} entries",
        )
    if found.device != device:
        check_device(found, name, logits)
    return found


def log_prior(class_prior: Any, logits: Tensor) -> Tensor:
    """Logarithms of the shares of the classes [K], which logit adjustment adds to the logits."""
    prior = as_weights(class_prior, "class_prior", logits.shape[1], like=logits)
    if can_raise(prior) and not ((prior > 0) & (prior < torch.inf)).all():
        raise UserError(
            "every class needs a frequency above 0, and a finite one; add 1 to counts",
            argument="class_prior",
            value=prior.tolist(),
        )
    return prior.log().log_softmax(0)  # no overflow, as the sum of the frequencies would


def adjusted(logits: Tensor, options: LossOptions) -> Tensor:
    """The logits plus the adjustment, in their dtype."""
    if options.adjustment is None:
        return logits
    return logits + options.adjustment.to(logits.dtype)
