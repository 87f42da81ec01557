"""Losses whose targets follow the model's predictions through a label bank: SELC and ALR."""

import torch
from torch import Tensor

from alr_fast._operators import LossOptions, LossResult, table_loss
from alr_fast.bank import LabelBank
from alr_fast.errors import UserError
from alr_fast.losses.base import WarmUpLoss, check_momentum


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

        Raises:
            ValueError: Not exactly one of the warm-up lengths is given.
            UserError: A value is out of range.
        """
        super().__init__(
            warmup_epochs=warmup_epochs, warmup_steps=warmup_steps, reduction=reduction
        )
        check_momentum(momentum)
        self.bank = bank
        self.momentum = momentum
        self.unique_index = unique_index

    @property
    def refining(self) -> bool | None:
        return None if self.warming_up is None else not self.warming_up

    def _after_warmup(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, options: LossOptions
    ) -> LossResult:
        options = options._replace(
            momentum=self.momentum,
            entropy_weight=self.entropy_weight,
            update=self.training,
            unique_index=self.unique_index,
            rounding_state=self.bank.rounding_state,
        )
        return table_loss(logits, self.bank.rows, self._required(index), options)

    def extra_repr(self) -> str:
        return (
            f"{self.bank}, {self._warmup_text}, momentum={self.momentum}, "
            f"reduction={self.reduction!r}"
        )


class ALRLoss(SELCLoss):
    """Adaptive Label Refinement (Zhang et al., arXiv 2502.00386): warm-up, then refinement.

    During warm-up the loss is cross entropy on the given labels. Afterwards every row is trained on
    `t = momentum * bank[index] + (1 - momentum) * softmax(logits)`, which becomes its row of the
    bank, and `entropy_weight * H(softmax(logits))` is added. `eval()` mode reads the bank without
    updating it. The `state_dict` of the module contains the bank, and `to(device)` moves it.
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
    ) -> None:
        """Sets up the loss; all other arguments, and the errors, are those of `SELCLoss`.

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
        )
        if not 0 <= entropy_weight < torch.inf:
            raise UserError(
                "must be 0 or more and finite", argument="entropy_weight", value=entropy_weight
            )
        self.entropy_weight = entropy_weight

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, entropy_weight={self.entropy_weight}"
