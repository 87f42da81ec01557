"""From encoded bytes to RGB pixels: headers, size limits, orientation, decoding, resizing."""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alr_fast.data.images import BrokenImage
from alr_fast.utils.text import error_text

MAX_PIXELS = 178_956_970  # Pillow refuses more as a decompression bomb
_OTHER_FRAMES = frozenset(
    (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
)  # markers of JPEGs that decoders do not support


@dataclass(frozen=True)
class Encoded:
    """An image that any decoder can decode.

    Attributes:
        data: JPEG, PNG, WebP, or binary PPM.
        height: Height in pixels after the EXIF rotation.
        width: Width in pixels after the EXIF rotation.
        orientation: EXIF orientation of a JPEG, 1 to 8; 1 is upright.
    """

    data: bytes
    height: int
    width: int
    orientation: int = 1


def prepare(data: bytes) -> Encoded:
    """Checks the structure of an encoded image; converts formats that not every decoder supports.

    Complete JPEGs, PNGs and WebPs, with valid headers and an end, pass unchanged. Other formats,
    PNGs of 16 bits, and rotated images that are not JPEGs are decoded here and returned as PPM.
    Flipped bits inside the compressed pixels are not detected.

    Raises:
        BrokenImage: Empty, not an image, cut off, or larger than `MAX_PIXELS`.
    """
    if not data:
        raise BrokenImage("the file is empty")
    if data[:2] == b"\xff\xd8":
        height, width, orientation = _jpeg_header(data)
        _refuse_size(height, width)
        if orientation > 4:
            height, width = width, height
        return Encoded(data, height, width, orientation)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        height, width, depth, rotated = _png_header(data)
        if depth == 16 or rotated:
            return decode_with_pillow(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        if len(data) < 8 + int.from_bytes(data[4:8], "little"):
            raise BrokenImage("the WebP is cut off")
        if b"EXIF" in data or b"ANIM" in data[:64]:
            return decode_with_pillow(data)
        width, height = _webp_size(data)
    else:
        return decode_with_pillow(data)
    _refuse_size(height, width)
    return Encoded(data, height, width)


def decode_with_pillow(data: bytes) -> Encoded:
    """The whole image as PPM in RGB, rotated by its EXIF orientation.

    Raises:
        BrokenImage: Pillow cannot decode it.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as image:
            _refuse_size(image.height, image.width)
            image.load()
            if image.mode.startswith("I;16"):  # Pillow's conversion would clip at 255
                image = Image.fromarray((np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8))
            pixels = ImageOps.exif_transpose(image).convert("RGB")
    except BrokenImage:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        reason = error_text(error)
        if "cannot identify image file" in reason:
            reason = "not an image"
        raise BrokenImage(reason) from None
    header = b"P6 %d %d 255\n" % pixels.size
    return Encoded(header + pixels.tobytes(), pixels.height, pixels.width)


def decode_rgb(encoded: Encoded) -> Tensor:
    """The pixels of a prepared image, uint8 [3, H, W], rotated by its EXIF orientation.

    Raises:
        BrokenImage: The compressed pixels cannot be decoded.
    """
    import simplejpeg

    data = encoded.data
    if data.startswith(b"\xff\xd8") and encoded.orientation == 1:
        try:
            # Not strict: a damaged scan becomes damaged pixels, as in DALI; `verify` finds it.
            pixels = simplejpeg.decode_jpeg(data, "RGB", strict=False)
            return torch.from_numpy(pixels).permute(2, 0, 1)
        except ValueError:
            pass  # CMYK, which Pillow decodes, or undecodable, for which Pillow has the reason
    if not data.startswith(b"P6 "):
        data = decode_with_pillow(data).data
    pixels = np.frombuffer(data, np.uint8, offset=data.index(b"\n") + 1)
    pixels = pixels.reshape(encoded.height, encoded.width, 3).copy()
    return torch.from_numpy(pixels).permute(2, 0, 1)


def resize_part(image: Tensor, box: tuple[int, int, int, int], size: int) -> Tensor:
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


def _png_header(data: bytes) -> tuple[int, int, int, bool]:
    """Height, width, bits, and whether an EXIF block may rotate it; verifies every checksum.

    Some decoders crash on damaged compressed pixels. Source of the chunks: ISO/IEC 15948.
    """
    position = 8
    chunks: list[bytes] = []
    while not chunks or chunks[-1] != b"IEND":
        if len(data) < position + 12:
            raise BrokenImage("the PNG is cut off")
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        chunks.append(data[position + 4 : position + 8])
        if len(data) < end + 4:
            raise BrokenImage("the PNG is cut off")
        if zlib.crc32(memoryview(data)[position + 4 : end]) != int.from_bytes(
            data[end : end + 4], "big"
        ):
            raise BrokenImage("the PNG is damaged")
        position = end + 4
    if chunks[0] != b"IHDR" or b"IDAT" not in chunks:
        raise BrokenImage("the PNG is damaged")
    width, height, depth = struct.unpack(">IIB", data[16:25])
    _refuse_size(height, width)  # before it is decoded
    return height, width, depth, b"eXIf" in chunks


def _webp_size(data: bytes) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except Exception:  # the header parser raises errors of many types
        raise BrokenImage("the WebP's header is damaged") from None


def _jpeg_header(data: bytes) -> tuple[int, int, int]:
    """Height, width and EXIF orientation from the markers of a JPEG, up to the first scan.

    Source of the markers: ITU-T T.81, annex B.
    """
    position, size, orientation = 2, None, 1
    try:
        while True:
            if data[position] != 0xFF:
                raise BrokenImage("the JPEG's headers are damaged")
            marker = data[position + 1]
            if marker == 0xFF:  # fill byte
                position += 1
                continue
            length = int.from_bytes(data[position + 2 : position + 4], "big")
            if length < 2:
                raise BrokenImage("the JPEG's headers are damaged")
            if marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
                if data[position + 4] != 8:
                    raise BrokenImage(f"a JPEG of {data[position + 4]} bits")
                size = struct.unpack(">HH", data[position + 5 : position + 9])
            elif marker in _OTHER_FRAMES:
                raise BrokenImage("a kind of JPEG that decoders do not know (lossless, arithmetic)")
            elif marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
                orientation = _orientation(data[position + 10 : position + 2 + length])
            elif marker == 0xDA:  # the first scan
                break
            position += 2 + length
    except (IndexError, struct.error):
        raise BrokenImage("the JPEG is cut off") from None
    if size is None:
        raise BrokenImage("the JPEG's headers are damaged")
    if data.rfind(b"\xff\xd9", position) < 0:
        raise BrokenImage("the JPEG is cut off")
    return *size, orientation


def _orientation(exif: bytes) -> int:
    """Orientation in an EXIF block, 1 to 8; 1 without an orientation."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 1
    try:
        (first,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, entry)
            if tag == 0x0112:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass  # decoders ignore a damaged EXIF block, too
    return 1
