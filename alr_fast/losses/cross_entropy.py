"""Losses on the given labels and on tables of fixed soft targets: nothing is refined.

All but the forward correction are cross entropy against a soft row, through the fused operation:
which row, and by which index, is the method (Lukasik et al., ICML 2020, call the first three "label
smearing").
"""

from typing import Any

import torch
from torch import Tensor

from alr_fast.errors import UserError
from alr_fast.losses.base import Loss, WarmUpLoss


class CrossEntropyLoss(Loss):
    """Cross entropy on the given labels."""

    def _compute(self, logits: Tensor, labels: Tensor, index: Tensor | None, **options: Any) -> Any:
        return self._cross_entropy(logits, labels, **options)


class LabelSmoothingLoss(WarmUpLoss):
    """Label smoothing, or with a negative rate generalised label smoothing; reads no table.

    Cross entropy against `(1 - smoothing) * one_hot(label) + smoothing / K` (Szegedy et al., CVPR
    2016; Lukasik et al., ICML 2020). Wei et al. (ICML 2022) find negative rates better where many
    labels are wrong, after a warm-up of cross entropy; the loss has no lower bound then.
    """

    def __init__(
        self,
        *,
        smoothing: float = 0.1,
        warmup_epochs: int = 0,
        reduction: str = "mean",
    ) -> None:
        """Sets up the loss.

        Args:
            smoothing: rate of smoothing, at most 1; below 0 for generalised label smoothing.
            warmup_epochs: epochs of cross entropy before it.
            reduction: "mean" over the rows not ignored, "sum" or "none".

        Raises:
            ValueError: the rate is above 1 or not finite, or the warm-up is negative.
        """
        super().__init__(warmup_epochs=warmup_epochs, reduction=reduction)
        if not -torch.inf < smoothing <= 1:
            raise UserError("must be finite and at most 1", argument="smoothing", value=smoothing)
        self.smoothing = smoothing

    def _after_warmup(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, **options: Any
    ) -> Any:
        return self._cross_entropy(logits, labels, smoothing=self.smoothing, **options)

    def extra_repr(self) -> str:
        return f"smoothing={self.smoothing}, {self._warmup_text}, reduction={self.reduction!r}"
