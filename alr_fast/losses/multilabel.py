"""Multi-label targets as pairs of classes, so that every loss and the label bank apply to them."""

from typing import Any

import torch
from torch import Tensor

from alr_fast._inputs import as_labels, as_tensor, check_logits
from alr_fast.bank import LabelBank
from alr_fast.errors import UserError
from alr_fast.losses.arguments import can_raise


def multilabel_bank(targets: Any, **options: Any) -> LabelBank:
    """A bank for multi-label targets: row `i * L + l` for label l of sample i, of two classes.

    Args:
        targets: [N, L], 1 where sample i has label l, else 0; integers, bools or whole floats.
            Entries that are unknown have to be 0 here; pass -1 for them in the batches.
        options: Keyword arguments of `LabelBank.from_labels`.

    Raises:
        UserError: The targets are not 0 or 1 [N, L].
    """
    targets = _as_targets(targets, "targets")
    return LabelBank.from_labels(targets.reshape(-1), 2, **options)


def two_class_view(
    logits: Tensor, targets: Any, index: Any = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits and targets of L labels as B L rows of two classes (absent, present).

    The softmax of `(0, z)` is `(1 - sigmoid(z), sigmoid(z))`: cross entropy of the view, mean over
    its rows, is `binary_cross_entropy_with_logits`.

        criterion = ALRLoss(multilabel_bank(targets), warmup_epochs=5)
        loss = criterion(*two_class_view(model(x), target, index))

    Args:
        logits: [B, L], one for each label.
        targets: [B, L], 1 for present, 0 for absent, below 0 to ignore the entry; integers, bools
            or whole floats. A row whose target is soft is NaN where raising would mean waiting.
        index: [B] index of each sample; below 0 to ignore all its entries.

    Returns:
        Arguments of a loss: logits [B L, 2], labels [B L] int64, index [B L] int64 or None.

    Raises:
        UserError: A shape or type is wrong.
    """
    check_logits(logits)
    targets = _as_targets(targets, "targets", device=logits.device)
    if targets.shape != logits.shape:
        raise UserError(
            f"must have the shape of the logits, {tuple(logits.shape)}",
            argument="targets",
            value=f"of shape {tuple(targets.shape)}",
        )
    pairs = torch.stack((torch.zeros_like(logits), logits), -1).reshape(-1, 2)
    if index is None:
        return pairs, targets.reshape(-1), None
    index = as_labels(index, "index", device=logits.device).long()
    count = logits.shape[1]
    places = index[:, None] * count + torch.arange(count, device=index.device)
    places = torch.where(index[:, None] >= 0, places, -1)
    return pairs, targets.reshape(-1), places.reshape(-1)


def _as_targets(targets: Any, name: str, device: torch.device | None = None) -> Tensor:
    """Targets as int64 [samples, labels]."""
    if targets is None:
        raise UserError("missing; pass 0 or 1 for each sample and label", argument=name)
    found = as_tensor(targets, name, device=device)
    if found.is_complex():
        raise UserError("must be 0 or 1", argument=name, value=f"of type {found.dtype}")
    if found.is_floating_point():  # as binary cross entropy takes them
        whole = found == found.round()
        if can_raise(whole) and not whole.all():
            raise UserError("must be 0 or 1, not soft; round them first", argument=name)
        found = torch.where(whole, found, 2)  # no class of the view
    if found.ndim != 2:
        raise UserError(
            "must have shape [samples, labels]",
            argument=name,
            value=f"of shape {tuple(found.shape)}",
        )
    return found.long()
