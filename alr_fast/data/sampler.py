"""Which rank sees which sample and when: a function of seed, epoch and step alone.

No loader shuffles, skips or pads by itself. Every sample is therefore seen exactly once per epoch,
on exactly one rank, and resuming needs no state other than the epoch and the step.

An ``index`` numbers the samples of one rank: it is the index in the label bank of that rank, and
``rows[index]`` is the row in the split.

`OwnedRowsSampler` offers the same division to any DataLoader.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sized
from itertools import pairwise

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch.utils.data.distributed import DistributedSampler

from alr_fast.errors import UserError
from alr_fast.utils.random import stream

_FITTING_STEPS = 50
_TINY = np.finfo(np.float64).tiny
_ROUNDING = 1e-6  # of a sum of shares


class Sampler(ABC):
    """Batches of the rows that one rank owns.

    Args:
        num_samples: Samples of the split, N.
        batch_size: Samples in a batch of one rank.
        seed: Seed of shards, order and augmentation.
        rank: Number of this process.
        world_size: Number of processes.

    Attributes:
        rows: Rows of the split that this rank owns, int64.
        steps: Batches in an epoch.
        largest_batch: Upper limit of the size of a batch.

    Raises:
        ValueError: No such rank.
    """

    rows: NDArray[np.int64]
    steps: int
    largest_batch: int

    def __init__(
        self, num_samples: int, batch_size: int, *, seed: int, rank: int, world_size: int
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size}")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    @abstractmethod
    def order(self, epoch: int) -> NDArray[np.int64]:
        """Indices in the order of an epoch, int64."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Step and indices, int64 [B], of each batch from step ``start`` on."""
        order = self.order(epoch)
        for step in range(start, self.steps):
            first = step * self.batch_size
            last = first + self.batch_size if step < self.steps - 1 else len(order)
            yield step, order[first:last]

    def augmentation_rng(self, epoch: int, step: int) -> np.random.Generator:
        """The random numbers for one batch."""
        return stream("augmentation", self.seed, epoch, self.rank, step)


