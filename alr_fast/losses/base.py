"""What the losses have in common: the calls, the warm-up, and losses written in plain PyTorch."""

from typing import Any

import torch
from torch import Tensor, nn

from alr_fast._operators import label_loss, table_loss
from alr_fast.bank import LabelBank
from alr_fast.errors import UserError

REDUCTIONS = ("mean", "sum", "none")


class Loss(nn.Module):
    """A training loss: two ways to call what a subclass computes in `_compute`.

    Attributes:
        bank: The `LabelBank` that the loss updates, None where it keeps none.
        bank_at_zero: Whether its rows start at zero instead of the one-hot given labels.
        needs: Arguments that a training run must provide, of "bank", "transition", "teacher" and
            "all_sum".
    """

    bank: LabelBank | None = None
    bank_at_zero: bool = False
    needs: frozenset[str] = frozenset()
    _tables: tuple[str, ...] = ()

    def __init__(self, *, reduction: str = "mean") -> None:
        """Sets up the loss.

        Args:
            reduction: "mean" over the rows not ignored, "sum" or "none".

        Raises:
            ValueError: the reduction is none of these.
        """
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
        self.reduction = reduction

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch begins, counted from 0; without effect where all epochs are alike."""

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor | None = None) -> Tensor:
        """Loss of a batch, for `loss.backward()`; refines the bank's rows where the class does.

        Args:
            logits: [B, K] float32, float16 or bfloat16 (float64 too on the CPU).
            labels: [B] int64 or int32 given labels.
            index: [B] int64 or int32 positions of the samples in the bank or table. Losses that
                look up nothing by sample do without. A row with both below 0 is ignored: a loss
                looks only at the one that it looks up its target by.

        Returns:
            The loss: a scalar, or [B] with reduction "none"; float32 (float64 for float64 logits).

        Raises:
            RuntimeError: the phase is not known because `set_epoch` or `set_step` was never called.
            IndexError: a label or an index is out of range (on the CPU; see `LabelBank.check`).
        """
        return self._compute(logits, labels, index)

    def loss_and_grad(
        self,
        logits: Tensor,
        labels: Tensor,
        index: Tensor | None = None,
        *,
        row_weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss and gradient in one pass, for `logits.backward(grad)`: one launch on a GPU.

        (Losses in plain PyTorch, which say so, go through autograd here as well.)

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

    def _compute(self, logits: Tensor, labels: Tensor, index: Tensor | None, **options: Any) -> Any:
        """The loss, or (loss, gradient) with the option ``with_grad``; see `loss_and_grad`."""
        raise NotImplementedError

    def _cross_entropy(self, logits: Tensor, labels: Tensor, **options: Any) -> Any:
        """Cross entropy on the given labels; ``smoothing`` smooths them."""
        return label_loss(
            logits,
            labels,
            reduction=self.reduction,
            status=None if self.bank is None else self.bank.status,
            **{"smoothing": 0.0, "entropy_weight": 0.0, **options},
        )

    def _soft_cross_entropy(
        self, logits: Tensor, table: Tensor, index: Tensor, **options: Any
    ) -> Any:
        """Cross entropy against rows of a table that stays as it is, one for each index."""
        return table_loss(
            logits,
            table,
            index,
            momentum=1.0,
            entropy_weight=0.0,
            reduction=self.reduction,
            **options,
        )

    def get_extra_state(self) -> dict[str, Any]:
        return {} if self.bank is None else self.bank.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if self.bank is not None:
            self.bank.load_state_dict(state)

    def _apply(self, fn, recurse: bool = True) -> "Loss":
        # .to(), .cuda() and .half() come here: the bank follows the device and keeps its dtype.
        # Pinned rows stay on the host, so they do not tell where the bank is used.
        if self.bank is not None:
            self.bank.to(fn(torch.empty(0, device=self.bank.device)).device)
        tables = {name: self._buffers[name] for name in self._tables}
        super()._apply(fn, recurse)
        for name, table in tables.items():
            # Nor do tables change their dtype: rounded, an inverse is none, and no fused loss reads
            # float64.
            moved = self._buffers[name]
            self._buffers[name] = moved if moved.dtype == table.dtype else table.to(moved.device)
        return self

    def _keep_table(self, name: str, table: Tensor) -> None:
        """Registers a constant table of target rows: moves with the module and keeps its dtype.

        It is not in the state of the module.
        """
        # What decides about it is an option or a file; a state of the module need not repeat it.
        table = table.detach().clone(memory_format=torch.contiguous_format)
        self.register_buffer(name, table, persistent=False)
        self._tables = (*self._tables, name)


class WarmUpLoss(Loss):
    """A loss that is cross entropy on the given labels for its first epochs or steps.

    A subclass gives what follows as `_after_warmup`, with the arguments of `_compute`.

    Attributes:
        warming_up: whether the next call is cross entropy; None until `set_epoch` or `set_step` was
            called.
    """

    warming_up: bool | None

    def __init__(
        self,
        *,
        warmup_epochs: int | None = None,
        warmup_steps: int | None = None,
        reduction: str = "mean",
    ) -> None:
        """Sets up the phases.

        Args:
            warmup_epochs: epochs of cross entropy; `set_epoch` says which epoch it is.
            warmup_steps: steps of cross entropy; `set_step` says which step it is. Exactly one of
                the two is given; 0 means no warm-up.
            reduction: "mean" over the rows not ignored, "sum" or "none".

        Raises:
            ValueError: not exactly one of the warm-up lengths is given, or it is negative.
        """
        super().__init__(reduction=reduction)
        if (warmup_epochs is None) == (warmup_steps is None):
            raise ValueError("give either warmup_epochs or warmup_steps")
        self._by_epoch = warmup_epochs is not None
        self._warmup: int = warmup_steps if warmup_epochs is None else warmup_epochs
        if self._warmup < 0:
            raise ValueError(f"the warm-up must not be negative, got {self._warmup}")
        self.warming_up = False if self._warmup == 0 else None

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch begins, counted from 0: the warm-up ends before `warmup_epochs`."""
        self._set_progress(epoch, by_epoch=True)

    def set_step(self, step: int) -> None:
        """Says which step comes next, counted from 0: the warm-up ends before `warmup_steps`."""
        self._set_progress(step, by_epoch=False)

    def _set_progress(self, done: int, *, by_epoch: bool) -> None:
        if by_epoch != self._by_epoch:
            if self._warmup == 0:
                return  # nothing depends on it
            right = "set_epoch" if self._by_epoch else "set_step"
            raise RuntimeError(f"the warm-up of this loss is set by {right}")
        self.warming_up = done < self._warmup

    def _compute(self, logits: Tensor, labels: Tensor, index: Tensor | None, **options: Any) -> Any:
        if self.warming_up is None:
            name = "set_epoch(epoch)" if self._by_epoch else "set_step(step)"
            raise RuntimeError(f"call criterion.{name} first: it decides between the two phases")
        if self.warming_up:
            return self._cross_entropy(logits, labels, **options)
        return self._after_warmup(logits, labels, index, **options)

    def _after_warmup(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, **options: Any
    ) -> Any:
        raise NotImplementedError

    @property
    def _warmup_text(self) -> str:
        return f"warm-up {self._warmup} {'epochs' if self._by_epoch else 'steps'}"


