"""Large JPEGs of which a small square is needed are decoded at a reduced scale."""

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from alr_fast.data.images.decode import decode_square, prepare, reduction
from alr_fast.data.images.sources import BrokenImage
from alr_fast.data.loaders.memory import decode_all
from alr_fast.data.loaders.transform import Transform
from helpers.loaded import LOADING, loaded, split_of
from helpers.odd_images import exif, jpeg, save, stored

SIZE = 16


def photograph(height, width):
    """Smooth and grainy, without any symmetry."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(256, size=(9, 11, 3)).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    grain = rng.normal(0, 6, size=(height, width, 1))
    return (pixels + grain).clip(0, 255).astype(np.uint8)


@pytest.fixture
def scales(monkeypatch):
    """The factors by which images were reduced when they were decoded."""
    found, decode = [], simplejpeg.decode_jpeg

    def watched(data, *arguments, **options):
        pixels = decode(data, *arguments, **options)
        encoded = prepare(data)
        found.append(round(max(encoded.height, encoded.width) / max(pixels.shape)))
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", watched)
    return found


def test_the_factor_leaves_twice_the_size():
    factors = [reduction((0, 0, side, 900), 50) for side in (199, 200, 399, 400, 799, 800, 9000)]
    assert factors == [1, 2, 2, 4, 4, 8, 8]
    assert reduction((0, 0, 900, 199), 50) == 1  # the shorter side counts
    # The benchmarks of photographs, 256 pixels on the shorter side, are decoded whole.
    assert reduction((0, 0, 256, 340), 224) == 1


# Sides that are not multiples of the factor: the last block of pixels is narrower.
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("part", ["middle", "corner", "edge"])
def test_a_reduced_image_is_the_whole_image_made_smaller(orientation, part, scales):
    upright = photograph(275, 339)
    block = b"Exif\0\0" + exif(orientation)
    encoded = prepare(jpeg(stored(upright, orientation), exif=block))
    assert (encoded.height, encoded.width) == upright.shape[:2]
    box = {"middle": (0, 32, 275, 275), "corner": (139, 201, 136, 138), "edge": (3, 0, 70, 339)}
    small = decode_square(encoded, box[part], SIZE).numpy().astype(int)
    whole = decode_square(encoded, box[part], SIZE, reduce=False).numpy().astype(int)
    assert scales == [{"middle": 8, "corner": 4, "edge": 2}[part], 1]
    assert np.abs(small - whole).mean() < 1.5
    # Of another part the difference is large.
    moved = decode_square(encoded, (box[part][0], *box[part][1:3], 300), SIZE, reduce=False)
    assert np.abs(moved.numpy().astype(int) - whole).mean() > 5 or part == "edge"


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
def test_every_subsampling(subsampling, scales):
    pixels = photograph(128, 160)
    if subsampling == "Gray":
        data = simplejpeg.encode_jpeg(pixels[:, :, :1].copy(), colorspace="GRAY")
    else:
        data = simplejpeg.encode_jpeg(pixels, colorsubsampling=subsampling)
    encoded, box = prepare(data), (0, 16, 128, 128)
    small = decode_square(encoded, box, SIZE).numpy().astype(int)
    whole = decode_square(encoded, box, SIZE, reduce=False).numpy().astype(int)
    assert scales == [{"422": 2, "440": 2, "411": 1}.get(subsampling, 4), 1]
    assert np.abs(small - whole).mean() < 1.5


def test_other_kinds_are_decoded_whole():
    pixels = photograph(128, 160)
    for data in (save(pixels, "PNG"), save(pixels, "WEBP", lossless=True)):
        encoded = prepare(data)
        small, whole = (decode_square(encoded, (0, 0, 128, 160), SIZE, reduce=reduce)
                        for reduce in (True, False))  # fmt: skip
        assert np.array_equal(small, whole)


def test_a_damaged_photograph_is_damaged_or_broken_at_any_scale():
    data = bytearray(jpeg(photograph(128, 160)))
    data[len(data) // 2 : len(data) // 2 + 50] = bytes(50)
    for reduce in (True, False):
        try:
            square = decode_square(prepare(bytes(data)), (0, 0, 128, 128), SIZE, reduce=reduce)
        except BrokenImage:
            continue
        assert square.shape == (3, SIZE, SIZE)


@pytest.mark.parametrize("name", LOADING)
def test_all_loaders_see_the_same_photographs(name, tmp_path, scales):
    photographs = [
        jpeg(stored(photograph(*size), turn), exif=b"Exif\0\0" + exif(turn))
        for size, turn in (((300, 400), 1), ((411, 303), 6), ((70, 90), 1))
    ]
    split = split_of(tmp_path, photographs)
    transform = Transform(SIZE, mean=(0.0,), std=(1 / 255,))
    found, broken = loaded(name, split, transform)
    assert not broken
    if name == "memory":  # the others decode elsewhere
        assert sorted(scales) == [2, 8, 8]
    whole = decode_all(split, SIZE, reduce=False).array.transpose(0, 2, 3, 1)
    assert np.abs(found - whole).mean(axis=(1, 2, 3)).max() < 1.5
