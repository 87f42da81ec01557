"""Every odd file: the expected pixels, the same with every loader, and the same verdict."""

import ast
import io
import os
import random
import socket
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from alr_fast.data import decode, images
from alr_fast.data import examine as examine_module
from alr_fast.data.__main__ import main
from alr_fast.data.datasets import Split, open_dataset
from alr_fast.data.decode import FORMATS, decode_rgb, eight_bits, open_image, prepare
from alr_fast.data.examine import NOTES, Broken, examine
from alr_fast.data.images import BrokenImage, FileImages, read_image_file
from alr_fast.data.index import PathTable
from alr_fast.data.layouts.base import IMAGE_SUFFIXES, new_index
from alr_fast.data.loaders.choose import LOADERS, LoaderChoice, has_dali, make_loader
from alr_fast.data.loaders.memory import decode_all
from alr_fast.data.sampler import SequentialSampler
from alr_fast.data.shards import ShardPlan
from alr_fast.data.sizes import median_side
from alr_fast.data.transform import Transform
from alr_fast.data.verify import verify_split
from alr_fast.errors import UserError
from alr_fast.labels.report.thumbnails import thumbnail
from helpers.image_folder import write_folder
from helpers.odd_images import PICTURE, SIDE, chunk, jpeg, odd_images, png, save, text_bomb, tiff

ROOT = Path(__file__).parents[2]
ODD = odd_images()
LOADING = [name for name in LOADERS if name != "dali" or has_dali()]
WHOLE = Transform(size=SIDE, resize=SIDE, mean=(0.0,), std=(1 / 255,))  # pixels as they are


def pixels_of(data):
    return decode_rgb(prepare(data)).permute(1, 2, 0).numpy()


def split_of(folder, files):
    """A split of these files, all called .jpg."""
    for number, data in enumerate(files):
        (folder / f"{number}.jpg").write_bytes(data)
    return split_at(folder, len(files))


def split_at(folder, count):
    index = new_index([f"{i}.jpg" for i in range(count)], np.zeros(count, np.int64), ("a",))
    return Split(index, FileImages(folder, index.paths))


def loaded(name, split, transform=WHOLE):
    """Pixels [N, H, W, 3] of all images, and the reasons of the unreadable ones."""
    decoded = {}
    if name == "memory":
        decoded["decoded"] = decode_all(split, transform.size, resize=transform.resize)
    loader = make_loader(
        LoaderChoice(name, "for the test"), split, SequentialSampler(len(split), 64), transform,
        device=torch.device("cpu"), workers=1, **decoded,
    )  # fmt: skip
    pixels = torch.cat([batch["image"] for batch in loader]).permute(0, 2, 3, 1).numpy()
    return pixels, {row: reason for row, (_, reason) in loader.broken.reasons.items()}


# Pixels.


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


# One place that opens images, and its limits.

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 32 32
%%EndComments
(x) print
%%EOF
"""


def test_no_other_format_is_opened(tmp_path, monkeypatch):
    """No plugin outside the list is even asked, whatever the file is called."""
    Image.init()
    asked = []
    for name, (factory, _) in list(Image.OPEN.items()):
        if name not in FORMATS:
            monkeypatch.setitem(
                Image.OPEN, name, (factory, lambda prefix, name=name: asked.append(name) or True)
            )
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("a program was started"))
    others = [EPS, b"8BPS\0\1" + bytes(40), b"SIMPLE  = " + bytes(80), bytes(200), b"\x0a\5\1\x08"]
    split = split_of(tmp_path, others)
    for data in others:
        for check in (prepare, examine, lambda data: thumbnail(data, 32, 80)):
            with pytest.raises((BrokenImage, Broken), match="not an image"):
                check(data)
    for name in LOADING:
        assert set(loaded(name, split)[1].values()) == {"not an image"}
    assert not asked


def _calls(path):
    """Names of functions of Pillow that open images, used in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr == "open":
            yield ast.unparse(node)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("PIL"):
            yield from (a.name for a in node.names if a.name in ("open", "ImageFile", "ImageGrab"))


