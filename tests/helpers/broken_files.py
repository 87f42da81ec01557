"""Unreadable, damaged and unusual image files, one function each.

Each function writes to a path and replaces an existing file or folder. The picture is always that
of `write_good`, 40 x 32 pixels, as far as it is still visible.

    BROKEN         no loader may train on it, and `verify` excludes it
    DECODER_FAILS  its structure is valid, but DALI and some other decoders fail; `verify` excludes
                   it
    ONLY_VERIFY    its structure is valid, so training may use it; `verify` excludes it
    FINE           every loader decodes it, and `verify` keeps it
"""

import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 32


def picture() -> Image.Image:
    """A soft gradient with a little noise, which JPEG compresses like a photograph."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([5 * x + 20, 6 * y + 20, 3 * (x + y) + 10], axis=-1)
    pixels = pixels + np.random.default_rng(0).integers(-20, 20, size=pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_good(path: Path) -> None:
    """Writes an ordinary JPEG."""
    _replace(path, good_bytes())


def good_bytes(kind: str = "JPEG", mode: str = "RGB", **options) -> bytes:
    """The picture in this format."""
    buffer = io.BytesIO()
    # Quality 95: compressed pixels make up more than half of the file.
    picture().convert(mode).save(buffer, kind, **({"quality": 95} | options))
    return buffer.getvalue()


def _replace(path: Path, data: bytes | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if data is not None:
        path.write_bytes(data)


def _writes(make: Callable[[], bytes | None]) -> Callable[[Path], None]:
    return lambda path: _replace(path, make())


def _directory(path: Path) -> None:
    _replace(path, None)
    path.mkdir()


def _unreadable(path: Path) -> None:
    """A file without permission to read; tests skip it for root, who may read it."""
    write_good(path)
    os.chmod(path, 0)


def segment(data: bytes, *markers: int) -> int:
    """Position of the first of these markers in a JPEG."""
    position = 2
    while data[position + 1] not in markers:
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position


def scan(data: bytes) -> int:
    """Position of the compressed pixels of a JPEG's first scan."""
    position = segment(data, 0xDA)
    return position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")


def _patched(data: bytes, at: int, patch: bytes) -> bytes:
    return data[:at] + patch + data[at + len(patch) :]


def _with_size(height: int, width: int) -> bytes:
    data = good_bytes()
    return _patched(data, segment(data, 0xC0) + 5, struct.pack(">HH", height, width))


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _png_16() -> bytes:
    buffer = io.BytesIO()
    gray = np.asarray(picture().convert("L"), dtype=np.uint16)
    Image.fromarray(gray * 257).save(buffer, "PNG")
    return buffer.getvalue()


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def _flipped() -> bytes:
    """Bits flipped inside the compressed pixels, without creating a marker."""
    data = bytearray(good_bytes())
    first = scan(data)
    for at in range(first + 30, len(data) - 40, 25):
        if 0xFF not in data[at - 1 : at + 2] and data[at] ^ 0x5A not in (0xFF, 0x00):
            data[at] ^= 0x5A
    return bytes(data)


def _zero_tail() -> bytes:
    """The second half of the compressed pixels zeroed, the end marker intact."""
    data = good_bytes()
    first = scan(data)
    middle = (first + len(data)) // 2
    return data[:middle] + bytes(len(data) - 2 - middle) + data[-2:]


