"""What is opened and read, and up to which size."""

import ast
import io
import os
import socket
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alr_fast.data.__main__ import main
from alr_fast.data.checks.examine import Broken, examine
from alr_fast.data.checks.verify import verify_split
from alr_fast.data.datasets import open_dataset
from alr_fast.data.images import sources as images
from alr_fast.data.images.decode import FORMATS, prepare
from alr_fast.data.images.sources import BrokenImage, FileImages, read_image_file
from alr_fast.data.index import PathTable
from alr_fast.data.layouts import webvision
from alr_fast.data.loaders.sizes import median_side
from alr_fast.data.packing.shards import ShardPlan
from alr_fast.errors import UserError
from alr_fast.labels.report.thumbnails import thumbnail
from helpers.image_bytes import chunk, png, text_bomb, tiff
from helpers.image_folder import write_folder
from helpers.loaded import LOADING, loaded, pixels_of, split_at, split_of
from helpers.odd_images import PICTURE, SIDE, jpeg
from helpers.patience import PATIENCE

ROOT = Path(__file__).parents[2]


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
    assert found == ["alr_fast/data/images/decode.py"]


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
    assert time.monotonic() - began < PATIENCE


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


def test_a_pipe_among_the_lists_of_ilsvrc12_is_not_waited_for(tmp_path):
    (tmp_path / "val.txt").write_text("a.JPEG 0\n")
    os.mkfifo(tmp_path / "a.txt")
    assert webvision._target_list(tmp_path, tmp_path) == tmp_path / "val.txt"
