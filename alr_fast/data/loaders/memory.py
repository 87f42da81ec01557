"""The loader for small images: all of them are decoded once, kept on the training device, and
augmented there a batch at a time."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from alr_fast.data.broken import BrokenSamples
from alr_fast.data.datasets import Split
from alr_fast.data.images.decode import decode_square, prepare
from alr_fast.data.images.sources import BrokenImage
from alr_fast.data.loaders.base import Loader, Normalise, SamplerT
from alr_fast.data.loaders.transform import Draws, Transform
from alr_fast.utils.threads import map_ahead


@dataclass(frozen=True)
class Decoded:
    """Decoded images of some rows of a split.

    Attributes:
        array: uint8 [M, 3, S, S]; black for an unreadable image.
        broken: Position in the array -> reason, for unreadable images.
    """

    array: NDArray[np.uint8]
    broken: dict[int, str]


def decode_all(
    split: Split,
    size: int,
    *,
    rows: NDArray[np.int64] | None = None,
    resize: int = 0,
    workers: int = 2,
    reduce: bool = True,
    broken: BrokenSamples | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Decoded:
    """Decodes images of a split to the middle square of S x S pixels.

    Args:
        split: Samples with images in files or shards.
        size: Side S in pixels.
        rows: Rows of the split, int64 [M], in the order of the result; None for all.
        resize: See `Transform.resize`.
        workers: Threads.
        reduce: False to decode large JPEGs whole, see `decode_square`.
        broken: Collects the samples with unreadable images; None accepts any number.
        progress: Wraps the iteration over the images, to show progress.

    Raises:
        UserError: More files are broken than ``broken`` accepts.
    """
    transform = Transform(size=size, resize=resize)
    rows = np.arange(len(split)) if rows is None else rows
    array = np.zeros((len(rows), 3, size, size), dtype=np.uint8)
    reasons: dict[int, str] = {}

    def decode(position: int) -> None:
        try:
            encoded = prepare(split.images.read(rows[position]))
            box = transform.box(encoded.height, encoded.width)
            array[position] = decode_square(encoded, box, size, reduce=reduce).numpy()
        except BrokenImage as error:
            reasons[position] = str(error)

    for _ in progress(map_ahead(decode, range(len(rows)), workers=workers, ahead=1024)):
        pass
    if broken is not None:
        for position in sorted(reasons, key=lambda position: rows[position]):
            broken.report(int(rows[position]), reasons[position])
    return Decoded(array, reasons)


class MemoryLoader(Loader[SamplerT]):
    """Batches cut from an array of pixels on the training device.

    Args:
        split, sampler, transform, device, dtype, workers, broken: See `Loader`.
        decoded: The images of the sampler's rows at the transform's size, where ``split.images``
            are files.
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
        decoded: Decoded | None = None,
    ) -> None:
        super().__init__(
            split, sampler, transform, device=device, dtype=dtype, workers=workers, broken=broken
        )
        if not transform.cacheable:
            raise ValueError("images in memory are only padded, cropped and mirrored")
        if decoded is None:
            if split.images.array is None:
                raise ValueError("images in files must be decoded first")
            decoded = Decoded(split.images.array[sampler.rows], {})
        # Channels last: contiguous rows of pixels, the order that the model reads.
        pixels = torch.from_numpy(decoded.array).to(device).permute(0, 2, 3, 1)
        pad = transform.padding if transform.crop == "pad" else 0
        self._windows = _windows(F.pad(pixels, (0, 0, pad, pad, pad, pad)), transform.size)
        self._reasons = decoded.broken
        self._normalise = Normalise(transform, self.input_shape[0], device, dtype)

    @property
    def _on_cpu(self) -> bool:
        return self.device.type == "cpu"

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        epoch = self.epoch
        for step, index in self.sampler.batches(epoch, self.start):
            draws = self.transform.draw(self.sampler.augmentation_rng(epoch, step), len(index))
            image = self._cut(index, draws)
            broken = {
                position: self._reasons[i]
                for position, i in enumerate(index.tolist() if self._reasons else ())
                if i in self._reasons
            }
            yield self._batch(self._normalise(image), index, broken)

    def _cut(self, index: NDArray[np.int64], draws: Draws) -> Tensor:
        """Crops, mirrored where the draws require it, uint8 [B, S, S, C]."""
        offsets = self.transform.offsets(draws.place)
        if self._on_cpu:  # numpy copies windows ten times faster than torch on a CPU
            cut = self._windows.numpy()[index, offsets[:, 0], offsets[:, 1]]
            cut[draws.flip] = cut[draws.flip][:, :, ::-1]
            return torch.from_numpy(cut)
        columns = torch.from_numpy(np.column_stack((index, offsets, draws.flip)))
        image, top, left, flip = columns.to(self.device, non_blocking=True).unbind(1)
        windows = self._windows[image, top, left]
        return torch.where(flip[:, None, None, None] > 0, windows.flip(2), windows)


def _windows(pixels: Tensor, size: int) -> Tensor:
    """Every square of S x S pixels as a view, [N, H - S + 1, W - S + 1, S, S, C]."""
    pixels = pixels.contiguous()  # [N, H, W, C]
    n, height, width, channels = pixels.shape
    image, row, pixel, _ = pixels.stride()
    return pixels.as_strided(
        (n, height - size + 1, width - size + 1, size, size, channels),
        (image, row, pixel, row, pixel, 1),
    )
