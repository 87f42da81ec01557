"""Which loader turns a split into batches, and how it is made."""

import importlib.util
from dataclasses import dataclass

from alr_fast.data.datasets import Split
from alr_fast.data.images import ArrayImages
from alr_fast.data.loaders.base import Loader
from alr_fast.data.transform import Transform
from alr_fast.errors import UserError

LOADERS = ("memory", "dali", "torch")


@dataclass(frozen=True)
class Choice:
    """Which loader is taken.

    Attributes:
        name: One of `LOADERS`.
        why: The reason, for the user.
    """

    name: str
    why: str


def has_dali() -> bool:
    """Whether NVIDIA DALI is installed; does not import it."""
    # Looking for a module in a package that is missing would raise.
    return all(importlib.util.find_spec(name) is not None for name in ("nvidia", "nvidia.dali"))


def choose_loader(name: str, split: Split, transform: Transform, cache_mb: int) -> Choice:
    """Decides between the loaders.

    Args:
        name: One of `LOADERS`, or ``auto``.
        split: What is loaded.
        transform: What is done to the pixels.
        cache_mb: Limit for decoded images in memory, in MiB.

    Raises:
        UserError: The named loader cannot load this, or its library is not installed.
    """
    needed = len(split) * 3 * transform.size**2
    fits = needed <= cache_mb << 20
    with_dali = has_dali()
    if isinstance(split.images, ArrayImages):
        if name not in ("auto", "memory"):
            raise UserError(
                f"--data.loader {name}: the images of this data set are arrays in memory, which "
                "only the loader memory takes; leave --data.loader out"
            )
        return Choice("memory", "the images come as arrays")
    whole = transform.crop in ("center", "pad") and transform.randaugment is None
    if name == "memory" and not (whole and fits):
        raise UserError(
            f"--data.loader memory: needs --data.crop center or pad, no RandAugment, and "
            f"--data.cache_mb of {-(-needed // 2**20)} or more"
        )
    if name == "dali" and not with_dali:
        raise UserError(
            "--data.loader dali: NVIDIA DALI is not installed; pip install 'alr_fast[dali]', or "
            "pass --data.loader torch"
        )
    if name != "auto":
        return Choice(name, "asked for")
    if whole and fits:
        return Choice(
            "memory",
            f"all images at {transform.size} x {transform.size} fit into {cache_mb} MiB",
        )
    if with_dali:
        return Choice("dali", "NVIDIA DALI is installed")
    return Choice("torch", "NVIDIA DALI is not installed: pip install 'alr_fast[dali]'")


def make_loader(choice: Choice, split: Split, *args, decoded=None, **options) -> Loader:
    """The loader of a choice; the other arguments are those of `Loader`.

    Args:
        choice: What `choose_loader` gave.
        split: Samples and images.
        args: Sampler and transform.
        decoded: For ``memory`` and images in files, what `alr_fast.data.loaders.memory.decode_all` gave.
        options: Options of `Loader`.
    """
    if choice.name == "dali":
        from alr_fast.data.loaders.dali import DaliLoader

        return DaliLoader(split, *args, **options)
    if choice.name == "torch":
        from alr_fast.data.loaders.torch import TorchLoader

        return TorchLoader(split, *args, **options)
    from alr_fast.data.loaders.memory import MemoryLoader

    return MemoryLoader(split, *args, decoded=decoded, **options)
