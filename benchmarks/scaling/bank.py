"""Suite "bank" of `benchmarks.scaling`: what a label bank costs as it grows."""

import ctypes
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from alr_fast import reference
from alr_fast.bank import LabelBank
from alr_fast.bank.file import BankFileWriter
from alr_fast.bank.history import SampleHistory
from alr_fast.data.datasets import Split
from alr_fast.data.images import FileImages
from alr_fast.data.index import PathTable, SampleIndex
from alr_fast.data.sampler import ShuffledSampler
from alr_fast.labels.table import export
from alr_fast.losses import ALRLoss
from alr_fast.training.checkpoint.manifest import check_files, newest_checkpoint
from alr_fast.training.checkpoint.shards import shard
from alr_fast.training.checkpoint.store import CheckpointStore, load
from alr_fast.training.distributed import World
from alr_fast.training.open_run import from_bank_file
from alr_fast.utils.machine import available_memory
from alr_fast.utils.text import readable
from benchmarks.harness.environment import environment
from benchmarks.harness.processes import Answers, Child
from benchmarks.kernels.problem import dtype_name
from benchmarks.loading_rows import percentiles
from benchmarks.tables.training import PHASES

BATCH = 256

_OPTIONS = {"momentum": 0.9, "entropy_weight": 0.1}
_REPEAT_BYTES = 200_000_000  # a larger bank goes through once
_REPEATS = 3
_WATCH_SECONDS = 0.005
_SAMPLED = 512  # rows that are compared
_LIMIT = 3600  # seconds until a case is stopped
_BLOCK_BYTES = 32 << 20
_SPARE = 64_000_000  # bytes beside the rows, in memory and on the disk


@dataclass(frozen=True)
class Case:
    """A bank.

    Attributes:
        samples: N.
        classes: K.
        dtype: Of the rows.
        placement: ``device`` or ``file``.
        large: Whether it is measured only where asked for.
        updates: Steps that are timed.
    """

    samples: int
    classes: int
    dtype: torch.dtype = torch.float32
    placement: str = "device"
    large: bool = False
    updates: int = 200

    @property
    def num_bytes(self) -> int:
        """Of the rows."""
        return self.samples * self.classes * self.dtype.itemsize

    @property
    def disk_bytes(self) -> int:
        """What has to be free: the bank's own file, and one copy at a time."""
        return self.num_bytes * (2 if self.placement == "file" else 1) + _SPARE

    @property
    def memory_bytes(self) -> int:
        """What has to be free."""
        return (self.num_bytes if self.placement == "device" else 0) + 4 * _SPARE


_SHAPES = ((50_000, 10), (50_000, 100), (1_000_000, 14), (200_000, 1000))
CASES = (
    *(Case(*shape, placement=where) for shape in _SHAPES for where in ("device", "file")),
    *(Case(*_SHAPES[-1], torch.bfloat16, placement=where) for where in ("device", "file")),
    Case(2_400_000, 1000, placement="file", large=True),
)
TINY_CASES = (
    Case(600, 5, updates=3),
    Case(600, 5, torch.bfloat16, "file", updates=3),
    Case(700, 5, placement="file", large=True, updates=3),
)


def measure_bank(
    cases: Sequence[Case], folder: Path | None, threads: int, *, large: bool
) -> Iterator[dict[str, object]]:
    """Measures each case in a process of its own.

    Args:
        cases: The banks.
        folder: Where files are made, on a disk; None for that of temporary files.
        threads: Of a process.
        large: Whether the large ones are measured, too.

    Yields:
        A row for each case, when it is done.
    """
    facts = environment("cpu")
    for case in cases:
        row: dict[str, object] = {
            "suite": "bank",
            "samples": case.samples,
            "classes": case.classes,
            "dtype": dtype_name(case.dtype),
            "placement": case.placement,
            "bytes": case.num_bytes,
        }
        with tempfile.TemporaryDirectory(prefix="alr_fast_", dir=folder) as place:
            why = _why_not(case, place, large=large)
            if why is None:
                row |= _in_a_process(case, place, threads)
            else:
                row |= {"skipped": why, "wrong": False}
        yield {**row, "environment": facts}


def _why_not(case: Case, folder: str, *, large: bool) -> str | None:
    if case.large and not large:
        return f"needs {readable(case.disk_bytes)} of disk: pass --large"
    free = shutil.disk_usage(folder).free
    if free < case.disk_bytes:
        return f"needs {readable(case.disk_bytes)} of disk, {readable(free)} are free"
    free = available_memory()
    if free < case.memory_bytes:
        return f"needs {readable(case.memory_bytes)} of memory, {readable(free)} are available"
    return None


