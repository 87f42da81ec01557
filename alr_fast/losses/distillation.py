"""Cross entropy against the predictions of another model."""

from typing import Any

import torch
from torch import Tensor

from alr_fast.errors import UserError
from alr_fast.losses.base import Loss
from alr_fast.losses.correction import ROW_SUM_TOLERANCE


class DistillationLoss(Loss):
    """Distillation: cross entropy against the predictions of a teacher (Hinton et al., 2015).

    With temperature c it is `-c^2 sum_k t_k log softmax(z / c)_k`, where t is the teacher's
    distribution at that temperature, `softmax(log(p) / c)`: the factor keeps the gradient's size.
    The given labels have no part in it. A teacher that was trained with label smoothing helps under
    label noise (Lukasik et al., ICML 2020).
    """

    teacher: Tensor  # [N, K]
    needs = frozenset({"teacher"})

    def __init__(
        self, teacher: Tensor, *, temperature: float = 1.0, reduction: str = "mean"
    ) -> None:
        """Sets up the loss.

        Args:
            teacher: [N, K] floating-point probabilities for every sample, at
                temperature 1.
            temperature: c, above 0.
            reduction: "mean" over the rows not ignored, "sum" or "none".

        Raises:
            ValueError: the rows are no probabilities, or the temperature is not above 0.
        """
        super().__init__(reduction=reduction)
        if not 0 < temperature < torch.inf:
            raise UserError("must be above 0", argument="temperature", value=temperature)
        if teacher.ndim != 2 or 0 in teacher.shape:
            raise ValueError(f"teacher must have shape [N, K], got {tuple(teacher.shape)}")
        sums = teacher.sum(-1, dtype=torch.float32)
        tolerance = max(ROW_SUM_TOLERANCE, 4 * torch.finfo(teacher.dtype).eps)
        wrong = ((sums - 1).abs() <= tolerance).logical_not() | (teacher < 0).any(-1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"teacher row {row} is no probability distribution (sum {float(sums[row]):.6g}): "
                "pass softmax(logits)"
            )
        self.temperature = temperature
        if teacher.dtype == torch.float64:
            teacher = teacher.float()
        if temperature != 1:
            teacher = (teacher.float().log() / temperature).softmax(-1).to(teacher.dtype)
        self._keep_table("teacher", teacher)

    def _compute(
        self,
        logits: Tensor,
        labels: Tensor,
        index: Tensor | None,
        *,
        row_weight: Tensor | None = None,
        with_grad: bool = False,
    ) -> Any:
        if index is None:
            raise ValueError("distillation looks up its targets by sample: pass index")
        c = self.temperature
        if c != 1:
            # Cross entropy of z / c has a gradient 1 / c times as large: with this weight the
            # gradient of z / c is that of the loss by z times c, and dividing by c undoes it.
            logits = logits / c
            weight = logits.new_full((len(logits),), c * c, dtype=torch.float32)
            row_weight = weight if row_weight is None else row_weight * weight
        result = self._soft_cross_entropy(
            logits, self.teacher, index, row_weight=row_weight, with_grad=with_grad
        )
        if with_grad and c != 1:
            loss, grad = result
            return loss, grad / c
        return result

    def extra_repr(self) -> str:
        return (
            f"{len(self.teacher)} samples, temperature={self.temperature}, "
            f"reduction={self.reduction!r}"
        )
