"""Files as of MNIST."""

import gzip

import numpy as np
import pytest

from alr_fast.data.datasets import open_dataset
from alr_fast.data.layouts import idx
from alr_fast.data.layouts.base import NoSplit
from alr_fast.errors import UserError
from helpers.layouts import write_idx

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8)).astype(np.uint8)
LABELS = np.array([3, 10, 3, 1, 10, 1], np.uint8)
NAMES = ("{}-images-idx{}-ubyte", "{}-labels-idx1-ubyte")


def write(root, part, images=IMAGES, labels=LABELS, end="", names=NAMES):
    write_idx(root / (names[0].format(part, images.ndim) + end), images)
    write_idx(root / (names[1].format(part) + end), labels)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("names", [NAMES, ("{}-images.idx{}-ubyte", "{}-labels.idx1-ubyte")])
def test_images_and_labels(tmp_path, end, place, names):
    write(tmp_path / place, "train", end=end, names=names)
    write(tmp_path / place, "t10k", IMAGES[:2], LABELS[:2], end=end, names=names)
    dataset = open_dataset("auto", tmp_path)
    assert dataset.layout.name == "idx"
    train, test = dataset.split("train"), dataset.split("test")
    assert (train.images.array == IMAGES[:, None]).all()
    assert train.index.class_names == test.index.class_names == ("1", "3", "10")
    assert train.index.labels.tolist() == [1, 2, 1, 0, 2, 0]
    assert test.index.labels.tolist() == [1, 2]
    assert train.index.paths[5].endswith("-ubyte/00005")


def test_colour_and_no_test_files(tmp_path):
    colour = np.repeat(IMAGES[..., None], 3, axis=3)
    write(tmp_path, "emnist-letters-train", colour)
    dataset = open_dataset("auto", tmp_path)
    assert dataset.split("train").images.array.shape == (6, 3, 8, 8)
    with pytest.raises(NoSplit):
        dataset.split("test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"<html>" + data, "does not begin like an idx file"),
        (lambda data: data[:2] + b"\x0d" + data[3:], "has type 13 and 3 dimensions; must be"),
        (lambda data: data[:3] + b"\x01" + data[4:], "has type 8 and 1 dimensions"),
        (lambda data: data[:-1], "does not have the 384 values"),
        (lambda data: data + b"\0", "does not have the 384 values"),
        (lambda data: data[:4] + b"\xff" * 12 + data[16:], "its dimensions are damaged"),
        (lambda data: data[:4] + b"\x7f" * 12 + data[16:], "its dimensions are damaged"),
        (lambda data: data[:6], "its dimensions are damaged"),
        (lambda data: b"", "does not begin like an idx file"),
    ],
)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_damaged_files_are_named(tmp_path, change, message, end):
    write(tmp_path, "train", end=end)
    path = tmp_path / f"train-images-idx3-ubyte{end}"
    data = path.read_bytes()
    pack, unpack = (gzip.compress, gzip.decompress) if end else (bytes, bytes)
    path.write_bytes(pack(change(unpack(data))))
    with pytest.raises(UserError, match=message) as caught:
        open_dataset("auto", tmp_path).split("train")
    assert str(caught.value).startswith(f"{path}: ")


def test_a_cut_archive_is_named(tmp_path):
    write(tmp_path, "train", end=".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    for data in (path.read_bytes()[:-40], b"no archive"):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"train-images.*download it again"):
            open_dataset("auto", tmp_path).split("train")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[:5], LABELS, "5 images for 6 labels"),
        (IMAGES[:, :7], LABELS, "images of 1 x 7 x 8; must be squares"),
        (IMAGES, LABELS * 0, "fewer than two classes"),
    ],
)
def test_wrong_contents_are_named(tmp_path, images, labels, message):
    write(tmp_path, "train", images, labels)
    with pytest.raises(UserError, match=message):
        open_dataset("auto", tmp_path).split("train")


def test_a_test_label_that_is_no_training_class_is_named(tmp_path):
    write(tmp_path, "train")
    write(tmp_path, "t10k", labels=LABELS + 1)
    with pytest.raises(UserError, match="label 4 of image 0 is not one of the 3"):
        open_dataset("auto", tmp_path).split("test")


def test_more_pixels_than_the_memory_holds_are_refused(tmp_path, monkeypatch):
    write(tmp_path, "train", end=".gz")
    monkeypatch.setattr(idx, "available_memory", lambda: 300)
    with pytest.raises(UserError, match="needs 0 kB, more memory than there is"):
        open_dataset("auto", tmp_path).split("train")
