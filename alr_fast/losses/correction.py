"""Losses that correct for label noise with a K x K matrix."""

from typing import Any

import torch
from torch import Tensor

from alr_fast._inputs import as_tensor
from alr_fast._operators import LossOptions, LossResult
from alr_fast.errors import UserError
from alr_fast.losses.arguments import check_classes, check_range
from alr_fast.losses.base import Loss
from alr_fast.losses.plain import PlainLoss

ROW_SUM_TOLERANCE = 1e-4  # of probabilities that were stored in 16 bits or as decimals
_MAX_CONDITION = 1e6  # the relative error of an inverse grows with the condition number


class SmearingLoss(Loss):
    """Cross entropy against the row of a matrix that belongs to the given label.

    `-sum_k M[y, k] log p_k` for any matrix M (Lukasik et al., ICML 2020). The identity is cross
    entropy, `(1 - r) I + (r / K) J` label smoothing, an inverse transition matrix backward
    correction.
    """

    matrix: Tensor  # [K, K]

    def __init__(self, matrix: Tensor, *, reduction: str = "mean") -> None:
        """Sets up the loss.

        Args:
            matrix: [K, K] targets, row y for the given label y; any finite numbers. With float16
                logits the magnitudes of a row should sum to at most 16.
            reduction: "mean" over the rows not ignored, "sum" or "none".

        Raises:
            UserError: The matrix is not square, or not finite.
        """
        super().__init__(reduction=reduction)
        self._keep_table("matrix", _square(matrix, "matrix").float())

    def _compute(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, options: LossOptions
    ) -> LossResult:
        check_classes(logits, len(self.matrix))
        check_range(labels, logits.shape[1])  # the operation would speak of an index
        # A row with a negative index is ignored, as one with a negative label.
        options = options._replace(labels=index)
        return self._soft_cross_entropy(logits, self.matrix, labels, options)

    def extra_repr(self) -> str:
        return f"{len(self.matrix)} classes, reduction={self.reduction!r}"


class BackwardCorrectionLoss(SmearingLoss):
    """Backward correction: the loss whose expectation under the noise is that of clean labels.

    `sum_k T^-1[y, k] * (-log p_k)` with the transition matrix `T[i, j] = P(given j | true i)`
    (Patrini et al., CVPR 2017). The rows of the inverse sum to one, but have negative entries, so
    that the loss has no lower bound.
    """

    needs = frozenset({"transition"})

    def __init__(self, transition: Tensor, *, reduction: str = "mean") -> None:
        """Sets up the loss.

        Args:
            transition: [K, K] probabilities of a given label (column) for each true label (row),
                see `alr_fast.noise.transition`.
            reduction: "mean" over the rows not ignored, "sum" or "none".

        Raises:
            UserError: The matrix is not square, a row is not a probability distribution, or it has
                no inverse that float32 can represent.
        """
        transition = check_transition(transition)
        condition = float(torch.linalg.cond(transition))
        if not condition < _MAX_CONDITION:
            raise UserError(
                f"the transition matrix has no usable inverse (condition number {condition:.1e}): "
                "some classes have nearly the same given labels; use forward correction, or merge "
                "these classes"
            )
        super().__init__(torch.linalg.inv(transition), reduction=reduction)


class ForwardCorrectionLoss(PlainLoss):
    """Forward correction: cross entropy of the noise-adapted prediction on the given labels.

    `-log sum_k p_k T[k, y]` with the transition matrix `T[i, j] = P(given j | true i)` (Patrini et
    al., CVPR 2017). This is not cross entropy against a fixed row: plain PyTorch, in log space.
    """

    needs = frozenset({"transition"})
    log_transition: Tensor  # [K, K], row y is log T[:, y]

    def __init__(self, transition: Tensor, *, reduction: str = "mean") -> None:
        """Sets up the loss.

        Args:
            transition: [K, K] probabilities of a given label (column) for each true label (row),
                see `alr_fast.noise.transition`.
            reduction: "mean" over the rows not ignored, "sum" or "none".

        Raises:
            UserError: The matrix is not square, or a row is not a probability distribution.
        """
        super().__init__(reduction=reduction)
        self._keep_table("log_transition", check_transition(transition).T.log())

    def rows(self, logits: Tensor, labels: Tensor, index: Tensor | None) -> Tensor:
        check_classes(logits, len(self.log_transition))
        # -inf for a class that never gets this label; clamped so that no gradient is NaN.
        log_noise = self.log_transition.to(logits.dtype)[labels]
        log_noise = log_noise.clamp(min=torch.finfo(logits.dtype).min / 4)
        return logits.logsumexp(-1) - (logits + log_noise).logsumexp(-1)

    def extra_repr(self) -> str:
        return f"{len(self.log_transition)} classes, reduction={self.reduction!r}"


def check_transition(transition: Any) -> Tensor:
    """The matrix as float64 with rows that sum to one.

    Raises:
        UserError: It is not square, or a row is not a probability distribution.
    """
    matrix = _square(transition, "transition")
    sums = matrix.sum(-1)
    wrong = ((sums - 1).abs() > ROW_SUM_TOLERANCE) | (matrix < 0).any(-1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise UserError(
            f"is not a probability distribution (sum {float(sums[row]):.6g}, lowest "
            f"{float(matrix[row].min()):.6g}); row i must be P(given j | true i)",
            argument="transition",
            value=f"row {row}",
        )
    return matrix / sums[:, None]


def _square(matrix: Any, name: str) -> Tensor:
    matrix = as_tensor(matrix, name)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or 0 in matrix.shape:
        raise UserError(
            "must have shape [K, K]", argument=name, value=f"of shape {tuple(matrix.shape)}"
        )
    if not matrix.isfinite().all():
        raise UserError("must be finite", argument=name, value="with NaN or infinite entries")
    square: Tensor = matrix.detach().double()
    return square
