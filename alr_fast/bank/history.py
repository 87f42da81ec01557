"""Statistics of each sample over the epochs, for the score of `alr_fast.labels.suspicion`.

They are summed up from the logits of training, without another pass of the model.
"""

import torch
from torch import Tensor

EPOCHS = 63  # recorded in the bits of `SampleHistory.changes`, all but the sign bit
_UNEVEN = 0.01  # share of samples that may have been trained on more or less often
COLUMNS = {"given_loss": torch.float32, "changes": torch.int64}  # of `SampleHistory.means`


class SampleHistory:
    """Running sums over the epochs, one entry for each sample of this process.

    Attributes:
        loss: float32 [n], sum of the cross entropies of the given label over the passes.
        passes: int32 [n], times that the sample was trained on (an epoch that is repeated with
            another number of processes counts twice).
        refined: int32 [n], refined label after the last epoch.
        changes: int64 [n], a bit for each of the last `EPOCHS` epochs, the lowest for the last one:
            whether the refined label changed in that epoch.
    """

    def __init__(self, given_labels: Tensor, device: torch.device) -> None:
        """Starts before the first epoch.

        Args:
            given_labels: int64 [n], in the order of the rows of this process.
            device: Device of the logits.
        """
        n = len(given_labels)
        self.loss = torch.zeros(n, device=device)
        self.passes = torch.zeros(n, dtype=torch.int32, device=device)
        self.refined = given_labels.to(device, torch.int32)
        self.changes = torch.zeros(n, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(
        self, logits: Tensor, labels: Tensor, index: Tensor, given_labels: Tensor | None = None
    ) -> None:
        """Adds a batch; does not synchronise with the device.

        A row without effect on a loss has none here: a label or an index below 0 or out of range,
        another label than the given one, or a loss that is not finite.

        Args:
            logits: [B, K], floating point.
            labels: [B] int64 or int32, given labels.
            index: [B] int64 or int32, index of each sample.
            given_labels: [n] label of each sample, which those of the batch must equal; None not to
                compare.
        """
        # An index out of range would end the process on a GPU.
        kept = index.long().clamp(0, len(self.loss) - 1)
        known = labels.long().clamp(0, logits.shape[1] - 1)
        log_p = logits.float().log_softmax(-1)
        loss = -log_p.gather(1, known[:, None]).squeeze(1)
        counted = (index == kept) & (labels == known) & loss.isfinite()
        if given_labels is not None:
            counted = counted & (given_labels[kept] == labels)
        self.loss.index_add_(0, kept, torch.where(counted, loss, 0))
        self.passes.index_add_(0, kept, counted.int())

    def end_epoch(self, refined: Tensor) -> None:
        """Records which refined labels have changed.

        Args:
            refined: int64 [n], the current refined labels.
        """
        refined = refined.to(self.refined)
        self.changes.bitwise_left_shift_(1).bitwise_or_(refined != self.refined)
        self.changes.bitwise_and_((1 << EPOCHS) - 1)
        self.refined = refined

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, not copied, for checkpoints."""
        return {name: getattr(self, name) for name in ("loss", "passes", "refined", "changes")}

    def means(self, refined: Tensor | None = None) -> dict[str, Tensor]:
        """The `COLUMNS` that the file of a bank stores, on the CPU.

        ``given_loss`` is the mean over the passes, NaN without any.

        Args:
            refined: int64 [n], the current refined labels, if the last epoch was not ended by
                `end_epoch`; None to use the recorded epochs only.
        """
        passes = torch.where(self.passes > 0, self.passes, torch.nan)
        changes = self.changes.cpu()
        if refined is not None:
            changed = refined.cpu() != self.refined.cpu()
            if changed.any():
                changes = ((changes << 1) | changed) & ((1 << EPOCHS) - 1)
        return {"given_loss": (self.loss / passes).cpu(), "changes": changes}

    def is_even(self, passes: int) -> bool:
        """Whether nearly all samples that were trained on were so this number of ``passes``."""
        seen = self.passes[self.passes > 0]
        return bool(((seen != passes).sum() <= _UNEVEN * len(seen)).item())

    def to(self, device: torch.device | str) -> None:
        """Moves the sums to the device of the logits."""
        for name, tensor in self.tensors().items():
            setattr(self, name, tensor.to(device))

    def check(self, tensors: dict[str, Tensor]) -> None:
        """Refuses tensors that `load` could not restore.

        Raises:
            ValueError: A tensor is missing or has another shape or type.
        """
        for name, own in self.tensors().items():
            found = tensors.get(name)
            if found is None or found.shape != own.shape or found.dtype != own.dtype:
                raise ValueError(
                    f"the history in the state is damaged: {name} is not {own.dtype} [{len(own)}]"
                )

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restores sums that `tensors` returned; `check` tells whether they fit."""
        for name, own in self.tensors().items():
            own.copy_(tensors[name])

    def forget(self, changed: Tensor) -> None:
        """Restarts the sums of samples whose given label was changed.

        Args:
            changed: bool [n].
        """
        changed = changed.to(self.loss.device)
        self.loss.masked_fill_(changed, 0)
        self.passes.masked_fill_(changed, 0)

    def restart(self, index: Tensor, labels: Tensor) -> None:
        """Starts some samples again, as before the first epoch.

        Args:
            index: int64 [M], the samples.
            labels: [M], their labels from now on.
        """
        index = index.to(self.loss.device)
        for sums in (self.loss, self.passes, self.changes):
            sums[index] = 0
        self.refined[index] = labels.to(self.refined)
