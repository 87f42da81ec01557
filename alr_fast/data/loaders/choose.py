"""Chooses the loader of a split and builds it."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from alr_fast.data.broken import BrokenSamples
from alr_fast.data.datasets import Split
from alr_fast.data.images.sources import FeatureRows
from alr_fast.data.loaders.base import Loader, SamplerT
from alr_fast.data.loaders.dali import DaliLoader
from alr_fast.data.loaders.features import FeatureLoader
from alr_fast.data.loaders.memory import Decoded, MemoryLoader
from alr_fast.data.loaders.torch import TorchLoader
from alr_fast.data.loaders.transform import Transform
from alr_fast.errors import UserError
from alr_fast.utils.requirements import install_command

LOADERS = ("memory", "dali", "torch")


@dataclass(frozen=True)
class LoaderChoice:
    """The chosen loader.

    Attributes:
        name: One of `LOADERS`.
        why: The reason, for the user.
    """

    name: str
    why: str


def has_dali() -> bool:
    """Whether NVIDIA DALI is installed; does not import it."""
    # Looking for a module in a missing package would raise.
    return all(importlib.util.find_spec(name) is not None for name in ("nvidia", "nvidia.dali"))


def choose_loader(loader: str, split: Split, transform: Transform, cache_mb: int) -> LoaderChoice:
    """Chooses a loader.

    Args:
        loader: One of `LOADERS`, or ``auto``.
        split: Samples and images.
        transform: Crops, augmentation and normalisation.
        cache_mb: Limit for decoded images in memory, in MiB.

    Raises:
        UserError: The named loader cannot load this split, or its library is not installed.
    """
    features = isinstance(split.images, FeatureRows)
    arrays = split.values is not None
    needed_mb = -(-len(split) * 3 * transform.size**2 // 2**20)
    fits = transform.cacheable and needed_mb <= cache_mb
    problem = None
    if arrays and loader in ("dali", "torch"):
        problem = (
            f"the {'features' if features else 'images'} of this data set are arrays in memory, "
            "which only the loader memory supports; pass auto"
        )
    elif loader == "memory" and not (arrays or fits):
        problem = f"needs crop center or pad, no RandAugment, and cache_mb of {needed_mb} or more"
    elif loader == "dali" and not has_dali():
        problem = f"{_no_dali()}, or pass torch"
    if problem is not None:
        raise UserError(problem, argument="loader", value=loader)
    if arrays:
        return LoaderChoice("memory", f"the {'features' if features else 'images'} come as arrays")
    if loader != "auto":
        return LoaderChoice(loader, "asked for")
    if fits:
        size = f"{transform.size} x {transform.size}"
        return LoaderChoice("memory", f"all images at {size} fit into {cache_mb} MiB")
    if has_dali():
        return LoaderChoice("dali", "NVIDIA DALI is installed")
    return LoaderChoice("torch", _no_dali())


def _no_dali() -> str:
    major = "120" if (torch.version.cuda or "").startswith("12.") else "130"
    return f"NVIDIA DALI is not installed: {install_command([f'nvidia-dali-cuda{major}'])}"


def make_loader(
    choice: LoaderChoice,
    split: Split,
    sampler: SamplerT,
    transform: Transform,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    workers: int = 1,
    broken: BrokenSamples | None = None,
    decoded: Decoded | None = None,
) -> Loader[SamplerT]:
    """Builds the chosen loader.

    Args:
        choice: Result of `choose_loader`.
        split, sampler, transform, device, dtype, workers, broken: See `Loader`.
        decoded: For ``memory`` with images in files: result of `decode_all` for the sampler's rows.
    """
    if isinstance(split.images, FeatureRows):
        return FeatureLoader(
            split, sampler, transform, device=device, workers=workers, broken=broken
        )
    loaders: dict[str, Callable[..., Loader[SamplerT]]] = {
        "memory": partial(MemoryLoader, decoded=decoded),
        "dali": DaliLoader,
        "torch": TorchLoader,
    }
    return loaders[choice.name](
        split, sampler, transform, device=device, dtype=dtype, workers=workers, broken=broken
    )
