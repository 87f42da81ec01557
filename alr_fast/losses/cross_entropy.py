"""Cross entropy on the given labels, plain or smoothed, through the fused operation."""

import torch
from torch import Tensor

from alr_fast._operators import LossOptions, LossResult, table_loss
from alr_fast.bank import LabelBank
from alr_fast.errors import UserError
from alr_fast.losses.arguments import check_bank, check_momentum
from alr_fast.losses.base import Loss, WarmUpLoss


class CrossEntropyLoss(Loss):
    """Cross entropy on the given labels.

    With a bank it also observes training: the bank's rows become moving averages of the
    predictions, which are not trained on, and `LabelBank.issues` ranks the labels.
    """

    own_loop_only = Loss.own_loop_only | {"bank", "momentum", "unique_index"}

    def __init__(
        self,
        *,
        bank: LabelBank | None = None,
        momentum: float = 0.9,
        reduction: str = "mean",
        unique_index: bool = False,
        history: bool = True,
        check_labels: bool = True,
    ) -> None:
        """Sets up the loss.

        Args:
            bank: a row for every training sample, to observe; None for cross entropy alone.
            momentum: share of the old row in the new one, in [0, 1]; with a bank only, like all
                below.
            reduction: "mean" over the rows not ignored, "sum" or "none".
            unique_index: promise that no index occurs twice in a batch, which saves a launch.
            history: keep the mean loss of the given labels and the changes of the refined ones in
                `bank.history`; call `set_epoch` in every epoch.
            check_labels: see `ALRLoss`.

        Raises:
            UserError: A value is out of range.
        """
        super().__init__(reduction=reduction)
        check_momentum(momentum)
        self.momentum = momentum
        self.unique_index = unique_index
        if bank is not None:
            check_bank(bank)
            self._use_bank(bank, history=history, check_labels=check_labels)

    def given_share(self, epochs: int) -> float | None:
        """See `Loss.given_share`; the rows are updated from the first epoch on."""
        if self.bank is None:
            return None
        if self.bank.one_hot:
            return float(self.momentum**epochs)
        return 0.0 if epochs > 0 and self.momentum < 1 else 1.0

    def _compute(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, options: LossOptions
    ) -> LossResult:
        result = self._cross_entropy(logits, labels, options, index)
        if self.bank is not None and options.update:
            # The first pass has checked and counted the rows.
            follow = LossOptions(
                reduction="none",
                momentum=self.momentum,
                labels=labels,
                update=True,
                given_labels=options.given_labels,
                unique_index=self.unique_index,
                rounding_state=self.bank.rounding_state,
            )
            with torch.no_grad():
                table_loss(logits, self.bank.rows, index, follow)
        return result


class LabelSmoothingLoss(WarmUpLoss):
    """Label smoothing, or with a negative rate generalised label smoothing; reads no table.

    Cross entropy against `(1 - smoothing) * one_hot(label) + smoothing / K` (Szegedy et al., CVPR
    2016; Lukasik et al., ICML 2020). Wei et al. (ICML 2022) find negative rates better if many
    labels are wrong, after a warm-up of cross entropy; the loss then has no lower bound.
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
            UserError: The rate is above 1 or not finite, or the warm-up is negative.
        """
        super().__init__(warmup_epochs=warmup_epochs, reduction=reduction)
        if not -torch.inf < smoothing <= 1:
            raise UserError("must be finite and at most 1", argument="smoothing", value=smoothing)
        self.smoothing = smoothing

    def _after_warmup(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, options: LossOptions
    ) -> LossResult:
        options = options._replace(smoothing=self.smoothing)
        return self._cross_entropy(logits, labels, options, index)

    def extra_repr(self) -> str:
        return f"smoothing={self.smoothing}, {self._warmup_text}, reduction={self.reduction!r}"
