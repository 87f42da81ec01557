"""The environment that is stored with each row of results."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

import torch
from alr_fast._C import build_info

import alr_fast
from alr_fast.utils.machine import processor

_ROOT = Path(__file__).parents[2]


def environment(device: str = "cpu") -> dict[str, object]:
    """What the figures depend on besides the code, and which code it was.

    `commit` is the short commit, with `-dirty` if files differ from it; the variable
    BENCHMARK_COMMIT names it where the tree has been copied without its repository.
    """
    on_gpu = device == "cuda"
    gpu = torch.cuda.get_device_name() if on_gpu else None
    return {
        "alr_fast": alr_fast.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "cpu_isa": build_info()["cpu_isa_in_use"],
        "machine": platform.machine(),
        "device": gpu or "cpu",
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "cpu": processor(),
        "gpu": gpu,
        "driver": _driver() if on_gpu else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "triton": _triton_version() if on_gpu else None,
    }


def _output(*command: str) -> str:
    """What a command prints; empty where it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _commit() -> str:
    if named := os.environ.get("BENCHMARK_COMMIT"):
        return named
    commit = _output("git", "rev-parse", "--short", "HEAD")
    if not commit:
        return "unknown"
    # What benchmarks leave behind is no change of the code.
    left = ("results", "README.md", "*.png")
    excluded = [f":(exclude)benchmarks/{name}" for name in left]
    changed = _output("git", "status", "--porcelain", "--", ".", *excluded)
    return f"{commit}-dirty" if changed else commit


def _driver() -> str:
    shown = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return shown.splitlines()[0] if shown else "unknown"


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__
