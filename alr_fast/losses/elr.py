"""Early-learning regularisation (Liu et al., NeurIPS 2020)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from alr_fast._operators import LossOptions
from alr_fast.bank import LabelBank
from alr_fast.errors import UserError
from alr_fast.losses.arguments import can_raise, check_bank, check_momentum
from alr_fast.losses.plain import PlainLoss


class ELRLoss(PlainLoss):
    """Early-learning regularisation (Liu et al., NeurIPS 2020).

    `CE(y) + weight * log(1 - <t, q>)` with the clamped prediction `q = clamp(p, 1e-4, 1 - 1e-4)`
    and `t = momentum * bank[index] + (1 - momentum) * q / sum(q)`, q detached in t, which becomes
    the sample's row. The bank starts at zero, so create it with `LabelBank.from_labels(...,
    one_hot=False)`. A warm-up is not needed: t is small in early epochs.

    The inner product is not a cross entropy, so this is plain PyTorch. If an index occurs twice in
    a batch, every row reads the old bank row, and the last finite row is stored.
    """

    needs = frozenset({"bank"})
    bank: LabelBank
    bank_at_zero = True

    def __init__(
        self,
        bank: LabelBank,
        *,
        momentum: float = 0.7,
        weight: float = 3.0,
        reduction: str = "mean",
        unique_index: bool = False,
        history: bool = False,
        check_labels: bool = True,
    ) -> None:
        """Sets up the loss.

        The defaults are those of the public code for CIFAR-10 with symmetric noise (for asymmetric
        noise 0.9 and 1, for CIFAR-100 0.9 and 7).

        Args:
            bank: a row for every training sample, on the device of the logits or in a file.
            momentum: share of the old row in the new one, in [0, 1] (beta in the paper).
            weight: weight of the regularisation term (lambda in the paper).
            reduction: "mean" over the rows not ignored, "sum" or "none".
            unique_index: promise that no index occurs twice in a batch.
            history: see `SELCLoss`.
            check_labels: see `SELCLoss`.

        Raises:
            UserError: The momentum is outside [0, 1], or the bank is no `LabelBank`, is in pinned
                memory, or rounds stochastically.
        """
        super().__init__(reduction=reduction)
        check_bank(bank)
        if bank.placement == "pinned":
            raise UserError(
                "ELR runs in plain PyTorch, which reads no pinned bank from a GPU: make the bank "
                'with placement="device"'
            )
        if bank.rounding_state is not None:
            raise UserError("ELR rounds to nearest: make the bank without rounding_seed")
        check_momentum(momentum)
        self._use_bank(bank, history=history, check_labels=check_labels)
        self.momentum = momentum
        self.weight = weight
        self.unique_index = unique_index

    def given_share(self, epochs: int) -> float | None:
        """See `Loss.given_share`: rows start at zero, and have predictions alone after an epoch."""
        return 0.0 if epochs > 0 and self.momentum < 1 else 1.0

    def _rows(
        self, logits: Tensor, labels: Tensor, index: Tensor | None, options: LossOptions
    ) -> Tensor:
        index, bank = self._required(index), self.bank.rows
        if any(_is_batched(t) for t in (logits, labels, index)):
            raise RuntimeError(
                "ELRLoss stores one row for each sample, which torch.func.vmap cannot do: pass the "
                "batches one by one, or as one batch [B, K]"
            )
        beyond = index >= len(bank)
        if can_raise(index) and beyond.any():
            raise IndexError(
                f"index {int(index[beyond][0])} is out of range for a bank of {len(bank)} rows"
            )
        in_range = (index >= 0) & ~beyond
        index = torch.where(in_range, index, 0)
        wrong = self._wrong_labels(labels, index, in_range, options)
        # NaN is added to the logits, so that loss and gradient are NaN.
        logits = logits + torch.where(beyond | wrong, torch.nan, 0.0)[:, None]
        q = logits.softmax(-1).clamp(1e-4, 1 - 1e-4)
        with torch.no_grad():
            # Detached, too, because forward-mode differentiation ignores no_grad.
            target = q.detach() / q.detach().sum(-1, keepdim=True)
            target = self.momentum * bank[index].to(q.dtype) + (1 - self.momentum) * target
            finite = target.isfinite().all(-1)
            counts = (in_range & ~finite & ~wrong).sum(), beyond.sum(), wrong.sum()
            self.bank.status[: len(counts)] += torch.stack(counts)
            if options.update:
                self._store(index, target, in_range & finite)
        if options.adjustment is not None:
            logits = logits + options.adjustment
        loss = F.cross_entropy(logits, labels, reduction="none")
        return loss + self.weight * (1 - (target * q).sum(-1)).log()

    @staticmethod
    def _wrong_labels(
        labels: Tensor, index: Tensor, in_range: Tensor, options: LossOptions
    ) -> Tensor:
        """Rows whose label is not the given one; raises where that costs nothing."""
        if options.given_labels is None:
            return torch.zeros_like(in_range)
        given = options.given_labels[index]
        wrong = in_range & (given != labels)
        if can_raise(wrong) and wrong.any():
            row = int(wrong.nonzero()[0])
            raise LabelBank.wrong_label(row, int(index[row]), int(labels[row]), int(given[row]))
        return wrong

    def _store(self, index: Tensor, target: Tensor, keep: Tensor) -> None:
        """Writes the kept rows, the last of those with the same index, without synchronising."""
        bank = self.bank.rows
        if len(index) == 0:
            return
        if not self.unique_index:
            keep = _last_of_each(index, keep)
        # Selecting the kept rows would wait for the device. Rows not kept repeat the first kept one
        # instead, or, if no row is kept, write back the bank's current values.
        rows = torch.where(keep[:, None], target.to(bank.dtype), bank[index])
        source = torch.where(keep, torch.arange(len(keep), device=keep.device), keep.int().argmax())
        bank.index_copy_(0, index[source], rows[source])

    def extra_repr(self) -> str:
        return (
            f"{self.bank}, momentum={self.momentum}, weight={self.weight}, "
            f"reduction={self.reduction!r}"
        )


def _last_of_each(index: Tensor, keep: Tensor) -> Tensor:
    """Of the kept rows of a batch [B], the last with each index; does not synchronise."""
    # A stable sort leaves rows of one index next to each other and in batch order.
    ordered, order = torch.where(keep, index, -1).sort(stable=True)
    is_last = torch.cat([ordered[1:] != ordered[:-1], ordered.new_ones(1, dtype=torch.bool)])
    return torch.zeros_like(keep).scatter(0, order, is_last & (ordered >= 0))


def _is_batched(tensor: Tensor) -> bool:
    """Whether `torch.func.vmap` is applied to the tensor, below other transforms or not."""
    functorch = torch._C._functorch
    if torch.compiler.is_compiling():
        return False
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False
