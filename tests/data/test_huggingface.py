"""Parquet files with images and folders of `save_to_disk`."""

import os
import pickle
import sys

import pyarrow
import pytest
from pyarrow import parquet

from alr_fast.data.datasets import open_dataset
from alr_fast.data.images.sources import BrokenImage
from alr_fast.data.layouts import arrow_folder, image_columns
from alr_fast.data.layouts.base import NoSplit
from alr_fast.errors import UserError
from helpers.layouts import image_bytes, write_parquet_images

TRAIN = ([2, 0, 1, 2], [0, 0, 1])
TEST = [1, 2]


@pytest.fixture
def hub(tmp_path):
    """A repository as on the hub: two files for training, one for testing."""
    for number, labels in enumerate(TRAIN):
        path = tmp_path / "data" / f"train-{number:05d}-of-00002.parquet"
        write_parquet_images(path, labels, names=["cat", "dog", "eel"])
    path = tmp_path / "data" / "test-00000-of-00001.parquet"
    write_parquet_images(path, TEST, names=["cat", "dog", "eel"])
    return tmp_path


def check(dataset, names, train=(*TRAIN[0], *TRAIN[1]), test=TEST):
    for split, labels in (("train", train), ("test", test)):
        data = dataset.split(split)
        assert data.index.class_names == names
        assert data.index.labels.tolist() == list(labels)
        read = [data.images.read(row) for row in range(len(data))]
        parts = TRAIN if split == "train" else (TEST,)
        assert read == [image_bytes(k, n) for part in parts for n, k in enumerate(part)]
        part = data.take(data.index.find_rows([1]))
        assert part.images.read(0) == read[1]
        assert part.images.name(0).endswith(data.index.paths[1])


def test_parquet_files_of_the_hub(hub):
    dataset = open_dataset("auto", hub)
    assert dataset.layout.name == "huggingface"
    check(dataset, ("cat", "dog", "eel"))
    paths = dataset.split("train").index.paths
    assert paths[0] == "train-00000-of-00002_0.png" and len(set(paths)) == 7
    with pytest.raises(NoSplit):
        dataset.split("val")


def test_equal_names_of_images_are_numbered(tmp_path):
    for number in (0, 1):
        images = [{"bytes": image_bytes(k), "path": f"{k}.png"} for k in (0, 1)]
        table = pyarrow.table({"image": images, "label": [0, 1]})
        parquet.write_table(table, tmp_path / f"train-{number}.parquet")
    assert open_dataset("auto", tmp_path).split("train").index.paths == [
        *("train-0/00000", "train-0/00001", "train-1/00000", "train-1/00001")
    ]


@pytest.mark.parametrize("place", ["", "train/", "plain_text/", "data/"])
def test_places_and_plain_bytes(tmp_path, place):
    path = tmp_path / f"{place}train.parquet"
    write_parquet_images(path, ["b", "a", "b"], plain=True)
    dataset = open_dataset("auto", tmp_path)
    train = dataset.split("train")
    assert train.index.class_names == ("a", "b") and train.index.labels.tolist() == [1, 0, 1]
    assert train.index.paths[2] == "train/00002"
    assert len(open_dataset("auto", path).split("train")) == 3


def test_columns_by_name(tmp_path):
    write_parquet_images(tmp_path / "train.parquet", [5, 6], fine=[1, 0], best=[1, 1])
    dataset = open_dataset("auto", tmp_path, columns="label=fine,clean_label=best")
    index = dataset.split("train").index
    assert index.labels.tolist() == [1, 0] and index.clean_labels.tolist() == [1, 1]
    with pytest.raises(UserError, match="no column nothing of labels; name one of label, fine"):
        open_dataset("auto", tmp_path, columns="label=nothing")


def test_two_data_sets_in_a_folder_are_named(tmp_path):
    for name in ("a", "b"):
        write_parquet_images(tmp_path / name / "train.parquet", [0, 1])
    with pytest.raises(UserError, match=r"several data sets lie in it \(a, b\)"):
        open_dataset("auto", tmp_path)
    assert len(open_dataset("auto", tmp_path / "b").split("train")) == 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pyarrow.array([[1], [0]]), "the column label is list<"),
        (pyarrow.array([0.5, 1.0]), "train.parquet, row 0, .* label '0.5' is a fraction"),
        (pyarrow.array([0, None]), "train.parquet, row 1, column label: .* is a missing value"),
        (pyarrow.array([0, 0]), "fewer than two classes"),
    ],
)
def test_wrong_labels_are_refused(tmp_path, labels, message):
    table = pyarrow.table({"image": [image_bytes(0), image_bytes(1)], "label": labels})
    parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(UserError, match=message):
        open_dataset("auto", tmp_path).split("train")


@pytest.mark.parametrize("names", [["0", "1", "10", "2"], ["1", "2", "3", "4"], list("3210")])
def test_integers_of_a_class_label_count_its_names(tmp_path, names):
    labels = [3, 0, 1, 2]
    write_parquet_images(tmp_path / "train.parquet", labels, names=names)
    index = open_dataset("auto", tmp_path).split("train").index
    assert index.class_names == tuple(names) and index.labels.tolist() == labels