class PlainLoss(Loss):
    """A loss written in plain PyTorch: a subclass gives the loss of each row as `rows`.

    Autograd makes the gradient; reduction, weights, ignored rows and labels out of range are dealt
    with here, as the fused losses do it.
    """

    def rows(self, logits: Tensor, labels: Tensor, index: Tensor | None) -> Tensor:
        """Loss of each row.

        Args:
            logits: [B, K] float32 (float64 for float64 logits); zeros in ignored rows.
            labels: [B] int64 in [0, K).
            index: [B] int64 positions of the samples; below 0 in ignored rows.

        Returns:
            [B], in the dtype of `logits`; what it holds in ignored rows has no effect.
        """
        raise NotImplementedError

    def _compute(
        self,
        logits: Tensor,
        labels: Tensor,
        index: Tensor | None,
        *,
        row_weight: Tensor | None = None,
        with_grad: bool = False,
    ) -> Any:
        if not with_grad:
            return self._reduced(logits, labels, index, row_weight)
        leaf = logits.detach().requires_grad_()
        with torch.enable_grad():
            loss = self._reduced(leaf, labels, index, row_weight)
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), grad

    def _reduced(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, row_weight: Tensor | None
    ) -> Tensor:
        valid = labels >= 0
        if index is not None:
            valid = valid & (index >= 0)
            # Where raising would mean waiting for the device, the row is NaN and stores nothing.
            index = torch.where(valid, index, -1).long()
        classes = logits.shape[1]
        beyond = valid & (labels >= classes)
        if labels.device.type == "cpu" and beyond.any():
            raise IndexError(
                f"label {int(labels[beyond][0])} is out of range for {classes} classes: labels "
                f"must lie in [0, {classes}), or below 0 to ignore a row"
            )
        z = logits if logits.dtype == torch.float64 else logits.float()
        # Added, not filled in: so the gradient is NaN, too.
        z = z.masked_fill(~valid[:, None], 0) + torch.where(beyond, torch.nan, 0.0)[:, None]
        loss = self.rows(z, labels.clamp(0, classes - 1).long(), index)
        if row_weight is not None:
            loss = loss * row_weight.to(loss.dtype)
        loss = torch.where(valid, loss, 0)
        if self.reduction == "none":
            return loss
        total = loss.sum()
        return total / valid.sum().clamp(min=1) if self.reduction == "mean" else total


def _checked_momentum(momentum: float) -> float:
    if not 0 <= momentum <= 1:
        raise UserError("must lie in [0, 1]", argument="momentum", value=momentum)
    return momentum
