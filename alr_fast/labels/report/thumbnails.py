"""Thumbnails of images in any form."""

import io
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.images.decode import decode_rgb, eight_bits, open_image, prepare, to_rgb, turned
from alr_fast.data.images.headers import JPEG, kind_of
from alr_fast.data.images.sources import BrokenImage, read_image_file

if TYPE_CHECKING:
    from PIL.Image import Image

SIZES = ((256, 80), (128, 80), (96, 75), (64, 70), (48, 50))  # longest side in pixels, quality
_CHANNELS = (1, 3, 4)
_KINDS = (
    ("image/png", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("image/jpeg", re.compile(rb"\xff\xd8\xff")),
    ("image/webp", re.compile(rb"RIFF....WEBP", re.DOTALL)),
)
_KEYS = ("image", "img", "pixel_values")  # of items that are dictionaries


def thumbnail(value: Any, side: int, quality: int) -> bytes:
    """An image of at most ``side`` pixels a side, as PNG up to 32 pixels, else as WebP.

    Args:
        value: See `alr_fast.labels.LabelIssues.report`.
        side: Longest side in pixels.
        quality: Quality of WebP, 0 to 100.

    Raises:
        BrokenImage: It cannot be read, or is no image.
    """
    image = _image(value, side)
    image.thumbnail((side, side))
    file = io.BytesIO()
    if max(image.size) <= 32:
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "WebP", quality=quality)
    return file.getvalue()


def image_kind(data: bytes) -> str | None:
    """The media type of an encoded image; None unless it is PNG, JPEG or WebP."""
    return next((kind for kind, start in _KINDS if start.match(data)), None)


def _image(value: Any, side: int) -> "Image":
    """A copy in grey or RGB, at least ``side`` pixels a side if the image is."""
    from PIL import Image

    if isinstance(value, Mapping):
        key = next((key for key in _KEYS if key in value), None)
        if key is None:
            raise BrokenImage(f"the item has no {' or '.join(_KEYS)}")
        value = value[key]
    if isinstance(value, (tuple, list)) and value:
        value = value[0]  # (image, label, ...)
    if isinstance(value, (str, os.PathLike)):
        value = read_image_file(value)
    if isinstance(value, (bytes, bytearray)):
        return _decoded(bytes(value), side)
    if isinstance(value, Image.Image):
        return _plain(value)
    if hasattr(value, "detach"):
        tensor = value.detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor  # NumPy has no bfloat16
        return _pixels(tensor.numpy(), channels_first=True)
    array = np.asarray(value)
    if array.dtype.kind not in "buif" or not array.size:
        raise BrokenImage(f"a {type(value).__name__} is no image")
    return _pixels(array, channels_first=False)


def _decoded(data: bytes, side: int) -> "Image":
    from PIL import Image

    encoded = prepare(data)
    if kind_of(encoded.data) == JPEG:
        with open_image(encoded.data) as image:
            image.draft("RGB", (side, side))  # decoded at a smaller size
            pixels = turned(np.asarray(to_rgb(image)), encoded.orientation)
    else:
        pixels = decode_rgb(encoded).permute(1, 2, 0).numpy()
    if (pixels == pixels[:, :, :1]).all():
        pixels = pixels[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _plain(image: "Image") -> "Image":
    """A copy in grey or RGB, with the colours that training sees."""
    pixels = to_rgb(image)
    return pixels.convert("L") if image.mode == "L" else pixels


def _pixels(array: NDArray[Any], *, channels_first: bool) -> "Image":
    """An image of pixels [H, W], [C, H, W] or [H, W, C].

    Args:
        array: Pixels. uint8 as they are, numbers from 0 to 1 times 255, from 0 to 255 as they are;
            others are stretched from their least to their largest.
        channels_first: Whether three dimensions are C, H, W if both orders are possible.
    """
    from PIL import Image

    if array.ndim == 3:
        first, last = array.shape[0] in _CHANNELS, array.shape[2] in _CHANNELS
        if first and (channels_first or not last):
            array = array.transpose(1, 2, 0)
        elif not last:
            raise BrokenImage(f"an array of shape {array.shape} is no image")
        array = array[:, :, 0] if array.shape[2] == 1 else array
    if array.ndim != 2 and array.ndim != 3:
        raise BrokenImage(f"an array of shape {array.shape} is no image")
    if array.dtype != np.uint8:
        array = eight_bits(np.nan_to_num(array.astype(np.float32)))
    return _plain(Image.fromarray(np.ascontiguousarray(array)))
