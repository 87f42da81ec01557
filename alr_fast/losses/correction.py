"""Losses that correct for label noise with a K x K matrix."""

from typing import Any

import torch
from torch import Tensor

from alr_fast.losses.base import Loss, PlainLoss

ROW_SUM_TOLERANCE = 1e-4  # of probabilities that were stored in 16 bits or as decimals


class SmearingLoss(Loss):
    """Cross entropy against the row of a matrix that belongs to the given label.

    `-sum_k M[y, k] log p_k` for any matrix M (Lukasik et al., ICML 2020): the identity gives cross
    entropy, `(1 - r) I + (r / K) J` label smoothing, an inverse transition matrix the backward
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
            ValueError: the matrix is not square, or not finite.
        """
        super().__init__(reduction=reduction)
        self._keep_table("matrix", _square(matrix, "matrix").float())

    def _compute(self, logits: Tensor, labels: Tensor, index: Tensor | None, **options: Any) -> Any:
        return self._soft_cross_entropy(logits, self.matrix, labels, **options)

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
            ValueError: the matrix is not square, its rows are no probabilities, or it has no
                inverse that float32 can hold.
        """
        transition = check_transition(transition)
        # The relative error of the inverse grows with the condition number.
        condition = float(torch.linalg.cond(transition))
        if not condition < 1e6:
            raise ValueError(
                f"the transition matrix has no usable inverse (condition number {condition:.1e}): "
                "classes are given alike; use forward correction, or merge these classes"
            )
        super().__init__(torch.linalg.inv(transition), reduction=reduction)


class ForwardCorrectionLoss(PlainLoss):
    """Forward correction: cross entropy on the given labels of a prediction sent through the noise.

    `-log sum_k p_k T[k, y]` with the transition matrix `T[i, j] = P(given j | true i)` (Patrini et
    al., CVPR 2017). It is no cross entropy against a fixed row: plain PyTorch, in log space.
    """

    log_transition: Tensor  # [K, K], row y holds log T[:, y]
    needs = frozenset({"transition"})

    def __init__(self, transition: Tensor, *, reduction: str = "mean") -> None:
        """Sets up the loss.

        Args:
            transition: [K, K] probabilities of a given label (column) for each true label (row),
                see `alr_fast.noise.transition`.
            reduction: "mean" over the rows not ignored, "sum" or "none".

        Raises:
            ValueError: the matrix is not square, or its rows are no probabilities.
        """
        super().__init__(reduction=reduction)
        self._keep_table("log_transition", check_transition(transition).T.log())

    def rows(self, logits: Tensor, labels: Tensor, index: Tensor | None) -> Tensor:
        # -inf for a class that is never given this label; finite, so that no gradient is NaN.
        log_noise = self.log_transition.to(logits.dtype)[labels]
        log_noise = log_noise.clamp(min=torch.finfo(logits.dtype).min / 4)
        return logits.logsumexp(-1) - (logits + log_noise).logsumexp(-1)

    def extra_repr(self) -> str:
        return f"{len(self.log_transition)} classes, reduction={self.reduction!r}"


def check_transition(transition: Tensor) -> Tensor:
    """The matrix as float64 with rows that sum to one.

    Raises:
        ValueError: it is not square, or a row is no probability distribution.
    """
    transition = _square(transition, "transition")
    sums = transition.sum(-1)
    wrong = ((sums - 1).abs() > ROW_SUM_TOLERANCE) | (transition < 0).any(-1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"transition row {row} is no probability distribution (sum {float(sums[row]):.6g}, "
            f"lowest {float(transition[row].min()):.6g}): row i holds P(given j | true i)"
        )
    return transition / sums[:, None]


def _square(matrix: Tensor, name: str) -> Tensor:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or 0 in matrix.shape:
        raise ValueError(f"{name} must have shape [K, K], got {tuple(matrix.shape)}")
    if not matrix.isfinite().all():
        raise ValueError(f"{name} holds values that are not finite")
    return matrix.detach().double()
