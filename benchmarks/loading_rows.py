"""What the rows of the suites "loading" and "index" have in common."""

import contextlib
import importlib.metadata
from collections.abc import Sequence

from benchmarks.harness.environment import environment
from benchmarks.harness.results import fifths


def facts(device: str = "cpu") -> dict[str, object]:
    """The environment, with the versions of what decodes and transforms."""
    versions: dict[str, str | None] = {"torchvision": None, "pillow": None, "dali": None}
    for name in importlib.metadata.packages_distributions().get("nvidia", []):
        if name.startswith("nvidia-dali"):
            versions["dali"] = importlib.metadata.version(name)
    for name in ("torchvision", "pillow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {**environment(device), **versions}


def percentiles(values: Sequence[float], name: str) -> dict[str, float]:
    """The median as ``name``, the 20th and 80th percentile as ``name_p20`` and ``name_p80``."""
    low, middle, high = fifths(values)
    return {name: middle, f"{name}_p20": low, f"{name}_p80": high}
