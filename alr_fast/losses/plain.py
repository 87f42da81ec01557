"""Losses written in plain PyTorch: those that are not a cross entropy against a soft row."""

import torch
from torch import Tensor

from alr_fast._operators import LossOptions, LossResult
from alr_fast.losses.arguments import adjusted, check_range
from alr_fast.losses.base import Loss


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

    def _rows(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, options: LossOptions
    ) -> Tensor:
        """`rows` of adjusted logits; a loss with a bank treats the two kinds of logits apart."""
        return self.rows(adjusted(logits, options), labels, index)

    def _compute(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, options: LossOptions
    ) -> LossResult:
        if not options.with_grad:
            return LossResult(self._reduced(logits, labels, index, options))
        leaf = logits.detach().requires_grad_()
        with torch.enable_grad():
            loss = self._reduced(leaf, labels, index, options)
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
        return LossResult(loss.detach(), grad)

    def _reduced(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, options: LossOptions
    ) -> Tensor:
        valid = labels >= 0
        if index is not None:
            valid = valid & (index >= 0)
            index = torch.where(valid, index, -1).long()
        classes = logits.shape[1]
        beyond = valid & (labels >= classes)
        # On other devices raising would mean waiting, and compiled code cannot: the row is NaN
        # instead and stores nothing.
        check_range(torch.where(valid, labels, -1), classes)
        z = logits if logits.dtype == torch.float64 else logits.float()
        # NaN is added instead of filled in, so that the gradient is NaN, too.
        z = z.masked_fill(~valid[:, None], 0) + torch.where(beyond, torch.nan, 0.0)[:, None]
        loss = self._rows(z, labels.clamp(0, classes - 1).long(), index, options)
        if options.row_weight is not None:
            loss = loss * options.row_weight.to(loss.dtype)
        loss = torch.where(valid, loss, 0)
        if self.reduction == "none":
            return loss
        total = loss.sum()
        return total / valid.sum().clamp(min=1) if self.reduction == "mean" else total
