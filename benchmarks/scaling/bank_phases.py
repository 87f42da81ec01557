"""The phases of a label bank from its creation to its export, timed and checked."""

import ctypes
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from alr_fast import reference
from alr_fast.bank import LabelBank
from alr_fast.bank.file import BankFileWriter
from alr_fast.bank.history import SampleHistory
from alr_fast.data.datasets import Split
from alr_fast.data.images.sources import FileImages
from alr_fast.data.index import PathTable, SampleIndex
from alr_fast.data.sampler import ShuffledSampler
from alr_fast.labels.table import export
from alr_fast.losses import ALRLoss
from alr_fast.training.checkpoint.manifest import check_files, newest_checkpoint
from alr_fast.training.checkpoint.shards import shard
from alr_fast.training.checkpoint.store import CheckpointStore, load
from alr_fast.training.distributed import World
from alr_fast.training.open_run import from_bank_file
from alr_fast.training.samples import sample_columns, sample_facts
from benchmarks.harness.compare import check_step
from benchmarks.harness.memory import MemoryWatch
from benchmarks.tables.scaling import PHASES

BATCH = 256

_OPTIONS = {"momentum": 0.9, "entropy_weight": 0.1}
_SAMPLED = 512  # rows that are compared
_BLOCK_BYTES = 32 << 20
_SPARE = 64_000_000  # bytes in addition to the rows, in memory and on the disk


@dataclass(frozen=True)
class Case:
    """A bank."""

    samples: int  # N
    classes: int  # K
    dtype: torch.dtype = torch.float32  # of the rows
    placement: str = "device"  # or "file"
    large: bool = False  # whether it is measured on request only
    updates: int = 200  # steps that are timed

    @property
    def num_bytes(self) -> int:
        """Size of the rows."""
        return self.samples * self.classes * self.dtype.itemsize

    @property
    def disk_bytes(self) -> int:
        """Free disk space that is needed: for the file of the bank, and one copy at a time."""
        return self.num_bytes * (2 if self.placement == "file" else 1) + _SPARE

    @property
    def memory_bytes(self) -> int:
        """Free memory that is needed."""
        return (self.num_bytes if self.placement == "device" else 0) + 4 * _SPARE