def test_images_are_opened_in_one_place():
    found = [
        path.relative_to(ROOT).as_posix()
        for folder in ("alr_fast", "benchmarks", "examples", "scripts")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if {"Image.open", "PIL.Image.open", "open", "ImageFile", "ImageGrab"} & set(_calls(path))
    ]
    assert found == ["alr_fast/data/decode.py"]


def _sized(width, height):
    small = np.zeros((2, 2, 3), np.uint8)
    gif = io.BytesIO()
    Image.fromarray(small).save(gif, "GIF")
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    data = png(small, 2)
    yield data[:8] + chunk(b"IHDR", header) + data[33:]
    yield b"P6 %d %d 255\n" % (width, height)
    at = (data := jpeg()).index(b"\xff\xc0") + 5
    size = min(height, 65535).to_bytes(2, "big") + min(width, 65535).to_bytes(2, "big")
    yield data[:at] + size + data[at + 4 :]
    size = min(width, 65535).to_bytes(2, "little") + min(height, 65535).to_bytes(2, "little")
    yield gif.getvalue()[:6] + size + gif.getvalue()[10:]
    tags = tiff(small, 2).replace(b"\0\1\4\0\1\0\0\0\2\0", b"\0\1\4\0\1\0\0\0" + size[:2])
    yield tags.replace(b"\1\1\4\0\1\0\0\0\2\0", b"\1\1\4\0\1\0\0\0" + size[2:])


def test_huge_dimensions_are_refused_in_our_words():
    for data in _sized(60000, 60000):
        for check in (prepare, examine):
            with pytest.raises((BrokenImage, Broken), match=r"pixels") as error:
                check(data)
            assert "bomb" not in str(error.value)
        assert error.value.kind == "too large"


def test_unpacked_text_costs_no_memory():
    data = png(PICTURE, 2, extra=text_bomb(300 << 20))
    tracemalloc.start()
    try:
        pixels_of(data)
        examine(data)
        assert tracemalloc.get_traced_memory()[1] < 30 << 20
    finally:
        tracemalloc.stop()


# Reading.


def _fifo(path):
    os.mkfifo(path)


def _socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # addresses of sockets are short
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def _sparse(path):
    with path.open("wb") as file:
        file.write(jpeg())
        file.truncate(60_000_000_000)


ENDLESS = {
    "a pipe": (_fifo, "not a regular file"),
    "a socket": (_socket, "not a regular file"),
    "a folder": (Path.mkdir, "directory|not a regular file"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "a link to a pipe": (
        lambda path: (_fifo(path.with_suffix(".p")), path.symlink_to(path.with_suffix(".p"))),
        "not a regular file",
    ),
    "a sparse file": (_sparse, "more than"),
    "a link to nowhere": (lambda path: path.symlink_to("nowhere"), "no such file"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "symbolic links"),
}


@pytest.fixture
def endless(tmp_path):
    """One ordinary image, then one of each kind of `ENDLESS`."""
    (tmp_path / "0.jpg").write_bytes(jpeg())
    for number, (make, _) in enumerate(ENDLESS.values(), start=1):
        make(tmp_path / f"{number}.jpg")
    return split_at(tmp_path, 1 + len(ENDLESS))


def test_only_regular_files_of_a_bounded_size_are_read(endless):
    began = time.monotonic()
    for number, (_, reason) in enumerate(ENDLESS.values(), start=1):
        path = Path(endless.images.name(number))
        for read, *values in ((endless.images.read, number), (thumbnail, path, 32, 80)):
            with pytest.raises(BrokenImage, match=f"(?i){reason}") as error:
                read(*values)
            assert str(path) not in str(error.value)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("name", LOADING)
def test_endless_files_cost_their_row_alone(name, endless):
    _, broken = loaded(name, endless)
    assert set(broken) == set(range(1, 1 + len(ENDLESS)))


def test_verify_and_pack_agree_on_endless_files(endless, tmp_path, monkeypatch):
    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path / "cache"))
    report = verify_split(endless, endless.images.root, workers=2)
    plan = ShardPlan.of("train", endless, {}, 1 << 30)
    assert plan.room.sum() < 1 << 20  # of the sparse file, too
    left_out = {row for row in range(len(endless)) if plan.record(row).left_out}
    assert set(report.broken) == left_out == set(range(1, 1 + len(ENDLESS)))
    assert {report.broken[row].kind for row in range(1, 7)} == {"unreadable"}


