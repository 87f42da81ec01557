"""A run that resumes although its data set has grown, shrunk or been reordered."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alr_fast.bank.reindexing import copy_known
from alr_fast.data.index import SampleIndex
from alr_fast.errors import SharedError
from alr_fast.training.checkpoint.manifest import Checkpoint
from alr_fast.training.checkpoint.shards import CHUNK_BYTES, shard
from alr_fast.training.checkpoint.store import load
from alr_fast.training.distributed import World

_STORED_CHUNKS = 4  # of a checkpoint, read at once


@dataclass(frozen=True, eq=False)
class DataChange:
    """How the training samples differ from those of a checkpoint.

    Attributes:
        old: Samples of the checkpoint.
        source: Row in ``old`` of each sample now, int64 [N]; -1 for a new one.
        relabelled: Number of known samples with another given label.
    """

    old: SampleIndex
    source: NDArray[np.int64]
    relabelled: int = 0

    @classmethod
    def between(cls, old: SampleIndex, new: SampleIndex) -> "DataChange":
        """Finds the samples of an index in another one, by their paths."""
        source = old.match(new.paths, new.sample_ids)
        known = source >= 0
        relabelled = int((old.labels[source[known]] != new.labels[known]).sum())
        return cls(old, source, relabelled)

    @property
    def known(self) -> int:
        """Number of samples that are in both."""
        return int(np.count_nonzero(self.source >= 0))

    def __str__(self) -> str:
        new, known = len(self.source), self.known
        gone, added = len(self.old) - known, new - known
        parts = [f"{known:,} {'continues' if known == 1 else 'continue'}"]
        if gone:
            parts.append(f"{gone:,} {'is' if gone == 1 else 'are'} gone")
        if added:
            parts.append(
                "1 starts from its label" if added == 1 else f"{added:,} start from their labels"
            )
        if self.relabelled:
            parts.append(f"{self.relabelled:,} with another label")
        return (
            f"the data set has {new:,} samples, the checkpoint {len(self.old):,}: "
            f"{', '.join(parts)}"
        )

    def ids_now(self, index: SampleIndex) -> dict[int, int]:
        """Id now of each known sample, by its id in the checkpoint."""
        rows = np.flatnonzero(self.source >= 0)
        old_ids = self.old.sample_ids[self.source[rows]]
        return dict(zip(old_ids.tolist(), index.sample_ids[rows].tolist(), strict=True))

    def load(
        self,
        checkpoint: Checkpoint,
        tables: dict[str, Tensor],
        rows: NDArray[np.int64],
        world: World,
    ) -> Tensor:
        """Copies what known samples have in a checkpoint; all processes call this.

        The tables are read in pieces, by each process alone: any of their rows may be its own.

        Args:
            checkpoint: The checkpoint.
            tables: By name [n, ...], a row for each sample of this process; those of new samples
                stay as they are.
            rows: Rows of the samples of this process among those now, int64 [n].
            world: The processes.

        Returns:
            Given label in the checkpoint of each sample of this process, int64 [n]; -1 for a new
            one.

        Raises:
            SharedError: The checkpoint cannot be read, or has other samples than the run had.
        """
        size, mesh = len(self.old), world.mesh("cpu")
        ids, given = torch.empty(size, dtype=torch.int64), torch.empty(size, dtype=torch.int64)
        columns = {"bank.ids": ids, "bank.given": given}
        load(checkpoint, {name: shard(t, 0, size, mesh) for name, t in columns.items()})
        place = np.argsort(ids.numpy())  # of each row of `old` in the checkpoint
        if not np.array_equal(ids.numpy()[place], self.old.sample_ids):
            raise SharedError(
                f"{checkpoint.path}: its label bank has other samples than the run had; leave "
                "--resume out to start a new run"
            )
        own = self.source[rows]
        source = torch.from_numpy(np.where(own >= 0, place[own], -1))
        widest = max(table[:1].nbytes for table in tables.values())
        step = _STORED_CHUNKS * max(1, CHUNK_BYTES // max(widest, 1))
        for first in range(0, size, step):
            pieces = {
                name: torch.empty((min(step, size - first), *t.shape[1:]), dtype=t.dtype)
                for name, t in tables.items()
            }
            parts: dict[str, Tensor] = {
                name: shard(piece, first, size, mesh, whole=False) for name, piece in pieces.items()
            }
            load(checkpoint, parts)
            for name, piece in pieces.items():
                copy_known(tables[name], [piece], source, first=first)
        return torch.where(source >= 0, given[source], -1)
