"""From encoded bytes to RGB pixels: limits, orientation, decoding, resizing.

One authority for the pixels of a file. `prepare` says which files any decoder may decode; the
others are decoded here, the same for all loaders:

    orientation    EXIF turns an image, of JPEG, PNG, WebP, TIFF and AVIF alike; XMP does not
    frames         the first one of an animation, the first page of a TIFF
    transparency   dropped: the colours as they are stored
    CMYK           as Pillow has it: of JPEGs in the inverted form of Adobe, marked as such or not
    profiles       gamma and colour profiles are ignored
    deep pixels    see `eight_bits`

A large JPEG of which a small square is needed is decoded at a reduced scale: see `decode_square`.
"""

import functools
import io
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alr_fast.data.images.headers import (
    JPEG,
    PNG,
    kind_of,
    orientation_of,
    png_header,
    png_passes,
    png_stream,
    read_header,
    without_extras,
)
from alr_fast.data.images.sources import BrokenImage
from alr_fast.utils.text import error_text

if TYPE_CHECKING:
    from PIL.Image import Image

# Every format that is ever opened, by Pillow's names. Others could start programs (EPS), need
# plugins, or take any file for an image (TGA). AVIF and JPEG2000 depend on how Pillow was built.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM"),
    *("AVIF", "JPEG2000"),
)
Box = tuple[int, int, int, int]  # top, left, height, width
MAX_PIXELS = 178_956_970  # above twice its own limit, Pillow refuses an image, too
_DEEP = ("I", "F")  # first letters of the modes with more than 8 bits a pixel
_ROWS = 256  # of pixels that are scaled at a time
_REDUCTIONS = (8, 4, 2)  # of the sides of a JPEG, for which its decoder has fast transforms
_SCALED = ("PPM", "JPEG2000")  # Pillow scales their gray pixels to 16 bits


@dataclass(frozen=True, eq=False)
class Encoded:
    """An image whose structure is sound.

    Attributes:
        data: JPEG, PNG or WebP; empty if there are ``pixels``.
        height: Height in pixels, upright.
        width: Width in pixels, upright.
        orientation: EXIF orientation of ``data``, 1 to 8; 1 is upright.
        simple: Whether any decoder makes the same pixels of ``data``; if not, only `decode_rgb`
            does.
        uneven: See `alr_fast.data.images.headers.Header`.
        pixels: Pixels of any other format, uint8 [H, W, 3], upright.
    """

    data: bytes
    height: int
    width: int
    orientation: int = 1
    simple: bool = True
    uneven: int = 1
    pixels: NDArray[np.uint8] | None = None


def prepare(data: bytes) -> Encoded:
    """Checks the structure of an encoded image; decodes what is neither JPEG, PNG nor WebP.

    The structure of a JPEG, PNG or WebP is read here, up to its end, without decoding it. Flipped
    bits inside the compressed pixels are not detected.

    Raises:
        BrokenImage: Empty, not an image, cut off, damaged, larger than `MAX_PIXELS`, or of a kind
            that cannot be decoded.
    """
    if not data:
        raise BrokenImage("the file is empty")
    header = read_header(data)
    if header is None:
        pixels = _pillow_pixels(data)
        return Encoded(b"", len(pixels), len(pixels[0]), simple=False, pixels=pixels)
    height, width = header.height, header.width
    _refuse_size(height, width)
    if header.orientation > 4:
        height, width = width, height
    simple = header.simple and header.orientation == 1
    return Encoded(header.data, height, width, header.orientation, simple, header.uneven)


def decode_rgb(encoded: Encoded) -> Tensor:
    """The pixels of a prepared image, uint8 [3, H, W], upright.

    Raises:
        BrokenImage: The compressed pixels cannot be decoded.
    """
    pixels = encoded.pixels
    if pixels is None:
        pixels = turned(_stored_pixels(encoded.data), encoded.orientation)
        if pixels.shape != (encoded.height, encoded.width, 3):
            raise BrokenImage("the decoder found another size than the header says")
    if encoded.orientation != 1 or not (pixels.flags.c_contiguous and pixels.flags.writeable):
        pixels = pixels.copy(order="C")
    return torch.from_numpy(pixels).permute(2, 0, 1)


def decode_square(encoded: Encoded, box: Box, size: int, *, reduce: bool = True) -> Tensor:
    """A part of a prepared image as a square, uint8 [3, S, S], upright.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if the part then still has 2 S pixels or more
    on each side, which takes half the time or less and a fraction of the memory. The decoder and
    then the resize filter average the same pixels as the filter alone; the results differ by about
    one level of 255. An image of less than 4 S pixels on the shorter side is always decoded whole.

    Args:
        encoded: Result of `prepare`.
        box: Top, left, height and width of the part in the upright image.
        size: Side S of the square in pixels.
        reduce: False to decode every image whole.

    Raises:
        BrokenImage: The compressed pixels cannot be decoded.
    """
    # Where colours are coarser in one direction, the decoder reduces them more than the rest.
    scale = reduction(box, size * encoded.uneven) if reduce else 1
    if scale > 1 and encoded.pixels is None and kind_of(encoded.data) == JPEG:
        square = _reduced_square(encoded, box, size, scale)
        if square is not None:
            return square
    return resize_part(decode_rgb(encoded), box, size)


