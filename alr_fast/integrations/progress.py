"""What every adapter tells a loss in the course of training."""

import copy
import math
import warnings
from typing import Any

from torch import Tensor

from alr_fast.data import OwnedRowsSampler
from alr_fast.errors import UserError
from alr_fast.losses import Loss, WarmUpLoss, refinement_problem

_SOME = 1024  # rows of a bank that show whether it was refined
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


def start_training(criterion: Loss, epochs: float | None, *, name: str) -> None:
    """Warns if a training from the given labels is too short to change one.

    Args:
        criterion: The loss.
        epochs: Epochs of the whole training; None, infinite or below 1 if unknown.
        name: What the framework calls them.
    """
    bank = criterion.bank
    if bank is None or epochs is None or not 1 <= epochs < math.inf:
        return
    with bank.host_access():
        rows = bank.rows[:_SOME].cpu()
    own = rows.gather(1, bank.given_labels[: len(rows), None])
    if not (own == float(bank.one_hot)).all():
        return  # refined already, or started from something else

    def make(number: int, momentum: float | None) -> Loss:
        changed = copy.copy(criterion)
        if momentum is not None:
            vars(changed)["momentum"] = momentum
        return changed

    problem = refinement_problem(make, int(epochs), names=(name, "momentum"))
    if problem is not None:
        warnings.warn(problem, stacklevel=2)


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
