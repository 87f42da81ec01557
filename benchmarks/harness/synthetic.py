"""Training without a data set: batches in memory, and a configuration for the trainer."""

import torch
from torch import Tensor

from alr_fast.data.sampler import ShuffledSampler
from alr_fast.training.config.schema import Config, OptimConfig

_IMAGES = 4  # batches of images in rotation
_INDICES = 256  # batches of samples in rotation, so that many rows of a bank are used


class Batches:
    """Replaces a loader of `alr_fast.data`: random pixels, labels and distinct samples.

    Args:
        samples: Samples of all processes, N.
        batch: Samples in a batch of this process.
        classes: Number of classes K.
        shape: Channels and side of the images.
        device: Device of the batches.
        dtype: Type of the images.
        rank: Number of this process.
        world_size: Number of processes.

    Attributes:
        sampler: Sampler that determines the samples of this process.
        labels: int64 [n], their given labels, on the CPU.
    """

    def __init__(
        self,
        *,
        samples: int,
        batch: int,
        classes: int,
        shape: tuple[int, int],
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.sampler = ShuffledSampler(samples, batch, rank=rank, world_size=world_size)
        own = len(self.sampler.rows)
        if batch > own:
            raise ValueError(f"a batch of {batch} of {own} samples: pass more samples")
        random = torch.Generator().manual_seed(rank)
        self.labels = torch.randint(0, classes, (own,), generator=random)
        channels, side = shape
        self._images = [
            torch.randn(batch, channels, side, side, generator=random)
            .to(device, dtype)
            .contiguous(memory_format=torch.channels_last)
            for _ in range(_IMAGES)
        ]
        count = min(own // batch, _INDICES)
        index = torch.randperm(own, generator=random)[: count * batch].view(count, batch)
        self._samples = [(some.to(device), self.labels[some].to(device)) for some in index]

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self.sampler.steps

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Does nothing: all epochs are the same."""

    def batch(self, number: int) -> dict[str, Tensor]:
        """A batch as described in `alr_fast.data.loaders.base`; a few batches repeat."""
        index, label = self._samples[number % len(self._samples)]
        return {"image": self._images[number % _IMAGES], "label": label, "index": index}


def training_config(batch: int, precision: str = "float32") -> Config:
    """SGD as in the recipes; the learning rate is low, as the labels are random."""
    optim = OptimConfig(batch_size=batch, epochs=1, lr=1e-3, schedule="constant")
    return Config(precision=precision, optim=optim)
