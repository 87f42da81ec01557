"""Headers of JPEG, PNG and WebP: size, orientation, and whether all decoders agree on the rest.

Decoders differ in what they make of everything beside the pixels: EXIF, colour profiles, gamma,
text, transparency, animation. So this module reads the structure of a file itself, and says which
files any decoder turns into the same pixels. Sources: ITU-T T.81 annex B (JPEG), ISO/IEC 15948
(PNG), RFC 9649 (WebP), EXIF 2.32 section 4.6 (orientation).
"""

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from alr_fast.data.images.sources import BrokenImage

JPEG, PNG, WEBP = "JPEG", "PNG", "WEBP"
_PNG_START = b"\x89PNG\r\n\x1a\n"
# The other chunks are text, profiles, animations, transparency: none of them changes a pixel here.
_PNG_CHUNKS = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND"))
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
          (1, 0, 2, 1))  # fmt: skip
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}

_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_OTHER_FRAMES = frozenset(
    (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
)  # markers of JPEGs that decoders do not support
_APP0, _APP1, _ADOBE, _COMMENT, _SCAN = 0xE0, 0xE1, 0xEE, 0xFE, 0xDA
# Sampling factors of the three components that every decoder knows: 4:4:4, 4:2:2, 4:4:0, 4:2:0.
_SAMPLINGS = frozenset(
    bytes((luma, 0x11, 0x11)) for luma in (0x11, 0x21, 0x12, 0x22)
)  # 4:1:1 is upsampled differently by some

_ORIENTATION = 0x0112
_WIDTHS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # of the integer types of EXIF


@dataclass(frozen=True)
class Header:
    """What the structure of a file says.

    Attributes:
        kind: JPEG, PNG or WEBP.
        data: The file; a PNG without the chunks that decoders treat differently.
        height: Height in pixels as stored, before it is turned.
        width: Width in pixels as stored.
        orientation: EXIF orientation, 1 to 8; 1 is upright.
        simple: Whether every decoder makes the same pixels of ``data`` if told not to turn it.
        uneven: Of a JPEG, how much coarser its colours are in one direction than in the other: 2
            for 4:2:2, 1 for 4:4:4 and 4:2:0.
    """

    kind: str
    data: bytes
    height: int
    width: int
    orientation: int
    simple: bool
    uneven: int = 1


def kind_of(data: bytes) -> str | None:
    """JPEG, PNG or WEBP by the first bytes; None for everything else."""
    if data[:2] == b"\xff\xd8":
        return JPEG
    if data[:8] == _PNG_START:
        return PNG
    return WEBP if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def read_header(data: bytes) -> Header | None:
    """The header of a complete JPEG, PNG or WebP; None for other data.

    Raises:
        BrokenImage: It is cut off or damaged, or a kind of JPEG that decoders do not know.
    """
    reader = {JPEG: _jpeg, PNG: _png, WEBP: _webp}.get(kind_of(data) or "")
    return None if reader is None else reader(data)


def without_extras(data: bytes) -> bytes:
    """A JPEG or PNG without everything that does not change its pixels; other data as it is.

    Thumbnails, text, profiles and EXIF of any size or form then concern no decoder. Damaged data
    are returned as they are from the damage on.
    """
    kind = kind_of(data)
    if kind == PNG:
        return _essential(data, list(_png_chunks(data, check=False)))
    if kind == JPEG:
        parts, copied = [], 0
        for marker, begin, end in _jpeg_segments(data):
            extra = _APP0 < marker <= 0xEF and marker != _ADOBE
            if extra or marker == _COMMENT:
                parts.append(data[copied:begin])
                copied = end
        return b"".join((*parts, data[copied:])) if parts else data
    return data


def orientation_of(exif: bytes) -> int:
    """Orientation in an EXIF block, 1 to 8; 1 without a valid one.

    Args:
        exif: The block, with or without ``Exif`` in front. Any integer type counts, in either byte
            order: the standard says SHORT, programs write LONG and BYTE, too.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(order + "HHI", exif, entry)
            if tag == _ORIENTATION:
                if kind not in _WIDTHS or values != 1:
                    return 1
                (value,) = struct.unpack_from(order + _WIDTHS[kind], exif, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass  # decoders ignore a damaged EXIF block, too
    return 1


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, begin and end of each segment before the pixels; ends early where it is damaged."""
    position = 2
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9:  # of no segment, or not before the pixels
            return
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if end < position + 4:
            return
        yield marker, position, end
        if marker == _SCAN:
            return
        position = end


def _jpeg(data: bytes) -> Header:
    frame, exif, adobe, marker, end = b"", b"", None, 0, 2
    progressive = False
    for marker, begin, end in _jpeg_segments(data):
        if end > len(data):
            break
        if marker in _FRAMES:
            if frame:
                raise BrokenImage("the JPEG's headers are damaged")
            frame, progressive = data[begin + 4 : end], marker == _FRAMES[2]
        elif marker in _OTHER_FRAMES:
            raise BrokenImage("a kind of JPEG that decoders do not know (lossless, arithmetic)")
        elif marker == _APP1 and not exif and data[begin + 4 : begin + 10] == b"Exif\0\0":
            exif = data[begin + 10 : end]
        elif marker == _ADOBE and data[begin + 4 : begin + 9] == b"Adobe" and end - begin >= 16:
            adobe = data[begin + 15]
    if marker != _SCAN or end > len(data):
        cut = end >= len(data) - 3
        raise BrokenImage("the JPEG is cut off" if cut else "the JPEG's headers are damaged")
    if len(frame) < 6 or len(frame) != 6 + 3 * frame[5]:
        raise BrokenImage("the JPEG's headers are damaged")
    if frame[0] != 8:
        raise BrokenImage(f"a JPEG of {frame[0]} bits")
    if data.rfind(b"\xff\xd9", end) < 0:
        raise BrokenImage("the JPEG is cut off")
    height, width, components = struct.unpack(">HHB", frame[1:6])
    if components not in (1, 3, 4):
        raise BrokenImage(f"a JPEG of {components} colours")
    ids, samplings = frame[6::3], frame[7::3]
    simple = samplings in _SAMPLINGS if components == 3 else samplings == b"\x11"
    if components == 3:  # YCbCr by the rules of every decoder, not RGB
        simple = simple and adobe in (None, 1) and ids != b"RGB"
    # Whole coefficients in one scan, or a progressive one: decoders may refuse what is neither.
    simple = simple and (progressive or data[end - 3 : end] == b"\0\x3f\0")
    return Header(JPEG, data, height, width, orientation_of(exif), simple, _unevenness(samplings))


def _unevenness(samplings: bytes) -> int:
    across, down = ([sampling >> shift & 15 for sampling in samplings] for shift in (4, 0))
    if not all(across) or not all(down):
        return 1  # damaged
    ratios = [max(across) / a * d / max(down) for a, d in zip(across, down, strict=True)]
    return math.ceil(max(max(ratio, 1 / ratio) for ratio in ratios))


def _png_chunks(data: bytes, *, check: bool) -> Iterator[tuple[bytes, int, int]]:
    """Kind, begin and end of each chunk of a PNG.

    Raises:
        BrokenImage: With ``check``: it is cut off, or a checksum is wrong. Without: never.
    """
    position, kind = 8, b""
    while kind != b"IEND":
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if len(data) < position + 12 or len(data) < end:
            if check:
                raise BrokenImage("the PNG is cut off")
            return
        kind = data[position + 4 : position + 8]
        # Some decoders crash on damaged compressed pixels.
        if check and zlib.crc32(memoryview(data)[position + 4 : end - 4]) != int.from_bytes(
            data[end - 4 : end], "big"
        ):
            raise BrokenImage("the PNG is damaged")
        yield kind, position, end
        position = end


def _essential(data: bytes, chunks: list[tuple[bytes, int, int]]) -> bytes:
    if all(kind in _PNG_CHUNKS for kind, _, _ in chunks):
        return data
    end = chunks[-1][2]
    kept = (data[begin:end] for kind, begin, end in chunks if kind in _PNG_CHUNKS)
    return b"".join((data[:8], *kept, data[end:]))


def _png(data: bytes) -> Header:
    chunks = list(_png_chunks(data, check=True))
    kinds = [kind for kind, _, _ in chunks]
    if kinds[0] != b"IHDR" or chunks[0][2] != 33 or b"IDAT" not in kinds:
        raise BrokenImage("the PNG is damaged")
    width, height, depth, colours, _ = png_header(data)
    if depth not in _PNG_DEPTHS.get(colours, ()) or any(data[26:28]) or data[28] > 1:
        raise BrokenImage("the PNG is damaged")
    if kinds.count(b"IHDR") > 1 or (colours == 3 and b"PLTE" not in kinds):
        raise BrokenImage("the PNG is damaged")
    exif = next((data[begin + 8 : end - 4] for kind, begin, end in chunks if kind == b"eXIf"), b"")
    return Header(
        PNG, _essential(data, chunks), height, width, orientation_of(exif), simple=depth <= 8
    )


class PngHeader(NamedTuple):
    """The first chunk of a PNG.

    Attributes:
        width: Width in pixels.
        height: Height in pixels.
        depth: Bits of a sample, 1 to 16.
        colours: 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGB and alpha.
        interlaced: Whether the pixels come in seven passes.
    """

    width: int
    height: int
    depth: int
    colours: int
    interlaced: bool

    @property
    def channels(self) -> int:
        return {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[self.colours]


def png_header(data: bytes) -> PngHeader:
    """The header of a PNG that `read_header` has accepted."""
    width, height, depth, colours, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    return PngHeader(width, height, depth, colours, interlaced == 1)


def png_passes(header: PngHeader) -> Iterator[tuple[tuple[int, int, int], tuple[int, int, int]]]:
    """Rows and columns of each pass that has pixels, both as start, stop and step."""
    passes = _ADAM7 if header.interlaced else ((0, 0, 1, 1),)
    for top, left, down, right in passes:
        if top < header.height and left < header.width:
            yield (top, header.height, down), (left, header.width, right)


def png_stream(data: bytes) -> bytes:
    """The compressed pixels of a PNG that `read_header` has accepted."""
    chunks = _png_chunks(data, check=False)
    return b"".join(data[begin + 8 : end - 4] for kind, begin, end in chunks if kind == b"IDAT")


def _webp(data: bytes) -> Header:
    end = 8 + int.from_bytes(data[4:8], "little")
    if len(data) < end:
        raise BrokenImage("the WebP is cut off")
    first = data[12:16]
    try:
        if first == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
            width, height = (size & 0x3FFF for size in struct.unpack("<HH", data[26:30]))
            return Header(WEBP, data, height, width, 1, simple=True)
        if first == b"VP8L" and data[20:21] == b"\x2f":
            (bits,) = struct.unpack("<I", data[21:25])
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            return Header(WEBP, data, height, width, 1, simple=True)
        if first == b"VP8X":  # with alpha, animation, profile or EXIF
            width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
            return Header(WEBP, data, height, width, orientation_of(_webp_exif(data, end)), False)
    except struct.error:
        pass
    raise BrokenImage("the WebP's header is damaged")


def _webp_exif(data: bytes, end: int) -> bytes:
    position = 12
    while position + 8 <= end:
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        if data[position : position + 4] == b"EXIF":
            return data[position + 8 : position + 8 + size]
        position += 8 + size + size % 2
    return b""
