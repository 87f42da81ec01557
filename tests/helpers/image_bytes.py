"""PNG, TIFF and BMP files built byte by byte, in forms that no library writes."""

import struct
import zlib

import numpy as np


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(
    samples: np.ndarray, colours: int, depth: int = 8, *, extra: bytes = b"", interlaced=False
) -> bytes:
    """A PNG of samples [H, W, C] of 1 to 16 bits; ``extra`` chunks come before the pixels."""

    def rows(part: np.ndarray) -> bytes:
        if depth == 16:
            lines = [line.astype(">u2").tobytes() for line in part]
        elif depth == 8:
            lines = [line.astype(np.uint8).tobytes() for line in part]
        else:
            bits = [np.unpackbits(line.astype(np.uint8).reshape(-1, 1), axis=1) for line in part]
            lines = [np.packbits(line[:, 8 - depth :]).tobytes() for line in bits]
        return b"".join(b"\0" + line for line in lines)

    passes = [(0, 0, 1, 1)]
    if interlaced:  # Adam7: first row and column, and the steps to the next
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
        passes += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [samples[a::c, b::d] for a, b, c, d in passes]
    pixels = b"".join(rows(part) for part in parts if part.size)
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, interlaced)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


def text_bomb(size: int) -> bytes:
    """A chunk of compressed text of ``size`` zeros."""
    return chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(size), 9))


def tiff(
    samples: np.ndarray,
    photometric: int,
    *,
    sample_format: int = 1,
    order: str = "<",
    planar: bool = False,
    tile: int = 0,
    bits: int = 0,
    packed: bytes | None = None,
    extra: tuple[tuple[int, int, int], ...] = (),
    more_pages: int = 0,
) -> bytes:
    """An uncompressed TIFF of samples [H, W, C].

    Args:
        photometric: 0 and 1 gray (0: white is zero), 2 RGB, 5 CMYK, 6 YCbCr.
        sample_format: 1 unsigned, 2 signed, 3 float.
        order: ``<`` or ``>``.
        planar: Whether each channel is stored by itself.
        tile: Side of the tiles, a divisor of the image's; 0 for one strip.
        bits: Bits of a sample if it is not that of the array.
        packed: Pixels whose values do not fill whole bytes.
        extra: Further tags: number, type, value.
        more_pages: Pages after the first one, of zeros.
    """
    height, width, channels = samples.shape
    code = samples.dtype.newbyteorder(order)
    planes = [samples[:, :, c : c + 1] for c in range(channels)] if planar else [samples]
    step = tile or max(height, width)
    blocks = [
        plane[top : top + step, left : left + step].astype(code).tobytes()
        for plane in planes
        for top in range(0, height, step)
        for left in range(0, width, step)
    ]
    if packed is not None:
        blocks = [packed]
    depth = bits or samples.itemsize * 8
    data = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 0)
    link = 4  # where the offset of the next page is written
    for page in range(1 + more_pages):
        offsets = []
        for block in blocks:
            offsets.append(len(data))
            data += bytes(len(block)) if page else block
        tags = [(256, 4, [width]), (257, 4, [height]), (258, 3, [depth] * channels)]
        tags += [(259, 3, [1]), (262, 3, [photometric]), (277, 3, [channels])]
        tags += [(284, 3, [2 if planar else 1]), (339, 3, [sample_format] * channels)]
        lengths = [len(block) for block in blocks]
        if tile:
            tags += [(322, 4, [tile]), (323, 4, [tile]), (324, 4, offsets), (325, 4, lengths)]
        else:
            tags += [(273, 4, offsets), (278, 4, [height]), (279, 4, lengths)]
        tags += [(number, kind, [value]) for number, kind, value in extra]
        entries = b""
        for number, kind, values in sorted(tags):
            content = struct.pack(
                order + str(len(values)) + {1: "B", 3: "H", 4: "I"}[kind], *values
            )
            if len(content) > 4:
                place = struct.pack(order + "I", len(data))
                data += content
            else:
                place = content.ljust(4, b"\0")
            entries += struct.pack(order + "HHI", number, kind, len(values)) + place
        data += bytes(len(data) % 2)
        data = data[:link] + struct.pack(order + "I", len(data)) + data[link + 4 :]
        data += struct.pack(order + "H", len(tags)) + entries
        link = len(data)
        data += bytes(4)
    return data


def bmp(
    rows: bytes, bits: int, *, compression=0, masks=b"", palette=b"", height: int = 32
) -> bytes:
    """A BMP with these rows, the lowest first, or the highest if ``height`` is negative."""
    header = struct.pack("<IiiHHIIiiII", 40, 32, height, 1, bits, compression, len(rows),
                         2835, 2835, len(palette) // 4, 0)  # fmt: skip
    start = 14 + len(header) + len(masks) + len(palette)
    return (
        struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start)
        + header
        + masks
        + (palette + rows)
    )
