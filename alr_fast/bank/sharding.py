"""A label bank in several processes: parts of it, the whole again, and banks that drift apart.

`LabelBank.shard`, `gather`, `to_local` and `note_use` call this module. Nothing here communicates
during a step.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from alr_fast.bank.history import SampleHistory
from alr_fast.bank.state import HISTORY
from alr_fast.errors import UserError

_IGNORED, _OUT_OF_RANGE = -1, 2**31 - 1  # local index of such a row, int32
_CHUNK_BYTES = 32 << 20  # rows sent in one message
_COMPARED_ROWS = 1 << 17  # of a larger bank, every n-th row: 16 kB for each process

_published: Counter[str] = Counter()  # banks of this process by fingerprint of their labels


def label_fingerprint(given_labels: Tensor) -> str:
    """Name of given labels [n] int64 on the CPU: equal for equal labels in equal order."""
    return hashlib.sha256(given_labels.numpy().data).hexdigest()


def several_processes() -> bool:
    """Whether this process belongs to a process group of more than one."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class Shard:
    """The rows of a bank that one process has.

    Attributes:
        rows: int64 [n] on the CPU, their indices in the whole bank, in the order of the shard.
        num_samples: N, rows of the whole bank.
    """

    def __init__(self, rows: Any, num_samples: int, device: torch.device) -> None:
        """Checks the rows.

        Args:
            rows: [n] integers (list, array or tensor), each once, in [0, N).
            num_samples: N.
            device: Device of the logits.

        Raises:
            UserError: The rows are not such.
        """
        self.rows = _checked_rows(rows, num_samples)
        self.num_samples = num_samples
        # One entry before and one behind, for an index below 0 and one of N or more.
        self._local = torch.full((num_samples + 2,), _OUT_OF_RANGE, dtype=torch.int32)
        self._local[0] = _IGNORED
        self._local[self.rows + 1] = torch.arange(len(self.rows), dtype=torch.int32)
        self._local = self._local.to(device)

    def to(self, device: torch.device | str) -> None:
        """Moves the map to another device of the logits."""
        self._local = self._local.to(device)

    def to_local(self, index: Tensor) -> Tensor:
        """The rows of this shard that samples have.

        Args:
            index: [B] int64 or int32, index in the whole bank; below 0 to ignore a row.

        Returns:
            [B] in the dtype of `index`: index in the shard; below 0 where `index` is; 2^31 - 1 for
            a row of another process and for one beyond the bank.

        Raises:
            IndexError: On the CPU, in place of 2^31 - 1. The compiler leaves this to the operation,
                which raises in that case, too.
        """
        local = self._local[(index.long() + 1).clamp_(0, self.num_samples + 1)]
        if index.device.type == "cpu" and not torch.compiler.is_compiling():
            foreign = local == _OUT_OF_RANGE
            if foreign.any():
                raise IndexError(f"index {int(index[foreign][0])} {self.explanation}")
        return local.to(index.dtype)

    @property
    def explanation(self) -> str:
        """Why an index is refused, for a message."""
        return (
            f"is not among the {len(self.rows)} rows (of {self.num_samples}) that bank.shard(rows) "
            "gave this process: draw the batches with alr_fast.data.OwnedRowsSampler and shard the "
            "bank by the rows of that sampler"
        )


