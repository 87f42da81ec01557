"""Which rank sees which sample and when: a function of seed, epoch and step alone.

No loader shuffles, skips or pads by itself. Every sample is therefore seen exactly once per epoch,
on exactly one rank, and resuming needs no state other than the epoch and the step.

An ``index`` numbers the samples of one rank: it is the index in the label bank of that rank, and
``rows[index]`` is the row in the split.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

# Independent streams of random numbers: np.random.default_rng([seed, stream, ...]).
_SHARD, _ORDER, _AUGMENT = range(3)


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
        """Indices in the order of an epoch, int64, each at most once."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Step and indices, int64 [B], of each batch from step ``start`` on."""
        order = self.order(epoch)
        for step in range(start, self.steps):
            first = step * self.batch_size
            last = first + self.batch_size if step < self.steps - 1 else len(order)
            yield step, order[first:last]

    def augmentation_rng(self, epoch: int, step: int) -> np.random.Generator:
        """The random numbers for one batch."""
        return np.random.default_rng([self.seed, _AUGMENT, epoch, self.rank, step])


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
        labels: Given labels, int64 [N]; required with ``per_class``.
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
    ) -> None:
        super().__init__(num_samples, batch_size, seed=seed, rank=rank, world_size=world_size)
        if num_samples < world_size:
            raise ValueError(f"{num_samples} samples are too few for {world_size} ranks")
        permutation = np.random.default_rng([seed, _SHARD]).permutation(num_samples)
        starts = [num_samples * r // world_size for r in range(world_size + 1)]
        shards = [permutation[first:last] for first, last in pairwise(starts)]
        self.rows = shards[rank]
        self.offset = starts[rank]
        self._classes: list[NDArray[np.int64]] | None = None  # indices of each class
        lengths = [len(shard) for shard in shards]
        if per_class is not None:
            if labels is None:
                raise ValueError("per_class needs labels")
            quotas = [
                per_class // world_size + (r < per_class % world_size) for r in range(world_size)
            ]
            self._quota = quotas[rank]
            own = labels[self.rows]
            self._classes = [np.flatnonzero(own == k) for k in range(int(labels.max()) + 1)]
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
        """Indices in the order of an epoch, int64, each at most once."""
        rng = np.random.default_rng([self.seed, _ORDER, epoch, self.rank])
        if self._classes is None:
            return rng.permutation(len(self.rows))
        drawn = [rng.permutation(indices)[: self._quota] for indices in self._classes]
        return rng.permutation(np.concatenate(drawn))[: self._shortest]

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
