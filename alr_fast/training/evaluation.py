"""Tests a model: loss and accuracies over the samples of all processes, each counted once."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from alr_fast.data.loaders.base import Loader
from alr_fast.training.class_counts import ClassCounts

TOP = 5
FEW_CLASSES = 20  # up to this number, the accuracy of the `TOP` classes says little


@dataclass(frozen=True)
class Evaluation:
    """Result of a test; samples with unreadable images do not count.

    Attributes:
        loss: Mean cross entropy.
        accuracy: Share of samples predicted correctly.
        top5_accuracy: Share of samples whose class is among the five most probable ones; None up to
            `FEW_CLASSES` classes.
        classes: Counts of each class.
    """

    loss: float
    accuracy: float
    top5_accuracy: float | None
    classes: ClassCounts

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the accuracies of the classes that occur."""
        return self.classes.balanced_accuracy


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader, autocast: torch.autocast) -> Evaluation:
    """Tests a model, which is left in evaluation mode.

    Args:
        model: On the device of the loader.
        loader: Test samples of this process; all processes call this.
        autocast: Precision of the model.
    """
    num_classes = loader.split.index.num_classes
    sums = _Sums(num_classes).to(loader.device)
    model.eval()
    for batch in loader:
        with autocast:
            logits = model(batch["image"])
        sums.update(logits, batch["label"])
    loss, top, samples, correct = sums.compute()
    count = samples.sum().double()
    return Evaluation(
        loss=(loss / count).item(),
        accuracy=(correct.sum() / count).item(),
        top5_accuracy=(top / count).item() if num_classes > FEW_CLASSES else None,
        classes=ClassCounts(samples.tolist(), correct.tolist()),
    )


class _Sums(Metric):
    """Sums over the samples of all processes, which never wait for the device.

    Not `MulticlassAccuracy` of torchmetrics: it counts pairs of classes, 800 MB a batch with 10,000
    classes.
    """

    full_state_update = False
    loss: Tensor  # float64, sum of the cross entropies
    top: Tensor  # int64, samples whose class is among the five most probable ones
    samples: Tensor  # int64 [K]
    correct: Tensor  # int64 [K]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        per_class = torch.zeros(num_classes, dtype=torch.int64)
        self.add_state("loss", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("top", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("samples", per_class, dist_reduce_fx="sum")
        self.add_state("correct", per_class.clone(), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: logits [B, K], labels int64 [B], -1 for an unreadable image."""
        readable = labels >= 0
        losses = nn.functional.cross_entropy(
            logits.float(), labels, ignore_index=-1, reduction="none"
        )
        self.loss += (losses.double() * readable).sum()
        classes = labels.clamp(min=0)
        right = readable & (logits.argmax(1) == labels)
        self.samples.index_add_(0, classes, readable.long())
        self.correct.index_add_(0, classes, right.long())
        num_classes = logits.shape[1]
        if num_classes > FEW_CLASSES:
            # Unlike topk: equal logits and NaN count against the class.
            below = (logits < logits.gather(1, classes[:, None])).sum(1)
            self.top += (readable & (below >= num_classes - TOP)).sum()

    def compute(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four sums."""
        return self.loss, self.top, self.samples, self.correct
