"""Training methods by name. A method is a loss object: the loop is the same for all of them.

A new method is one function here that returns a criterion: its ``loss_and_grad(logits, labels,
index, row_weight=...)`` gives the sum of the losses and the gradient of the logits, and it has
``set_epoch(epoch)`` and ``bank`` (None where it keeps no bank).
"""

from collections.abc import Callable

from torch import nn

from alr_fast.bank import LabelBank
from alr_fast.config import Config
from alr_fast.losses import ALRLoss, CrossEntropyLoss


def cross_entropy(config: Config, new_bank: Callable[[], LabelBank]) -> CrossEntropyLoss:
    """Cross entropy on the given labels."""
    return CrossEntropyLoss(reduction="sum")


def adaptive_label_refinement(config: Config, new_bank: Callable[[], LabelBank]) -> ALRLoss:
    """Adaptive Label Refinement: a warm-up on the given labels, then on labels it refines."""
    return ALRLoss(
        new_bank(),
        warmup_epochs=config.alr.warmup_epochs,
        momentum=config.alr.momentum,
        entropy_weight=config.alr.entropy_weight,
        reduction="sum",
        unique_index=True,  # a loader gives every sample once an epoch
    )


# Those that keep a label bank.
WITH_BANK = frozenset({"alr"})

# Each takes the configuration and what makes a bank of the samples that this process owns.
METHODS: dict[str, Callable[[Config, Callable[[], LabelBank]], nn.Module]] = {
    "ce": cross_entropy,
    "alr": adaptive_label_refinement,
}
