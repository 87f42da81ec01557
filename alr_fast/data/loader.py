"""What every loader gives, and which one is taken.

A batch is a dictionary of tensors on the training device:

    image  [B, C, S, S]  augmented and normalised, in the training dtype, channels last
    label  int64 [B]     given label
    index  int64 [B]     position among the rows this rank owns: the row in its label bank

A sample whose file gave no image has label and index -1, which every loss ignores.
"""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alr_fast.data.broken import BrokenSamples
from alr_fast.data.datasets import Split
from alr_fast.data.images import ArrayImages
from alr_fast.data.sampler import Sampler
from alr_fast.data.transform import Transform
from alr_fast.errors import UserError

LOADERS = ("memory", "dali", "torch")


class Loader(ABC):
    """Batches of one split: every sample of an epoch exactly once, in the sampler's order.

    Args:
        split: Samples and images.
        sampler: Order, shards and batches.
        transform: What is done to the pixels.
        device: Where batches are wanted.
        dtype: Type of the images.
        workers: Processes or threads that read and decode.
        broken: Takes the samples that give no image; None counts them without a limit.
    """

    def __init__(
        self,
        split: Split,
        sampler: Sampler,
        transform: Transform,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        workers: int = 1,
        broken: BrokenSamples | None = None,
    ) -> None:
        self.split = split
        self.sampler = sampler
        self.transform = transform
        self.device = device
        self.dtype = dtype
        self.workers = workers
        self.broken = BrokenSamples(split, 1.0) if broken is None else broken
        self.epoch = 0
        self.start = 0
        self._labels = torch.from_numpy(np.array(split.index.labels[sampler.rows]))

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Chooses what the next pass gives.

        Args:
            epoch: Number of the epoch, from 0: decides about order and augmentation.
            start: First step of the pass, to go on in the middle of an epoch.
        """
        self.epoch = epoch
        self.start = start

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.sampler.steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        # A generator by itself: an iteration that is left early ends its work right away.
        yield from self._batches(self.epoch, self.start)

    @abstractmethod
    def _batches(self, epoch: int, start: int) -> Iterator[dict[str, Tensor]]:
        """The batches of an epoch from step ``start`` on."""

    def _batch(
        self, image: Tensor, positions: NDArray[np.int64], broken: dict[int, str]
    ) -> dict[str, Tensor]:
        """The batch of these images.

        Args:
            image: Normalised, [B, C, S, S], on the device.
            positions: Positions of the samples among this rank's rows.
            broken: Place in the batch -> reason, for those that gave no image.
        """
        index = torch.tensor(positions)
        label = self._labels[index]
        if broken:
            places = list(broken)
            for place, reason in broken.items():
                self.broken.report(int(self.sampler.rows[positions[place]]), reason)
            index[places] = label[places] = -1
        return {
            "image": image,
            "label": label.to(self.device, non_blocking=True),
            "index": index.to(self.device, non_blocking=True),
        }


class Normalise:
    """``(pixel / 255 - mean) / std`` as one multiplication and one addition.

    Args:
        transform: Mean and standard deviation.
        channels: Channels C of the images.
        device: Where the images are.
        dtype: Type of the result.
    """

    def __init__(
        self, transform: Transform, channels: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        mean = torch.tensor(transform.mean, dtype=torch.float32).expand(channels)
        std = torch.tensor(transform.std, dtype=torch.float32).expand(channels)
        # For a row of pixels: a vector of three would be slow to broadcast.
        self._scale = (1 / (255 * std)).repeat(transform.size).to(device)
        self._shift = (-mean / std).repeat(transform.size).to(device)
        self._dtype = dtype

    def __call__(self, pixels: Tensor) -> Tensor:
        """Images [B, C, S, S], channels last, of pixels uint8 [B, S, S, C]."""
        rows = pixels.flatten(2).float()
        rows = rows.mul_(self._scale).add_(self._shift).to(self._dtype)
        return rows.view(pixels.shape).permute(0, 3, 1, 2)


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
        decoded: For ``memory`` and images in files, what `alr_fast.data.memory.decode_all` gave.
        options: Options of `Loader`.
    """
    if choice.name == "dali":
        from alr_fast.data.dali import DaliLoader

        return DaliLoader(split, *args, **options)
    if choice.name == "torch":
        from alr_fast.data.torch import TorchLoader

        return TorchLoader(split, *args, **options)
    from alr_fast.data.memory import MemoryLoader

    return MemoryLoader(split, *args, decoded=decoded, **options)


def for_evaluation(transform: Transform) -> Transform:
    """The same square of every image: its middle, as it is."""
    return replace(transform, crop="center", padding=0, flip=False, randaugment=None)
