import os
import struct

import numpy as np
import pytest

from alr_fast.data.images.decode import decode_rgb, decode_with_pillow, prepare
from alr_fast.data.images.sources import BrokenImage, FileImages, ShardImages
from alr_fast.data.index import PathTable
from helpers.broken_files import BROKEN, FINE, ONLY_VERIFY, good_bytes

# Their headers are valid: only a decoder finds the damage.
PASS_THE_CHECK = {"Huffman counts", "no tables"}


def read(tmp_path, write):
    path = tmp_path / "image.jpg"
    write(path)
    return FileImages(tmp_path, PathTable.of(["image.jpg"])).read(0)


def pixels(encoded):
    return decode_rgb(encoded).permute(1, 2, 0).numpy().astype(int)


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_refused(tmp_path, kind):
    if kind == "unreadable" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    with pytest.raises(BrokenImage) as error:
        encoded = prepare(read(tmp_path, BROKEN[kind]))
        assert kind in PASS_THE_CHECK
        decode_rgb(encoded)
    assert str(error.value)
    assert "\n" not in str(error.value)
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("kind", FINE)
def test_fine_files_become_the_picture(tmp_path, kind):
    data = read(tmp_path, FINE[kind])
    encoded = prepare(data)
    found, expected = pixels(encoded), decode_with_pillow(data).astype(int)
    assert found.shape == expected.shape == (encoded.height, encoded.width, 3)
    assert np.abs(found - expected).max() <= 1
    assert {encoded.height, encoded.width} == {32, 40}


@pytest.mark.parametrize("kind", ONLY_VERIFY)
def test_damaged_pixels_are_decoded_as_they_are(tmp_path, kind):
    encoded = prepare(read(tmp_path, ONLY_VERIFY[kind]))
    assert pixels(encoded).shape == (encoded.height, encoded.width, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_of_a_jpeg(orientation, order):
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0" + (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    exif += struct.pack(order + "H", 1) + entry + bytes(4)
    good = good_bytes()
    data = good[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + good[2:]
    encoded = prepare(data)
    assert encoded.orientation == orientation
    assert (encoded.height, encoded.width) == ((40, 32) if orientation > 4 else (32, 40))
    assert np.abs(pixels(encoded) - decode_with_pillow(data).astype(int)).max() <= 1


@pytest.mark.parametrize("exif", [b"", b"II*\0\xff\xff\xff\x7f", b"XX*\0\x08\0\0\0"])
def test_damaged_exif_means_upright(exif):
    good = good_bytes()
    block = b"Exif\0\0" + exif
    data = good[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + good[2:]
    assert prepare(data).orientation == 1


def test_sixteen_bits_keep_their_brightness(tmp_path):
    from PIL import Image

    ramp = np.linspace(0, 65535, 40 * 32).astype(np.uint16).reshape(32, 40)
    Image.fromarray(ramp).save(tmp_path / "image.png")
    encoded = prepare((tmp_path / "image.png").read_bytes())
    assert np.abs(pixels(encoded)[:, :, 0] - (ramp >> 8)).max() <= 1


def test_records_of_shards(tmp_path):
    records = [b"first", b"second", b"third"]
    shards = [tmp_path / "a.tar", tmp_path / "b.tar"]
    shards[0].write_bytes(b"..." + records[0] + records[1])
    shards[1].write_bytes(records[2])
    images = ShardImages(
        shards,
        np.array([0, 0, 1], dtype=np.int32),
        np.array([3, 8, 0]),
        np.array([5, 6, 5]),
        PathTable.of(["x", "y", "z"]),
    )
    assert [images.read(row) for row in range(3)] == records
    part = images.take(np.array([1, 2]))
    assert [part.read(row) for row in range(2)] == records[1:]
    assert part.name(0) == f"{shards[0]}:y"
    shards[1].write_bytes(b"th")
    with pytest.raises(BrokenImage, match="ends before"):
        part.take(np.array([1])).read(0)
    shards[0].unlink()
    with pytest.raises(BrokenImage, match="No such file"):
        images.take(np.array([0])).read(0)
