"""Images in unusual but valid forms, built here byte by byte where no library writes them.

All show `PICTURE`, 32 x 32 pixels, or a known variant of it. `odd_images` yields name, file, and
the expected pixels: uint8 [H, W, 3], exact; None where a lossy codec decides.
"""

import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from helpers.image_bytes import bmp, chunk, png, text_bomb, tiff

SIDE = 32
y, x = np.mgrid[:SIDE, :SIDE]
PICTURE = np.stack([7 * x + 20, 6 * y + 30, 3 * (x + y) + 10], axis=-1).astype(np.uint8)
PICTURE[4:10, 3:9] = (240, 20, 40)  # no two orientations look the same
GRAY = PICTURE[:, :, 0].copy()
EXIF_TYPES = {"SHORT": (3, "H"), "LONG": (4, "I"), "BYTE": (1, "B")}


class Odd(NamedTuple):
    name: str
    data: bytes
    expected: np.ndarray | None


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[:, :, None], 3, axis=2).astype(np.uint8)


def stored(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as a camera stores them, so that this EXIF orientation makes them upright."""
    inverse = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(inverse)
    image = Image.fromarray(pixels)
    return np.asarray(image if method is None else image.transpose(method))


def exif(orientation: int, kind: str = "SHORT", order: str = "<") -> bytes:
    """An EXIF block without its ``Exif`` in front."""
    number, code = EXIF_TYPES[kind]
    value = struct.pack(order + code, orientation).ljust(4, b"\0")
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, 1)
    return start + struct.pack(order + "HHI", 0x0112, number, 1) + value + bytes(4)


def save(pixels: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# JPEG.


def jpeg(pixels: np.ndarray = PICTURE, mode: str = "RGB", **options) -> bytes:
    image = Image.fromarray(pixels).convert(mode)
    return save(image, "JPEG", **{"quality": 95, "subsampling": 0} | options)


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def with_segments(data: bytes, *segments: bytes) -> bytes:
    """A JPEG with these segments right after its start."""
    return data[:2] + b"".join(segments) + data[2:]


def with_exif(data: bytes, block: bytes) -> bytes:
    return with_segments(data, segment(0xE1, b"Exif\0\0" + block))


def without_adobe(data: bytes) -> bytes:
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def ycck(data: bytes) -> bytes:
    """A CMYK JPEG whose marker says YCCK: the colours change, but in one way."""
    at = data.index(b"Adobe") + 11
    return data[:at] + b"\x02" + data[at + 1 :]


def gray_sampled_twice() -> bytes:
    data = bytearray(jpeg(mode="L"))
    at = data.index(b"\xff\xc0") + 11
    assert data[at] == 0x11
    data[at] = 0x22
    return bytes(data)


def _jpegs() -> Iterator[Odd]:
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='6'/>"
    icc = b"ICC_PROFILE\0\x01\x01" + bytes(2000)
    cmyk = jpeg(mode="CMYK")
    forms = {
        "plain": jpeg(),
        "progressive": jpeg(progressive=True),
        "4:2:0": jpeg(subsampling=2),
        "4:2:2": jpeg(subsampling=1),
        "gray": jpeg(mode="L"),
        "gray, sampled 2 x 2": gray_sampled_twice(),
        "CMYK": cmyk,
        "CMYK without Adobe's marker": without_adobe(cmyk),
        "YCCK": ycck(cmyk),
        "CMYK, turned": with_exif(cmyk, exif(6)),
        "RGB": jpeg(keep_rgb=True),
        "RGB without Adobe's marker": without_adobe(jpeg(keep_rgb=True)),
        "XMP that turns": with_segments(jpeg(), segment(0xE1, xmp)),
        "XMP before EXIF": with_segments(
            jpeg(), segment(0xE1, xmp), segment(0xE1, b"Exif\0\0" + exif(8))
        ),
        "two EXIF blocks": with_segments(
            jpeg(), segment(0xE1, b"Exif\0\0" + exif(6)), segment(0xE1, b"Exif\0\0" + exif(3))
        ),
        "EXIF of nothing": with_segments(jpeg(), segment(0xE1, b"Exif\0\0")),
        "orientation 0": with_exif(jpeg(), exif(0)),
        "orientation 9": with_exif(jpeg(), exif(9)),
        "two orientations in one tag": with_exif(
            jpeg(),
            exif(6).replace(struct.pack("<HHI", 0x0112, 3, 1), struct.pack("<HHI", 0x0112, 3, 2)),
        ),
        "EXIF of another order": with_exif(jpeg(), b"XX" + exif(6)[2:]),
        "EXIF without 42": with_exif(jpeg(), b"II\0\0" + exif(6)[4:]),
        "a profile of nothing": with_segments(jpeg(), segment(0xE2, icc)),
        "200 comments": with_segments(jpeg(), *[segment(0xFE, bytes(60000))] * 200),
        "fill bytes": jpeg()[:2] + b"\xff" * 9 + jpeg()[2:],
        "two pictures": save(
            PICTURE, "MPO", save_all=True, append_images=[Image.fromarray(PICTURE[::-1])]
        ),
    }
    for name in ("411", "440"):
        forms[f"sampling {name}"] = simplejpeg.encode_jpeg(
            PICTURE, quality=95, colorsubsampling=name
        )
    for name, data in forms.items():
        yield Odd(f"JPEG {name}", data, None)


def _pngs() -> Iterator[Odd]:
    alpha = (8 * x).astype(np.uint8)[:, :, None]
    one = GRAY[:, :, None]
    palette = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
    colours = chunk(b"PLTE", palette.tobytes())
    profile = chunk(b"iCCP", b"ICC\0\0" + zlib.compress(bytes(3 << 20)))
    frame = struct.pack(">IIIIIHHBB", 0, 32, 32, 0, 0, 1, 10, 0, 0)
    frames = chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", frame)
    extras = {
        "gamma": chunk(b"gAMA", struct.pack(">I", 220000)),
        "sRGB, 4 significant bits": chunk(b"sRGB", b"\0") + chunk(b"sBIT", b"\4\4\4"),
        "a large profile": profile,
        "a large text": chunk(b"tEXt", b"Comment\0" + b"a" * (3 << 20)),
        "a text that unpacks to 200 MB": text_bomb(200 << 20),
        "100 texts": 100 * text_bomb(1 << 20),
        "an animation": frames,
        "a background": chunk(b"bKGD", bytes(6)),
        "a transparent colour": chunk(b"tRNS", struct.pack(">HHH", *PICTURE[0, 0].tolist())),
        "a private chunk": chunk(b"prVt", bytes(100)),
    }
    yield Odd("PNG", png(PICTURE, 2), PICTURE)
    for name, extra in extras.items():
        yield Odd(f"PNG with {name}", png(PICTURE, 2, extra=extra), PICTURE)
    yield Odd("PNG interlaced", png(PICTURE, 2, interlaced=True), PICTURE)
    yield Odd("PNG RGBA", png(np.concatenate([PICTURE, alpha], 2), 6), PICTURE)
    yield Odd(
        "PNG RGBA interlaced",
        png(np.concatenate([PICTURE, alpha], 2), 6, interlaced=True),
        PICTURE,
    )
    yield Odd("PNG gray", png(one, 0), gray(GRAY))
    yield Odd("PNG gray and alpha", png(np.concatenate([one, alpha], 2), 4), gray(GRAY))
    yield Odd(
        "PNG gray with a transparent level",
        png(one, 0, extra=chunk(b"tRNS", struct.pack(">H", int(GRAY[0, 0])))),
        gray(GRAY),
    )
    for depth in (1, 2, 4):
        levels = one >> (8 - depth)
        scaled = gray(levels[:, :, 0] * (255 // (2**depth - 1)))
        yield Odd(f"PNG gray of {depth} bits", png(levels, 0, depth), scaled)
        few = chunk(b"PLTE", palette[: 2**depth].tobytes())
        yield Odd(
            f"PNG palette of {depth} bits",
            png(levels, 3, depth, extra=few),
            palette[levels[..., 0]],
        )
    yield Odd("PNG palette", png(one, 3, extra=colours), palette[GRAY])
    yield Odd(
        "PNG palette, partly transparent",
        png(one, 3, extra=colours + chunk(b"tRNS", bytes(range(0, 250, 2)))),
        palette[GRAY],
    )
    yield Odd("PNG palette interlaced", png(one, 3, extra=colours, interlaced=True), palette[GRAY])
    full, twelve = PICTURE.astype(np.uint16) * 257, PICTURE.astype(np.uint16) * 16 + 5
    deep_alpha = alpha.astype(np.uint16) * 257
    for name, deep in (("16", full), ("12 of 16", twelve)):
        yield Odd(f"PNG RGB of {name} bits", png(deep, 2, 16), PICTURE)
        yield Odd(
            f"PNG RGBA of {name} bits", png(np.concatenate([deep, deep_alpha], 2), 6, 16), PICTURE
        )
        yield Odd(f"PNG gray of {name} bits", png(deep[:, :, :1], 0, 16), gray(GRAY))
        yield Odd(
            f"PNG gray and alpha of {name} bits",
            png(np.concatenate([deep[:, :, :1], deep_alpha], 2), 4, 16),
            gray(GRAY),
        )
    yield Odd("PNG 16 bits interlaced", png(full, 2, 16, interlaced=True), PICTURE)
    yield Odd(
        "PNG 16 bits, turned",
        png(stored(PICTURE, 6).astype(np.uint16) * 257, 2, 16, extra=chunk(b"eXIf", exif(6))),
        PICTURE,
    )


def _tiffs() -> Iterator[Odd]:
    one = GRAY[:, :, None]
    levels = one.astype(np.float64)
    for order in "<>":
        end = f"({order})"
        yield Odd(f"TIFF RGB {end}", tiff(PICTURE, 2, order=order), PICTURE)
        yield Odd(f"TIFF gray {end}", tiff(one, 1, order=order), gray(GRAY))
        for bits in (10, 12, 14, 16):
            deep = one.astype(np.uint16) << (bits - 8)
            deep[-1, -1] = 2**bits - 1
            expected = GRAY.copy()
            expected[-1, -1] = 255
            yield Odd(
                f"TIFF gray of {bits} of 16 bits {end}",
                tiff(deep, 1, order=order),
                gray(expected),
            )
        wide = one.astype(np.int32) * 2**10 + 3
        yield Odd(f"TIFF int32 {end}", tiff(wide, 1, sample_format=2, order=order), gray(GRAY))
        small = one.astype(np.int32) * 16
        yield Odd(
            f"TIFF int32 of 12 bits {end}",
            tiff(small, 1, sample_format=2, order=order),
            gray(GRAY),
        )
        if order == "<":
            full = one.astype(np.uint32) * 2**24
            yield Odd(f"TIFF uint32 {end}", tiff(full, 1, order=order), gray(GRAY))
            float_white = (1 - levels / 255).astype(np.float32)
            yield Odd(
                "TIFF float, white is 0",
                tiff(float_white, 0, sample_format=3),
                gray(GRAY),
            )
        stretched = np.round((levels - GRAY.min()) * (255 / np.ptp(GRAY)))[:, :, 0]
        for name, values, expected in (
            ("from 0 to 1", levels / 255, GRAY),
            ("from 0 to 255", levels, GRAY),
            ("of any range", levels * 37 - 1000, stretched),
        ):
            yield Odd(
                f"TIFF float {name} {end}",
                tiff(values.astype(np.float32), 1, sample_format=3, order=order),
                gray(expected),
            )
        yield Odd(
            f"TIFF int16 below 0 {end}",
            tiff((one.astype(np.int16) * 8 - 1000), 1, sample_format=2, order=order),
            gray(stretched),
        )
        yield Odd(
            f"TIFF RGB of 16 bits {end}",
            tiff(PICTURE.astype(np.uint16) * 257, 2, order=order),
            PICTURE,
        )
    twelve = one[:, :, 0].astype(np.uint16) * 16
    pairs = twelve.reshape(-1, 2)
    packed = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1
    )
    yield Odd(
        "TIFF of 12 bits",
        tiff(one, 1, bits=12, packed=packed.astype(np.uint8).tobytes()),
        gray(GRAY),
    )
    yield Odd("TIFF white is 0", tiff(255 - one, 0), gray(GRAY))
    yield Odd("TIFF white is 0, 16 bits", tiff(65535 - one.astype(np.uint16) * 257, 0), gray(GRAY))
    yield Odd("TIFF planar", tiff(PICTURE, 2, planar=True), PICTURE)
    yield Odd("TIFF tiled", tiff(PICTURE, 2, tile=16), PICTURE)
    yield Odd("TIFF of 3 pages", tiff(PICTURE, 2, more_pages=2), PICTURE)
    alpha = (8 * x).astype(np.uint8)[:, :, None]
    rgba = np.concatenate([PICTURE, alpha], 2)
    yield Odd("TIFF RGBA", tiff(rgba, 2, extra=((338, 3, 2),)), PICTURE)
    yield Odd("TIFF RGBX", tiff(rgba, 2, extra=((338, 3, 0),)), PICTURE)
    yield Odd("TIFF RGBA, premultiplied", tiff(rgba, 2, extra=((338, 3, 1),)), None)
    for name in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits"):
        data = save(PICTURE, "TIFF", compression=name)
        yield Odd(f"TIFF {name}", data, None if name == "jpeg" else PICTURE)
    yield Odd("TIFF CMYK", save(Image.fromarray(PICTURE).convert("CMYK"), "TIFF"), PICTURE)
    ycbcr = Image.fromarray(PICTURE).convert("YCbCr")
    yield Odd("TIFF YCbCr", save(ycbcr, "TIFF"), np.asarray(ycbcr.convert("RGB")))
    lab = Image.fromarray(PICTURE).convert("LAB")
    yield Odd("TIFF LAB", save(lab, "TIFF"), None)
    yield Odd("TIFF of 1 bit", save(Image.fromarray(GRAY > 99), "TIFF"), gray((GRAY > 99) * 255))
    indexed = Image.fromarray(PICTURE).convert("P")
    yield Odd("TIFF palette", save(indexed, "TIFF"), np.asarray(indexed.convert("RGB")))


# The others.


def _bmps() -> Iterator[Odd]:
    colours = np.random.default_rng(1).integers(0, 256, (256, 3)).astype(np.uint8)
    palette = np.concatenate([colours[:, ::-1], np.zeros((256, 1), np.uint8)], 1).tobytes()
    bgr = PICTURE[:, :, ::-1]
    yield Odd("BMP", bmp(bgr[::-1].tobytes(), 24), PICTURE)
    yield Odd("BMP from the top", bmp(bgr.tobytes(), 24, height=-SIDE), PICTURE)
    yield Odd("BMP palette", bmp(GRAY[::-1].tobytes(), 8, palette=palette), colours[GRAY])
    runs = b""
    for line in (GRAY // 16)[::-1]:
        for value, group in itertools.groupby(line.tolist()):
            runs += bytes((len(list(group)), value))
        runs += b"\0\0"
    yield Odd(
        "BMP of runs",
        bmp(runs + b"\0\1", 8, compression=1, palette=palette),
        colours[GRAY // 16],
    )
    wide = PICTURE.astype(np.uint16)
    rgb555 = wide[..., 0] >> 3 << 10 | wide[..., 1] >> 3 << 5 | wide[..., 2] >> 3
    yield Odd("BMP of 15 bits", bmp(rgb555[::-1].astype("<u2").tobytes(), 16), None)
    rgb565 = wide[..., 0] >> 3 << 11 | wide[..., 1] >> 2 << 5 | wide[..., 2] >> 3
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    yield Odd(
        "BMP of 16 bits",
        bmp(rgb565[::-1].astype("<u2").tobytes(), 16, compression=3, masks=masks),
        None,
    )
    bgra = np.concatenate([bgr, np.full((SIDE, SIDE, 1), 9, np.uint8)], 2)
    yield Odd("BMP of 32 bits", bmp(bgra[::-1].tobytes(), 32), PICTURE)
    bits = GRAY > 99
    two = bytes((0, 0, 0, 0, 255, 255, 255, 0))
    rows = np.packbits(bits[::-1], axis=1).tobytes()
    yield Odd("BMP of 1 bit", bmp(rows, 1, palette=two), gray(bits * 255))


def _others() -> Iterator[Odd]:
    alpha = (8 * x).astype(np.uint8)[:, :, None]
    rgba = np.concatenate([PICTURE, alpha], 2)
    second = Image.fromarray(PICTURE[::-1])
    yield Odd("WebP", save(PICTURE, "WEBP"), None)
    lossless = {"lossless": True, "exact": True}
    yield Odd("WebP lossless", save(PICTURE, "WEBP", **lossless), PICTURE)
    yield Odd("WebP lossless, alpha", save(rgba, "WEBP", **lossless), PICTURE)
    yield Odd("WebP alpha", save(rgba, "WEBP"), None)
    yield Odd("WebP profile", save(PICTURE, "WEBP", icc_profile=bytes(500), **lossless), PICTURE)
    animated = {"save_all": True, "append_images": [second], **lossless}
    yield Odd("WebP animated", save(PICTURE, "WEBP", **animated), PICTURE)
    indexed = Image.fromarray(PICTURE).quantize(64)
    colours = np.asarray(indexed.convert("RGB"))
    moving = {"save_all": True, "append_images": [second]}
    for name, options in (
        ("", {}),
        (" transparent", {"transparency": 3}),
        (" interlaced", {"interlace": True}),
        (" animated", moving),
    ):
        yield Odd(f"GIF{name}", save(indexed, "GIF", **options), colours)
    deep = PICTURE.astype(np.uint16) * 4 + 1
    yield Odd("PPM", b"P6 32 32 255\n" + PICTURE.tobytes(), PICTURE)
    yield Odd("PPM of 10 bits", b"P6 32 32 1023\n" + deep.astype(">u2").tobytes(), None)
    yield Odd(
        "PGM of 10 bits", b"P5 32 32 1023\n" + deep[:, :, 0].astype(">u2").tobytes(), gray(GRAY)
    )
    written = " ".join(map(str, PICTURE.ravel())).encode()
    yield Odd("PPM as text", b"P3 # a comment\n32 32\n255\n" + written + b"\n", PICTURE)
    rows = np.packbits(GRAY <= 99, axis=1).tobytes()
    yield Odd("PBM", b"P4 32 32\n" + rows, gray((GRAY > 99) * 255))
    floats = (GRAY / 255).astype("<f4")[::-1].tobytes()
    yield Odd("PFM", b"Pf\n32 32\n-1.0\n" + floats, gray(GRAY))
    yield Odd("JPEG 2000", save(PICTURE, "JPEG2000"), PICTURE)
    deep_gray = Image.fromarray(GRAY.astype(np.uint16) * 16 + 2)
    yield Odd("JPEG 2000 of 16 bits", save(deep_gray, "JPEG2000"), gray(GRAY >> 4))
    yield Odd("AVIF", save(PICTURE, "AVIF"), None)
    yield Odd("AVIF, alpha", save(rgba, "AVIF"), None)


def _turned() -> Iterator[Odd]:
    """Every orientation in every format, and every type and byte order of its tag."""
    for orientation in range(1, 9):
        pixels = stored(PICTURE, orientation)
        for kind, order in itertools.product(EXIF_TYPES, "<>"):
            block = exif(orientation, kind, order)
            number = EXIF_TYPES[kind][0]
            name = f"{orientation} {kind} {order}"
            yield Odd(f"JPEG turned {name}", with_exif(jpeg(pixels), block), None)
            yield Odd(f"PNG turned {name}", png(pixels, 2, extra=chunk(b"eXIf", block)), PICTURE)
            lossless = {"lossless": True, "exif": block}
            yield Odd(f"WebP turned {name}", save(pixels, "WEBP", **lossless), PICTURE)
            if kind != "BYTE":  # Pillow turns TIFFs, and only these
                data = tiff(pixels, 2, order=order, extra=((274, number, orientation),))
                yield Odd(f"TIFF turned {name}", data, PICTURE)
        yield Odd(
            f"AVIF turned {orientation}",
            save(pixels, "AVIF", quality=95, exif=b"Exif\0\0" + exif(orientation)),
            None,
        )


def odd_images() -> list[Odd]:
    """Fresh files, in a fixed order; names are unique."""
    return [*_jpegs(), *_pngs(), *_tiffs(), *_bmps(), *_others(), *_turned()]
