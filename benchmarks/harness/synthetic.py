"""Training without a data set: batches that are in memory already, and the options of a trainer."""

import torch
from torch import Tensor

from alr_fast.data.sampler import ShuffledSampler
from alr_fast.training.config.schema import Config, OptimConfig

_IMAGES = 4  # batches of images in rotation
_INDICES = 256  # and of samples, so that many rows of a bank have their turn


class Batches:
    """Stands in for a loader of `alr_fast.data`: random pixels, labels and distinct samples.

    Args:
        samples: Samples of all processes, N.
        batch: Samples in a batch of this process.
        classes: Number of classes K.
        shape: Channels and side of the images.
        device: Where the batches are.
        dtype: Of the images.
        rank: Number of this process.
        world_size: Number of processes.

    Attributes:
        sampler: Which samples belong to this process.
        labels: int64 [n], the given label of each of them, on the CPU.
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
        """Does nothing: all epochs are alike."""

    def batch(self, number: int) -> dict[str, Tensor]:
        """A batch as `alr_fast.data.loaders.base` describes it; they come again and again."""
        index, label = self._samples[number % len(self._samples)]
        return {"image": self._images[number % _IMAGES], "label": label, "index": index}


def training_config(batch: int, precision: str = "float32") -> Config:
    """SGD as in the recipes, at a rate at which random labels leave the weights tame."""
    optim = OptimConfig(batch_size=batch, epochs=1, lr=1e-3, schedule="constant")
    return Config(precision=precision, optim=optim)