def test_a_set_with_a_pipe_is_packed(tmp_path):
    write_folder(tmp_path / "in", train={"a": 3, "b": 2}, test={"a": 1, "b": 1})
    pipe = tmp_path / "in" / "train" / "a" / "001.png"
    pipe.unlink()
    os.mkfifo(pipe)
    dataset = open_dataset("folder", tmp_path / "in")
    assert main(["pack", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    images = open_dataset("packed", tmp_path / "out").split("train").images
    with pytest.raises(BrokenImage, match="not a regular file"):
        images.read(1)
    assert images.read(2) == dataset.split("train").images.read(2)


def test_records_are_read_from_regular_files_up_to_the_bound(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(bytes(600))
    shards = images.ShardImages(
        [tmp_path / "a.tar", tmp_path / "b.tar"],
        np.array([0, 1, 1], np.int32),
        np.array([0, 0, 500]),
        np.array([9, 9, 2**40]),
        PathTable.of(["x", "y", "z"]),
    )
    assert shards.read(1) == bytes(9)
    for row, reason in ((0, "not a regular file"), (2, "1,099,511,627,776 bytes")):
        with pytest.raises(BrokenImage, match=reason):
            shards.read(row)


def test_the_bound_on_encoded_images(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg())
    monkeypatch.setattr(images, "MAX_BYTES", len(jpeg()))
    assert read_image_file(path) == jpeg()
    path.write_bytes(jpeg() + b"\0")
    with pytest.raises(BrokenImage, match="more than"):
        read_image_file(path)
    with pytest.raises(BrokenImage, match="null byte"):
        read_image_file("a\0b")


# The default size.


def _write_sizes(folder, sizes):
    return split_of(
        folder, [png(np.zeros((h, w, 3), np.uint8), 2) if h else b"broken" for w, h in sizes]
    )


def test_the_median_side_is_that_of_most_images(tmp_path):
    sizes = [(9, 8)] + 60 * [(50, 40)] + 3 * [(70, 60)]
    assert median_side(_write_sizes(tmp_path, sizes)) == (40, 64)
    # Sorted by source, as folders are: the first hundred say nothing about the rest.
    assert median_side(_write_sizes(tmp_path, 100 * [(9, 8)] + 300 * [(50, 40)])) == (40, 64)
    assert median_side(_write_sizes(tmp_path, [(0, 0), (0, 0), (50, 40)])) == (40, 1)
    with pytest.raises(UserError, match=r"0\.jpg cannot be read as an image \(not an image\), nor"):
        median_side(_write_sizes(tmp_path, [(0, 0), (0, 0)]))


def test_the_median_side_reads_few_images(tmp_path, monkeypatch):
    split = _write_sizes(tmp_path, 200 * [(9, 8)])
    read = []
    monkeypatch.setattr(FileImages, "read", lambda self, row: read.append(row) or png(PICTURE, 2))
    assert median_side(split) == (SIDE, 64)
    assert len(set(read)) == len(read) == 64 and read[0] == 0 and read[-1] == 199


# Whatever the bytes.

SEEDS = [odd.data for odd in ODD if len(odd.data) < 12000]
LIMIT_S = 5.0


def edited(seed, edits, cut, mend):
    data = bytearray(seed)
    for at, byte, kind in edits:
        place = int(at * len(data)) if data else 0
        if kind == "insert":
            data[place:place] = bytes((byte,)) * (1 + byte % 9)
        elif kind == "delete":
            del data[place : place + 1 + byte % 9]
        elif data:
            data[min(place, len(data) - 1)] = byte
    data = bytes(data[: len(data) - int(cut * len(data))])
    return _with_checksums(data) if mend else data


def _with_checksums(data):
    """A PNG whose checksums fit again, so that its chunks are looked at."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    out, position = data[:8], 8
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if end > len(data):
            break
        body = data[position + 4 : end - 4]
        out += data[position : position + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        position = end
    return out + data[position:]


# Half of the edits hit the first bytes, where headers are.
_place = st.one_of(st.floats(0, 1), st.floats(0, 0.05))
_edits = st.lists(
    st.tuples(_place, st.integers(0, 255), st.sampled_from(("set", "insert", "delete"))),
    max_size=8,
)
_files = st.one_of(
    st.builds(
        edited, st.sampled_from(SEEDS), _edits, st.sampled_from((0, 0, 0, 0.01, 0.5)), st.booleans()
    ),
    st.binary(max_size=300),
    st.builds(bytes.__add__, st.sampled_from([seed[:16] for seed in SEEDS]), st.binary()),
)


def check_any_bytes(data):
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about damaged files
        try:
            encoded = prepare(data)
            assert 0 < encoded.height * encoded.width <= decode.MAX_PIXELS
            pixels = decode_rgb(encoded)
        except BrokenImage as error:
            assert str(error) and "\n" not in str(error)
            broken = True
        else:
            assert pixels.dtype == torch.uint8
            assert pixels.shape == (3, encoded.height, encoded.width)
            broken = False
        try:
            examine(data)
        except Broken as error:
            assert error.kind and "\n" not in str(error)
        else:
            assert not broken  # what `verify` keeps is never broken for a loader
    assert time.monotonic() - began < LIMIT_S


@pytest.fixture
def small_limit(monkeypatch):
    """Files of the fuzzer may claim any size: the limit is part of the bound on time and memory."""
    monkeypatch.setattr(decode, "MAX_PIXELS", 1 << 20)


_once = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@settings(_once, max_examples=100)
@given(data=_files)
def test_any_bytes_are_an_image_or_broken(small_limit, data):
    check_any_bytes(data)


@pytest.mark.slow
@settings(_once, max_examples=2000)
@given(data=_files)
def test_many_bytes_are_an_image_or_broken(small_limit, data):
    check_any_bytes(data)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about damaged tags
@pytest.mark.parametrize("count", [100, pytest.param(4000, marks=pytest.mark.slow)])
def test_what_verify_keeps_looks_the_same_everywhere(small_limit, tmp_path, count):
    """Files with a few wrong bytes that `verify` still keeps."""
    rng = random.Random(count)
    kept = []
    while len(kept) < count:
        edits = [
            (rng.random() ** 2, rng.choice((0, 1, 128, 255)), rng.choice(("set", "delete")))
            for _ in range(rng.randint(1, 2))
        ]
        data = edited(rng.choice(SEEDS), edits, 0, True)
        try:
            examine(data)
        except Broken:
            continue
        encoded = prepare(data)
        if max(encoded.height, encoded.width) < 200 and data not in SEEDS:
            kept.append(data)
    split = split_of(tmp_path, kept)
    for name in LOADING:
        found, broken = loaded(name, split)
        assert not broken
        for data, pixels in zip(kept, found, strict=True):
            encoded = prepare(data)
            box = WHOLE.box(encoded.height, encoded.width)
            part = decode.resize_part(decode_rgb(encoded), box, SIDE).permute(1, 2, 0).numpy()
            assert np.abs(pixels - part).max() < 4
