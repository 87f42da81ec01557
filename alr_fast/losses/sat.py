"""Self-adaptive training (Huang et al., NeurIPS 2020)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from alr_fast.bank import LabelBank
from alr_fast.losses.alr import _RefiningLoss


class SATLoss(_RefiningLoss):
    """Self-adaptive training (Huang et al., NeurIPS 2020): refined targets, weighted by confidence.

    The bank's row is updated before the loss, `t = momentum * bank[index] + (1 - momentum) * p`,
    and a row weighs `w = max_k t_k`: with "mean" the loss is `sum(w * CE(t, p)) / sum(w)` over the
    batch. The other reductions keep that normalisation, each row multiplied with `B * w / sum(w)`,
    where B counts the rows with a value.

    One fused pass, then its gradient rows are scaled by w. (The sum of w is known only after it.)
    """

    needs = frozenset({"bank", "all_sum"})

    def __init__(
        self,
        bank: LabelBank,
        *,
        warmup_epochs: int | None = None,
        warmup_steps: int | None = None,
        momentum: float = 0.9,
        reduction: str = "mean",
        unique_index: bool = False,
        all_sum: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Sets up the loss.

        Args:
            bank: a row for every training sample.
            warmup_epochs: epochs of cross entropy; `set_epoch` says which epoch it is.
            warmup_steps: steps of cross entropy; `set_step` says which step it is. Exactly one of
                the two is given; 0 refines from the start.
            momentum: share of the old row in the new one, in [0, 1]; 0.9 is the public code's.
            reduction: "mean" over the rows not ignored, "sum" or "none".
            unique_index: promise that no index occurs twice in a batch, which saves a launch.
            all_sum: adds up a float64 tensor [2] over all processes, where a batch is spread over
                several: the weights are normalised over all of it. None for one process.

        Raises:
            ValueError: not exactly one of the warm-up lengths is given, or a value is out of range.
        """
        super().__init__(
            bank,
            warmup_epochs=warmup_epochs,
            warmup_steps=warmup_steps,
            momentum=momentum,
            reduction=reduction,
            unique_index=unique_index,
        )
        self._all_sum = all_sum

    def _after_warmup(
        self,
        logits: Tensor,
        labels: Tensor,
        index: Tensor | None,
        *,
        row_weight: Tensor | None = None,
        with_grad: bool = False,
    ) -> Any:
        loss, *grad, stats = self._refine(
            logits,
            index,
            entropy_weight=0.0,
            reduction="none",
            row_weight=row_weight,
            with_grad=with_grad,
            return_stats=True,
        )
        weight = self._weight(stats.max_target).to(loss.dtype)
        if self.reduction == "mean":
            # What `_weight` makes sums to the rows that have a value; the mean is over those that
            # are not ignored, as everywhere.
            weight = weight / ((index >= 0) & (labels >= 0)).sum().clamp(min=1)
        loss = loss * weight
        if self.reduction != "none":
            loss = loss.sum()
        if not with_grad:
            return loss
        return loss, (grad[0] * weight[:, None]).to(logits.dtype)

    def _weight(self, max_target: Tensor) -> Tensor:
        """`B * w / sum(w)` for each row [B], over all processes; 1 where a row has no value."""
        has_value = max_target.isfinite()  # neither ignored nor without a softmax
        weight = max_target.double().masked_fill(~has_value, 0)
        sums = torch.stack((has_value.sum().double(), weight.sum()))
        if self._all_sum is not None:
            sums = self._all_sum(sums)
        count, total = sums.unbind()
        return torch.where(has_value, weight * count / total, 1.0)