def test_integers_beyond_the_names_of_a_class_label_are_refused(tmp_path):
    write_parquet_images(tmp_path / "train.parquet", [0, 4], names=["1", "2", "3", "4"])
    with pytest.raises(UserError, match="row 1 of split train: label 4 is none of the 4 classes"):
        open_dataset("auto", tmp_path).split("train")


def test_without_names_no_integer_is_a_position(tmp_path):
    write_parquet_images(tmp_path / "train.parquet", [1, 2, 3])
    write_parquet_images(tmp_path / "test.parquet", [0])
    with pytest.raises(UserError, match="label '0' is not one of the 3 classes"):
        open_dataset("auto", tmp_path).split("test")


def test_floats_of_integers_are_labels(tmp_path):
    labels = pyarrow.array([2.0, 1.0, 2.0])
    table = pyarrow.table({"image": [image_bytes(k) for k in range(3)], "label": labels})
    parquet.write_table(table, tmp_path / "train.parquet")
    index = open_dataset("auto", tmp_path).split("train").index
    assert (index.class_names, index.labels.tolist()) == (("1", "2"), [1, 0, 1])


def test_hidden_labels_are_no_test_split(tmp_path):
    write_parquet_images(tmp_path / "train.parquet", [0, 1], names=["a", "b"])
    write_parquet_images(tmp_path / "test.parquet", [-1, -1], names=["a", "b"])
    with pytest.raises(NoSplit, match=r"hidden \(-1\)"):
        open_dataset("auto", tmp_path).split("test")


def test_a_missing_image_is_broken(tmp_path):
    images = [{"bytes": None, "path": "a.png"}, {"bytes": image_bytes(1), "path": "b.png"}]
    parquet.write_table(pyarrow.table({"image": images, "label": [0, 1]}), tmp_path / "t.parquet")
    images = open_dataset("auto", tmp_path).split("train").images
    with pytest.raises(BrokenImage, match="no bytes, only a path"):
        images.read(0)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    copy = pickle.loads(pickle.dumps(images))
    assert images.read(1) == image_bytes(1)  # its group is in memory
    with pytest.raises(BrokenImage):
        copy.read(1)


def test_groups_are_read_once_in_order_and_forgotten(hub, monkeypatch):
    images = open_dataset("auto", hub).split("train").images
    calls = []

    def count(path, group):
        calls.append(group)
        return image_columns.group_of_parquet(path, group, column="image")

    object.__setattr__(images, "group_of", count)
    for row in range(7):
        images.read(row)
    assert calls == [0, 1, 0]
    images.read(0)
    assert len(calls) == 3
    monkeypatch.setattr("alr_fast.data.images.sources._KEPT_BYTES", 0)
    images = pickle.loads(pickle.dumps(open_dataset("auto", hub).split("train").images))
    object.__setattr__(images, "group_of", count)
    for row in (0, 1, 3, 0):
        images.read(row)
    assert calls[3:] == [0, 1, 0]


def test_large_groups_are_said(tmp_path):
    write_parquet_images(tmp_path / "train.parquet", [0, 1] * 150, group=300)
    remarks = open_dataset("auto", tmp_path).split("train").remarks
    assert len(remarks) == 1 and "300 images in a group" in remarks[0]


def test_a_parquet_list_is_no_data_set_of_images(tmp_path):
    table = pyarrow.table({"path": ["a.png"], "label": [0], "split": ["train"]})
    parquet.write_table(table, tmp_path / "all.parquet")
    assert open_dataset("auto", tmp_path / "all.parquet").layout.name == "table"


@pytest.fixture
def saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog", "eel"])
    )

    def of(parts):
        rows = [(n, k) for part in parts for n, k in enumerate(part)]
        images = [{"bytes": image_bytes(k, n), "path": None} for n, k in rows]
        return datasets.Dataset.from_dict(
            {"image": images, "label": [k for _, k in rows]}, features=features
        )

    whole = datasets.DatasetDict(train=of(TRAIN), test=of([TEST]))
    whole.save_to_disk(str(tmp_path / "saved"), num_shards={"train": 2, "test": 1})
    return tmp_path / "saved"


def test_a_folder_of_save_to_disk(saved):
    dataset = open_dataset("auto", saved)
    assert dataset.layout.name == "huggingface"
    check(dataset, ("cat", "dog", "eel"))
    assert dataset.split("train").index.paths[3] == "train/00003"
    only = open_dataset("auto", saved / "train")
    assert only.split("train").index.labels.tolist() == [*TRAIN[0], *TRAIN[1]]
    with pytest.raises(NoSplit):
        only.split("test")


def test_the_library_is_not_needed(saved, monkeypatch):
    arrow_folder.table_on_disk.cache_clear()
    monkeypatch.setitem(sys.modules, "datasets", None)
    check(open_dataset("auto", saved), ("cat", "dog", "eel"))


def test_a_damaged_folder_is_named(saved):
    arrow_folder.table_on_disk.cache_clear()
    for path in (saved / "train").glob("*.arrow"):
        os.truncate(path, 100)
    with pytest.raises(UserError, match=r"data-0000\d-of-00002.arrow: cannot be read"):
        open_dataset("auto", saved)
    (saved / "dataset_dict.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset_dict.json: cannot be read"):
        open_dataset("auto", saved)
