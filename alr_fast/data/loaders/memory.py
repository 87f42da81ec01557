"""The loader for small images: all of them decoded once, kept on the training device, and varied
there a batch at a time."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from alr_fast.data.broken import BrokenSamples
from alr_fast.data.datasets import Split
from alr_fast.data.decode import decode_rgb, prepare, resize_part
from alr_fast.data.images import BrokenImage
from alr_fast.data.loaders.base import Loader, Normalise
from alr_fast.data.transform import Draws, Transform


@dataclass(frozen=True)
class Decoded:
    """Images of a split, one for each of some rows.

    Attributes:
        array: uint8 [M, 3, S, S]; black where a file gave no image.
        broken: Position in the array -> reason, for those.
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
    broken: BrokenSamples | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Decoded:
    """Decodes images of a split to the middle square of S x S pixels.

    Args:
        split: Samples with images in files or shards.
        size: Side S in pixels.
        rows: Rows of the split, int64 [M], in the order wanted; None for all.
        resize: See `Transform.resize`.
        workers: Threads.
        broken: Takes the samples that give no image; None accepts all.
        progress: Wraps the iteration over the images, to show how far it is.

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
            box = transform.box(encoded.height, encoded.width, (), ())
            array[position] = resize_part(decode_rgb(encoded), box, size).numpy()
        except BrokenImage as error:
            reasons[position] = str(error)

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        for _ in progress(_bounded_map(pool, decode, range(len(rows)))):
            pass
    if broken is not None:
        for position in sorted(reasons, key=lambda position: rows[position]):
            broken.report(int(rows[position]), reasons[position])
    return Decoded(array, reasons)


def _bounded_map(pool: ThreadPoolExecutor, function: Callable, rows: range) -> Iterable:
    # Executor.map would make a future for every row of a set of millions at once.
    for start in range(0, len(rows), 1024):
        yield from pool.map(function, itertools.islice(rows, start, start + 1024))


class MemoryLoader(Loader):
    """Batches cut from an array of pixels on the training device; see `Loader` for the arguments.

    Args:
        decoded: The images of the sampler's rows, where ``split.images`` are files; must have been
            decoded at the transform's size.
    """

    def __init__(self, split, sampler, transform, *, decoded: Decoded | None = None, **options):
        super().__init__(split, sampler, transform, **options)
        if transform.crop not in ("center", "pad") or transform.randaugment is not None:
            raise ValueError("images in memory are only padded, cropped and mirrored")
        array = split.images.array[sampler.rows] if decoded is None else decoded.array
        pixels = torch.from_numpy(array)
        # Channels last: a row of pixels is one piece, and so is what the net reads.
        pixels = pixels.to(self.device).permute(0, 2, 3, 1)
        pad = transform.padding if transform.crop == "pad" else 0
        self._windows = _windows(F.pad(pixels, (0, 0, pad, pad, pad, pad)), transform.size)
        self._reasons = {} if decoded is None else decoded.broken
        self._normalise = Normalise(transform, split.channels, self.device, self.dtype)

    @property
    def _on_cpu(self) -> bool:
        return self.device.type == "cpu"

    def _batches(self, epoch: int, start: int) -> Iterator[dict[str, Tensor]]:
        for step, positions in self.sampler.batches(epoch, start):
            draws = self.transform.draw(self.sampler.augmentation_rng(epoch, step), len(positions))
            image = self._cut(positions, draws)
            broken = {
                place: self._reasons[position]
                for place, position in enumerate(positions.tolist() if self._reasons else ())
                if position in self._reasons
            }
            yield self._batch(self._normalise(image), positions, broken)

    def _cut(self, positions: NDArray[np.int64], draws: Draws) -> Tensor:
        """uint8 [B, S, S, C]: crops, mirrored where the draws say so."""
        offsets = self.transform.offsets(draws.place)  # zeros without padding
        if self._on_cpu:  # numpy copies windows ten times faster than torch does there
            cut = self._windows.numpy()[positions, offsets[:, 0], offsets[:, 1]]
            cut[draws.flip] = cut[draws.flip][:, :, ::-1]
            return torch.from_numpy(cut)
        at = torch.from_numpy(np.column_stack((positions, offsets, draws.flip)))
        row, top, left, flip = at.to(self.device, non_blocking=True).unbind(1)
        cut = self._windows[row, top, left]
        return torch.where(flip[:, None, None, None] > 0, cut.flip(2), cut)


def _windows(pixels: Tensor, size: int) -> Tensor:
    """Every square of S x S pixels as a view, [N, H - S + 1, W - S + 1, S, S, C]."""
    pixels = pixels.contiguous()  # [N, H, W, C]
    n, height, width, channels = pixels.shape
    image, row, pixel, _ = pixels.stride()
    return pixels.as_strided(
        (n, height - size + 1, width - size + 1, size, size, channels),
        (image, row, pixel, row, pixel, 1),
    )
