"""Base class of the loaders, and the batches that all of them return.

A batch is a dictionary of tensors on the training device:

    image  [B, C, S, S]  augmented and normalised, in the training dtype, channels last; of a split
                         of features the features, float32 [B, D]
    label  int64 [B]     given label
    index  int64 [B]     index in the label bank of this rank, see `alr_fast.data.sampler`

A sample with an unreadable image has label and index -1, which every loss ignores.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alr_fast.data.broken import BrokenSamples
from alr_fast.data.datasets import Split
from alr_fast.data.loaders.transform import Transform
from alr_fast.data.sampler import Sampler

SamplerT = TypeVar("SamplerT", bound=Sampler)


class Loader(ABC, Generic[SamplerT]):
    """Batches of one split: every sample of an epoch exactly once, in the sampler's order.

    Args:
        split: Samples and images.
        sampler: Order, shards and batches.
        transform: Crops, augmentation and normalisation.
        device: Device of the batches.
        dtype: Type of the images.
        workers: Processes or threads that read and decode.
        broken: Collects the samples with unreadable images; None counts them without a limit.
    """

    def __init__(
        self,
        split: Split,
        sampler: SamplerT,
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
        """Chooses the batches of the next pass.

        Args:
            epoch: Number of the epoch, from 0: determines order and augmentation.
            start: First step of the pass, to resume in the middle of an epoch.
        """
        self.epoch = epoch
        self.start = start

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.sampler.steps

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a sample: [C, S, S], or [D] of features."""
        return self.split.input_shape(self.transform.size)

    def zeros(self, samples: int) -> Tensor:
        """Zeros in place of ``samples`` images or rows of features, in the form of a batch."""
        shape = (samples, *self.input_shape)
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        return torch.zeros(shape, dtype=self.dtype).to(self.device, memory_format=layout)

    @abstractmethod
    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The batches of a pass, as a generator: if it is left early, its work stops right away."""

    def _batch(
        self, image: Tensor, index: NDArray[np.int64], broken: dict[int, str]
    ) -> dict[str, Tensor]:
        """The batch of these images, normalised and on the device.

        Indices are int64 [B]; ``broken`` maps positions in the batch to reasons.
        """
        indices = torch.tensor(index)
        label = self._labels[indices]
        for position, reason in broken.items():
            self.broken.report(int(self.sampler.rows[index[position]]), reason)
            indices[position] = label[position] = -1
        return {
            "image": image,
            "label": label.to(self.device, non_blocking=True),
            "index": indices.to(self.device, non_blocking=True),
        }


class Normalise:
    """``(pixel / 255 - mean) / std`` as one multiplication and one addition.

    Args:
        transform: Mean and standard deviation.
        channels: Channels C of the images.
        device: Device of the images.
        dtype: Type of the result.
    """

    def __init__(
        self, transform: Transform, channels: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        mean = torch.tensor(transform.mean, dtype=torch.float32).expand(channels)
        std = torch.tensor(transform.std, dtype=torch.float32).expand(channels)
        # Repeated for a row of pixels: a vector of three values would be slow to broadcast.
        self._scale = (1 / (255 * std)).repeat(transform.size).to(device)
        self._shift = (-mean / std).repeat(transform.size).to(device)
        self._dtype = dtype

    def __call__(self, pixels: Tensor) -> Tensor:
        """Images [B, C, S, S], channels last, of pixels uint8 [B, S, S, C]."""
        rows = pixels.flatten(2).float()
        rows = rows.mul_(self._scale).add_(self._shift).to(self._dtype)
        return rows.view(pixels.shape).permute(0, 3, 1, 2)
