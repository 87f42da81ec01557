"""The environment that is stored with each row of results."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

import alr_fast
from alr_fast._installed import build_facts
from alr_fast._loading import LOADED
from alr_fast.utils.machine import processor

_ROOT = Path(__file__).parents[2]


def environment(device: str = "cpu") -> dict[str, object]:
    """The machine, the versions and the commit that results depend on.

    `commit` is the short commit, with `-dirty` if files differ from it. The variable
    BENCHMARK_COMMIT overrides it, for a tree that was copied without its repository.
    """
    on_gpu = device == "cuda"
    gpu = torch.cuda.get_device_name() if on_gpu else None
    return {
        "alr_fast": alr_fast.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "cpu_isa": _instruction_set(),
        "autograd_node": _autograd_node(),
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


def _autograd_node() -> str:
    return "C++" if LOADED.node is None else "Python"


def _instruction_set() -> str:
    """That of the CPU kernels in use."""
    facts = build_facts() if LOADED.native is None else None
    return "plain PyTorch" if facts is None else str(facts["cpu_isa_in_use"])


def loading_environment(device: str = "cpu") -> dict[str, object]:
    """`environment` with the versions of the libraries that decode and transform images."""
    versions: dict[str, str | None] = {"torchvision": None, "pillow": None, "dali": None}
    for name in importlib.metadata.packages_distributions().get("nvidia", []):
        if name.startswith("nvidia-dali"):
            versions["dali"] = importlib.metadata.version(name)
    for name in ("torchvision", "pillow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {**environment(device), **versions}


def _output(*command: str) -> str:
    """Standard output of a command; empty if it is missing or fails."""
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
    # Output of earlier benchmarks does not change the code.
    excluded = [f":(exclude)benchmarks/{name}" for name in ("results", "README.md", "*.png")]
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
