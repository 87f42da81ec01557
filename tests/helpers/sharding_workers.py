"""What the ranks of the tests of sharded banks do."""

import pytest
import torch
import torch.distributed as dist

from alr_fast import ALRLoss, LabelBank
from alr_fast.data import OwnedRowsSampler

N, K = 23, 4


def new_bank(**options) -> LabelBank:
    """The whole bank before training, the same in every process."""
    labels = torch.arange(N) * 7 % K
    return LabelBank.from_labels(labels, K, sample_fingerprint="digits", **options)


def train(bank: LabelBank, samples, epochs: int = 3) -> None:
    """Trains on samples in batches of 4; the logits of a sample depend on it and the epoch."""
    criterion = ALRLoss(bank, warmup_epochs=1, history=True)
    for epoch in range(epochs):
        criterion.set_epoch(epoch)
        logits = torch.randn(N, K, generator=torch.Generator().manual_seed(epoch))
        for index in torch.tensor(samples).split(4):
            targets = torch.stack((torch.arange(N)[index] * 7 % K, index), 1)
            criterion(logits[index].requires_grad_(), targets)
    criterion.set_epoch(epochs)


def gather_trained(dtype: torch.dtype) -> dict:
    """Trains a shard; returns the states of the whole bank and of the shard."""
    sampler = OwnedRowsSampler(N, drop_last=False)
    bank = new_bank(dtype=dtype).shard(sampler.rows)
    train(bank, sampler.rows)
    assert bank.check() == 0
    whole = bank.gather()
    assert whole.shard_rows is None
    copies = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    return {"whole": copies, "shard": bank.state_dict(), "refined": whole.refined_labels()}


def load_and_gather(state: dict) -> torch.Tensor:
    """Loads the state of a whole bank into shards, and returns the rows of all of them."""
    bank = new_bank().shard(OwnedRowsSampler(N, seed=5).rows)
    bank.load_state_dict(state)
    return bank.gather().rows


def gather_wrong_rows() -> None:
    """Shards that do not have each row once are refused in every process."""
    with pytest.raises(ValueError, match=r"row 0 of the bank belongs to 2 of 2 processes"):
        new_bank().shard([0, 1]).gather()
    lost = new_bank().shard([2 + dist.get_rank()])
    with pytest.raises(ValueError, match=r"row 0 of the bank belongs to 0 of 2 processes"):
        lost.gather()
    with pytest.raises(ValueError, match="other processes have updated some of theirs"):
        new_bank().gather()


def drift_apart() -> list[str]:
    """Two processes with unsharded banks; returns the message of each call of `check`."""
    rank, messages = dist.get_rank(), []

    def check(bank):
        try:
            bank.check()
            messages.append("")
        except ValueError as error:
            messages.append(str(error))

    own_rows, both = new_bank(), new_bank()  # banks of the same labels are told apart
    train(own_rows, list(range(rank, N, 2)))
    train(both, [rank, 7, 8])
    for turn in (0, 1):  # rank 0 checks first
        if rank == turn:
            check(own_rows)
            check(both)
        dist.barrier()
    check(both)
    both.owned = True
    check(both)
    untouched = new_bank()
    criterion = ALRLoss(untouched, warmup_epochs=0)
    with torch.no_grad():
        criterion(torch.randn(2, K), [0, 3], [0, 1])  # not an update
    check(untouched)
    return messages


def check_alone() -> None:
    """`check` of one process does not wait for the other."""
    if dist.get_rank() == 0:
        bank = new_bank()
        train(bank, range(N))
        bank.check()


def large_bank() -> tuple[str, int]:
    """A bank with more rows than are compared: a shuffled sampler is noticed all the same.

    Returns the message of `check`, and the first of every third rows that both processes update.
    """
    n = (1 << 17) * 2 + 5
    bank = LabelBank.from_labels(torch.zeros(n, dtype=torch.int64), 2)
    used = torch.zeros(2, n, dtype=torch.bool)
    for epoch in range(2):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(epoch))
        bank.note_use(order[dist.get_rank() :: 2])
        for rank in (0, 1):
            used[rank, order[rank::2]] = True
    first = 3 * int(used.all(0)[::3].nonzero()[0])
    dist.barrier()
    message = ""
    for turn in (0, 1):
        if dist.get_rank() == turn:
            try:
                bank.check()
            except ValueError as error:
                message = str(error)
        dist.barrier()
    return message, first
