"""Every odd file: the expected pixels, the same with every loader, and the same verdict."""

import numpy as np
import pytest
from PIL import Image

from alr_fast.data.checks import examine as examine_module
from alr_fast.data.checks.examine import NOTES, Broken, examine
from alr_fast.data.images import decode
from alr_fast.data.images.decode import FORMATS, decode_rgb, eight_bits, open_image, prepare
from alr_fast.data.images.sources import BrokenImage
from alr_fast.data.layouts.base import IMAGE_SUFFIXES
from alr_fast.data.loaders.transform import Transform
from alr_fast.data.packing.shards import ShardPlan
from alr_fast.data.sampler import SequentialSampler
from alr_fast.labels.report.thumbnails import thumbnail
from helpers.image_bytes import png, tiff
from helpers.loaded import LOADING, loaded, pixels_of, split_of
from helpers.odd_images import PICTURE, SIDE, jpeg, odd_images, save

ODD = odd_images()


def test_there_are_odd_files_of_all_formats():
    found = set()
    for odd in ODD:
        with open_image(odd.data) as image:
            found.add(image.format)
    assert found >= {name for name in FORMATS if name != "DIB"}
    assert len({odd.name for odd in ODD}) == len(ODD) > 300


def test_the_name_of_a_format_is_no_remark():
    """Every suffix that is taken for an image is one of a format that is opened."""
    assert set(examine_module._FORMATS) >= set(IMAGE_SUFFIXES)
    assert set(examine_module._FORMATS.values()) <= set(FORMATS)
    remark = 1 << NOTES.index("format differs from the name")
    for suffix, data in (
        (".avif", save(PICTURE, "AVIF")),
        (".jfif", jpeg()),
        (".PGM", b"P5 1 1 255\n\0"),
        (".jp2", save(PICTURE, "JPEG2000")),
        (".dib", save(PICTURE, "DIB")),
    ):
        assert not examine(data, "a" + suffix) & remark
        assert examine(data, "a.png") & remark


def test_turned_images_of_every_format_are_a_remark():
    remark = 1 << NOTES.index("rotated by EXIF")
    for odd in ODD:
        if " turned " in odd.name:
            upright = odd.name.split(" turned ")[1][0] == "1"
            assert bool(examine(odd.data) & remark) != upright, odd.name


def test_odd_files_become_the_picture():
    wrong = {}
    for odd in ODD:
        found = pixels_of(odd.data)
        if odd.expected is not None and not np.array_equal(found, odd.expected):
            wrong[odd.name] = np.abs(found.astype(int) - odd.expected).max()
        turned = odd.name.startswith(("JPEG turned", "AVIF turned"))
        if turned and np.abs(found.astype(int) - PICTURE).mean() > 4:
            wrong[odd.name] = "turned differently"
    assert not wrong


@pytest.fixture(scope="module")
def odd_split(tmp_path_factory):
    return split_of(tmp_path_factory.mktemp("odd"), [odd.data for odd in ODD])


@pytest.mark.parametrize("name", LOADING)
def test_loaders_see_the_same_pixels(name, odd_split):
    found, broken = loaded(name, odd_split)
    assert not broken
    wrong = {}
    for odd, pixels in zip(ODD, found, strict=True):
        difference = np.abs(pixels - pixels_of(odd.data)).max()
        # Nothing is resized: only JPEG decoders may round differently.
        if difference > (1.01 if odd.name.startswith("JPEG") else 0.01):
            wrong[odd.name] = difference
    assert not wrong


