"""The training loop on features: the whole set in memory, no data loader."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alr_fast.bank.history import SampleHistory
from alr_fast.classifier.features import Features
from alr_fast.errors import UserError
from alr_fast.losses import Loss


@dataclass(frozen=True, eq=False)
class Trained:
    """Records of a training.

    Attributes:
        losses: Mean loss of each epoch, float64 [epochs].
        history: Arrays [N] of `SampleHistory.means`.
    """

    losses: NDArray[np.float64]
    history: dict[str, NDArray[np.generic]]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: Loss,
    features: Features,
    labels: Tensor,
    *,
    row_weight: Tensor | None,
    num_classes: int,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
) -> Trained:
    """Trains a model in place; its learning rates fall to zero along a half cosine.

    Each epoch draws one permutation and cuts it into batches of nearly equal size, so that no last
    batch is small.

    Args:
        model: In training mode, on the device.
        optimizer: Of its parameters.
        criterion: The loss, with a bank on the device if it has one.
        features: N rows on the device.
        labels: int64 [N] on the device.
        row_weight: float32 [N] on the device, mean 1; None for ones.
        num_classes: Number of classes K.
        epochs: Number of epochs, 1 or more.
        batch_size: Largest number of rows in a batch.
        generator: Of the permutations, on the CPU.

    Raises:
        UserError: A loss is not finite.
    """
    n, device = len(features), labels.device
    history = SampleHistory(labels, device)
    refined = labels.clone()
    seen = torch.empty(n, num_classes, device=device)  # logits in the order of the epoch
    rates = [group["lr"] for group in optimizer.param_groups]
    sizes = [len(part) for part in torch.arange(n).tensor_split(math.ceil(n / batch_size))]
    losses = np.empty(epochs)
    for epoch in range(epochs):
        factor = (1 + math.cos(math.pi * epoch / epochs)) / 2
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        criterion.set_epoch(epoch)
        order = torch.randperm(n, generator=generator).to(device)
        ordered = labels[order]
        weights = None if row_weight is None else torch.split(row_weight[order], sizes)
        total = torch.zeros((), device=device)
        for number, (rows, given, logits) in enumerate(
            zip(*(torch.split(each, sizes) for each in (order, ordered, seen)), strict=True)
        ):
            loss = _step(
                model,
                optimizer,
                criterion,
                features.batch(rows),
                given,
                rows,
                None if weights is None else weights[number],
                logits,
            )
            total += loss * len(rows)
        losses[epoch] = float(total) / n
        if not math.isfinite(losses[epoch]):
            raise UserError(
                f"the loss of epoch {epoch + 1} is {losses[epoch]}: lower the learning rate, or "
                "scale the features (standardize=True)",
                argument="lr",
            )
        history.add(seen, ordered, order)
        if criterion.bank is None:
            refined[order] = seen.argmax(1)
        else:
            refined = criterion.bank.refined_labels()
        history.end_epoch(refined)
    means = {name: tensor.numpy() for name, tensor in history.means().items()}
    return Trained(losses=losses, history=means)


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: Loss,
    inputs: Tensor,
    labels: Tensor,
    index: Tensor,
    row_weight: Tensor | None,
    seen: Tensor,
) -> Tensor:
    """One step; writes the logits to ``seen`` [B, K] and returns the loss."""
    # The gradients of a linear model are two matrix products, which take autograd longer.
    linear = model if type(model) is nn.Linear and inputs.layout == torch.strided else None
    with torch.set_grad_enabled(linear is None):
        logits = model(inputs)
    seen.copy_(logits.detach())
    loss, grad = criterion.loss_and_grad(logits.detach(), labels, index, row_weight=row_weight)
    if linear is not None:
        linear.weight.grad = grad.t() @ inputs
        linear.bias.grad = grad.sum(0)
    else:
        optimizer.zero_grad()
        logits.backward(grad)
    optimizer.step()
    return loss
