"""Common base of the losses: the two calls, the warm-up, and losses written in plain PyTorch."""

from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from alr_fast._operators import REDUCTIONS, LossOptions, LossResult, label_loss, table_loss
from alr_fast.bank import LabelBank
from alr_fast.errors import UserError


class Loss(nn.Module):
    """A training loss. A subclass defines it in `_compute`; there are two ways to call it.

    Attributes:
        needs: Constructor arguments that are not options, so that a run has to provide them:
            "bank": a `LabelBank` with a row for every sample;
            "transition": [K, K] probabilities of a given label (column) for each true label (row);
            "teacher": [N, K] probabilities that another model predicts for the samples;
            "all_sum": a function that sums a tensor over all processes, None for one process.
        bank: The `LabelBank` that the loss updates, None if it has none.
        bank_at_zero: Whether its rows start at zero instead of the one-hot given labels.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    bank: LabelBank | None = None
    bank_at_zero: ClassVar[bool] = False
    _tables: tuple[str, ...] = ()

    def __init__(self, *, reduction: str = "mean") -> None:
        """Sets up the loss.

        Args:
            reduction: "mean" over the rows not ignored, "sum" or "none".

        Raises:
            UserError: The reduction is none of these.
        """
        super().__init__()
        if reduction not in REDUCTIONS:
            raise UserError(
                f"must be one of {', '.join(REDUCTIONS)}",
                argument="reduction",
                value=repr(reduction),
            )
        self.reduction = reduction

    def set_epoch(self, epoch: int) -> None:
        """Announces the next epoch, counted from 0; no effect if all epochs are alike."""

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor | None = None) -> Tensor:
        """Loss of a batch, for `loss.backward()`; a loss with a bank updates its rows.

        Args:
            logits: [B, K] float32, float16 or bfloat16 (float64 too on the CPU).
            labels: [B] int64 or int32 given labels.
            index: [B] int64 or int32 index of each sample in the bank or table, unless the loss has
                neither. A row with label and index below 0 is ignored. A loss checks only the one
                by which it looks up its target.

        Returns:
            The loss: a scalar, or [B] with reduction "none"; float32 (float64 for float64 logits).

        Raises:
            RuntimeError: The phase is unknown because `set_epoch` or `set_step` was never called.
            IndexError: A label or an index is out of range (on the CPU; see `LabelBank.check`).
        """
        return self._compute(logits, labels, index, self._options()).loss

    def loss_and_grad(
        self,
        logits: Tensor,
        labels: Tensor,
        index: Tensor | None = None,
        *,
        row_weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss and gradient in one pass, for `logits.backward(grad)`: one launch on a GPU.

        Losses in plain PyTorch use autograd here as well.

        Args:
            logits: See `forward`, as for `labels` and `index`. They need not require a gradient.
            row_weight: [B] factor on the loss of each row, in both results. With float16 logits,
                pass the factor of the gradient scaler here, so that small entries survive.

        Returns:
            The loss, and its gradient [B, K] in the dtype of the logits (that of the summed loss
            with reduction "none").

        Raises:
            RuntimeError, IndexError: See `forward`.
        """
        options = self._options(row_weight, with_grad=True)
        loss, grad, _ = self._compute(logits, labels, index, options)
        assert grad is not None  # with_grad
        return loss, grad

    def _options(self, row_weight: Tensor | None = None, *, with_grad: bool = False) -> LossOptions:
        return LossOptions(
            reduction=self.reduction,
            row_weight=row_weight,
            with_grad=with_grad,
            status=None if self.bank is None else self.bank.status,
        )

    def _compute(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, options: LossOptions
    ) -> LossResult:
        """The loss, and with `options.with_grad` its gradient."""
        raise NotImplementedError

    def _cross_entropy(self, logits: Tensor, labels: Tensor, options: LossOptions) -> LossResult:
        """Cross entropy on the given labels, smoothed by `options.smoothing`."""
        return label_loss(logits, labels, options)

    def _soft_cross_entropy(
        self, logits: Tensor, table: Tensor, index: Tensor, options: LossOptions
    ) -> LossResult:
        """Cross entropy against constant rows of a table, one for each index."""
        return table_loss(logits, table, index, options)

    def _required(self, index: Tensor | None) -> Tensor:
        if index is None:
            name = type(self).__name__
            raise ValueError(f"{name} looks up its targets by sample: pass index")
        return index

    def get_extra_state(self) -> dict[str, Any]:
        return {} if self.bank is None else self.bank.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if self.bank is not None:
            self.bank.load_state_dict(state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Loss":
        # .to(), .cuda() and .half() call this: the bank follows the device and keeps its dtype.
        # Pinned rows stay on the host, so their device is not the bank's.
        if self.bank is not None:
            self.bank.to(fn(torch.empty(0, device=self.bank.device)).device)
        tables = {name: self.get_buffer(name) for name in self._tables}
        cast(Any, super())._apply(fn, recurse)  # torch has no type annotations for it
        for name, table in tables.items():
            # Tables keep their dtype, too: a rounded inverse is not an inverse, and the fused
            # losses do not read float64.
            moved = self.get_buffer(name)
            if moved.dtype != table.dtype:
                self._buffers[name] = table.to(moved.device)
        return self

    def _keep_table(self, name: str, table: Tensor) -> None:
        """Registers a constant table, which moves with the module and keeps its dtype.

        It is not part of the module's state, since an option or a file defines it.
        """
        table = table.detach().clone(memory_format=torch.contiguous_format)
        self.register_buffer(name, table, persistent=False)
        self._tables = (*self._tables, name)


class WarmUpLoss(Loss):
    """A loss that is cross entropy on the given labels for its first epochs or steps.

    A subclass defines the loss after them in `_after_warmup`, with the arguments of `_compute`.

    Attributes:
        warming_up: Whether the next call is cross entropy; None before the first call of
            `set_epoch` or `set_step`.
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
            warmup_epochs: epochs of cross entropy; `set_epoch` sets the current epoch.
            warmup_steps: steps of cross entropy; `set_step` sets the current step. Pass exactly one
                of the two; 0 means no warm-up.
            reduction: "mean" over the rows not ignored, "sum" or "none".

        Raises:
            ValueError: Not exactly one of the warm-up lengths is given.
            UserError: It is negative, or the reduction is unknown.
        """
        super().__init__(reduction=reduction)
        if warmup_epochs is not None and warmup_steps is None:
            self._unit, self._warmup = "epoch", warmup_epochs
        elif warmup_steps is not None and warmup_epochs is None:
            self._unit, self._warmup = "step", warmup_steps
        else:
            raise ValueError("give either warmup_epochs or warmup_steps")
        if self._warmup < 0:
            name = f"warmup_{self._unit}s"
            raise UserError("must be 0 or more", argument=name, value=self._warmup)
        self.warming_up = False if self._warmup == 0 else None

    def set_epoch(self, epoch: int) -> None:
        """Announces the next epoch, counted from 0: the warm-up ends before `warmup_epochs`."""
        self._set_progress("epoch", epoch)

    def set_step(self, step: int) -> None:
        """Announces the next step, counted from 0: the warm-up ends before `warmup_steps`."""
        self._set_progress("step", step)

    def _set_progress(self, unit: str, done: int) -> None:
        if self._warmup == 0:
            return
        if unit != self._unit:
            raise RuntimeError(f"the warm-up of this loss is set by set_{self._unit}")
        self.warming_up = done < self._warmup

    def _compute(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, options: LossOptions
    ) -> LossResult:
        if self.warming_up is None:
            raise RuntimeError(
                f"call criterion.set_{self._unit}({self._unit}) first: it decides between the two "
                "phases"
            )
        if self.warming_up:
            return self._cross_entropy(logits, labels, options)
        return self._after_warmup(logits, labels, index, options)

    def _after_warmup(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, options: LossOptions
    ) -> LossResult:
        raise NotImplementedError

    @property
    def _warmup_text(self) -> str:
        return f"warm-up {self._warmup} {self._unit}s"


class PlainLoss(Loss):
    """A loss written in plain PyTorch: a subclass defines the loss of each row in `rows`.

    Autograd computes the gradient. This class handles reduction, weights, ignored rows and labels
    out of range in the same way as the fused losses.
    """

    def rows(self, logits: Tensor, labels: Tensor, index: Tensor | None) -> Tensor:
        """Loss of each row.

        Args:
            logits: [B, K] float32 (float64 for float64 logits); zeros in ignored rows.
            labels: [B] int64 in [0, K).
            index: [B] int64 index of each sample; below 0 in ignored rows.

        Returns:
            [B], in the dtype of `logits`; values in ignored rows have no effect.
        """
        raise NotImplementedError

    def _compute(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, options: LossOptions
    ) -> LossResult:
        if not options.with_grad:
            return LossResult(self._reduced(logits, labels, index, options.row_weight))
        leaf = logits.detach().requires_grad_()
        with torch.enable_grad():
            loss = self._reduced(leaf, labels, index, options.row_weight)
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
        return LossResult(loss.detach(), grad)

    def _reduced(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, row_weight: Tensor | None
    ) -> Tensor:
        valid = labels >= 0
        if index is not None:
            valid = valid & (index >= 0)
            index = torch.where(valid, index, -1).long()
        classes = logits.shape[1]
        beyond = valid & (labels >= classes)
        # On other devices raising would mean waiting: the row is NaN instead and stores nothing.
        if labels.device.type == "cpu" and beyond.any():
            raise IndexError(
                f"label {int(labels[beyond][0])} is out of range for {classes} classes: labels "
                f"must lie in [0, {classes}), or below 0 to ignore a row"
            )
        z = logits if logits.dtype == torch.float64 else logits.float()
        # NaN is added instead of filled in, so that the gradient is NaN, too.
        z = z.masked_fill(~valid[:, None], 0) + torch.where(beyond, torch.nan, 0.0)[:, None]
        loss = self.rows(z, labels.clamp(0, classes - 1).long(), index)
        if row_weight is not None:
            loss = loss * row_weight.to(loss.dtype)
        loss = torch.where(valid, loss, 0)
        if self.reduction == "none":
            return loss
        total = loss.sum()
        return total / valid.sum().clamp(min=1) if self.reduction == "mean" else total


def check_momentum(momentum: float) -> None:
    """Refuses a momentum outside [0, 1] with a `UserError`."""
    if not 0 <= momentum <= 1:
        raise UserError("must lie in [0, 1]", argument="momentum", value=momentum)
