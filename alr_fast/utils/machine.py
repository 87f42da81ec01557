"""Properties of this machine: memory, cores, processor, versions."""

import math
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes of host memory that this process can still allocate without swapping.

    The available memory according to the kernel, or the rest below the limit of a control group (of
    a container or a batch system) if that is less. If neither is known, all memory of the machine.
    """
    figures = _cgroup_available()
    if available := _entry(_PROC / "meminfo", "MemAvailable", ":"):
        figures.append(int(available.split()[0]) * 1024)
    return min(figures) if figures else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_available() -> list[int]:
    """Memory left below the limit of each control group that contains this process."""
    figures = []
    for group, generation in _groups("memory"):
        prefix = "" if generation == 2 else "total_"
        limit, used = (
            ("memory.max", "memory.current")
            if generation == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        allowed, taken = _lines(group / limit), _lines(group / used)
        if allowed and taken and allowed[0] != "max":
            # The kernel frees inactive pages of files before the limit is reached.
            spare = int(_entry(group / "memory.stat", f"{prefix}inactive_file", " ") or 0)
            figures.append(max(0, int(allowed[0]) - int(taken[0]) + spare))
    return figures


def _groups(controller: str) -> Iterator[tuple[Path, int]]:
    """The control groups of a controller that contain this process, and their version, 1 or 2."""
    for line in _lines(_PROC / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, version = _CGROUPS, 2
        elif controller in controllers.split(","):
            root, version = _CGROUPS / controller, 1
        else:
            continue
        # In a container the path may exist only outside of it: the root is then its own group.
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1):
            yield root.joinpath(*parts[:depth]), version


def _entry(path: Path, name: str, separator: str) -> str | None:
    """The value of the first line with a name; None if the file or the name is missing."""
    for line in _lines(path):
        key, _, value = line.partition(separator)
        if key.strip() == name:
            return value.strip()
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def environment(device: "torch.device", precision: str) -> dict[str, Any]:
    """Versions and device of a run, for ``summary.json``."""
    import torch

    return {
        "alr_fast": version("alr_fast"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "precision": precision,
    }


def processor() -> str:
    """Name of the processor."""
    model = _entry(_PROC / "cpuinfo", "model name", ":")
    return model or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity, or fewer by the quota of a control
    group (of a container or a batch system), rounded up."""
    quotas = [quota for group, version in _groups("cpu") if (quota := _quota(group, version))]
    return min([affine_cores(), *map(math.ceil, quotas)])


def affine_cores() -> int:
    """Cores that the threads of this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(group: Path, version: int) -> float | None:
    """Seconds of processor time per second that a control group may use; None for any number."""
    if version == 2:
        limit, _, period = "".join(_lines(group / "cpu.max")[:1]).partition(" ")
    else:
        limit = "".join(_lines(group / "cpu.cfs_quota_us")[:1])
        period = "".join(_lines(group / "cpu.cfs_period_us")[:1])
    try:
        quota = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):  # missing, or "max"
        return None
    return quota if quota > 0 else None  # -1: any number
