"""Losses as modules: `loss = criterion(logits, labels, index)`, one call for every method."""

from typing import Any

import torch
from torch import Tensor, nn

from alr_fast._operators import label_loss, table_loss
from alr_fast.bank import LabelBank


class _Loss(nn.Module):
    """What the losses have in common: two ways to call the operation that `_compute` is."""

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """Loss of a batch, for `loss.backward()`; refines the bank's rows where the class does.

        Args:
            logits: [B, K] float32, float16 or bfloat16 (float64 too on the CPU).
            labels: [B] int64 or int32 given labels; below 0: row ignored.
            index: [B] int64 or int32 positions of the samples in the bank; below 0: row ignored.

        Returns:
            The loss: a scalar, or [B] with reduction "none"; float32 (float64 for float64 logits).

        Raises:
            RuntimeError: the phase is not known because `set_epoch` or `set_step` was never called.
            IndexError: a label or an index is out of range (on the CPU; see `LabelBank.check`).
        """
        return self._compute(logits, labels, index)

    def loss_and_grad(
        self, logits: Tensor, labels: Tensor, index: Tensor, *, row_weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss and gradient in one pass, for `logits.backward(grad)`: one launch on a GPU.

        Args:
            logits: see `forward`, as for `labels` and `index`; whether they require a gradient does
                not matter.
            row_weight: [B] factor on the loss of each row, in both results. With float16 logits
                this is the place for a gradient scaler's factor, so that small entries survive.

        Returns:
            The loss, and its gradient [B, K] in the dtype of the logits (of the loss' sum with
            reduction "none").

        Raises:
            RuntimeError, IndexError: see `forward`.
        """
        return self._compute(logits, labels, index, row_weight=row_weight, with_grad=True)

    def _compute(self, logits: Tensor, labels: Tensor, index: Tensor, **options: Any) -> Any:
        raise NotImplementedError


class CrossEntropyLoss(_Loss):
    """Cross entropy on the given labels, with the calls of the other losses of this module."""

    bank = None

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: the loss is the same in every epoch."""

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor | None = None) -> Tensor:
        """Cross entropy of [B, K] logits and [B] labels; a label below 0 ignores its row."""
        return self._compute(logits, labels, index)

    def _compute(self, logits: Tensor, labels: Tensor, index: Tensor | None, **options: Any) -> Any:
        return label_loss(
            logits, labels, smoothing=0.0, entropy_weight=0.0, reduction=self.reduction, **options
        )


class ALRLoss(_Loss):
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

    refining: bool | None

    def __init__(
        self,
        bank: LabelBank,
        *,
        warmup_epochs: int | None = None,
        warmup_steps: int | None = None,
        momentum: float = 0.9,
        entropy_weight: float = 0.1,
        reduction: str = "mean",
        unique_index: bool = False,
    ) -> None:
        """Sets up the loss.

        The defaults of momentum and entropy weight are this project's: the paper's values could not
        be had. 0.9 is what the public code of related methods (SELC, SAT) uses.

        Args:
            bank: a row for every training sample.
            warmup_epochs: epochs of cross entropy; `set_epoch` says which epoch it is.
            warmup_steps: steps of cross entropy; `set_step` says which step it is. Exactly one of
                the two is given; 0 refines from the start.
            momentum: share of the old row in the new one, in [0, 1].
            entropy_weight: weight of the entropy term; 0 gives SELC.
            reduction: "mean" over the rows not ignored, "sum" or "none".
            unique_index: promise that no index occurs twice in a batch, which saves a launch.

        Raises:
            ValueError: not exactly one of the warm-up lengths is given, or a value is out of range.
        """
        super().__init__()
        if (warmup_epochs is None) == (warmup_steps is None):
            raise ValueError("give either warmup_epochs or warmup_steps")
        self._by_epoch = warmup_epochs is not None
        self._warmup = warmup_epochs if warmup_epochs is not None else warmup_steps
        if self._warmup < 0:
            raise ValueError(f"the warm-up must not be negative, got {self._warmup}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
        self.bank = bank
        self.momentum = momentum
        self.entropy_weight = entropy_weight
        self.reduction = reduction
        self.unique_index = unique_index
        self.refining = True if self._warmup == 0 else None

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch begins, counted from 0: refinement starts at epoch `warmup_epochs`."""
        self._set_progress(epoch, by_epoch=True)

    def set_step(self, step: int) -> None:
        """Says which step comes next, counted from 0: refinement starts at step `warmup_steps`."""
        self._set_progress(step, by_epoch=False)

    def _set_progress(self, done: int, *, by_epoch: bool) -> None:
        if by_epoch != self._by_epoch:
            right = "set_epoch" if self._by_epoch else "set_step"
            raise RuntimeError(f"the warm-up of this loss is set by {right}")
        self.refining = done >= self._warmup

    def _compute(self, logits: Tensor, labels: Tensor, index: Tensor, **options: Any) -> Any:
        if self.refining is None:
            name = "set_epoch(epoch)" if self._by_epoch else "set_step(step)"
            raise RuntimeError(f"call criterion.{name} first: it decides between the two phases")
        if not self.refining:
            return label_loss(
                logits,
                labels,
                smoothing=0.0,
                entropy_weight=0.0,
                reduction=self.reduction,
                status=self.bank.status,
                **options,
            )
        return table_loss(
            logits,
            self.bank.rows,
            index,
            momentum=self.momentum,
            entropy_weight=self.entropy_weight,
            reduction=self.reduction,
            update=self.training,
            unique_index=self.unique_index,
            status=self.bank.status,
            rounding_state=self.bank.rounding_state,
            **options,
        )

    def get_extra_state(self) -> dict[str, Any]:
        return self.bank.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.bank.load_state_dict(state)

    def _apply(self, fn, recurse: bool = True) -> "ALRLoss":
        # .to(), .cuda() and .half() come here: the bank follows the device and keeps its dtype.
        # Pinned rows stay on the host, so they do not tell where the bank is used.
        device = fn(torch.empty(0, device=self.bank.device)).device
        self.bank.to(device)
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        unit = "epochs" if self._by_epoch else "steps"
        return (
            f"{self.bank}, warm-up {self._warmup} {unit}, momentum={self.momentum}, "
            f"entropy_weight={self.entropy_weight}, reduction={self.reduction!r}"
        )
