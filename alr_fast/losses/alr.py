"""Losses that keep a label bank: each sample's target follows the model's predictions."""

from typing import Any

import torch
from torch import Tensor

from alr_fast._operators import table_loss
from alr_fast.bank import LabelBank
from alr_fast.errors import UserError
from alr_fast.losses.base import WarmUpLoss, _checked_momentum


class _RefiningLoss(WarmUpLoss):
    """Cross entropy first, then the fused operation on a bank that it updates."""

    bank: LabelBank
    needs = frozenset({"bank"})

    def __init__(
        self,
        bank: LabelBank,
        *,
        warmup_epochs: int | None,
        warmup_steps: int | None,
        momentum: float,
        reduction: str,
        unique_index: bool,
    ) -> None:
        super().__init__(
            warmup_epochs=warmup_epochs, warmup_steps=warmup_steps, reduction=reduction
        )
        self.bank = bank
        self.momentum = _checked_momentum(momentum)
        self.unique_index = unique_index

    @property
    def refining(self) -> bool | None:
        """Whether the next call refines; None until `set_epoch` or `set_step` was called."""
        return None if self.warming_up is None else not self.warming_up

    def _refine(self, logits: Tensor, index: Tensor | None, **options: Any) -> Any:
        if index is None:
            raise ValueError("the label bank is looked up by sample: pass index")
        return table_loss(
            logits,
            self.bank.rows,
            index,
            momentum=self.momentum,
            update=self.training,
            unique_index=self.unique_index,
            status=self.bank.status,
            rounding_state=self.bank.rounding_state,
            **options,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.bank}, {self._warmup_text}, momentum={self.momentum}, "
            f"reduction={self.reduction!r}"
        )


class ALRLoss(_RefiningLoss):
    """Adaptive Label Refinement (Zhang et al., arXiv 2502.00386): warm-up, then refinement.

    During warm-up the loss is cross entropy on the given labels. Afterwards every row is trained on
    `t = momentum * bank[index] + (1 - momentum) * softmax(logits)`, which becomes its row of the
    bank, and `entropy_weight * H(softmax(logits))` is added. In `eval()` mode the bank is read, not
    updated.

    The module owns the bank: its `state_dict` holds it, and `to(device)` moves it.

    Attributes:
        bank: the `LabelBank`.
        refining: whether the next call refines; None until `set_epoch` or `set_step` was called.
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
        """Sets up the loss.

        The defaults of momentum and entropy weight are this project's, since the paper's values
        could not be had; docs/method.md says what they follow from.

        Args:
            bank: a row for every training sample.
            warmup_epochs: epochs of cross entropy; `set_epoch` says which epoch it is.
            warmup_steps: steps of cross entropy; `set_step` says which step it is. Exactly one of
                the two is given; 0 refines from the start.
            momentum: share of the old row in the new one, in [0, 1].
            entropy_weight: weight of the entropy term, which hardens predictions; 0 gives SELC.
            reduction: "mean" over the rows not ignored, "sum" or "none".
            unique_index: promise that no index occurs twice in a batch, which saves a launch.

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
        if not 0 <= entropy_weight < torch.inf:
            raise UserError(
                "must be 0 or more and finite", argument="entropy_weight", value=entropy_weight
            )
        self.entropy_weight = entropy_weight

    def _after_warmup(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, **options: Any
    ) -> Any:
        return self._refine(
            logits,
            index,
            entropy_weight=self.entropy_weight,
            reduction=self.reduction,
            **options,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, entropy_weight={self.entropy_weight}"


class SELCLoss(ALRLoss):
    """Self-ensemble label correction (Lu and He, IJCAI 2022): ALR without the entropy term.

    The public code refines while `epoch > warm-up`, epochs counted from 1: the first refining epoch
    is the one after `warmup_epochs` of cross entropy.
    """

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
            warmup_epochs: epochs of cross entropy; `set_epoch` says which epoch it is.
            warmup_steps: steps of cross entropy; `set_step` says which step it is. Exactly one of
                the two is given; 0 refines from the start.
            momentum: share of the old row in the new one, in [0, 1]; 0.9 is the public code's.
            reduction: "mean" over the rows not ignored, "sum" or "none".
            unique_index: promise that no index occurs twice in a batch, which saves a launch.

        Raises:
            ValueError: not exactly one of the warm-up lengths is given, or a value is out of range.
        """
        super().__init__(
            bank,
            warmup_epochs=warmup_epochs,
            warmup_steps=warmup_steps,
            momentum=momentum,
            entropy_weight=0.0,
            reduction=reduction,
            unique_index=unique_index,
        )
