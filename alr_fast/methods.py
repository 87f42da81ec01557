"""Training methods by name. A method is a loss object: the loop is the same for all of them.

A new method is one function here that returns a criterion: its ``loss_and_grad(logits, labels,
index)`` gives the loss and the gradient of the logits, and it has ``set_epoch(epoch)`` and ``bank``
(None where it keeps no bank).
"""

from collections.abc import Callable

import torch
from torch import nn

from alr_fast.bank import LabelBank
from alr_fast.config import Config
from alr_fast.data.index import SampleIndex
from alr_fast.losses import ALRLoss, CrossEntropyLoss


def cross_entropy(config: Config, train: SampleIndex, device: torch.device) -> CrossEntropyLoss:
    """Cross entropy on the given labels."""
    return CrossEntropyLoss()


def adaptive_label_refinement(config: Config, train: SampleIndex, device: torch.device) -> ALRLoss:
    """Adaptive Label Refinement: a warm-up on the given labels, then on labels it refines."""
    bank = LabelBank.from_labels(
        torch.from_numpy(train.labels),
        train.num_classes,
        dtype=getattr(torch, config.bank.dtype),
        device=device,
        sample_fingerprint=train.sample_fingerprint(),
    )
    return ALRLoss(
        bank,
        warmup_epochs=config.alr.warmup_epochs,
        momentum=config.alr.momentum,
        entropy_weight=config.alr.entropy_weight,
        unique_index=True,  # a loader gives every sample once an epoch
    )


METHODS: dict[str, Callable[[Config, SampleIndex, torch.device], nn.Module]] = {
    "ce": cross_entropy,
    "alr": adaptive_label_refinement,
}
