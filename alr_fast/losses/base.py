"""Common base of the losses: the two calls, their state, and the warm-up."""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from alr_fast._inputs import as_weights, check_logits
from alr_fast._operators import (
    REDUCTIONS,
    LossOptions,
    LossResult,
    check_not_in_backward,
    label_loss,
    table_loss,
)
from alr_fast.bank import LabelBank
from alr_fast.bank.history import SampleHistory
from alr_fast.bank.state import HISTORY
from alr_fast.errors import UserError
from alr_fast.losses.arguments import (
    adjusted,
    check_classes,
    check_range,
    log_prior,
    targets_of_batch,
)

_BANK = "bank."  # begin of the names of a bank's tensors in the state of a loss
_EPOCH = "epoch"  # name of the announced epoch in the state of a loss that keeps a history


class Loss(nn.Module):
    """A training loss. A subclass defines it in `_compute`; there are two ways to call it.

    In eval mode every loss is plain cross entropy on the labels of the call: validation needs no
    bank, no index and no phase, and changes nothing.

    Attributes:
        needs: Constructor arguments that are not options, so that a run has to provide them:
            "bank": a `LabelBank` with a row for every sample;
            "transition": [K, K] probabilities of a given label (column) for each true label (row);
            "teacher": [N, K] probabilities that another model predicts for the samples;
            "all_sum": a function that sums a tensor over all processes, None for one process.
        own_loop_only: Constructor arguments for loops of your own, which the trainer does not
            offer as options.
        bank: The `LabelBank` that the loss updates, None if it has none.
        bank_at_zero: Whether its rows start at zero instead of the one-hot given labels.
        check_labels: Whether the labels of a batch must be the given labels of the bank.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    own_loop_only: ClassVar[frozenset[str]] = frozenset({"history", "check_labels"})
    bank: LabelBank | None = None
    bank_at_zero: ClassVar[bool] = False
    check_labels: bool = True
    _tables: tuple[str, ...] = ()
    _epoch: int | None = None  # of the last call of set_epoch

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
        """Announces the next epoch, counted from 0; ends an epoch of the bank's history."""
        bank = self.bank
        if bank is not None and bank.history is not None and self._epoch not in (None, epoch):
            bank.history.end_epoch(bank.refined_labels())
        if bank is not None:
            bank.announce(int(epoch) + 1, self.given_share(int(epoch) + 1))
        self._epoch = epoch

    def given_share(self, epochs: int) -> float | None:
        """How much of a row of the bank is still its given label after the first epochs.

        From 1/2 on, no prediction can have changed the most probable class of the row. A loss with
        a bank that defines it gets a warning before a training that is too short, and an estimate
        of the noise after a short one (`alr_fast.labels.suspicion.predictions`).

        Args:
            epochs: Number of epochs in which each sample is seen once.

        Returns:
            The share, 1 down to 0; None if it is unknown, as here.
        """
        return None

    def forward(
        self,
        logits: Tensor,
        labels: Any,
        index: Any = None,
        *,
        row_weight: Any = None,
        class_weight: Any = None,
        class_prior: Any = None,
        update: bool | None = None,
    ) -> Tensor:
        """Loss of a batch, for `loss.backward()`; a loss with a bank updates its rows.

        A row is ignored if its label is below 0 or, in training mode, its index.

        Args:
            logits: [B, K] float32, float16 or bfloat16 (float64 too on the CPU).
            labels: [B] given labels, integers of any type; or [B, 2] of label and index, from
                `alr_fast.integrations.IndexedDataset`. Labels of a loss with a bank must be the
                given labels of the samples, see `LabelBank.correct_labels`.
            index: [B] index of each sample in the bank or table, integers of any type; not needed
                by a loss that has neither, and in eval mode.
            row_weight: [B] constant factor on the loss of each row. "mean" still divides by the
                number of rows that are not ignored.
            class_weight: [K] constant factor on the loss of the rows with each given label. "mean"
                divides by the sum of these factors, as in `torch.nn.functional.cross_entropy`.
            class_prior: [K] frequency of each class (counts or shares, above 0) for logit
                adjustment (Menon et al., ICLR 2021): the loss is that of `logits +
                log(class_prior)`, while the bank is updated with the prediction `softmax(logits)`.
                To evaluate on balanced classes, use the logits as they are.
            update: Whether the bank is written. By default it is in training mode, unless gradients
                are disabled (`torch.no_grad`).

        Returns:
            The loss: a scalar, or [B] with reduction "none"; float32 (float64 for float64 logits).

        Raises:
            RuntimeError: The phase is unknown because `set_epoch` or `set_step` was never called;
                or the logits are of a type that the operation does not support.
            ValueError: An argument has the wrong type, shape or value, or is missing; or a label is
                not the given label of its sample (on the CPU; see `LabelBank.check`).
            IndexError: A label or an index is out of range (on the CPU; see `LabelBank.check`).
                In all cases nothing was written.
        """
        given = (row_weight, class_weight, class_prior, update)
        return self._call(logits, labels, index, given, with_grad=False).loss

    def loss_and_grad(
        self,
        logits: Tensor,
        labels: Any,
        index: Any = None,
        *,
        row_weight: Any = None,
        class_weight: Any = None,
        class_prior: Any = None,
        update: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss and gradient in one pass, for `logits.backward(grad)`: one launch on a GPU.

        Losses in plain PyTorch use autograd here as well.

        Args:
            logits: See `forward`, as for all other arguments. They need not require a gradient.
            row_weight: [B] factor on the loss of each row, in both results. With float16 logits,
                pass the factor of the gradient scaler here, so that small entries survive.
            update: By default the bank is written in training mode.

        Returns:
            The loss, and its gradient [B, K] in the dtype of the logits (that of the summed loss
            with reduction "none").

        Raises:
            RuntimeError, ValueError, IndexError: See `forward`.
        """
        given = (row_weight, class_weight, class_prior, update)
        loss, grad, _ = self._call(logits, labels, index, given, with_grad=True)
        assert grad is not None  # with_grad
        return loss, grad

    def _call(
        self,
        logits: Tensor,
        labels: Any,
        index: Any,
        given: tuple[Any, Any, Any, bool | None],
        *,
        with_grad: bool,
    ) -> LossResult:
        """Checks and converts the arguments, computes the loss, and records the history."""
        row_weight, class_weight, class_prior, update = given
        check_logits(logits)
        labels, index = targets_of_batch(logits, labels, index)
        if update is not None and not isinstance(update, bool):
            raise UserError("must be True, False or None", argument="update", value=f"{update!r}")
        if update and not self.training:
            raise UserError(
                "the bank is not written in eval mode; call train() first, or leave it out",
                argument="update",
                value=update,
            )
        bank = self.bank if self.training else None
        if bank is not None:
            check_classes(logits, bank.num_classes)
            index = bank.to_local(self._required(index))
            if not self.check_labels:
                check_range(labels, logits.shape[1])
            if update is None:
                update = with_grad or torch.is_grad_enabled()
        if row_weight is not None:
            row_weight = as_weights(row_weight, "row_weight", len(logits), like=logits)
        if class_weight is not None:
            places = index if self.training else None
            row_weight = self._weighted(logits, labels, places, row_weight, class_weight)
        options = LossOptions(
            reduction=self.reduction,
            row_weight=row_weight,
            with_grad=with_grad,
            status=None if bank is None else bank.status,
            update=bool(update),
            given_labels=bank.labels_on_device if bank is not None and self.check_labels else None,
            adjustment=None if class_prior is None else log_prior(class_prior, logits),
        )
        if not self.training:
            return self._cross_entropy(logits, labels, options)
        if bank is not None and update and not torch.compiler.is_compiling():
            check_not_in_backward()
        result = self._compute(logits, labels, index, options)
        if bank is not None and update:
            bank.note_use(index)
            if bank.history is not None:
                bank.history.add(logits.detach(), labels, index, options.given_labels)
        return result

    def _compute(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, options: LossOptions
    ) -> LossResult:
        """The loss in training mode, and with `options.with_grad` its gradient."""
        raise NotImplementedError

    def _cross_entropy(
        self,
        logits: Tensor,
        labels: Tensor,
        options: LossOptions,
        index: Tensor | None = None,
    ) -> LossResult:
        """Cross entropy on the given labels, smoothed by `options.smoothing`.

        Rows whose index is below 0 are ignored. With the index of a loss that has a bank, the
        labels are compared with the given ones.
        """
        if index is not None:
            options = options._replace(sample_index=index)
        return label_loss(adjusted(logits, options), labels, options)

    def _soft_cross_entropy(
        self, logits: Tensor, table: Tensor, index: Tensor | None, options: LossOptions
    ) -> LossResult:
        """Cross entropy against constant rows of a table, one for each index."""
        return table_loss(adjusted(logits, options), table, index, options._replace(update=False))

    def _required(self, index: Tensor | None) -> Tensor:
        if index is None:
            raise UserError(
                f"missing; {type(self).__name__} looks up its targets by sample: pass index, the "
                "position of each sample in the training set; for validation call criterion.eval() "
                "first, which needs none",
                argument="index",
            )
        return index

    def _weighted(
        self,
        logits: Tensor,
        labels: Tensor,
        index: Tensor | None,
        row_weight: Tensor | None,
        class_weight: Any,
    ) -> Tensor:
        """The factor of each row [B], class weights included."""
        classes = logits.shape[1]
        weights = as_weights(class_weight, "class_weight", classes, like=logits)
        factor = weights[labels.clamp(0, classes - 1)]  # a label beyond is refused later
        if self.reduction == "mean":
            counted = labels >= 0 if index is None else (labels >= 0) & (index >= 0)
            total = torch.where(counted, factor, 0).sum()
            # The operation divides by the number of rows. With a sum of 0 every factor is 0.
            factor = factor * (counted.sum() / torch.where(total == 0, 1, total))
        return factor if row_weight is None else factor * row_weight

    def _use_bank(self, bank: LabelBank, *, history: bool, check_labels: bool) -> None:
        """Takes a bank, and starts its history if there is none."""
        self.bank = bank
        self.check_labels = check_labels
        if history and bank.history is None:
            bank.history = SampleHistory(bank.given_labels, bank.device)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        cast(Any, super())._save_to_state_dict(destination, prefix, keep_vars)
        if self.bank is not None:
            for name, tensor in self.bank.state_dict().items():
                destination[f"{prefix}{_BANK}{name}"] = tensor
            if self.bank.history is not None:
                # So that a run that is resumed records the end of that epoch once.
                destination[prefix + _EPOCH] = torch.tensor(
                    -1 if self._epoch is None else self._epoch
                )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        start, rest = prefix + _BANK, state_dict
        if self.bank is not None:
            state = {k.removeprefix(start): v for k, v in state_dict.items() if k.startswith(start)}
            rest = {key: v for key, v in state_dict.items() if not key.startswith(start)}
            epoch = rest.pop(prefix + _EPOCH, None)
            absent = self.bank.state_dict().keys() - state.keys()
            if not state:
                missing_keys += [start + name for name in sorted(absent)]
            else:
                try:
                    self.bank.load_state_dict(state)
                    # Without them the bank is whole; all else has to be there.
                    missing_keys += [start + k for k in sorted(absent) if k.startswith(HISTORY)]
                    unknown = state.keys() - self.bank.state_dict().keys()
                    if strict:
                        unexpected_keys += [start + name for name in sorted(unknown)]
                    if epoch is not None:
                        self._epoch = int(epoch) if epoch >= 0 else None
                except (KeyError, TypeError, ValueError) as error:
                    problem = error.args[0] if isinstance(error, KeyError) else error
                    error_msgs.append(
                        f"{problem}. To load everything but the bank, drop the keys that begin "
                        f'with "{start}" from the state and pass strict=False'
                    )
        cast(Any, super())._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _replicate_for_data_parallel(self) -> Any:
        if self.bank is not None:
            raise RuntimeError(
                "torch.nn.DataParallel copies a loss to every GPU at each step, and updates of the "
                "label bank would be lost: keep the loss outside of it, or use "
                "torch.nn.parallel.DistributedDataParallel"
            )
        return cast(Any, super())._replicate_for_data_parallel()

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
        name = f"warmup_{self._unit}s"
        if not isinstance(self._warmup, Real):
            raise UserError("must be a number", argument=name, value=repr(self._warmup))
        if self._warmup < 0:
            raise UserError("must be 0 or more", argument=name, value=self._warmup)
        self.warming_up = False if self._warmup == 0 else None

    def set_epoch(self, epoch: int) -> None:
        """Announces the next epoch, counted from 0: the warm-up ends before `warmup_epochs`.

        With a warm-up of steps it only ends an epoch of the bank's history.

        Raises:
            UserError: The epoch is not a number.
        """
        if not isinstance(epoch, Real | Tensor):
            raise UserError("must be a number", argument="epoch", value=repr(epoch))
        if self._unit == "epoch":
            self.warming_up = epoch < self._warmup
        super().set_epoch(epoch)

    def set_step(self, step: int) -> None:
        """Announces the next step, counted from 0: the warm-up ends before `warmup_steps`.

        Raises:
            RuntimeError: The warm-up is counted in epochs.
        """
        if self._unit == "step":
            self.warming_up = step < self._warmup
        elif self._warmup > 0:
            raise RuntimeError("the warm-up of this loss is set by set_epoch")

    def _compute(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, options: LossOptions
    ) -> LossResult:
        if self.warming_up is None:
            raise RuntimeError(
                f"call criterion.set_{self._unit}({self._unit}) first: it decides between the two "
                "phases"
            )
        if self.warming_up:
            return self._cross_entropy(logits, labels, options, index)
        return self._after_warmup(logits, labels, index, options)

    def _after_warmup(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, options: LossOptions
    ) -> LossResult:
        raise NotImplementedError

    def updates(self, epochs: int) -> int | None:
        """Number of the first epochs that follow the warm-up; None if that counts steps."""
        if self._unit == "step" and self._warmup > 0:
            return None
        return epochs - math.ceil(self._warmup) if self._warmup < epochs else 0

    @property
    def warmup_unit(self) -> str:
        """What the warm-up counts: "epoch" or "step"."""
        return self._unit

    @property
    def _warmup_text(self) -> str:
        return f"warm-up {self._warmup} {self._unit}s"
