"""What every adapter tells a loss in the course of training."""

from typing import Any

from torch import Tensor

from alr_fast.data import OwnedRowsSampler
from alr_fast.errors import UserError
from alr_fast.losses import Loss, WarmUpLoss

_BANK = "bank."  # begin of the names of the bank's tensors in the state of a loss


def check_criterion(criterion: Any) -> Loss:
    """Refuses an object that is not a loss of this library, or one of its subclasses.

    Raises:
        UserError: It is not.
    """
    if not isinstance(criterion, Loss):
        raise UserError(
            "must be a loss of alr_fast.losses, such as ALRLoss(bank, warmup_epochs=5)",
            argument="criterion",
            value=type(criterion).__name__,
        )
    return criterion


def start_step(criterion: Loss, step: int) -> None:
    """Announces an optimizer step, counted from 0, to a loss whose warm-up counts steps."""
    if _counts_steps(criterion):
        assert isinstance(criterion, WarmUpLoss)
        criterion.set_step(step)


def end_epoch(criterion: Loss) -> None:
    """Checks the bank.

    Raises:
        IndexError, ValueError: See `LabelBank.check`.
    """
    if criterion.bank is not None:
        criterion.bank.check()


def shard_bank(criterion: Loss, sampler: OwnedRowsSampler) -> None:
    """Leaves this process the rows of the bank that its sampler draws.

    Raises:
        UserError: The bank is a shard already, with other rows.
    """
    bank = criterion.bank
    if bank is None:
        return
    if bank.shard_rows is None:
        criterion.bank = bank.shard(sampler.rows)
    elif set(bank.shard_rows.tolist()) != set(sampler.rows.tolist()):
        raise UserError(
            "its bank is a shard with other rows than those of the sampler: give it the whole "
            "bank, which is sharded for it",
            argument="criterion",
        )


def whole_state(criterion: Loss) -> dict[str, Tensor]:
    """The state of a loss with the whole bank; if it is a shard, all processes call this.

    Any number of processes can load it, before or after they shard the bank.
    """
    state: dict[str, Tensor] = criterion.state_dict()
    if criterion.bank is None or criterion.bank.shard_rows is None:
        return state
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(_BANK)}
    whole = criterion.bank.gather().state_dict()
    return {**rest, **{_BANK + name: tensor for name, tensor in whole.items()}}


def _counts_steps(criterion: Loss) -> bool:
    return isinstance(criterion, WarmUpLoss) and criterion.warmup_unit == "step"