def _in_a_process(case: Case, folder: str, threads: int) -> dict[str, object]:
    child = Child(bank_process, case, folder, threads)
    try:
        return child.receive(_LIMIT)
    finally:
        child.stop()


def bank_process(answers: Answers, case: Case, folder: str, threads: int) -> None:
    """What the process of a case does: answers with the figures of its row."""
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    try:
        small = Case(BATCH * 2, 3, case.dtype, case.placement, updates=1)
        with _Watch() as watch:  # what is imported and set up once
            _Run(small, Path(folder), mesh).whole(watch)
        run = _Run(case, Path(folder), mesh)
        repeats = _REPEATS if case.num_bytes <= _REPEAT_BYTES else 1
        with _Watch() as watch:
            for _ in range(repeats):
                run.whole(watch)
    finally:
        dist.destroy_process_group()
    row: dict[str, object] = {}
    for phase in PHASES:
        name = "update_ms" if phase == "update" else f"{phase}_seconds"
        row |= percentiles(run.times[phase], name)
    peaks = {phase: size / 1e6 for phase, size in watch.peaks.items()}
    row |= {
        **run.sizes,
        "peak_megabytes": max(peaks.values()),
        "peaks_megabytes": peaks,
        "batch": BATCH,
        "updates": len(run.times["update"]),
        "rounds": repeats,
    }
    answers.send(row)


class _Watch:
    """How far the anonymous memory rises in each phase above what it was in the beginning.

    Mapped files are not in it: their pages are the kernel's, which takes them back when it needs
    them.

    Attributes:
        peaks: Bytes, by phase.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._start = _anonymous()
        self._phase: str | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._done.set()
        self._thread.join()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Notes down the memory of a block under a name."""
        self._phase = name
        self._look()
        try:
            yield
        finally:
            self._look()
            self._phase = None

    def _watch(self) -> None:
        while not self._done.wait(_WATCH_SECONDS):
            self._look()

    def _look(self) -> None:
        phase = self._phase
        if phase is not None:
            self.peaks[phase] = max(self.peaks.get(phase, 0), _anonymous() - self._start)