def _missing_rows() -> bytes:
    """The compressed pixels end in the middle, directly before the end marker."""
    data = good_bytes()
    return data[: (scan(data) + len(data)) // 2] + data[-2:]


def _bad_png_pixels() -> bytes:
    """A PNG with damaged compressed pixels and all its chunks."""
    data = good_bytes("PNG")
    return _patched(data, data.index(b"IDAT") + 40, bytes(200))


def _bad_png_stream() -> bytes:
    """A PNG with valid checksums and too few pixels, as an interrupted program writes it."""
    data = good_bytes("PNG")
    at = data.index(b"IDAT") - 4
    pixels = zlib.compress(zlib.decompress(data[at + 8 : -16])[: 10 * (3 * WIDTH + 1)])
    chunk = b"IDAT" + pixels
    chunk = struct.pack(">I", len(pixels)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data[:at] + chunk + data[-12:]


def _endless_png_stream() -> bytes:
    """A PNG with valid checksums whose compressed pixels are complete, but have no end."""
    data = good_bytes("PNG")
    at = data.index(b"IDAT") - 4
    packer = zlib.compressobj()
    pixels = packer.compress(zlib.decompress(data[at + 8 : -16])) + packer.flush(zlib.Z_SYNC_FLUSH)
    chunk = b"IDAT" + pixels
    chunk = struct.pack(">I", len(pixels)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data[:at] + chunk + data[-12:]


def _bad_webp() -> bytes:
    """A lossless WebP with damaged compressed pixels."""
    data = good_bytes("WEBP", lossless=True)
    return _patched(data, 40, bytes(range(200, 240)))


def _huffman_counts() -> bytes:
    """A Huffman table with more codes than are possible."""
    data = good_bytes()
    return _patched(data, segment(data, 0xC4) + 5, b"\xff" * 16)


def _long_huffman() -> bytes:
    """A Huffman table whose length exceeds the file."""
    data = good_bytes()
    return _patched(data, segment(data, 0xC4) + 2, b"\xff\xff")


def _frame(at: int, patch: bytes) -> bytes:
    data = good_bytes()
    return _patched(data, segment(data, 0xC0) + at, patch)


def _without_tables() -> bytes:
    """A JPEG without its quantisation tables."""
    data = good_bytes()
    first = segment(data, 0xDB)
    return data[:first] + data[segment(data, 0xC0) :]


def _palette() -> bytes:
    buffer = io.BytesIO()
    picture().convert("P", palette=Image.Palette.ADAPTIVE).save(buffer, "PNG", transparency=0)
    return buffer.getvalue()


def _animation(kind: str) -> bytes:
    buffer = io.BytesIO()
    picture().save(buffer, kind, save_all=True, append_images=[picture().rotate(180)])
    return buffer.getvalue()


BROKEN: dict[str, Callable[[Path], None]] = {
    "missing": _writes(lambda: None),
    "directory": _directory,
    "unreadable": _unreadable,
    "empty": _writes(lambda: b""),
    "one byte": _writes(lambda: b"\xff"),
    "only a start": _writes(lambda: b"\xff\xd8"),
    "html": _writes(lambda: b"<!DOCTYPE html><html><body>404 not found</body></html>\n"),
    "zeros": _writes(lambda: bytes(2000)),
    "truncated": _writes(lambda: _half(good_bytes())),
    "slightly truncated": _writes(lambda: good_bytes()[:-40]),
    "without the end marker": _writes(lambda: good_bytes()[:-2]),
    "zeroed tail and end": _writes(lambda: _half(good_bytes()) + bytes(len(good_bytes()) // 2)),
    "progressive truncated": _writes(lambda: _half(good_bytes(progressive=True))),
    "headers alone": _writes(lambda: good_bytes()[: scan(good_bytes())]),
    "long Huffman table": _writes(_long_huffman),
    "Huffman counts": _writes(_huffman_counts),
    "12 bits": _writes(lambda: _frame(4, b"\x0c")),
    "arithmetic JPEG": _writes(lambda: _frame(1, b"\xc9")),
    "lossless JPEG": _writes(lambda: _frame(1, b"\xc3")),
    "no tables": _writes(_without_tables),
    "huge": _writes(lambda: _with_size(65500, 65500)),
    "no pixels": _writes(lambda: _with_size(HEIGHT, 0)),
    "png truncated": _writes(lambda: _half(good_bytes("PNG"))),
    "png slightly truncated": _writes(lambda: good_bytes("PNG")[:-12]),
    "png of zeros": _writes(lambda: good_bytes("PNG")[:8] + bytes(500)),
    "png damaged pixels": _writes(_bad_png_pixels),
    "webp truncated": _writes(lambda: _half(good_bytes("WEBP"))),
    "webp slightly truncated": _writes(lambda: good_bytes("WEBP")[:-10]),
    "gif truncated": _writes(lambda: _half(good_bytes("GIF"))),
    "bmp truncated": _writes(lambda: _half(good_bytes("BMP"))),
    "tiff truncated": _writes(lambda: _half(good_bytes("TIFF"))),
}

ONLY_VERIFY: dict[str, Callable[[Path], None]] = {
    "flipped bits": _writes(_flipped),
    "zero tail": _writes(_zero_tail),
    "missing rows": _writes(_missing_rows),
    "too tall": _writes(lambda: _with_size(4 * HEIGHT, WIDTH)),
}

DECODER_FAILS: dict[str, Callable[[Path], None]] = {
    "png of few pixels": _writes(_bad_png_stream),  # Pillow fills the rest with black
    "png without an end of its pixels": _writes(_endless_png_stream),
    "webp damaged pixels": _writes(_bad_webp),
}

FINE: dict[str, Callable[[Path], None]] = {
    "good": _writes(good_bytes),
    "progressive": _writes(lambda: good_bytes(progressive=True)),
    "cmyk": _writes(lambda: good_bytes(mode="CMYK")),
    "gray": _writes(lambda: good_bytes(mode="L")),
    "garbage after the end": _writes(lambda: good_bytes() + b"\0garbage\xff" * 20),
    "turned": _writes(lambda: good_bytes(exif=_exif(6))),
    "upside down": _writes(lambda: good_bytes(exif=_exif(3))),
    "png": _writes(lambda: good_bytes("PNG")),
    "png 16 bits": _writes(_png_16),
    "png gray": _writes(lambda: good_bytes("PNG", "L")),
    "png 1 bit": _writes(lambda: good_bytes("PNG", "1")),
    "png transparent": _writes(lambda: good_bytes("PNG", "RGBA")),
    "png palette": _writes(_palette),
    "png turned": _writes(lambda: good_bytes("PNG", exif=_exif(6))),
    "webp": _writes(lambda: good_bytes("WEBP")),
    "webp lossless": _writes(lambda: good_bytes("WEBP", "RGBA", lossless=True)),
    "webp turned": _writes(lambda: good_bytes("WEBP", exif=_exif(6))),
    "webp animated": _writes(lambda: _animation("WEBP")),
    "gif": _writes(lambda: good_bytes("GIF")),
    "gif animated": _writes(lambda: _animation("GIF")),
    "bmp": _writes(lambda: good_bytes("BMP")),
    "tiff": _writes(lambda: good_bytes("TIFF")),
}

KINDS: dict[str, Callable[[Path], None]] = {**BROKEN, **DECODER_FAILS, **ONLY_VERIFY, **FINE}


def write_broken(path: Path, kind: str) -> None:
    """Writes a file of one of `KINDS`."""
    KINDS[kind](path)
