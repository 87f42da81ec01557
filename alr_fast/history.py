"""What training saw of each sample, beside its row in the label bank: what a score of suspicion is
made from (`alr_fast.suspicion`), at the price of a look at the logits that are there anyway."""

import torch
from torch import Tensor

EPOCHS = 63  # whose changes fit into the bits of `SampleHistory.changes`, the sign left out


class SampleHistory:
    """Running sums over the epochs, one entry for each sample of this process.

    Attributes:
        loss: float32 [n], sum of the cross entropies of the given label over the passes.
        margin: float32 [n], sum of `log p[given] - max log p[other]` over the passes: negative
            where another class was held more probable.
        passes: int32 [n], how often a sample was trained on.
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
        self.margin = torch.zeros(n, device=device)
        self.passes = torch.zeros(n, dtype=torch.int32, device=device)
        self.refined = given_labels.to(device, torch.int32)
        self.changes = torch.zeros(n, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, index: Tensor) -> None:
        """Adds a batch; waits for nothing.

        Args:
            logits: [B, K], floating.
            labels: int64 [B], given labels.
            index: int64 [B], rows of the samples, each at most once; below 0 to ignore.
        """
        rows = index.clamp(min=0)
        given = labels.clamp(min=0)[:, None]
        log_p = logits.float().log_softmax(-1)
        own = log_p.gather(1, given)
        other = log_p.scatter(1, given, -torch.inf).amax(1, keepdim=True)
        # One class alone has no other; a row that is not finite says nothing.
        margin = torch.where(other.isfinite(), own - other, 0)
        counted = ((index >= 0) & own.isfinite().squeeze(1)).float()
        self.loss.index_add_(0, rows, torch.where(counted > 0, -own.squeeze(1), 0))
        self.margin.index_add_(0, rows, torch.where(counted > 0, margin.squeeze(1), 0))
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

        ``given_loss`` and ``given_margin`` are means over the passes, NaN without any.
        """
        passes = torch.where(self.passes > 0, self.passes, torch.nan)
        return {
            "given_loss": (self.loss / passes).cpu(),
            "given_margin": (self.margin / passes).cpu(),
            "changes": self.changes.cpu(),
        }


_NAMES = ("loss", "margin", "passes", "refined", "changes")
COLUMNS = {"given_loss": torch.float32, "given_margin": torch.float32, "changes": torch.int64}
