"""Suite "bank" of `benchmarks.scaling`: the cost of a label bank as it grows."""

import shutil
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from alr_fast.utils.machine import available_memory
from alr_fast.utils.text import readable
from benchmarks.harness.averages import percentiles
from benchmarks.harness.environment import environment
from benchmarks.harness.memory import MemoryWatch
from benchmarks.harness.processes import Child
from benchmarks.kernels.problem import dtype_name
from benchmarks.scaling.bank_phases import BATCH, BankRun, Case
from benchmarks.tables.scaling import PHASES, phase_key

_REPEAT_BYTES = 200_000_000  # a larger bank is measured once only
_REPEATS = 3
_LIMIT = 3600  # seconds after which a case is stopped

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
) -> list[dict[str, object]]:
    """One row for each case, measured in its own process.

    Args:
        cases: The banks.
        folder: Folder for the files, on a disk; None for that of temporary files.
        threads: Threads of a process.
        large: Whether to include the large ones.
    """
    facts = environment()
    rows = []
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
            if why := why_not(case, place, large=large):
                row |= {"skipped": why, "wrong": False}
            else:
                child = Child(bank_process, case, place, threads)
                try:
                    row |= child.receive(_LIMIT)
                finally:
                    child.stop()
        rows.append({**row, "environment": facts})
    return rows


def why_not(case: Case, folder: str, *, large: bool) -> str | None:
    """The reason why a case cannot be measured here; None if it can."""
    if case.large and not large:
        return f"needs {readable(case.disk_bytes)} of disk: pass --large"
    free = shutil.disk_usage(folder).free
    if free < case.disk_bytes:
        return f"needs {readable(case.disk_bytes)} of disk, {readable(free)} are free"
    free = available_memory()
    if free < case.memory_bytes:
        return f"needs {readable(case.memory_bytes)} of memory, {readable(free)} are available"
    return None


def bank_process(parent: Connection, case: Case, folder: str, threads: int) -> None:
    """The process of a case: answers with the figures of its row."""
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    try:
        small = Case(BATCH * 2, 3, case.dtype, case.placement, updates=1)
        watch = MemoryWatch()
        with watch:  # imports and initialisation
            BankRun(small, Path(folder), mesh, watch).run()
        repeats = _REPEATS if case.num_bytes <= _REPEAT_BYTES else 1
        watch = MemoryWatch()
        bank = BankRun(case, Path(folder), mesh, watch)
        with watch:
            for _ in range(repeats):
                bank.run()
    finally:
        dist.destroy_process_group()
    row: dict[str, object] = {}
    for phase in PHASES:
        row |= percentiles(bank.times[phase], phase_key(phase))
    peaks = {phase: size / 1e6 for phase, size in watch.peaks.items()}
    row |= {
        **bank.sizes,
        "peak_megabytes": max(peaks.values()),
        "peaks_megabytes": peaks,
        "batch": BATCH,
        "updates": len(bank.times["update"]),
        "rounds": repeats,
    }
    parent.send(row)
