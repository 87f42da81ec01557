"""Losses that keep a label bank: each sample's target follows the model's predictions."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alr_fast._operators import table_loss
from alr_fast.bank import LabelBank
from alr_fast.losses.base import PlainLoss, WarmUpLoss


class _RefiningLoss(WarmUpLoss):
    """Cross entropy first, then the fused operation on a bank that it updates."""

    bank: LabelBank

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
            raise ValueError(f"entropy_weight must be 0 or more and finite, got {entropy_weight}")
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


class SATLoss(_RefiningLoss):
    """Self-adaptive training (Huang et al., NeurIPS 2020): refined targets, weighted by confidence.

    The bank's row is updated before the loss, `t = momentum * bank[index] + (1 - momentum) * p`,
    and a row weighs `w = max_k t_k`: with "mean" the loss is `sum(w * CE(t, p)) / sum(w)` over the
    batch. The other reductions keep that normalisation, each row multiplied with `B * w / sum(w)`,
    where B counts the rows with a value.

    One fused pass, then its gradient rows are scaled by w. (The sum of w is known only after it.)
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


class ELRLoss(PlainLoss):
    """Early-learning regularisation (Liu et al., NeurIPS 2020).

    `CE(y) + weight * log(1 - <t, q>)` with the clamped prediction `q = clamp(p, 1e-4, 1 - 1e-4)`
    and `t = momentum * bank[index] + (1 - momentum) * q / sum(q)`, q detached in t, which becomes
    the sample's row. The bank starts at zero, so make it with `LabelBank.from_labels(...,
    one_hot=False)`. There is no warm-up: in early epochs t is small.

    The inner product is no cross entropy, so this is plain PyTorch beside the fused operation. Of
    an index that occurs twice in a batch every row reads the old bank row, and the last one that is
    finite is kept, as everywhere.
    """

    bank: LabelBank
    bank_at_zero = True

    def __init__(
        self,
        bank: LabelBank,
        *,
        momentum: float = 0.7,
        weight: float = 3.0,
        reduction: str = "mean",
        unique_index: bool = False,
    ) -> None:
        """Sets up the loss.

        The defaults are those of the public code for CIFAR-10 with symmetric noise (for asymmetric
        noise 0.9 and 1, for CIFAR-100 0.9 and 7).

        Args:
            bank: a row for every training sample, on the device of the logits or in a file.
            momentum: share of the old row in the new one, in [0, 1] (beta in the paper).
            weight: weight of the regularisation term (lambda in the paper).
            reduction: "mean" over the rows not ignored, "sum" or "none".
            unique_index: promise that no index occurs twice in a batch.

        Raises:
            ValueError: the momentum is outside [0, 1], or the bank is in pinned memory or rounds
                stochastically.
        """
        super().__init__(reduction=reduction)
        if bank.placement == "pinned":
            raise ValueError(
                "ELR runs in plain PyTorch, which reads no pinned bank from a GPU: make the bank "
                'with placement="device"'
            )
        if bank.rounding_state is not None:
            raise ValueError("ELR rounds to nearest: make the bank without rounding_seed")
        self.bank = bank
        self.momentum = _checked_momentum(momentum)
        self.weight = weight
        self.unique_index = unique_index

    def rows(self, logits: Tensor, labels: Tensor, index: Tensor | None) -> Tensor:
        if index is None:
            raise ValueError("the label bank is looked up by sample: pass index")
        bank = self.bank.rows
        valid, beyond = index >= 0, index >= len(bank)
        if index.device.type == "cpu" and beyond.any():
            raise IndexError(
                f"index {int(index[beyond][0])} is out of range for a bank of {len(bank)} rows"
            )
        places = torch.where(valid & ~beyond, index, 0)
        # Added to the logits, so that loss and gradient are NaN.
        logits = logits + torch.where(beyond, torch.nan, 0.0)[:, None]
        q = logits.softmax(-1).clamp(1e-4, 1 - 1e-4)
        with torch.no_grad():
            target = q / q.sum(-1, keepdim=True)
            target = self.momentum * bank[places].to(q.dtype) + (1 - self.momentum) * target
            finite = target.isfinite().all(-1)
            self.bank.status[0] += (valid & ~beyond & ~finite).sum()
            self.bank.status[1] += beyond.sum()
            if self.training:
                self._store(places, target, valid & ~beyond & finite)
        loss = F.cross_entropy(logits, labels, reduction="none")
        return loss + self.weight * (1 - (target * q).sum(-1)).log()

    def _store(self, places: Tensor, target: Tensor, keep: Tensor) -> None:
        """Writes the rows to keep, of those with one index the last; waits for no device."""
        bank = self.bank.rows
        if not self.unique_index:
            order = torch.arange(len(places), device=places.device)
            # Compared pairwise: a batch is small beside the bank.
            later = (places[:, None] == places) & (order > order[:, None]) & keep
            keep = keep & ~later.any(1)
        if len(places) == 0:
            return
        # Picking rows out would wait for the device: those not kept repeat the first that is. If
        # there is none, all repeat what the bank holds.
        rows = torch.where(keep[:, None], target.to(bank.dtype), bank[places])
        source = torch.where(keep, torch.arange(len(keep), device=keep.device), keep.int().argmax())
        bank.index_copy_(0, places[source], rows[source])

    def extra_repr(self) -> str:
        return (
            f"{self.bank}, momentum={self.momentum}, weight={self.weight}, "
            f"reduction={self.reduction!r}"
        )


def _checked_momentum(momentum: float) -> float:
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
    return momentum
