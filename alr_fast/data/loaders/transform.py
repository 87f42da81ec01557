"""Cropping and augmentation: which part of an image becomes the square, and how it is varied.

All loaders draw their random numbers here, from seed, epoch, rank and step alone. So all of them
cut the same parts, and a resumed epoch continues with the same crops.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.images.decode import Box

Crop = Literal["center", "pad", "random", "resized"]

_TRIES = 10


@dataclass(frozen=True)
class Transform:
    """From an image of any size to S x S pixels.

    Attributes:
        size: Side S in pixels.
        crop: center: the middle of the image. pad: the middle, padded with black and cropped back
            at random. random: a random part as large as the middle. resized: a random part of
            random area and aspect ratio.
        resize: The shorter side is resized to this many pixels before a part of S x S is cut out;
            has no effect on ``resized``.
        padding: Pixels of padding on each side, for ``pad``.
        scale: Smallest and largest share of the image's area, for ``resized``.
        ratio: Smallest and largest aspect ratio, width to height, for ``resized``.
        flip: Mirror half of the images left to right.
        randaugment: Number and magnitude (0 to 30) of RandAugment's operations (Cubuk et al., 2020,
            arXiv 1909.13719); None for no RandAugment.
        mean: Mean of each channel, 0 to 1; one value stands for all channels.
        std: Standard deviation of each channel, 0 to 1; one value stands for all channels.
    """

    size: int
    crop: Crop = "center"
    resize: int = 0
    padding: int = 0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False
    randaugment: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    @property
    def cacheable(self) -> bool:
        """Whether the middle square, decoded once, is all that training needs of an image."""
        return self.crop in ("center", "pad") and self.randaugment is None

    def draw(self, rng: np.random.Generator, batch: int) -> "Draws":
        """Random numbers for a batch; all crops except ``resized`` draw the same number of them."""
        tries = _TRIES if self.crop == "resized" else 0
        return Draws(
            place=rng.random((batch, 2)),
            shape=rng.random((batch, tries, 2)),
            flip=rng.random(batch) < 0.5 if self.flip else np.zeros(batch, dtype=bool),
        )

    def box(self, height: int, width: int, place=(), shape=()) -> Box:
        """Part of an image that becomes the square: top, left, height, width.

        Args:
            height: Height of the image in pixels.
            width: Width of the image in pixels.
            place: Where the part lies, two numbers from [0, 1); for ``random`` and ``resized``.
            shape: Area and aspect ratio, pairs of numbers from [0, 1), of which the first that
                fits is taken; for ``resized``.
        """
        if self.crop == "resized":
            return self._resized_box(height, width, place, shape)
        side = min(height, width)
        side = max(round(side * self.size / max(self.resize, self.size)), 1)
        if self.crop == "random":
            return _placed(height, width, place, side, side)
        return _middle(height, width, side, side)

    def _resized_box(self, height: int, width: int, place, shape) -> Box:
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for area, aspect in shape:
            pixels = height * width * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + aspect * (high - low))
            part_width = round(math.sqrt(pixels * ratio))
            part_height = round(math.sqrt(pixels / ratio))
            if 0 < part_width <= width and 0 < part_height <= height:
                return _placed(height, width, place, part_height, part_width)
        # A very long image: as much of its middle as the aspect ratio allows.
        part_height = min(height, max(round(width / self.ratio[0]), 1))
        part_width = min(width, max(round(height * self.ratio[1]), 1))
        return _middle(height, width, part_height, part_width)

    def offsets(self, place: NDArray[np.float64]) -> NDArray[np.int64]:
        """Top and left of the crop in the padded square, int64 [B, 2]; 0 except for ``pad``."""
        padding = self.padding if self.crop == "pad" else 0
        return (place * (2 * padding + 1)).astype(np.int64)


def _placed(height: int, width: int, place, part_height: int, part_width: int) -> Box:
    top = int(place[0] * (height - part_height + 1))
    left = int(place[1] * (width - part_width + 1))
    return top, left, part_height, part_width


def _middle(height: int, width: int, part_height: int, part_width: int) -> Box:
    return (height - part_height) // 2, (width - part_width) // 2, part_height, part_width


class Draws(NamedTuple):
    """Random numbers of a batch.

    Attributes:
        place: [B, 2], from [0, 1).
        shape: [B, tries, 2], from [0, 1).
        flip: Which images are mirrored, bool [B].
    """

    place: NDArray[np.float64]
    shape: NDArray[np.float64]
    flip: NDArray[np.bool_]


def for_evaluation(transform: Transform) -> Transform:
    """The middle square of every image, without augmentation."""
    return replace(transform, crop="center", padding=0, flip=False, randaugment=None)
