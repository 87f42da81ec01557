"""Who sees which sample when: shards, order, subsets and batches, from seed, epoch and step alone.

No loader shuffles, skips or pads by itself. So every sample is seen exactly once an epoch, on
exactly one rank, and resuming needs no state but the numbers of epoch and step.
"""

from collections.abc import Iterator
from copy import copy
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

# Streams of random numbers that must not meet: np.random.default_rng([seed, stream, ...]).
_SHARD, _ORDER, _AUGMENT = range(3)


class Sampler:
    """Batches of the rows that one rank owns.

    In training the ranks own consecutive pieces of one permutation of the whole split. A rank keeps
    its piece for the whole run, so it can keep that part of the label bank. The permutation does
    not depend on the number of ranks: laid end to end their rows are always the same table. In
    evaluation the rows are dealt out in turn.

    In training the ranks make the same number of steps, and the last batch holds what is left, two
    samples or more: a lone one joins the batch before it, as batch normalisation cannot train on
    one. In evaluation each rank makes as many steps as it needs.

    Args:
        num_samples: Samples of the split, N.
        batch_size: Samples in a batch of one rank.
        shuffle: Whether this is training.
        seed: Seed of shards, order and augmentation.
        rank: Number of this process.
        world_size: Number of processes.
        labels: Given labels, int64 [N], for ``per_class``.
        per_class: Draw this many samples from every class, anew for each epoch, or all of a class
            that has fewer; None for all samples. Divided among the ranks.

    Attributes:
        rows: Rows of the split that this rank owns, int64. All else here speaks of positions in it.
        num_samples: Samples of the split, N.
        offset: In training, where this rank's piece begins in the permutation.

    Raises:
        ValueError: Fewer samples than ranks.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        labels: NDArray[np.int64] | None = None,
        per_class: int | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size}")
        if shuffle and num_samples < world_size:
            raise ValueError(f"{num_samples} samples are too few for {world_size} ranks")
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.num_samples = num_samples
        starts = [num_samples * r // world_size for r in range(world_size + 1)]
        self.offset = starts[rank]
        if shuffle:
            order = np.random.default_rng([seed, _SHARD]).permutation(num_samples)
            shards = [order[first:last] for first, last in pairwise(starts)]
        else:
            shards = [np.arange(r, num_samples, world_size) for r in range(world_size)]
        self.rows = shards[rank]
        self._members: list[NDArray[np.int64]] | None = None
        lengths = [len(shard) for shard in shards]
        if per_class is not None:
            classes = range(int(labels.max()) + 1)
            quotas = [
                per_class // world_size + (r < per_class % world_size) for r in range(world_size)
            ]
            own = labels[self.rows]
            self._members = [np.flatnonzero(own == k) for k in classes]
            self._quota = quotas[rank]
            lengths = [
                int(np.minimum(np.bincount(labels[shard]), quota).sum())
                for shard, quota in zip(shards, quotas, strict=True)
            ]
            lengths = [min(lengths)] * world_size
        self._length = lengths[rank]
        self._shortest = min(lengths)
        if shuffle:
            full, rest = divmod(self._shortest, batch_size)
            self.steps = max(full + (rest > 1), 1)
        else:
            self.steps = -(-self._length // batch_size)

    def in_order(self, batch_size: int) -> "Sampler":
        """All samples of this rank, one after the other, as in evaluation."""
        other = copy(self)
        other.batch_size, other.shuffle, other._members = batch_size, False, None
        other._length = other._shortest = len(self.rows)
        other.steps = -(-other._length // batch_size)
        return other

    @property
    def largest_batch(self) -> int:
        """Upper limit of the size of a batch."""
        return self.batch_size + (2 if self.shuffle else 0)

    def smallest_batch(self, step: int) -> int:
        """Size of the smallest batch that a rank has at a step of training."""
        last = step == self.steps - 1
        return self._shortest - step * self.batch_size if last else self.batch_size

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Positions in the order of an epoch, int64, each at most once."""
        if not self.shuffle:
            return np.arange(self._length)
        rng = np.random.default_rng([self.seed, _ORDER, epoch, self.rank])
        if self._members is None:
            return rng.permutation(self._length)
        drawn = [rng.permutation(members)[: self._quota] for members in self._members]
        return rng.permutation(np.concatenate(drawn))[: self._length]

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Number of the step and positions, int64 [B], of each batch from step ``start`` on."""
        order = self.order(epoch)
        for step in range(start, self.steps):
            first = step * self.batch_size
            last = first + self.batch_size if step < self.steps - 1 else len(order)
            yield step, order[first:last]

    def augmentation_rng(self, epoch: int, step: int) -> np.random.Generator:
        """The random numbers for one batch."""
        return np.random.default_rng([self.seed, _AUGMENT, epoch, self.rank, step])
