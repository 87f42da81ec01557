"""The images of a run, as far as they can still be found."""

import shutil

import numpy as np
import pytest

from alr_fast.data.__main__ import main as data_command
from alr_fast.data.datasets import open_dataset
from alr_fast.data.images.sources import BrokenImage
from alr_fast.data.index import PathTable
from alr_fast.errors import UserError
from alr_fast.training.config.schema import DataConfig
from alr_fast.training.run_images import find_images
from helpers.image_folder import write_folder

FOLDER = DataConfig(name="folder")


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "set", train={"a": 3, "b": 3}, test={"a": 1, "b": 1})


@pytest.fixture
def index(root):
    return open_dataset("folder", root).split("train").index


def images_of(index, root, options=FOLDER, *, asked=False):
    root = None if root is None else str(root)
    return find_images(index.paths, index.sample_ids, options, root, asked=asked).read


def content(root, index):
    return [(root / path).read_bytes() for path in index.paths]


def test_files_are_found_by_their_paths(root, index, tmp_path):
    wanted = content(root, index)
    moved = root.rename(tmp_path / "moved")
    read = images_of(index, moved, asked=True)
    assert [read(row) for row in range(6)] == wanted


def test_a_folder_that_is_no_data_set_any_more_still_has_its_images(root, index):
    wanted = content(root, index)
    shutil.rmtree(root / "test")
    shutil.rmtree(root / "train/b")
    read = images_of(index, root)
    assert [read(row) for row in range(3)] == wanted[:3]
    with pytest.raises(BrokenImage, match="no such file"):
        read(3)


def test_the_folder_of_a_list_has_the_images(root, index):
    wanted = content(root, index)
    (root / "all.csv").write_text("path,label,split\n")
    read = images_of(index, root / "all.csv", DataConfig(name="table"))
    assert read(0) == wanted[0]


def test_packed_images_are_found_by_their_paths(root, index, tmp_path):
    wanted = content(root, index)
    shutil.copy(root / "train/b/000.png", root / "train/a/0001.png")  # ids change
    (root / "train/b/002.png").unlink()
    assert data_command(["pack", str(root), str(tmp_path / "packed")]) == 0
    read = images_of(index, tmp_path / "packed", DataConfig(name="packed"), asked=True)
    assert [read(row) for row in range(5)] == wanted[:5]
    with pytest.raises(BrokenImage, match="not in the data set any more"):
        read(5)


def test_arrays_are_found_by_their_paths():
    split = open_dataset("digits", None).split("train")
    rows = np.array([4, 90, 1436])
    part = split.take(rows)
    read = images_of(part.index, None, DataConfig())
    for number, row in enumerate(rows):
        assert np.array_equal(read(number), split.images.array[row])


def test_another_data_set_has_none_of_the_images(root, index, tmp_path):
    other = write_folder(tmp_path / "other", train={"x": 2, "y": 2}, test={"x": 1, "y": 1})
    with pytest.raises(BrokenImage, match="not in the data set any more"):
        images_of(index, other)(0)
    with pytest.raises(UserError) as caught:
        images_of(index, other, asked=True)
    assert "has none of the 6 samples of the run (train/a/000.png, train/a/001.png" in str(
        caught.value
    )


def test_a_root_that_is_gone(index, tmp_path):
    with pytest.raises(BrokenImage, match=r"none: no such file or folder"):
        images_of(index, tmp_path / "none")(0)
    with pytest.raises(UserError, match="no such file or folder"):
        images_of(index, tmp_path / "none", asked=True)


@pytest.mark.parametrize("path", ["../secret.png", "/{outside}/secret.png", "a/../../secret.png"])
def test_a_path_out_of_the_folder_is_not_followed(root, index, tmp_path, path):
    shutil.copy(root / "train/a/000.png", tmp_path / "secret.png")
    paths = PathTable.of(["train/a/000.png", path.format(outside=str(tmp_path)[1:])])
    found = find_images(paths, np.arange(2), FOLDER, str(root), asked=False)
    assert found.read(0) and found.file(0) == root / "train/a/000.png"
    with pytest.raises(BrokenImage, match="its path leads out of the folder of the data"):
        found.read(1)
    assert found.file(1) is None


def test_the_files_of_images(root, index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = find_images(index.paths, index.sample_ids, FOLDER, "set", asked=True)
    assert [found.file(row) for row in range(6)] == [root / path for path in index.paths]
    assert find_images(index.paths, index.sample_ids, FOLDER, "none", asked=False).file(0) is None
    digits = open_dataset("digits", None).split("train").index
    found = find_images(digits.paths, digits.sample_ids, DataConfig(), None, asked=False)
    assert found.file(0) is None