@pytest.mark.parametrize("name", [name for name in LOADING if name != "memory"])
def test_loaders_cut_the_same_parts(name, odd_split):
    """Boxes are those of the upright image, also where the pipeline receives finished squares."""
    transform = Transform(
        20, crop="resized", flip=True, ratio=(1 / 3, 3), mean=(0.0,), std=(1 / 255,)
    )
    found, _ = loaded(name, odd_split, transform)
    draws = [
        transform.draw(SequentialSampler(len(ODD), 64).augmentation_rng(0, step), size)
        for step, size in enumerate(len(ODD[at : at + 64]) for at in range(0, len(ODD), 64))
    ]
    parts = [part for step in draws for part in zip(*step, strict=True)]
    wrong = {}
    for odd, pixels, (place, shape, flip) in zip(ODD, found, parts, strict=True):
        part = decode.resize_part(
            decode_rgb(prepare(odd.data)), transform.box(SIDE, SIDE, place, shape), 20
        )
        part = (part.flip(-1) if flip else part).permute(1, 2, 0).numpy()
        if np.abs(pixels - part).mean() > 1.5:
            wrong[odd.name] = np.abs(pixels - part).mean()
    assert not wrong


def test_odd_files_are_fine_for_verify_pack_and_report(odd_split, tmp_path):
    for odd in ODD:
        examine(odd.data)
    plan = ShardPlan.of("train", odd_split, {}, 1 << 30)
    for row, odd in enumerate(ODD):
        record = plan.record(row)
        assert (record.left_out, record.data) == (None, odd.data), odd.name
        shown = np.array(open_image(thumbnail(odd.data, SIDE, 80)).convert("RGB"))
        assert np.abs(shown - pixels_of(odd.data).astype(int)).max() <= 1, odd.name


@pytest.mark.parametrize("name", LOADING)
def test_photographs_on_their_side(name, tmp_path):
    """Not square: a box in the wrong frame would leave the image."""
    tall = np.repeat(PICTURE, 2, axis=0)
    files = [jpeg(tall), png(tall, 2)]
    for orientation in (5, 6, 7, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files.append(jpeg(tall, exif=exif.tobytes()))
    split = split_of(tmp_path, files)
    transform = Transform(SIDE, crop="center", resize=SIDE, mean=(0.0,), std=(1 / 255,))
    found, broken = loaded(name, split, transform)
    assert not broken
    for data, pixels in zip(files, found, strict=True):
        encoded = prepare(data)
        box = transform.box(encoded.height, encoded.width)
        part = decode.resize_part(decode_rgb(encoded), box, SIDE).permute(1, 2, 0).numpy()
        assert np.abs(pixels - part).max() <= 2


def test_deep_pixels_keep_their_range():
    ramp = np.linspace(0, 1, 64).reshape(8, 8)
    levels = ramp * 255
    for values, expected in (
        ((ramp * 4095).astype(np.uint16), levels),
        ((ramp * 65535).astype(np.uint16), levels),
        ((ramp * 1000).astype(np.int32), ramp * 249),
        ((ramp * (2**31 - 1)).astype(np.int32), levels / 2),  # of 32 bits
        ((ramp * 2000 - 1000).astype(np.int16), levels),
        (ramp.astype(np.float32), levels),
        ((ramp * 200).astype(np.float32), ramp * 200),
        ((ramp * 1e6 - 7).astype(np.float32), levels),
        (np.zeros((8, 8), np.uint16), levels * 0),
        (np.full((8, 8), 3e8, np.float32), levels * 0),
    ):
        assert np.abs(eight_bits(values) - expected).max() < 1.1
    assert eight_bits(np.array([[1, 2]], np.uint16), bits=16).max() == 0
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(BrokenImage, match="not finite"):
            eight_bits(np.array([[0.5, bad]], np.float32))


def test_colours_whose_depth_is_unknown_are_refused():
    dark = tiff(PICTURE.astype(np.uint16) * 8, 2)  # 11 of 16 bits, of which Pillow keeps 3
    for check in (prepare, examine):
        with pytest.raises((BrokenImage, Broken), match="16 bits a colour of which"):
            check(dark)
    floats = (PICTURE / 255).astype(np.float32)
    with pytest.raises(BrokenImage, match="a kind of TIFF that cannot be decoded"):
        prepare(tiff(floats, 2, sample_format=3))