def reduction(box: Box, size: int) -> int:
    """The factor that `decode_square` divides the sides of a JPEG by: 1, 2, 4 or 8."""
    least = min(box[2:])
    return next((scale for scale in _REDUCTIONS if least >= 2 * size * scale), 1)


def _reduced_square(encoded: Encoded, box: Box, size: int, scale: int) -> Tensor | None:
    """`decode_square` of a JPEG at a reduced scale; None if only Pillow can decode it."""
    import simplejpeg
    from PIL import Image

    turns = encoded.orientation
    height, width = encoded.height, encoded.width
    top, left, rows, columns = box
    # The decoder averages blocks of pixels from the corner of the image as it is stored.
    if turns in (3, 4, 7, 8):
        top = height - top - rows
    if turns in (2, 3, 6, 7):
        left = width - left - columns
    if turns > 4:
        height, width, top, left, rows, columns = width, height, left, top, columns, rows
    expected = -(-height // scale), -(-width // scale)
    try:
        pixels = simplejpeg.decode_jpeg(
            encoded.data, "RGB", min_height=expected[0], min_width=expected[1], strict=False
        )
    except ValueError:
        return None
    if pixels.shape != (*expected, 3):
        raise BrokenImage("the decoder found another size than the header says")
    first, start = top // scale, left // scale
    last, stop = -(-(top + rows) // scale), -(-(left + columns) // scale)
    part = Image.fromarray(np.ascontiguousarray(pixels[first:last, start:stop]))
    # Its edges lie within blocks: unlike torchvision, Pillow resizes from fractions of pixels.
    upper, lower = top / scale - first, (top + rows) / scale - first
    near, far = left / scale - start, (left + columns) / scale - start
    part = part.resize((size, size), Image.Resampling.BILINEAR, box=(near, upper, far, lower))
    square = turned(np.asarray(part), turns)
    return torch.from_numpy(square.copy(order="C")).permute(2, 0, 1)


def decode_with_pillow(data: bytes) -> NDArray[np.uint8]:
    """The pixels of an encoded image, uint8 [H, W, 3], upright, without any other decoder.

    Raises:
        BrokenImage: Pillow cannot decode it.
    """
    header = read_header(data)
    return turned(_pillow_pixels(data), 1 if header is None else header.orientation)


def open_image(data: bytes | BinaryIO) -> "Image":
    """Opens an image with Pillow: one of `FORMATS`, of bounded size, its first frame.

    Everything here that opens images does it through this function. Text, profiles and EXIF of a
    JPEG or PNG are left out: see `alr_fast.data.images.headers.without_extras`.

    Raises:
        BrokenImage: It is not an image of these formats, damaged, or larger than `MAX_PIXELS`.
    """
    from PIL import Image

    data = without_extras(data if isinstance(data, bytes) else data.read())
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
        _refuse_size(image.height, image.width)
    except BrokenImage:
        raise
    except Image.DecompressionBombError:
        raise BrokenImage(f"more than {MAX_PIXELS:,} pixels") from None
    except Image.UnidentifiedImageError:
        tiff = data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
        kind = "a kind of TIFF that cannot be decoded" if tiff else "not an image"
        raise BrokenImage(kind) from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise BrokenImage(error_text(error)) from None
    return image


@functools.cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def to_rgb(image: "Image") -> "Image":
    """A copy of an image of any mode in RGB, with 8 bits a channel: see `eight_bits`.

    Raises:
        BrokenImage: Its pixels cannot be decoded, or mean nothing as colours.
    """
    from PIL import Image

    try:
        image.load()
        if image.mode.startswith(_DEEP):
            return Image.fromarray(_deep_pixels(image)).convert("RGB")
        if image.mode in ("La", "RGBa"):  # colours multiplied by the transparency
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
        image = image.convert("RGB")
    except BrokenImage:
        raise
    except Exception as error:  # as in `open_image`
        raise BrokenImage(error_text(error)) from None
    return image


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """A view of pixels [H, W] or [H, W, 3] as stored, upright by this EXIF orientation."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return pixels[rows, columns]


def eight_bits(values: NDArray[Any], bits: int | None = None) -> NDArray[np.uint8]:
    """Deep pixels in 8 bits, by the range that they use.

    Integers without a known depth have the least even number of bits, 8 or more, that holds the
    largest of them: sensors of 10, 12 or 14 bits are stored in 16. Integers below 0 are stretched
    from the least to the largest. Fractions from 0 to 1 are multiplied by 255; those from 0 to a
    number between 64 and 255 are taken as they are; others are stretched.

    Args:
        values: Pixels of one image, integers or floats, any shape.
        bits: Bits of the integers; None if unknown.

    Raises:
        BrokenImage: Some are not finite.
    """
    low, high = values.min(), values.max()
    if values.dtype.kind in "ui" and low >= 0:
        if bits is None:
            used = int(high).bit_length()
            bits = max(used + used % 2, 8)
        return (values >> (bits - 8)).astype(np.uint8)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise BrokenImage("pixels that are not finite numbers")
    low, high = float(low), float(high)
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and 64 <= high <= 255:
        low, high = 0.0, 255.0
    scale = 255 / (high - low) if high > low else 0.0
    pixels = np.empty(values.shape, dtype=np.uint8)
    for first in range(0, len(values), _ROWS):  # float64 of the whole would be large
        part = values[first : first + _ROWS].astype(np.float64)
        pixels[first : first + _ROWS] = np.round((part - low) * scale)
    return pixels


def resize_part(image: Tensor, box: Box, size: int) -> Tensor:
    """A part of an image as a square.

    Args:
        image: uint8 [3, H, W].
        box: Top, left, height and width of the part.
        size: Side S of the square in pixels.

    Returns:
        uint8 [3, S, S].
    """
    from torchvision.transforms.v2 import InterpolationMode, functional

    top, left, height, width = box
    return functional.resized_crop(
        image, top, left, height, width, [size, size], InterpolationMode.BILINEAR, antialias=True
    )


def _refuse_size(height: int, width: int) -> None:
    if not 0 < height * width <= MAX_PIXELS:
        raise BrokenImage(f"{width} x {height} pixels")


def _stored_pixels(data: bytes) -> NDArray[np.uint8]:
    """Pixels of a JPEG, PNG or WebP before it is turned, uint8 [H, W, 3]."""
    import simplejpeg

    if kind_of(data) == JPEG:
        try:
            # Not strict: a damaged scan becomes damaged pixels, as in DALI; `verify` finds it.
            return simplejpeg.decode_jpeg(data, "RGB", strict=False)
        except ValueError:
            pass  # CMYK, which Pillow decodes, or undecodable, for which Pillow has the reason
    return _pillow_pixels(data)


def _pillow_pixels(data: bytes) -> NDArray[np.uint8]:
    """Pixels of an image before it is turned; of a TIFF or AVIF upright. uint8 [H, W, 3]."""
    if kind_of(data) == PNG and png_header(data).depth == 16:
        return _deep_png(data)
    with open_image(data) as image:
        # A TIFF is turned by Pillow.
        exif = image.info.get("exif", b"") if image.format == "AVIF" else b""
        pixels = np.asarray(to_rgb(image))
        deep = (
            image.mode in ("RGB", "RGBA") and max(getattr(image, "tag_v2", {}).get(258, (1,))) > 8
        )
        if deep and pixels.max() < 16:  # Pillow keeps the upper 8 bits of these TIFFs
            raise BrokenImage("16 bits a colour of which the upper 4 are empty")
    return turned(pixels, orientation_of(exif))


def _deep_pixels(image: "Image") -> NDArray[np.uint8]:
    """Gray pixels of more than 8 bits in 8 bits, uint8 [H, W]."""
    values, bits, inverted = np.asarray(image), None, False
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        (stored,), signed = tags.get(258, (1,)), tags.get(339, (1,))[0] == 2
        if stored == 32 and values.dtype.kind == "i" and not signed:
            values = values.view(np.uint32)
        bits = stored if stored < 16 else None
        inverted = tags.get(262) == 0  # white is 0
    elif image.format in _SCALED and values.dtype.kind != "f":
        bits = 16
    pixels = eight_bits(values, bits)
    return 255 - pixels if inverted else pixels


def _deep_png(data: bytes) -> NDArray[np.uint8]:
    """A PNG with 16 bits a sample in 8 bits, by the range that it uses, uint8 [H, W, 3].

    Pillow drops the lower bits of colours before the range is known. PNG predicts each byte from
    the same byte of the pixels around it: the bytes of a pixel are gray images of their own.
    """
    from PIL import Image

    header = png_header(data)
    parts = list(png_passes(header))
    size = header.channels * 2
    lengths = [len(range(*rows)) * (1 + size * len(range(*columns))) for rows, columns in parts]
    samples = np.empty((header.height, header.width, size), np.uint8)
    try:
        stream = zlib.decompressobj().decompress(png_stream(data), sum(lengths))
        for (rows, columns), length in zip(parts, lengths, strict=True):
            part, stream = stream[:length], stream[length:]
            height, width = len(range(*rows)), len(range(*columns))
            lines = np.frombuffer(part, np.uint8).reshape(height, 1 + size * width)
            for byte in range(size):
                plane = np.concatenate([lines[:, :1], lines[:, 1 + byte :: size]], axis=1)
                packed = zlib.compress(plane.tobytes(), 0)
                image = Image.frombytes("L", (width, height), packed, "zip", "L", 0)
                samples[slice(*rows), slice(*columns), byte] = np.asarray(image)
    except (zlib.error, ValueError, OSError) as error:
        raise BrokenImage(f"the PNG's pixels are damaged ({error_text(error)})") from None
    values = samples.view(">u2")[:, :, : 1 if header.channels < 3 else 3]  # without transparency
    return np.broadcast_to(eight_bits(values), (*values.shape[:2], 3))
