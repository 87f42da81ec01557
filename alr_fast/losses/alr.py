"""Losses whose targets follow the model's predictions through a label bank: SELC and ALR."""

import torch
from torch import Tensor

from alr_fast._operators import LossOptions, LossResult, table_loss
from alr_fast.bank import LabelBank
from alr_fast.errors import UserError
from alr_fast.losses.arguments import check_bank, check_momentum
from alr_fast.losses.base import WarmUpLoss


class SELCLoss(WarmUpLoss):
    """Self-ensemble label correction (Lu and He, IJCAI 2022): ALR without the entropy term.

    As in the public code, the first refining epoch follows `warmup_epochs` epochs of cross entropy.

    Attributes:
        bank: The `LabelBank`.
        entropy_weight: Weight of the entropy term, 0 for SELC.
        refining: Whether the next call refines; None before the first call of `set_epoch` or
            `set_step`.
    """

    needs = frozenset({"bank"})
    bank: LabelBank
    entropy_weight: float = 0.0

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
    ) -> None:
        """Sets up the loss.

        Args:
            bank: a row for every training sample.
            warmup_epochs: epochs of cross entropy; `set_epoch` sets the current epoch.
            warmup_steps: steps of cross entropy; `set_step` sets the current step. Pass exactly one
                of the two; 0 refines from the start.
            momentum: share of the old row in the new one, in [0, 1]; 0.9 in the public code.
            reduction: "mean" over the rows not ignored, "sum" or "none".
            unique_index: promise that no index occurs twice in a batch, which saves a launch.
            history: keep the mean loss of the given labels and the changes of the refined ones in
                `bank.history`, which `LabelBank.issues` uses; call `set_epoch` in every epoch.
            check_labels: refuse batches whose labels are not the given labels of their samples,
                which finds a shifted index. `LabelBank.correct_labels` changes given labels.

        Raises:
            ValueError: Not exactly one of the warm-up lengths is given.
            UserError: A value is out of range.
        """
        super().__init__(
            warmup_epochs=warmup_epochs, warmup_steps=warmup_steps, reduction=reduction
        )
        check_momentum(momentum)
        check_bank(bank)
        if not bank.one_hot:
            raise UserError(
                "starts at zero, so that targets would sum to less than 1; make it without "
                "one_hot=False",
                argument="bank",
            )
        self._use_bank(bank, history=history, check_labels=check_labels)
        self.momentum = momentum
        self.unique_index = unique_index

    @property
    def refining(self) -> bool | None:
        return None if self.warming_up is None else not self.warming_up

    def given_share(self, epochs: int) -> float | None:
        """See `Loss.given_share`: `momentum^n` after n updates of a row that started one-hot."""
        updates = self.updates(epochs)
        return None if updates is None else float(self.momentum**updates)

    def _after_warmup(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, options: LossOptions
    ) -> LossResult:
        index = self._required(index)
        options = options._replace(
            momentum=self.momentum,
            entropy_weight=self.entropy_weight,
            labels=labels,
            unique_index=self.unique_index,
            rounding_state=self.bank.rounding_state,
        )
        if options.adjustment is None:
            return table_loss(logits, self.bank.rows, index, options)
        return self._adjusted_loss(logits, labels, index, options)

    def _adjusted_loss(
        self, logits: Tensor, labels: Tensor, index: Tensor, options: LossOptions
    ) -> LossResult:
        """The loss of adjusted logits, with targets from the logits as they are: a second pass."""
        targets = self._targets(logits, index)  # before the rows change
        checked = options._replace(
            reduction="none", row_weight=None, with_grad=False, adjustment=None
        )
        with torch.no_grad():
            found = table_loss(logits, self.bank.rows, index, checked)
        # Rows out of range, and those without a softmax, have no target.
        targets = targets.masked_fill(found.loss.isnan()[:, None], torch.nan)
        rows = torch.arange(len(logits), device=logits.device)
        rows = torch.where((index >= 0) & (labels >= 0), rows, -1)
        options = options._replace(
            momentum=1.0, status=None, labels=None, given_labels=None, return_stats=False
        )
        loss, grad, _ = self._soft_cross_entropy(logits, targets, rows, options)
        return LossResult(loss, grad, found.stats)

    @torch.no_grad()
    def _targets(self, logits: Tensor, index: Tensor) -> Tensor:
        """Targets of the rows, float32 [B, K]; any values where the index is out of range."""
        rows = self.bank.rows
        places = index.clamp(0, len(rows) - 1).to(rows.device)
        old = rows[places].to(logits.device, torch.float32)
        prediction = logits.float().softmax(-1)
        return self.momentum * old + (1 - self.momentum) * prediction

    def extra_repr(self) -> str:
        return (
            f"{self.bank}, {self._warmup_text}, momentum={self.momentum}, "
            f"reduction={self.reduction!r}"
        )


class ALRLoss(SELCLoss):
    """Adaptive Label Refinement (Zhang et al., arXiv 2502.00386): warm-up, then refinement.

    During warm-up the loss is cross entropy on the given labels. Afterwards every row is trained on
    `t = momentum * bank[index] + (1 - momentum) * softmax(logits)`, which becomes its row of the
    bank, and `entropy_weight * H(softmax(logits))` is added. In `eval()` mode the loss is cross
    entropy without the bank. The `state_dict` of the module contains the bank, and `to(device)`
    moves it.
    """

    def __init__(
        self,
        bank: LabelBank,
        *,
        warmup_epochs: int | None = None,
        warmup_steps: int | None = None,
        momentum: float = 0.9,
        entropy_weight: float = 0.4,
        reduction: str = "mean",
        unique_index: bool = False,
        history: bool = False,
        check_labels: bool = True,
    ) -> None:
        """Sets up the loss.

        All other arguments, and the errors, are those of `SELCLoss`.

        The defaults of momentum and entropy weight are this project's own, because the paper's
        values were not available; docs/method.md explains the choice.

        Args:
            momentum: share of the old row in the new one, in [0, 1].
            entropy_weight: weight of the entropy term, which hardens predictions; 0 is SELC.
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
        if not 0 <= entropy_weight < torch.inf:
            raise UserError(
                "must be 0 or more and finite", argument="entropy_weight", value=entropy_weight
            )
        self.entropy_weight = entropy_weight

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, entropy_weight={self.entropy_weight}"