def _anonymous() -> int:
    """Bytes of memory of this process that no file stands for."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/self/status has no RssAnon: Linux is needed")


class _Run:
    """The life of a bank, from its making to its export.

    Attributes:
        times: Seconds of each phase in each round, and milliseconds of each update.
        sizes: Bytes of the checkpoint and of the exported file.
    """

    def __init__(self, case: Case, folder: Path, mesh: DeviceMesh) -> None:
        self._case, self._folder, self._mesh = case, folder, mesh
        self.times: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self.sizes: dict[str, int] = {}
        random = torch.Generator().manual_seed(0)
        self._labels = torch.randint(0, case.classes, (case.samples,), generator=random)
        self._logits = [3 * torch.randn(BATCH, case.classes, generator=random) for _ in range(8)]
        order = torch.randperm(case.samples, generator=random)
        self._indices = order[: case.samples // BATCH * BATCH].view(-1, BATCH)
        self._sampled = order[-_SAMPLED:]
        self._split = _split_of(self._labels, case.classes)
        # As in training: the rows lie in the order of the sampler, the file has that of the ids.
        self._positions = torch.from_numpy(ShuffledSampler(case.samples, BATCH).rows)

    def whole(self, watch: _Watch) -> None:
        """All phases once, each with a look at what it did.

        Args:
            watch: Notes down their memory.

        Raises:
            AssertionError: A phase is wrong.
        """
        self._watch = watch
        bank = self._timed("make", self._make)
        self._update(bank)
        labels = self._timed("summarise", bank.refined_labels)
        some = bank.rows[self._sampled]
        assert torch.equal(labels[self._sampled], some.argmax(1)), "refined_labels"
        self._checkpoint(bank, some)
        self._export(bank, some)
        self._timed("write", lambda: self._write(bank))
        (self._folder / "plain").unlink()

    def _timed(self, phase: str, action: Callable):
        with self._watch.phase(phase):
            begin = time.perf_counter()
            result = action()
            self.times[phase].append(time.perf_counter() - begin)
        return result

    def _make(self) -> LabelBank:
        case = self._case
        return LabelBank.from_labels(
            self._labels,
            case.classes,
            dtype=case.dtype,
            placement=case.placement,
            folder=self._folder,
        )

    def _update(self, bank: LabelBank) -> None:
        criterion = ALRLoss(bank, warmup_epochs=0, reduction="sum", unique_index=True, **_OPTIONS)
        labels = self._labels[:BATCH]  # not looked at when refining
        self._check_update(criterion, labels)
        with self._watch.phase("update"):
            for number in range(self._case.updates):
                index = self._indices[(number + 1) % len(self._indices)]
                begin = time.perf_counter()
                criterion.loss_and_grad(self._logits[number % 8], labels, index)
                self.times["update"].append((time.perf_counter() - begin) * 1e3)

    def _check_update(self, criterion: ALRLoss, labels: Tensor) -> None:
        index, logits, rows = self._indices[0], self._logits[0], criterion.bank.rows
        expected_rows = rows[index].double()
        found = criterion.loss_and_grad(logits, labels, index)
        expected = reference.alr_loss_and_grad(
            logits.double(), expected_rows, torch.arange(BATCH), reduction="sum", **_OPTIONS
        )
        pairs = zip((*found, rows[index]), (*expected, expected_rows), strict=True)
        for name, (a, b) in zip(("loss", "gradient", "bank"), pairs, strict=True):
            bound = 1e-2 if a.dtype.itemsize == 2 else 2e-5
            error = float((a.double() - b).norm() / b.norm())
            assert error <= bound, f"update: {name} is off by {error:.1e} of its norm"

    def _checkpoint(self, bank: LabelBank, some: Tensor) -> None:
        said: list[str] = []
        folder = self._folder / "checkpoints"
        store = CheckpointStore(folder, keep=1, log=said.append)
        total = self._case.samples
        tensors = {
            "bank.rows": shard(bank.rows, 0, total, self._mesh),
            "bank.ids": shard(self._positions, 0, total, self._mesh),
        }

        def save() -> None:
            with bank.host_access():
                store.save(1, tensors, {"step": 1}, wait=True)

        self._timed("save", save)
        store.close()
        assert store.written == 1, said
        checkpoint = newest_checkpoint(folder)
        self.sizes["checkpoint_bytes"] = _folder_bytes(checkpoint.path)
        bank.rows[self._sampled] = -1
        self._timed("check", lambda: check_files(checkpoint))

        def read() -> None:
            with bank.host_access():
                load(checkpoint, {"bank.rows": tensors["bank.rows"]})

        self._timed("load", read)
        assert torch.equal(bank.rows[self._sampled], some), "the checkpoint gives other rows"
        shutil.rmtree(folder)

    def _export(self, bank: LabelBank, some: Tensor) -> None:
        from safetensors import safe_open

        case, path = self._case, self._folder / "bank.safetensors"
        world = World(0, 1, 1, torch.device("cpu"))

        def write() -> None:
            writer = BankFileWriter(
                path,
                num_samples=case.samples,
                num_classes=case.classes,
                dtype=case.dtype,
                tensors={
                    "given_labels": self._labels,
                    "ids": torch.arange(case.samples),
                    **SampleHistory(self._labels, torch.device("cpu")).means(),
                },
                metadata={
                    "class_names": json.dumps(self._split.index.class_names),
                    "sample_fingerprint": self._split.index.sample_fingerprint(),
                },
            )
            with bank.host_access(), writer:
                for positions, rows in world.collect_rows(self._positions, bank.rows):
                    writer.write(positions, rows)

        self._timed("export", write)
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
        self._timed("table", lambda: export(from_bank_file(path, "alr", self._split), table))
        self.sizes["table_bytes"] = table.stat().st_size
        given = ParquetFile(table).read(["given_label"]).column(0).to_numpy()
        assert (given == self._labels.numpy()).all(), "table"
        table.unlink()
        # What it keeps for later would count for the phases of the next round.
        pyarrow.default_memory_pool().release_unused()
        ctypes.CDLL(None).malloc_trim(0)

    def _write(self, bank: LabelBank) -> None:
        step = max(_BLOCK_BYTES // bank.rows[:1].nbytes, 1)
        with bank.host_access(), open(self._folder / "plain", "wb", buffering=0) as file:
            for block in bank.rows.split(step):
                left = memoryview(block.view(torch.uint8).numpy()).cast("B")
                while left:
                    left = left[file.write(left) :]
            os.fsync(file.fileno())


def _split_of(labels: Tensor, num_classes: int) -> Split:
    """Samples with these labels, and a path each; there are no images."""
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
