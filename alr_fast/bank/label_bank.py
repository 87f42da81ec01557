"""The label bank: one row of class probabilities for every training sample."""

import os
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alr_fast.bank.checks import (
    check_counts,
    check_dtype,
    check_rows,
    checked_corrections,
    checked_labels,
    wrong_label,
)
from alr_fast.bank.history import SampleHistory
from alr_fast.bank.placement import allocate_rows, check_placement, read_in_order
from alr_fast.bank.reindexing import copy_known, new_labels, source_rows
from alr_fast.bank.sharding import (
    RowUse,
    Shard,
    all_shard_rows,
    fitting_state,
    gather_history,
    gather_rows,
    history_part,
    label_fingerprint,
    several_processes,
)
from alr_fast.bank.state import HISTORY, as_bytes, check_state
from alr_fast.errors import UserError

if TYPE_CHECKING:
    from alr_fast.labels import LabelIssues

# Entries of the status tensor, as the kernels count them (csrc/alr_params.h).
_NONFINITE, _OUT_OF_RANGE, _WRONG_LABEL = 0, 1, 2
_COUNTERS = 3

_CHUNK_ELEMENTS = 1 << 24  # elements of the bank that are filled or summarised at a time


class LabelBank:
    """Refined targets of the training set, updated in place by the fused operation.

    Save `state_dict()` with every checkpoint. The bank is not a module with buffers, because
    DistributedDataParallel would overwrite the buffers of every rank with those of rank 0. On a
    GPU, use a bank on one stream at a time.

    Attributes:
        rows: [N, K] tensor, row i for the sample with index i; float32, float16 or bfloat16. Host
            code that reads or writes them does so within `host_access`.
        placement: Where the rows are stored: "device" (with the logits), "pinned" (host memory that
            the GPU reads and writes) or "file"; see `alr_fast.bank.placement`.
        given_labels: [N] int64 tensor on the CPU, the labels that the bank started from; changed by
            `correct_labels`.
        labels_on_device: The same labels, int32, on the device of the logits, for the kernels.
        history: `SampleHistory` of training, kept by a loss with ``history=True``; None without.
        sample_fingerprint: Name of the sample list (ids and paths) that the rows belong to, or
            None.
        status: [3] int64 tensor on the device of the logits, in which the kernels count rows with
            non-finite logits, indices out of range and wrong labels; read it through `check`.
        rounding_state: [2] int64 tensor (seed, number of calls) on the device of the logits if
            16-bit rows are rounded stochastically, which preserves small steps of the average; else
            None.
        owned: Whether no other process is meant to know the rows of this bank: those of a shard, or
            of a bank of its own. Otherwise `check` raises if two processes update the same row.
        one_hot: Whether rows start at the one-hot given labels, False at zero.
        from_given: Whether the rows started from the given labels, not from an earlier bank or from
            soft labels. Set it to False if you have filled them.
        given_share: How much of each row is still its given label at the end of the epoch that was
            announced last, see `announce`; None if unknown.
    """

    owned: bool = False
    one_hot: bool = True
    from_given: bool = True
    given_share: float | None = None
    _epochs: int | None = None  # of `announce`

    def __init__(
        self,
        rows: Tensor,
        given_labels: Any,
        *,
        sample_fingerprint: str | None = None,
        rounding_seed: int | None = None,
        device: torch.device | str | None = None,
        placement: str = "device",
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        """Wraps existing rows; most callers want `from_labels`.

        Args:
            rows: [N, K] float32, float16 or bfloat16, contiguous.
            given_labels: [N] integer class of each sample, in [0, K); see `from_labels`.
            sample_fingerprint: See the class.
            rounding_seed: Seed of stochastic rounding, None for rounding to nearest.
            device: Device of the logits, by default that of `rows`.
            placement: Where `rows` are: "device" (on that device), "pinned" or "file".
            folder: For working copies of a bank in a file.

        Raises:
            TypeError: The dtype of `rows` is none of the three.
            ValueError: A shape is wrong, a label is outside [0, K), or the rows are not on the
                device that `device` and `placement` require.
            UserError: The placement is unknown, or not possible with the device.
        """
        check_dtype(rows.dtype)
        if rows.ndim != 2 or 0 in rows.shape or not rows.is_contiguous():
            raise ValueError(
                "bank rows must be a contiguous [samples, classes] tensor with at least one of "
                f"each, got shape {tuple(rows.shape)}, strides {rows.stride()}"
            )
        device = rows.device if device is None else torch.device(device)
        check_placement(placement, device)
        expected = device.type if placement == "device" else "cpu"
        if rows.device.type != expected:
            raise ValueError(
                f"bank rows are on {rows.device}, with logits on {device} and placement "
                f"{placement} they belong on {expected}: move them, or leave device out"
            )
        self.rows = rows
        self.placement = placement
        self._folder = folder
        self.given_labels = checked_labels(given_labels, rows.shape[1])
        if len(self.given_labels) != len(rows):
            raise ValueError(
                f"given_labels has {len(self.given_labels)} entries for {len(rows)} bank rows"
            )
        self.labels_on_device = self.given_labels.to(device, torch.int32)
        self.history: SampleHistory | None = None
        self.sample_fingerprint = sample_fingerprint
        self.status = torch.zeros(_COUNTERS, dtype=torch.int64, device=device)
        self.rounding_state = (
            None
            if rounding_seed is None
            else torch.tensor([rounding_seed, 0], dtype=torch.int64, device=device)
        )
        self._shard: Shard | None = None
        self._use = RowUse()

    @classmethod
    def from_labels(
        cls,
        labels: Any,
        num_classes: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        sample_fingerprint: str | None = None,
        rounding_seed: int | None = None,
        placement: str = "device",
        folder: str | os.PathLike[str] | None = None,
        one_hot: bool = True,
    ) -> "LabelBank":
        """Starts a bank at the one-hot given labels.

        Args:
            labels: [N] class of each sample in [0, num_classes): integers of any type, as a
                tensor, an array or a list.
            num_classes: Number of classes K.
            dtype: Storage of the rows: float32, float16 or bfloat16.
            device: Device of the logits, by default that of `labels` if it is a tensor.
            sample_fingerprint: Name of the sample list; a state of another list is refused.
            rounding_seed: Seed of stochastic rounding of a 16-bit bank, None to round to nearest.
            placement: Where to store the rows: "device", "pinned" (with a GPU) or "file" (on the
                CPU); `alr_fast.bank.placement.choose_placement` chooses by size.
            folder: Folder for the file of placement "file", on a disk with room for the bank.
            one_hot: False starts all rows at zero, as early-learning regularisation does.

        Returns:
            A bank with N rows.

        Raises:
            TypeError: `dtype` is none of the three.
            ValueError: The labels are not integers [N], there is none, or one is outside
                [0, num_classes).
            UserError: The placement is unknown or not possible with the device, or its memory or
                file cannot be allocated.
        """
        check_dtype(dtype)
        if device is None:
            device = labels.device if isinstance(labels, Tensor) else "cpu"
        device = torch.device(device)
        labels = checked_labels(labels, num_classes)
        rows = allocate_rows(
            len(labels),
            num_classes,
            dtype=dtype,
            device=device,
            placement=placement,
            folder=folder,
        )
        bank = cls(
            rows,
            labels,
            sample_fingerprint=sample_fingerprint,
            rounding_seed=rounding_seed,
            device=device,
            placement=placement,
            folder=folder,
        )
        bank.one_hot = one_hot
        bank._start_rows()
        return bank

    def _start_rows(self) -> None:
        """Sets rows of zeros to the one-hot given labels, unless the bank starts at zero."""
        size = _chunk_rows(self.num_classes)
        if self.one_hot:
            for chunk, given in zip(
                self._chunks(), torch.split(self.given_labels, size), strict=True
            ):
                chunk.scatter_(1, given.to(chunk.device)[:, None], 1)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        n, k = self.rows.shape
        where = "" if self.placement == "device" else f", placement={self.placement}"
        whole = "" if self._shard is None else f" of {self._shard.num_samples}"
        return (
            f"LabelBank({n}{whole} samples, {k} classes, {self.rows.dtype}, {self.device}{where})"
        )

    @property
    def device(self) -> torch.device:
        """Required device of the logits; with placement "device" also that of the rows."""
        return self.status.device

    @property
    def num_classes(self) -> int:
        return self.rows.shape[1]

    @property
    def label_fingerprint(self) -> str:
        """Name of the given labels: equal for equal labels in equal order."""
        return label_fingerprint(self.given_labels)

    def to(self, device: torch.device | str) -> "LabelBank":
        """Prepares the bank for logits on a device, in place; the dtype stays.

        The rows move with placement "device"; pinned rows and those in a file stay where they are.

        Returns:
            The bank itself.

        Raises:
            UserError: The rows are in a file, and the device is not the CPU.
        """
        if self.placement == "device":
            self.rows = self.rows.to(device)
        elif self.placement == "file":
            check_placement("file", device)
        else:
            self._wait_for_gpu()  # later readers of the rows do not wait for the GPU
        self.status = self.status.to(device)
        self.labels_on_device = self.given_labels.to(device, torch.int32)
        if self.history is not None:
            self.history.to(device)
        self._use.to(device)
        if self._shard is not None:
            self._shard.to(device)
        if self.rounding_state is not None:
            self.rounding_state = self.rounding_state.to(device)
        return self

    def check(self) -> int:
        """Reads and resets the counters of the kernels; waits for the device once.

        Call it when the loop waits anyway: when it logs, saves or ends an epoch.

        Returns:
            Number of rows with non-finite logits or loss since the last call. Rows with non-finite
            logits did not change the bank.

        Raises:
            IndexError: A batch row had an index beyond the bank. It changed nothing, and its loss
                was NaN. (On the CPU the operation itself raises.)
            ValueError: A batch row had another label than its sample's given label; it changed
                nothing, either.
            ValueError: Two processes have updated the same row in banks of their own, unless the
                bank is `owned`. Only calls in both of them can notice, the second one first.
        """
        counts: list[int] = self.status.tolist()
        self.status.zero_()
        shard = None if self._shard is None else self._shard.explanation
        check_counts(counts[_OUT_OF_RANGE], counts[_WRONG_LABEL], len(self), shard)
        if not self.owned:
            self._use.compare(self.given_labels)
        return counts[_NONFINITE]

    wrong_label = staticmethod(wrong_label)

    def correct_labels(self, index: Any, labels: Any, *, reset: bool = True) -> None:
        """Replaces given labels by corrected ones, after which batches have to carry these.

        Args:
            index: [M] integers, index of each corrected sample, each at most once; of a shard, only
                its own.
            labels: [M] integers in [0, K), the corrected labels.
            reset: Whether the rows start again, from the one-hot corrected labels (from zero in a
                bank that did), and their history, too; False keeps both.

        Raises:
            ValueError: An index or a label is out of range, or an index occurs twice; nothing has
                changed then.
        """
        index, labels = checked_corrections(index, labels, self.num_classes)
        if not len(index):
            return
        if self._shard is not None:
            index = self._shard.to_local(index)
        check_rows(index, len(self))
        self.given_labels[index] = labels
        self.labels_on_device[index.to(self.device)] = labels.to(self.device, torch.int32)
        if not reset:
            return
        with self.host_access():
            places = index.to(self.rows.device)
            start = torch.nn.functional.one_hot(labels, self.num_classes) * int(self.one_hot)
            self.rows[places] = start.to(self.rows)
        if self.history is not None:
            self.history.restart(index, labels)

    def announce(self, epochs: int, given_share: float | None) -> None:
        """Takes what is left of the given labels in the rows after the first epochs; called by
        `alr_fast.losses.Loss.set_epoch`.

        Args:
            epochs: Number of epochs, with that which begins now.
            given_share: Result of `alr_fast.losses.Loss.given_share` for it.
        """
        self._epochs = epochs
        self.given_share = given_share if self.from_given else None

    def known_share(self, history: SampleHistory | None) -> float | None:
        """`given_share`, but None if the samples were not trained on once in each of the epochs, or
        in a single one, whose first predictions are those of an untrained model.

        Args:
            history: Of these samples; None if unknown, and trusted then.
        """
        epochs = self._epochs
        if epochs is None or epochs < 2 or (history is not None and not history.is_even(epochs)):
            return None
        return self.given_share

    def issues(
        self,
        *,
        class_names: Sequence[str] | None = None,
        paths: Sequence[str] | None = None,
        sample_ids: Any = None,
        clean_labels: Any = None,
    ) -> "LabelIssues":
        """Which given labels are probably wrong: a table, the most suspicious sample first.

        The rows are copied; those in pinned memory or a file are not: do not train while the
        result is in use.

        Args:
            class_names: Name of each class, K texts.
            paths: Path or another text that identifies each sample, N texts.
            sample_ids: [N] integers that identify the samples, by default their index (in the
                whole bank).
            clean_labels: [N] true labels, if known, to compare with.

        Returns:
            `alr_fast.labels.LabelIssues`.
        """
        from alr_fast.labels import find_issues  # so that the bank alone is quick to import

        history = None if self.history is None else self.history.means(self.refined_labels())
        if sample_ids is None and self._shard is not None:
            sample_ids = self._shard.rows
        with self.host_access():
            # A copy, unless the rows are where they are because they may not fit twice: training
            # may continue while the result is in use.
            rows = self.rows.to("cpu", copy=True) if self.placement == "device" else self.rows
            return find_issues(
                self.given_labels,
                rows,
                history,
                class_names=class_names,
                paths=paths,
                sample_ids=sample_ids,
                clean_labels=clean_labels,
                rows_may_sum_to_less=True,  # as those of early-learning regularisation
                given_share=self.known_share(self.history),
            )

    def shard(self, rows: Any) -> "LabelBank":
        """The bank of one process among several, with a part of the rows.

        The shard takes the same index as the whole bank, the position of a sample in the data set.
        All else is about the rows of the shard, in the order of `rows`: `rows`, `given_labels`,
        `refined_labels()`, `state_dict()`, which says which rows it has. Its `load_state_dict`
        takes the state of a shard with the same rows, or of the whole bank.

        Args:
            rows: [n] integers, each once; those of `alr_fast.data.OwnedRowsSampler`.

        Returns:
            A bank with a copy of the rows, on the same device.

        Raises:
            UserError: The rows are not such, or this bank is a shard already.
        """
        if self._shard is not None:
            raise UserError("this bank is a shard already: shard the whole bank, see gather")
        shard = Shard(rows, len(self), self.device)
        part = self._like(len(shard.rows), self.given_labels[shard.rows])
        with self.host_access(), part.host_access():
            size = _chunk_rows(self.num_classes)
            chunks = zip(part._chunks(), torch.split(shard.rows, size), strict=True)
            for chunk, some in chunks:
                chunk.copy_(self.rows[some.to(self.rows.device)])
        if self.history is not None:
            part.history = history_part(self.history, shard.rows, part.given_labels)
        part._shard = shard
        part.owned = True
        return part

    def gather(self) -> "LabelBank":
        """The whole bank, put together from the shards of all processes, in each of them.

        All processes call this. In one process without shards it is the bank itself.

        Returns:
            A bank of N rows, ordered as in the data set, stored as this one.

        Raises:
            ValueError: The shards do not have each row once.
            UserError: There are several processes, and this bank is not a shard.
        """
        if self._shard is None:
            if several_processes():
                raise UserError(
                    "this bank has all rows, but other processes have updated some of theirs: "
                    "make it with bank.shard(sampler.rows) in every process"
                )
            return self
        shard_rows = all_shard_rows(self._shard)
        given_labels = torch.empty(self._shard.num_samples, dtype=torch.int64)
        gather_rows(self.given_labels, shard_rows, given_labels, self.device)
        whole = self._like(self._shard.num_samples, given_labels)
        with self.host_access(), whole.host_access():
            gather_rows(self.rows, shard_rows, whole.rows, self.device)
        if self.history is not None:
            whole.history = gather_history(self.history, shard_rows, given_labels, self.device)
        return whole

    def reindexed(
        self,
        old: Sequence[Hashable] | None,
        new: Any,
        labels: Any = None,
        *,
        reset: bool = True,
        sample_fingerprint: str | None = None,
    ) -> "LabelBank":
        """The bank of a data set that has grown, shrunk or been put into another order.

        Known samples keep their row and history, unless their label has changed; new ones start
        from their label. Of a shard, all processes call this, and each gets the whole bank: shard
        it by the rows of a new sampler.

            bank = bank.reindexed(old_paths, new_paths, labels=new_labels)

        Args:
            old: [N] a key for each row of the whole bank, a path or an id for instance, each once.
                None if ``new`` are rows.
            new: [M] the keys of the samples now; with ``old=None`` the row that each sample has in
                this bank, -1 for a new one.
            labels: [M] given label of each sample now, in [0, K); None to keep them if no sample is
                new.
            reset: Whether a known sample with another label starts again; False keeps its row.
            sample_fingerprint: Name of the new sample list.

        Returns:
            A bank of M rows, stored as this one.

        Raises:
            UserError: An argument is wrong, or the new bank cannot be allocated.
        """
        num_samples = len(self) if self._shard is None else self._shard.num_samples
        source = source_rows(old, new, num_samples)
        whole = self if self._shard is None else self.gather()
        given = new_labels(labels, source, whole.given_labels, self.num_classes)
        bank = whole._like(len(source), given)
        bank.sample_fingerprint = sample_fingerprint
        changed = given != whole.given_labels[source]
        if reset:
            source[changed] = -1
        bank._start_rows()
        with whole.host_access(), bank.host_access():
            copy_known(bank.rows, whole._chunks(), source)
        if whole.history is not None:
            bank.history = SampleHistory(given, self.device)
            for name, sums in whole.history.tensors().items():
                copy_known(getattr(bank.history, name), [sums], source)
            bank.history.forget(changed)
        return bank

    @property
    def shard_rows(self) -> Tensor | None:
        """Of a shard, the indices of its rows in the whole bank, int64 [n] on the CPU; or None."""
        return None if self._shard is None else self._shard.rows

    def to_local(self, index: Tensor) -> Tensor:
        """The rows of this bank that samples have: `index`, unless the bank is a shard.

        Args:
            index: [B] int64 or int32, position of each sample in the data set; below 0 to ignore
                a row.

        Raises:
            IndexError: A row belongs to another process (on the CPU; on a GPU its result is out of
                range, which `check` reports).
        """
        return index if self._shard is None else self._shard.to_local(index)

    def note_use(self, index: Tensor) -> None:
        """Records which rows are updated, if `check` has to compare them with other processes.

        Args:
            index: [B] int64 or int32, as `to_local` takes it.
        """
        if not self.owned and several_processes():
            self._use.note(index, len(self))

    def _like(self, num_samples: int, given_labels: Tensor) -> "LabelBank":
        """A bank of other samples with the properties of this one; its rows are zero."""
        bank = LabelBank(
            self._new_rows(num_samples),
            given_labels,
            sample_fingerprint=self.sample_fingerprint,
            device=self.device,
            placement=self.placement,
            folder=self._folder,
        )
        if self.rounding_state is not None:
            bank.rounding_state = self.rounding_state.clone()
        bank.one_hot = self.one_hot
        bank.from_given = self.from_given
        bank.given_share, bank._epochs = self.given_share, self._epochs
        return bank

    @contextmanager
    def host_access(self) -> Iterator[None]:
        """For host code that reads or writes all of `rows`: to save, copy or export them.

        Waits for the GPU, which may still be writing pinned rows. A file is read ahead.
        """
        self._wait_for_gpu()
        with read_in_order(self.rows) if self.placement == "file" else nullcontext():
            yield

    def refined_labels(self) -> Tensor:
        """Most probable class of each sample, the lowest on a tie: [N] int64, with the rows.

        The refined label of a row of zeros is the given label.
        """
        size = _chunk_rows(self.num_classes)
        with self.host_access():
            refined = []
            given_labels = torch.split(self.given_labels, size)
            for chunk, given in zip(self._chunks(), given_labels, strict=True):
                highest, labels = chunk.max(-1)
                refined.append(torch.where(highest > 0, labels, given.to(labels.device)))
            return torch.cat(refined)

    def confidence(self) -> Tensor:
        """Probability of the refined label of each sample: [N] float32, with the rows."""
        with self.host_access():
            return torch.cat([chunk.amax(-1).float() for chunk in self._chunks()])

    def class_counts(self) -> Tensor:
        """Number of samples of each refined class: [K] int64, with the rows."""
        return torch.bincount(self.refined_labels(), minlength=self.num_classes)

    def state_dict(self) -> dict[str, Tensor]:
        """The state that a run needs to resume: tensors only, the bank's own and not copies.

        ``rows`` and ``given_labels``; ``rounding_state``, ``sample_fingerprint`` (UTF-8 bytes),
        ``history.*`` and ``shard_rows`` (of a shard) if the bank has them. To save the rows while
        the bank is in use, do so within `host_access`.
        """
        self._wait_for_gpu()
        return self._tensors()

    def _tensors(self) -> dict[str, Tensor]:
        state = {"rows": self.rows, "given_labels": self.given_labels}
        if self.rounding_state is not None:
            state["rounding_state"] = self.rounding_state
        if self.sample_fingerprint is not None:
            state["sample_fingerprint"] = as_bytes(self.sample_fingerprint)
        if self.history is not None:
            state |= {f"{HISTORY}{name}": t for name, t in self.history.tensors().items()}
        if self._shard is not None:
            state["shard_rows"] = self._shard.rows
        return state

    def load_state_dict(
        self, state: dict[str, Tensor], *, allow_other_labels: bool = False
    ) -> None:
        """Restores a saved state; one that does not fit is refused, and nothing changes.

        A history in the state is taken over.

        Args:
            state: Result of `state_dict`.
            allow_other_labels: Accept a state that started from other given labels for the same
                samples (a corrected list, for example). The bank keeps its own `given_labels`.

        Raises:
            KeyError: An entry is missing.
            ValueError: The state is of other samples, of another shape or dtype, or of other
                labels.
        """
        state = fitting_state(self._shard, state)
        recorded = {
            name.removeprefix(HISTORY): tensor
            for name, tensor in state.items()
            if name.startswith(HISTORY)
        }
        check_state(state, self._tensors(), allow_other_labels=allow_other_labels)
        history = self.history
        if recorded:
            history = history or SampleHistory(self.given_labels, self.device)
            history.check(recorded)
        with self.host_access():
            self.rows.copy_(state["rows"])
        if self.rounding_state is not None:
            self.rounding_state.copy_(state["rounding_state"])
        if history is not None and recorded:
            history.load(recorded)
            self.history = history

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: a mapped file or pinned memory is copied into plain memory."""
        if self.placement == "device":
            return self.__dict__.copy()
        with self.host_access():
            return self.__dict__ | {"rows": self.rows.clone()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.status = self.status[:_COUNTERS].clone()  # earlier versions had scratch behind them
        if self.placement != "device":
            rows = self.rows
            self.rows = self._new_rows().copy_(rows)

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Restores rows, counters and history at the end of the block.

        For the warm-up calls before a CUDA graph is captured, which must not count as training.
        """
        live = [self.status]
        if self.rounding_state is not None:
            live.append(self.rounding_state)
        if self.history is not None:
            live += self.history.tensors().values()
        saved = [t.clone() for t in live]
        saved_rows = self._copied_rows()
        try:
            yield
        finally:
            with self.host_access():
                self.rows.copy_(saved_rows)
            for tensor, copy in zip(live, saved, strict=True):
                tensor.copy_(copy)

    def _copied_rows(self) -> Tensor:
        with self.host_access():
            if self.placement != "file":
                return self.rows.clone()
            return self._new_rows().copy_(self.rows)  # they may not fit into memory

    def _new_rows(self, num_samples: int | None = None) -> Tensor:
        """Rows of zeros of the same type in the same place, as many unless said otherwise."""
        return allocate_rows(
            len(self) if num_samples is None else num_samples,
            self.num_classes,
            dtype=self.rows.dtype,
            device=self.device,
            placement=self.placement,
            folder=self._folder,
        )

    def _wait_for_gpu(self) -> None:
        if self.placement == "pinned" and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _chunks(self) -> tuple[Tensor, ...]:
        return torch.split(self.rows, _chunk_rows(self.num_classes))


def _chunk_rows(num_classes: int) -> int:
    return max(1, _CHUNK_ELEMENTS // num_classes)