class BankRun:
    """The phases of a bank.

    Args:
        case: The bank.
        folder: Folder for its files.
        mesh: Mesh of a process group of this one process.
        watch: Records the peak memory of the phases.

    Attributes:
        times: Seconds of each phase in each round, and milliseconds of each update.
        sizes: Bytes of the checkpoint and of the exported files.
    """

    def __init__(self, case: Case, folder: Path, mesh: DeviceMesh, watch: MemoryWatch) -> None:
        self._case, self._folder, self._mesh, self._watch = case, folder, mesh, watch
        self.times: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self.sizes: dict[str, int] = {}
        random = torch.Generator().manual_seed(0)
        self._labels = torch.randint(0, case.classes, (case.samples,), generator=random)
        self._logits = [3 * torch.randn(BATCH, case.classes, generator=random) for _ in range(8)]
        order = torch.randperm(case.samples, generator=random)
        self._indices = order[: case.samples // BATCH * BATCH].view(-1, BATCH)
        self._sampled = order[-_SAMPLED:]
        self._split = _split_of(self._labels, case.classes)
        # As in training: the rows are in the order of the sampler, the file in that of the ids.
        self._positions = torch.from_numpy(ShuffledSampler(case.samples, BATCH).rows)

    def run(self) -> None:
        """Runs all phases once and checks their results.

        Raises:
            AssertionError: The result of a phase is wrong.
        """
        with self._timed("make"):
            bank = LabelBank.from_labels(
                self._labels,
                self._case.classes,
                dtype=self._case.dtype,
                placement=self._case.placement,
                folder=self._folder,
            )
        self._update(bank)
        with self._timed("summarise"):
            labels = bank.refined_labels()
        some = bank.rows[self._sampled]
        assert torch.equal(labels[self._sampled], some.argmax(1)), "refined_labels"
        self._checkpoint(bank, some)
        self._export(bank, some)
        self._write(bank)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        with self._watch.phase(phase):
            begin = time.perf_counter()
            yield
            self.times[phase].append(time.perf_counter() - begin)

    def _update(self, bank: LabelBank) -> None:
        criterion = ALRLoss(bank, warmup_epochs=0, reduction="sum", unique_index=True, **_OPTIONS)
        self._check_update(criterion)
        with self._watch.phase("update"):
            for number in range(self._case.updates):
                index = self._indices[(number + 1) % len(self._indices)]
                labels = self._labels[index]
                begin = time.perf_counter()
                criterion.loss_and_grad(self._logits[number % 8], labels, index)
                self.times["update"].append((time.perf_counter() - begin) * 1e3)

    def _check_update(self, criterion: ALRLoss) -> None:
        index, logits, rows = self._indices[0], self._logits[0], criterion.bank.rows
        expected_rows = rows[index].double()
        found = criterion.loss_and_grad(logits, self._labels[index], index)
        expected = reference.alr_loss_and_grad(
            logits.double(), expected_rows, torch.arange(BATCH), reduction="sum", **_OPTIONS
        )
        check_step("update", (*found, rows[index]), (*expected, expected_rows))

    def _checkpoint(self, bank: LabelBank, some: Tensor) -> None:
        messages: list[str] = []
        folder = self._folder / "checkpoints"
        store = CheckpointStore(folder, keep=1, log=messages.append)
        total = self._case.samples
        tensors = {
            "bank.rows": shard(bank.rows, 0, total, self._mesh),
            "bank.ids": shard(self._positions, 0, total, self._mesh),
        }
        with self._timed("save"), bank.host_access():
            store.save(1, tensors, {"step": 1}, wait=True)
        store.close()
        assert store.written == 1, messages
        checkpoint = newest_checkpoint(folder)
        self.sizes["checkpoint_bytes"] = _folder_bytes(checkpoint.path)
        bank.rows[self._sampled] = -1
        with self._timed("check"):
            check_files(checkpoint)
        with self._timed("load"), bank.host_access():
            load(checkpoint, {"bank.rows": tensors["bank.rows"]})
        assert torch.equal(bank.rows[self._sampled], some), "the checkpoint has other rows"
        shutil.rmtree(folder)

    def _export(self, bank: LabelBank, some: Tensor) -> None:
        from safetensors import safe_open

        case, path = self._case, self._folder / "bank.safetensors"
        world = World(0, 1, 1, torch.device("cpu"))
        with self._timed("export"):
            writer = BankFileWriter(
                path,
                num_samples=case.samples,
                num_classes=case.classes,
                dtype=case.dtype,
                tensors={
                    **SampleHistory(self._labels, world.device).means(),
                    **sample_columns(self._split.index),
                },
                metadata=sample_facts(self._split),
            )
            with bank.host_access(), writer:
                for positions, rows in world.collect_rows(self._positions, bank.rows):
                    writer.write(positions, rows)
        self.sizes["export_bytes"] = path.stat().st_size
        with safe_open(path, "pt") as file:
            rows = file.get_slice("rows")
            for number in range(0, len(some), 16):
                position = int(self._positions[self._sampled[number]])
                assert torch.equal(rows[position : position + 1][0], some[number]), "export"
        self._table(path)
        path.unlink()

    def _table(self, path: Path) -> None:
        import pyarrow
        from pyarrow.parquet import ParquetFile

        table = path.with_name("labels.parquet")
        with self._timed("table"):
            export(from_bank_file(path, "alr"), table)
        self.sizes["table_bytes"] = table.stat().st_size
        given = ParquetFile(table).read(["given_label"]).column(0).to_numpy()
        assert (given == self._labels.numpy()).all(), "table"
        table.unlink()
        # Otherwise memory in these pools would count for the phases of the next round.
        pyarrow.default_memory_pool().release_unused()
        ctypes.CDLL(None).malloc_trim(0)

    def _write(self, bank: LabelBank) -> None:
        step = max(_BLOCK_BYTES // bank.rows[:1].nbytes, 1)
        path = self._folder / "plain"
        with self._timed("write"), bank.host_access(), open(path, "wb", buffering=0) as file:
            for block in bank.rows.split(step):
                left = memoryview(block.view(torch.uint8).numpy()).cast("B")
                while left:
                    left = left[file.write(left) :]
            os.fsync(file.fileno())
        path.unlink()


def _split_of(labels: Tensor, num_classes: int) -> Split:
    """Samples with these labels and a path each, without images."""
    paths = PathTable.of(f"images/{number:07d}.jpg" for number in range(len(labels)))
    index = SampleIndex(
        sample_ids=np.arange(len(labels)),
        paths=paths,
        labels=labels.numpy(),
        clean_labels=None,
        class_names=tuple(f"class {k}" for k in range(num_classes)),
    )
    return Split(index, FileImages(Path(), paths))


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
