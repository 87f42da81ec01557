"""Strict checks of one image file, for `verify`."""

import contextlib
import os
import re
import zlib

from alr_fast.data.images.decode import (
    MAX_PIXELS,
    Encoded,
    decode_rgb,
    decode_with_pillow,
    open_image,
    prepare,
)
from alr_fast.data.images.headers import (
    JPEG,
    PNG,
    kind_of,
    orientation_of,
    png_header,
    png_passes,
    png_stream,
)
from alr_fast.data.images.sources import LEFT_OUT, BrokenImage
from alr_fast.utils.text import error_text

# Why a file is excluded, in the order of the table.
MISSING, UNREADABLE, EMPTY = "missing", "unreadable", "empty"
NO_IMAGE, TRUNCATED, DAMAGED = "not an image", "truncated", "damaged"
PIXELS, TOO_LARGE, UNKNOWN = "damaged pixels", "too large", "unknown kind of JPEG"
KINDS = (
    *(MISSING, UNREADABLE, EMPTY, NO_IMAGE, TRUNCATED),
    *(DAMAGED, PIXELS, TOO_LARGE, UNKNOWN, LEFT_OUT),
)
# Remarks on valid files; bit k of the notes is entry k.
NOTES = ("CMYK", "gray", "16 bits", "format differs from the name", "rotated by EXIF")
_CMYK, _GRAY, _DEEP, _FORMAT, _ROTATED = (1 << k for k in range(len(NOTES)))

_SUFFIXES = {
    "JPEG": ".jpg .jpeg .jpe .jfif .mpo",
    "PNG": ".png .apng",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp .dib",
    "TIFF": ".tif .tiff",
    "PPM": ".ppm .pgm .pbm .pnm .pfm",
    "AVIF": ".avif .avifs",
    "JPEG2000": ".jp2 .j2k .j2c .jpc .jpf .jpx",
}
_FORMATS = {suffix: name for name, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
_PART = 1 << 20  # bytes that are unpacked at a time
# Warnings of libjpeg about headers: the pixels are correct.
_HARMLESS = re.compile(
    "unknown JFIF revision|Unknown Adobe color transform|Invalid SOS parameters|bad ICC marker"
)


class Broken(Exception):
    """A missing, unreadable or damaged file.

    Attributes:
        kind: One of `KINDS`.
        reason: Message of the decoder.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason

    def __str__(self) -> str:
        return self.kind if self.reason in ("", self.kind) else f"{self.kind} ({self.reason})"


def examine(data: bytes, name: str = "") -> int:
    """Reads an encoded image to its end.

    Args:
        data: The file.
        name: Its name, whose suffix is compared with the format; may be empty.

    Returns:
        Bits of `NOTES`.

    Raises:
        Broken: It is not an image, or damaged.
    """
    try:
        encoded = prepare(data)
        kind = kind_of(data)
        if kind == JPEG:
            _decode_strictly(data)
        elif encoded.pixels is None:  # not decoded by `prepare`
            decode_rgb(encoded)
        if kind == PNG:
            _count_png_pixels(data)
    except BrokenImage as error:
        raise Broken(_kind(data, str(error)), str(error)) from None
    return (_jpeg_notes if kind == JPEG else _notes)(data, name, encoded)


def _decode_strictly(data: bytes) -> None:
    """Decodes a JPEG; releases the interpreter lock meanwhile."""
    import simplejpeg

    # Gray and fast: reads all coefficients, although it does not use all of them.
    options = {"fastdct": True, "fastupsample": True, "min_factor": 8}
    try:
        simplejpeg.decode_jpeg(data, "GRAY", **options)
    except ValueError as error:
        reason = error_text(error)
    else:
        return
    if "subsampling" in reason:  # simplejpeg supports only some
        decode_with_pillow(data)
        return
    if _HARMLESS.search(reason):
        with contextlib.suppress(ValueError):
            simplejpeg.decode_jpeg(data, "GRAY", strict=False, **options)
            return
    raise Broken(PIXELS, reason)


def _count_png_pixels(data: bytes) -> None:
    """Refuses a PNG with too few pixels, or without their end, and valid checksums: Pillow fills
    the rest with black, others fail."""
    header = png_header(data)
    bits = header.depth * header.channels
    expected = sum(
        len(range(*rows)) * (1 + -(-len(range(*columns)) * bits // 8))
        for rows, columns in png_passes(header)
    )
    stream, rest, found = zlib.decompressobj(), png_stream(data), 0
    while not stream.eof and found <= expected + _PART:
        try:
            part = stream.decompress(rest, _PART)
        except zlib.error as error:
            raise Broken(PIXELS, str(error)) from None
        if not part:
            break
        found, rest = found + len(part), stream.unconsumed_tail
    if found < expected:
        raise Broken(TRUNCATED, f"{found:,} of {expected:,} bytes of pixels")
    if not stream.eof:
        raise Broken(PIXELS, f"no end after the {expected:,} bytes of pixels")


def _kind(data: bytes, reason: str) -> str:
    """One of `KINDS`, from the messages of `prepare` and Pillow."""
    if not data:
        return EMPTY
    size = re.fullmatch(r"(\d+) x (\d+) pixels", reason)
    if size:
        return TOO_LARGE if int(size[1]) * int(size[2]) > MAX_PIXELS else DAMAGED
    for kind, pattern in (
        (NO_IMAGE, "not an image"),
        (UNKNOWN, "a kind of JPEG|a JPEG of"),
        (TRUNCATED, "cut off|truncated|Truncated|ends before"),
        (TOO_LARGE, "more than .* pixels"),
    ):
        if re.search(pattern, reason):
            return kind
    return DAMAGED


def _jpeg_notes(data: bytes, name: str, encoded: Encoded) -> int:
    import simplejpeg

    try:
        colours = simplejpeg.decode_jpeg_header(data, strict=False)[2]
    except ValueError:
        return _notes(data, name, encoded)
    return (
        _CMYK * (colours in ("CMYK", "YCCK"))
        | _GRAY * (colours == "Gray")
        | _ROTATED * (encoded.orientation != 1)
        | _FORMAT * (_expected(name) not in (None, "JPEG"))
    )


def _notes(data: bytes, name: str, encoded: Encoded) -> int:
    with open_image(data) as image:
        tags = getattr(image, "tag_v2", {})  # of a TIFF
        deep = image.mode.startswith(("I", "F")) or max(tags.get(258, (8,))) > 8
        deep |= kind_of(data) == PNG and png_header(data).depth == 16
        turned = encoded.orientation != 1 or tags.get(274, 1) in range(2, 9)
        turned |= image.format == "AVIF" and orientation_of(image.info.get("exif", b"")) != 1
        kind = (image.format or "").replace("DIB", "BMP")
        return (
            _CMYK * (image.mode == "CMYK")
            | _GRAY * (image.mode in ("1", "L", "LA") or image.mode.startswith(("I", "F")))
            | _DEEP * deep
            | _ROTATED * turned
            | _FORMAT * (_expected(name) not in (None, kind))
        )


def _expected(name: str) -> str | None:
    return _FORMATS.get(os.path.splitext(name)[1].lower())
