"""Training figures of an epoch: sums that stay on the device, and the means computed from them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EpochResult:
    """Training figures of an epoch, or of its steps so far.

    Attributes:
        loss: Mean loss over the micro-batches with a finite loss; NaN without any.
        accuracy: Share of samples predicted as their given label.
        samples: Number of valid samples.
        clean_correct, mislabelled_correct, mislabelled_memorised: See
            `alr_fast.training.output.records.EpochRecord`.
    """

    loss: float
    accuracy: float
    samples: int
    clean_correct: float | None
    mislabelled_correct: float | None
    mislabelled_memorised: float | None

    @classmethod
    def from_sums(cls, sums: list[float], *, clean_labels: bool) -> "EpochResult":
        """Divides the sums.

        Args:
            sums: `EpochSums.values`, of one process or added up over all of them.
            clean_labels: Whether the clean labels are known.
        """
        loss, loss_samples, correct, samples, clean, *correct_by_label = sums
        mislabelled = samples - clean if clean_labels else 0
        totals = (clean, mislabelled, mislabelled)
        shares = (
            count / total if total else None
            for count, total in zip(correct_by_label, totals, strict=True)
        )
        mean_loss = loss / loss_samples if loss_samples else math.nan
        return cls(mean_loss, correct / max(samples, 1), int(samples), *shares)


class EpochSums:
    """Sums over an epoch in one process; adding to them never waits for the device.

    Attributes:
        values: float64 [8], all sums, as checkpoints store them.
        loss: Sum of the finite losses. Like the attributes below, a view of ``values``.
        loss_samples: Valid samples of the micro-batches with a finite loss.
        correct: Samples predicted as their given label.
        samples: Valid samples.
        by_label: float64 [4], only if the clean labels are known: samples with a correct given
            label, those of them predicted as it, samples with a wrong given label predicted as
            their clean label, and those predicted as the given one.
    """

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(8, dtype=torch.float64, device=device)
        self.loss, self.loss_samples, self.correct, self.samples = self.values[:4].unbind()
        self.by_label = self.values[4:]

    def add(self, loss: Tensor, predicted: Tensor, given: Tensor, clean: Tensor | None) -> None:
        """Adds a micro-batch; its number of samples is added to ``samples`` by the caller.

        Args:
            loss: Sum of its losses. If it is not finite it is left out, or the losses of the whole
                epoch would be lost.
            predicted: int64 [B], predicted labels.
            given: int64 [B], given labels, -1 for an unreadable image.
            clean: int64 [B], clean labels; None if unknown.
        """
        finite, as_given = loss.isfinite(), predicted == given
        self.loss += torch.where(finite, loss, 0)
        self.loss_samples += (given >= 0).sum() * finite
        self.correct += as_given.sum()
        if clean is not None:
            right, wrong = clean == given, (clean != given) & (given >= 0)
            counts = (right, right & as_given, wrong & (predicted == clean), wrong & as_given)
            self.by_label += torch.stack(counts).sum(1)