def fitting_state(shard: Shard | None, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a bank's state that belongs to a shard.

    Args:
        shard: The shard that the state is for; None for a whole bank.
        state: Of a whole bank or of a shard.

    Returns:
        The state without `shard_rows`; the rows of the shard, if the state has all.

    Raises:
        ValueError: The state is of other rows.
    """
    state = dict(state)
    saved = state.pop("shard_rows", None)
    if saved is not None:
        if shard is None:
            raise ValueError(
                f"bank state has only {len(saved)} rows, those of one process: load it into "
                "bank.shard(rows) with the same rows. bank.gather().state_dict(), saved by all "
                "processes together, fits any number of processes"
            )
        if not torch.equal(saved.cpu(), shard.rows):
            raise ValueError(
                f"bank state has the rows of another process ({len(saved)} rows, this one has "
                f"{len(shard.rows)}): load the state of this process with the same number of "
                "processes and seed, or save bank.gather().state_dict(), which fits any number"
            )
    elif shard is not None and "rows" in state and len(state["rows"]) == shard.num_samples:
        for name, tensor in state.items():
            if name in ("rows", "given_labels") or name.startswith(HISTORY):
                state[name] = tensor[shard.rows.to(tensor.device)]
    return state


def gather_rows(
    part: Tensor, shard_rows: list[Tensor], whole: Tensor, device: torch.device
) -> None:
    """Fills the rows of a whole table in every process; all of them call this.

    Args:
        part: [n, ...], the rows of this process.
        shard_rows: Of `all_shard_rows`.
        whole: [N, ...], written.
        device: Device that the process group can send from.
    """
    if len(shard_rows) == 1:
        whole[shard_rows[0].to(whole.device)] = part.to(whole.device)
        return
    rank = dist.get_rank()
    size = max(1, _CHUNK_BYTES // max(1, part[:1].nbytes))
    for source, rows in enumerate(shard_rows):
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            if source == rank:
                sent = part[start : start + size].to(device).contiguous()
            else:
                sent = torch.empty((len(some), *part.shape[1:]), dtype=part.dtype, device=device)
            dist.broadcast(sent.view(torch.uint8), src=source)  # not every backend has bfloat16
            whole[some.to(whole.device)] = sent.to(whole.device)


def all_shard_rows(shard: Shard) -> list[Tensor]:
    """The rows of every process, by rank; all of them call this.

    Raises:
        ValueError: In every process: the shards do not have each row of the whole bank once.
    """
    parts = [(shard.rows, shard.num_samples)]
    if several_processes():
        parts = parts * dist.get_world_size()
        dist.all_gather_object(parts, (shard.rows, shard.num_samples))
    sizes = {num_samples for _, num_samples in parts}
    if len(sizes) > 1:
        raise ValueError(
            f"the processes have shards of banks with {sorted(sizes)} rows: shard the same bank in "
            "all of them"
        )
    owners = torch.bincount(torch.cat([rows for rows, _ in parts]), minlength=shard.num_samples)
    if not bool((owners == 1).all()):
        row = int((owners != 1).nonzero()[0])
        raise ValueError(
            f"row {row} of the bank belongs to {int(owners[row])} of {len(parts)} processes, and "
            "gather needs each row once: shard by the rows of alr_fast.data.OwnedRowsSampler, made "
            "with the same data set and seed in every process"
        )
    return [rows for rows, _ in parts]


def history_part(history: SampleHistory, rows: Tensor, given_labels: Tensor) -> SampleHistory:
    """A copy of the history of some samples.

    Args:
        history: Of all samples.
        rows: int64 [n], the samples.
        given_labels: int64 [n], their labels.
    """
    part = SampleHistory(given_labels, history.loss.device)
    for name, tensor in history.tensors().items():
        setattr(part, name, tensor[rows.to(tensor.device)])
    return part


def gather_history(
    history: SampleHistory, shard_rows: list[Tensor], given_labels: Tensor, device: torch.device
) -> SampleHistory:
    """The history of all samples, in every process; all of them call this.

    Args:
        history: Of the samples of this process.
        shard_rows: Of `all_shard_rows`.
        given_labels: int64 [N], labels of all samples.
        device: See `gather_rows`.
    """
    whole = SampleHistory(given_labels, history.loss.device)
    for name, tensor in history.tensors().items():
        gather_rows(tensor, shard_rows, getattr(whole, name), device)
    return whole


class RowUse:
    """Which rows of an unsharded bank this process has updated, compared with other processes.

    The processes compare through the key-value store of their process group when `compare` is
    called. None waits for another: of two processes that update the same row, the second one to
    compare sees it, and the first one at its next comparison.
    """

    def __init__(self) -> None:
        self._used: Tensor | None = None  # bool [N + 2], padded as in `Shard`
        self._key: str | None = None

    def to(self, device: torch.device | str) -> None:
        """Moves the record to another device of the logits."""
        if self._used is not None:
            self._used = self._used.to(device)

    @torch.no_grad()
    def note(self, index: Tensor, num_samples: int) -> None:
        """Records that the rows [B] with these indices are updated; does not synchronise."""
        if self._used is None:
            self._used = torch.zeros(num_samples + 2, dtype=torch.bool, device=index.device)
        self._used.index_fill_(0, (index.detach().long() + 1).clamp_(0, num_samples + 1), True)

    def compare(self, given_labels: Tensor) -> None:
        """Publishes the record and compares it with those that other processes have published.

        Args:
            given_labels: int64 [N] on the CPU. They name the bank, with the number of banks of
                these labels before it.

        Raises:
            ValueError: Another process has updated a row that this one has updated.
        """
        if self._used is None or not several_processes():
            return
        used = self._used[1:-1].cpu().numpy()
        stride = -(-len(used) // _COMPARED_ROWS)
        bits = np.packbits(used[::stride])
        rank, store = dist.get_rank(), _store()
        if self._key is None:
            labels = label_fingerprint(given_labels)
            self._key = f"alr_fast/bank/{labels}/{_published[labels]}"
            _published[labels] += 1
        store.set(f"{self._key}/{rank}", bits.tobytes())  # type: ignore[arg-type]  # takes bytes
        for other in range(dist.get_world_size()):
            key = f"{self._key}/{other}"
            if other == rank or not store.check([key]):
                continue
            both = _unpacked(bits & np.frombuffer(store.get(key), dtype=np.uint8), stride)
            if len(both):
                raise ValueError(
                    f"processes {rank} and {other} both update row {both[0]} of the label bank"
                    f"{f' and {len(both) - 1} more' if len(both) > 1 else ''}, each in a bank of "
                    "its own, so that the banks drift apart: draw the batches with "
                    "sampler = alr_fast.data.OwnedRowsSampler(dataset) and keep the rows of this "
                    "process, bank.shard(sampler.rows). If every process is meant to have a bank "
                    "of its own (separate models, tensor parallelism), set bank.owned = True"
                )


def _unpacked(bits: NDArray[np.uint8], stride: int) -> NDArray[np.int64]:
    return np.flatnonzero(np.unpackbits(bits)) * stride


def _store() -> dist.Store:
    group = dist.group.WORLD
    assert group is not None  # several_processes
    return group.get_group_store()


def _checked_rows(rows: Any, num_samples: int) -> Tensor:
    """A copy of the rows as int64 on the CPU."""
    checked = torch.as_tensor(rows).detach()
    if checked.is_floating_point() or checked.is_complex() or checked.dtype == torch.bool:
        raise UserError(f"must be integers, got {checked.dtype}", argument="rows")
    if checked.ndim != 1 or len(checked) == 0:
        raise UserError(
            f"must have shape [n] with at least one row, got {tuple(checked.shape)}",
            argument="rows",
        )
    checked = checked.to("cpu", torch.int64, copy=True)
    low, high = int(checked.min()), int(checked.max())
    if low < 0 or high >= num_samples:
        raise UserError(
            f"must lie in [0, {num_samples}), got {low} to {high}: they count the rows of the "
            "whole bank",
            argument="rows",
        )
    if len(np.unique(checked.numpy())) < len(checked):
        raise UserError("has a row twice: pass each row once", argument="rows")
    return checked
