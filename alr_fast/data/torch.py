"""The loader in plain PyTorch.

Every loader yields batches that are dictionaries of tensors on the training device:

    image  float32 [B, C, S, S]  augmented (training) and normalised
    label  int64 [B]             given label
    index  int64 [B]             row of the sample, in the bank and in the sample index
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alr_fast.data.images import Images
from alr_fast.errors import UserError


class TorchLoader:
    """Batches of one split: every sample exactly once an epoch.

    The order of the samples and their augmentation depend on seed and epoch alone, so that two
    methods that are trained in turn see the same batches. Cropping, flipping and normalising are
    done for the whole batch on the training device.

    Args:
        images: Pixels by row.
        labels: Given labels by row, int64 [N].
        batch_size: Samples in a batch; the last batch of an epoch holds what is left.
        device: Where batches are wanted.
        mean: Mean of each channel, 0 to 1; one value stands for all channels.
        std: Standard deviation of each channel, 0 to 1; one value stands for all channels.
        shuffle: Draw a new order every epoch, and never leave one sample alone in a batch.
        crop_padding: Pixels of black padding for random crops; 0 for none.
        flip: Mirror half of the images left to right.
        seed: Seed of order and augmentation.
        workers: Processes that decode images which are not in memory.
    """

    def __init__(
        self,
        images: Images,
        labels: Tensor,  # [N]
        *,
        batch_size: int,
        device: torch.device,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        shuffle: bool = False,
        crop_padding: int = 0,
        flip: bool = False,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.device = device
        self.shuffle = shuffle
        self.crop_padding = crop_padding
        self.flip = flip
        self.seed = seed
        self.workers = workers
        self.epoch = 0
        # (pixel / 255 - mean) / std as one multiplication and one addition.
        channels = images.shape[0]
        mean = torch.tensor(mean, dtype=torch.float32).expand(channels).reshape(-1, 1, 1)
        std = torch.tensor(std, dtype=torch.float32).expand(channels).reshape(-1, 1, 1)
        self._scale = (1 / (255 * std)).to(device)
        self._shift = (-mean / std).to(device)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and the augmentation of the next pass; epochs are counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(len(self.images), self.batch_size)
        return max(full + (rest > self._smallest_rest), 1)

    @property
    def _smallest_rest(self) -> int:
        # Batch normalisation cannot train on one sample: a lone last one joins the batch before it.
        return 1 if self.shuffle else 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        seeds = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        # On the CPU whatever the device, so that every device sees the same epoch.
        generator = torch.Generator().manual_seed(int(seeds[0]) >> 1)
        n = len(self.images)
        order = torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)
        starts = [i * self.batch_size for i in range(len(self))]
        batches = [order[start:end] for start, end in zip(starts, [*starts[1:], n], strict=True)]
        for rows, pixels in zip(batches, self._pixels(batches), strict=True):
            image = pixels.to(self.device, non_blocking=True)
            image = self._augment(image, generator)
            yield {
                "image": image * self._scale + self._shift,
                "label": self.labels[rows].to(self.device, non_blocking=True),
                "index": rows.to(self.device, non_blocking=True),
            }

    def _pixels(self, batches: list[Tensor]) -> Iterator[Tensor]:
        """uint8 [B, C, S, S] of each batch of rows."""
        if self.images.array is not None:
            array = torch.from_numpy(self.images.array)
            for rows in batches:
                yield array[rows]
            return
        loader = torch.utils.data.DataLoader(
            _Rows(self.images),
            batch_sampler=[rows.tolist() for rows in batches],
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
        )
        for pixels in loader:
            if isinstance(pixels, str):
                raise UserError(pixels)
            yield pixels

    def _augment(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Random crop and flip of uint8 [B, C, S, S] as one gather."""
        if not self.crop_padding and not self.flip:
            return image
        batch, channels, size, _ = image.shape
        pad = self.crop_padding
        top, left = torch.randint(2 * pad + 1, (2, batch), generator=generator)
        mirrored = torch.rand(batch, generator=generator) < (0.5 if self.flip else 0.0)
        along = torch.arange(size)
        down = top[:, None] + along  # [B, S]
        across = left[:, None] + torch.where(mirrored[:, None], along.flip(0), along)  # [B, S]
        down, across = down.to(self.device), across.to(self.device)
        return F.pad(image, (pad,) * 4)[
            torch.arange(batch, device=self.device)[:, None, None, None],
            torch.arange(channels, device=self.device)[None, :, None, None],
            down[:, None, :, None],
            across[:, None, None, :],
        ]


class _Rows(torch.utils.data.Dataset):
    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> np.ndarray | str:
        try:
            return self.images[row]
        except UserError as error:
            # As a value: an exception would leave the worker wrapped in the text of its traceback.
            return str(error)


def _collate(images: list[np.ndarray | str]) -> Tensor | str:
    broken = [image for image in images if isinstance(image, str)]
    return broken[0] if broken else torch.from_numpy(np.stack(images))
