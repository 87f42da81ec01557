"""What training saw of each sample, beside its row in the label bank: what a score of suspicion is
made from (`alr_fast.labels.suspicion`), at the price of a look at the logits that are there anyway."""

import torch
from torch import Tensor

EPOCHS = 63  # whose changes fit into the bits of `SampleHistory.changes`, the sign left out


class SampleHistory:
    """Running sums over the epochs, one entry for each sample of this process.

    Attributes:
        loss: float32 [n], sum of the cross entropies of the given label over the passes.
        passes: int32 [n], how often a sample was trained on (an epoch that another number of
            processes begins anew counts twice).
        refined: int32 [n], its refined label after the last epoch.
        changes: int64 [n], a bit for each of the last `EPOCHS` epochs, the lowest one for the last:
            whether the refined label changed in it.
    """

    def __init__(self, given_labels: Tensor, device: torch.device) -> None:
        """Starts before the first epoch.

        Args:
            given_labels: int64 [n], in the order of the rows of this process.
            device: Where the logits are.
        """
        n = len(given_labels)
        self.loss = torch.zeros(n, device=device)
        self.passes = torch.zeros(n, dtype=torch.int32, device=device)
        self.refined = given_labels.to(device, torch.int32)
        self.changes = torch.zeros(n, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, index: Tensor) -> None:
        """Adds a batch; waits for nothing.

        Args:
            logits: [B, K], floating.
            labels: int64 [B], given labels.
            index: int64 [B], rows of the samples; below 0 to ignore.
        """
        rows = index.clamp(min=0)
        log_p = logits.float().log_softmax(-1)
        loss = -log_p.gather(1, labels.clamp(min=0)[:, None]).squeeze(1)
        counted = (index >= 0) & loss.isfinite()
        self.loss.index_add_(0, rows, torch.where(counted, loss, 0))
        self.passes.index_add_(0, rows, counted.int())

    def end_epoch(self, refined: Tensor) -> None:
        """Notes which refined labels have changed.

        Args:
            refined: int64 [n], the refined labels now.
        """
        refined = refined.to(self.refined)
        self.changes.bitwise_left_shift_(1).bitwise_or_(refined != self.refined)
        self.changes.bitwise_and_((1 << EPOCHS) - 1)
        self.refined = refined

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, in place, for checkpoints."""
        return {name: getattr(self, name) for name in _NAMES}

    def means(self) -> dict[str, Tensor]:
        """What the file of a bank keeps, on the CPU: `COLUMNS`.

        ``given_loss`` is the mean over the passes, NaN without any.
        """
        passes = torch.where(self.passes > 0, self.passes, torch.nan)
        return {"given_loss": (self.loss / passes).cpu(), "changes": self.changes.cpu()}

    def forget(self, changed: Tensor) -> None:
        """Starts the sums anew where the given label is another one now.

        Args:
            changed: bool [n].
        """
        changed = changed.to(self.loss.device)
        self.loss.masked_fill_(changed, 0)
        self.passes.masked_fill_(changed, 0)


_NAMES = ("loss", "passes", "refined", "changes")
COLUMNS = {"given_loss": torch.float32, "changes": torch.int64}