class SequentialSampler(Sampler):
    """Every row once and in order, for evaluation; each rank makes as many steps as it needs.

    Args:
        rows: Rows of this rank, int64; by default every ``world_size``-th row of the split.
        num_samples, batch_size, seed, rank, world_size: See `Sampler`.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__(num_samples, batch_size, seed=seed, rank=rank, world_size=world_size)
        self.rows = np.arange(rank, num_samples, world_size) if rows is None else rows
        self.steps = -(-len(self.rows) // batch_size)
        self.largest_batch = batch_size

    def order(self, epoch: int) -> NDArray[np.int64]:
        """All indices, int64, ascending."""
        return np.arange(len(self.rows))


class ShuffledSampler(Sampler):
    """A new random order in each epoch, for training.

    The ranks own consecutive pieces of one permutation of the whole split. A rank keeps its piece
    for the whole run, so it can keep that part of the label bank. The permutation does not depend
    on the number of ranks: their rows, concatenated, always form the same list.

    All ranks make the same number of steps. The last batch holds the remaining samples, at least
    two: batch normalisation cannot train on one sample, so a single one joins the batch before it.

    Args:
        num_samples, batch_size, seed, rank, world_size: See `Sampler`.
        labels: Given labels, int64 [N]; required with ``per_class`` and ``balance``.
        balance: Draw samples of a class of n ones in proportion to n to this power: 0 for all
            classes equally often, 0.5 for the square root. Samples of rare classes are then seen
            several times in an epoch, others not in every one. None for each sample once.
        epoch_samples: With ``balance``, samples in an epoch over all ranks; None for N.
        per_class: Draw this many samples from every class, anew in each epoch, or all samples of a
            smaller class; None for all samples. Divided among the ranks.

    Attributes:
        offset: Where this rank's piece begins in the permutation.

    Raises:
        ValueError: Fewer samples than ranks.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        labels: NDArray[np.int64] | None = None,
        per_class: int | None = None,
        balance: float | None = None,
        epoch_samples: int | None = None,
    ) -> None:
        super().__init__(num_samples, batch_size, seed=seed, rank=rank, world_size=world_size)
        if num_samples < world_size:
            raise ValueError(f"{num_samples} samples are too few for {world_size} ranks")
        permutation = stream("shards", seed).permutation(num_samples)
        starts = [num_samples * r // world_size for r in range(world_size + 1)]
        shards = [permutation[first:last] for first, last in pairwise(starts)]
        self.rows = shards[rank]
        self.offset = starts[rank]
        self._classes: list[NDArray[np.int64]] | None = None  # indices of each class
        self._shares: NDArray[np.float64] | None = None  # samples of each class in an epoch
        lengths = [len(shard) for shard in shards]
        if balance is not None:
            if labels is None:
                raise ValueError("balance needs labels")
            counts = np.array([np.bincount(labels[s], minlength=labels.max() + 1) for s in shards])
            total = num_samples if epoch_samples is None else epoch_samples
            lengths = np.diff([total * r // world_size for r in range(world_size + 1)]).tolist()
            self._shares = _shares(counts, np.array(lengths), balance)[rank]
            self._classes = _rows_of_classes(labels[self.rows], counts.shape[1])
        elif per_class is not None:
            if labels is None:
                raise ValueError("per_class needs labels")
            quotas = [
                per_class // world_size + (r < per_class % world_size) for r in range(world_size)
            ]
            self._quota = quotas[rank]
            self._classes = _rows_of_classes(labels[self.rows], int(labels.max()) + 1)
            lengths = [
                int(np.minimum(np.bincount(labels[shard]), quota).sum())
                for shard, quota in zip(shards, quotas, strict=True)
            ]
        self._shortest = min(lengths)  # epoch of the rank with the fewest samples
        full, rest = divmod(self._shortest, batch_size)
        self.steps = max(full + (rest > 1), 1)
        self.largest_batch = batch_size + 2  # a single sample, and one that other ranks lack

    def smallest_batch(self, step: int) -> int:
        """Size of the smallest batch of any rank at a step."""
        last = step == self.steps - 1
        return self._shortest - step * self.batch_size if last else self.batch_size

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Indices in the order of an epoch, int64, each at most once; with ``balance`` repeated."""
        rng = stream("order", self.seed, epoch, self.rank)
        if self._classes is None:
            return rng.permutation(len(self.rows))
        if self._shares is not None:
            drawn = self._balanced(stream("class balance", self.seed, epoch, self.rank))
            return rng.permutation(np.concatenate(drawn))[: self._shortest]
        drawn = [rng.permutation(indices)[: self._quota] for indices in self._classes]
        return rng.permutation(np.concatenate(drawn))[: self._shortest]

    def _balanced(self, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """Indices of each class in an epoch: all of them as often as possible, and then some."""
        assert self._classes is not None and self._shares is not None
        # Systematic sampling: the counts have the exact total, and the shares as their means.
        bounds, total = np.cumsum(self._shares), round(self._shares.sum())
        bounds[bounds > total - _ROUNDING] = total
        counts = np.diff(np.floor(bounds + rng.random()), prepend=0).astype(np.int64)
        drawn = []
        for indices, count in zip(self._classes, counts.tolist(), strict=True):
            whole, rest = divmod(count, max(len(indices), 1))
            drawn += [np.tile(indices, whole), rng.permutation(indices)[:rest]]
        return drawn

    def in_order(self, batch_size: int) -> SequentialSampler:
        """All samples of this rank once and in order, as in evaluation."""
        return SequentialSampler(
            self.num_samples,
            batch_size,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
            rows=self.rows,
        )


def _rows_of_classes(labels: NDArray[np.int64], num_classes: int) -> list[NDArray[np.int64]]:
    """Positions of the labels of each class, ascending."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, num_classes)))


def _shares(
    counts: NDArray[np.int64], lengths: NDArray[np.int64], power: float
) -> NDArray[np.float64]:
    """Samples of each class in an epoch of each rank, float64 [ranks, K].

    Over all ranks a class of n samples has a share in proportion to n to a power, and each sample
    of it is drawn equally often as far as the lengths of the ranks allow: the shares are those of
    iterative proportional fitting, which ends with the exact lengths.

    Args:
        counts: Samples of each class that each rank owns, int64 [ranks, K].
        lengths: Samples in an epoch of each rank, int64 [ranks].
        power: 0 for equal classes.
    """
    sizes = counts.sum(0)
    wanted = np.where(sizes > 0, np.maximum(sizes, 1.0) ** power, 0.0)
    wanted *= lengths.sum() / wanted.sum()
    shares = counts.astype(np.float64)
    for _ in range(_FITTING_STEPS):
        shares *= wanted / np.maximum(shares.sum(0), _TINY)
        shares *= (lengths / shares.sum(1))[:, None]
    return shares


class OwnedRowsSampler(DistributedSampler[int]):
    """Sampler of a `DataLoader`: every rank draws from rows that it owns for the whole run.

    torch's own `DistributedSampler` deals the rows out anew in each epoch, so that the rows of a
    label bank would be updated on several ranks, each with a part of the history. Here the ranks
    divide one permutation of the data set for good. Use `rows` to shard the bank:

        sampler = OwnedRowsSampler(dataset)
        loader = DataLoader(dataset, batch_size=128, sampler=sampler)
        bank = LabelBank.from_labels(labels, num_classes=10).shard(sampler.rows)

    In one process it shuffles the whole data set. All ranks draw equally many samples in an epoch,
    so that they make equally many steps. It is a `DistributedSampler`, so that frameworks which
    insert one (Lightning) leave it alone and call its `set_epoch`.

    Args:
        dataset: The data set, or its length.
        rank: Number of this process; by default that of `torch.distributed` if it is initialised,
            else 0.
        world_size: Number of processes; by default that of `torch.distributed`, else 1.
        seed: Seed of the division and of the orders; the same on all ranks.
        shuffle: False draws the rows in ascending order.
        drop_last: What happens if the ranks own unequally many rows (they differ by one): True
            leaves out a row of the larger ones, another one in each epoch; False draws a row of the
            smaller ones twice.

    Attributes:
        rows: Rows of the data set that this rank owns, int64 [n], in the order of the division.
        num_samples: Samples that each rank draws in an epoch.

    Raises:
        UserError: An argument is wrong, or there are fewer samples than ranks.
    """

    def __init__(
        self,
        dataset: Sized | int,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        if (rank is None) != (world_size is None):
            raise UserError(
                f"has to come with world_size, got rank={rank} and world_size={world_size}: pass "
                "both, or neither to take them from torch.distributed",
                argument="rank",
            )
        self._from_group = rank is None
        if rank is None or world_size is None:
            rank, world_size = _rank_and_size()
        if world_size < 1 or not 0 <= rank < world_size:
            raise UserError(
                f"must lie in [0, world_size), with world_size {world_size}",
                argument="rank",
                value=rank,
            )
        length = _length(dataset)
        if length < world_size:
            raise UserError(
                f"has {length} samples, which are too few for {world_size} processes: start fewer",
                argument="dataset",
            )
        super().__init__(
            range(length),  # type: ignore[arg-type]
            num_replicas=world_size,
            rank=rank,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
        )
        self._sampler = ShuffledSampler(length, 1, seed=seed, rank=rank, world_size=world_size)
        self.rows = self._sampler.rows
        self.num_samples = length // world_size if drop_last else -(-length // world_size)
        self.total_size = self.num_samples * world_size

    def __iter__(self) -> Iterator[int]:
        """Rows of the data set in the order of the next epoch.

        The epoch is the one that `set_epoch` announced. Without another call the one after it
        follows, so that the order changes even where nobody calls `set_epoch`.

        Raises:
            UserError: The process group was initialised after the sampler was made.
        """
        if self._from_group and (self.rank, self.num_replicas) != _rank_and_size():
            rank, world_size = _rank_and_size()
            raise UserError(
                f"is {self.rank} of {self.num_replicas}, but torch.distributed says {rank} of "
                f"{world_size}: make the sampler after the process group is initialised, or pass "
                "rank and world_size",
                argument="rank",
            )
        epoch = self.epoch
        self.epoch += 1
        rows = self.rows[self._sampler.order(epoch)] if self.shuffle else np.sort(self.rows)
        return iter(np.resize(rows, self.num_samples).tolist())

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Announces the next epoch, counted from 0.

        Raises:
            UserError: It is negative.
        """
        if epoch < 0:
            raise UserError("must be 0 or more", argument="epoch", value=epoch)
        self.epoch = int(epoch)


def _rank_and_size() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _length(dataset: Sized | int) -> int:
    if isinstance(dataset, int | np.integer) and not isinstance(dataset, bool):
        length = int(dataset)
    else:
        try:
            length = len(dataset)  # type: ignore[arg-type]
        except TypeError as error:
            raise UserError(
                f"must be a map-style data set or its length, got {type(dataset).__name__}: the "
                "rows of a stream have no index",
                argument="dataset",
            ) from error
    if length < 1:
        raise UserError("must have at least one sample", argument="dataset", value=length)
    return length
