"""Cross entropy against the predictions of another model."""

import torch
from torch import Tensor

from alr_fast._inputs import as_tensor
from alr_fast._operators import LossOptions, LossResult
from alr_fast.errors import UserError
from alr_fast.losses.arguments import check_classes, check_range
from alr_fast.losses.base import Loss
from alr_fast.losses.correction import ROW_SUM_TOLERANCE


class DistillationLoss(Loss):
    """Distillation: cross entropy against the predictions of a teacher (Hinton et al., 2015).

    With temperature c it is `-c^2 sum_k t_k log softmax(z / c)_k`, where t is the teacher's
    distribution at that temperature, `softmax(log(p) / c)`; the factor preserves the size of the
    gradient. The given labels are not used. A teacher that was trained with label smoothing helps
    under label noise (Lukasik et al., ICML 2020).
    """

    needs = frozenset({"teacher"})
    teacher: Tensor  # [N, K]

    def __init__(
        self, teacher: Tensor, *, temperature: float = 1.0, reduction: str = "mean"
    ) -> None:
        """Sets up the loss.

        Args:
            teacher: [N, K] floating-point probabilities for every sample, at temperature 1.
            temperature: c, above 0.
            reduction: "mean" over the rows not ignored, "sum" or "none".

        Raises:
            UserError: A row is not a probability distribution, or the temperature is not above 0.
        """
        super().__init__(reduction=reduction)
        if not 0 < temperature < torch.inf:
            raise UserError("must be above 0 and finite", argument="temperature", value=temperature)
        teacher = as_tensor(teacher, "teacher")
        _check_probabilities(teacher)
        self.temperature = temperature
        if teacher.dtype == torch.float64:
            teacher = teacher.float()
        if temperature != 1:
            teacher = (teacher.float().log() / temperature).softmax(-1).to(teacher.dtype)
        self._keep_table("teacher", teacher)

    def _compute(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, options: LossOptions
    ) -> LossResult:
        index, c = self._required(index), self.temperature
        check_classes(logits, self.teacher.shape[1])
        check_range(labels, logits.shape[1])
        options = options._replace(labels=labels)  # a row with a negative one is ignored
        if c == 1:
            return self._soft_cross_entropy(logits, self.teacher, index, options)
        logits = logits / c  # so that `grad` below is the gradient with respect to z / c
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        weight = logits.new_full((len(logits),), c * c, dtype=dtype)
        if options.row_weight is not None:
            weight = options.row_weight * weight
        if options.adjustment is not None:
            options = options._replace(adjustment=options.adjustment / c)
        options = options._replace(row_weight=weight)
        loss, grad, _ = self._soft_cross_entropy(logits, self.teacher, index, options)
        return LossResult(loss, None if grad is None else grad / c)

    def extra_repr(self) -> str:
        return (
            f"{len(self.teacher)} samples, temperature={self.temperature}, "
            f"reduction={self.reduction!r}"
        )


def _check_probabilities(teacher: Tensor) -> None:
    if teacher.ndim != 2 or 0 in teacher.shape:
        raise UserError(
            "must have shape [N, K]", argument="teacher", value=f"of shape {tuple(teacher.shape)}"
        )
    if not teacher.is_floating_point():
        raise UserError(
            "must be floating-point probabilities",
            argument="teacher",
            value=f"of type {teacher.dtype}",
        )
    sums = teacher.sum(-1, dtype=torch.float32)
    tolerance = max(ROW_SUM_TOLERANCE, 4 * torch.finfo(teacher.dtype).eps)
    wrong = ((sums - 1).abs() <= tolerance).logical_not() | (teacher < 0).any(-1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise UserError(
            f"is not a probability distribution (sum {float(sums[row]):.6g}); pass softmax(logits)",
            argument="teacher",
            value=f"row {row}",
        )
