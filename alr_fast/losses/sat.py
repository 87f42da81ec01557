"""Self-adaptive training (Huang et al., NeurIPS 2020)."""

from collections.abc import Callable

import torch
from torch import Tensor

from alr_fast._operators import LossOptions, LossResult
from alr_fast.bank import LabelBank
from alr_fast.losses.alr import SELCLoss


class SATLoss(SELCLoss):
    """Self-adaptive training (Huang et al., NeurIPS 2020): refined targets, weighted by confidence.

    The bank's row is updated before the loss, `t = momentum * bank[index] + (1 - momentum) * p`,
    and a row weighs `w = max_k t_k`: with "mean" the loss is `sum(w * CE(t, p)) / sum(w)` over the
    batch. The other reductions keep that normalisation: each row is multiplied by `B * w / sum(w)`,
    where B counts the rows with a value.

    Loss and gradient of `SELCLoss` in one fused pass are scaled by w afterwards, because the sum of
    w is known only after the pass.
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
        history: bool = False,
        check_labels: bool = True,
        all_sum: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Sets up the loss.

        All other arguments, and the errors, are those of `SELCLoss`.

        Args:
            all_sum: sums a float64 tensor [2] over all processes that share a batch, since the
                weights are normalised over the whole batch. None for one process.
        """
        super().__init__(
            bank,
            warmup_epochs=warmup_epochs,
            warmup_steps=warmup_steps,
            momentum=momentum,
            reduction=reduction,
            unique_index=unique_index,
            history=history,
            check_labels=check_labels,
        )
        self._all_sum = all_sum

    def _after_warmup(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, options: LossOptions
    ) -> LossResult:
        index = self._required(index)
        options = options._replace(reduction="none", return_stats=True)
        loss, grad, stats = super()._after_warmup(logits, labels, index, options)
        assert stats is not None  # return_stats
        weight = self._weight(stats.max_target).to(loss.dtype)
        if self.reduction == "mean":
            # The weights sum to the number of rows with a value. The mean is over all rows that are
            # not ignored, as everywhere.
            weight = weight / ((index >= 0) & (labels >= 0)).sum().clamp(min=1)
        loss = loss * weight
        if self.reduction != "none":
            loss = loss.sum()
        if grad is not None:
            grad = (grad * weight[:, None]).to(logits.dtype)
        return LossResult(loss, grad)

    def _weight(self, max_target: Tensor) -> Tensor:
        """`B * w / sum(w)` for each row [B], over all processes; 1 where a row has no value."""
        has_value = max_target.isfinite()  # neither ignored nor without a softmax
        weight = max_target.double().masked_fill(~has_value, 0)
        sums = torch.stack((has_value.sum().double(), weight.sum()))
        if self._all_sum is not None:
            sums = self._all_sum(sums)
        count, total = sums.unbind()
        return torch.where(has_value, weight * count / total, 1.0)
