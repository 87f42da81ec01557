import os
import shutil
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from alr_fast.data import datasets
from alr_fast.data.broken import default_exclusion_file, read_exclusions, write_exclusions
from alr_fast.data.datasets import open_dataset
from alr_fast.data.images.sources import BrokenImage
from alr_fast.data.index import PathTable, SampleIndex, balanced_rows
from alr_fast.data.layouts.digits import read_digits
from alr_fast.errors import UserError
from alr_fast.noise import inject, save_labels
from alr_fast.training.config.schema import DataConfig
from alr_fast.training.loaders import make_transform
from alr_fast.training.run_data import leave_out, load_data
from helpers.image_folder import write_folder

FOLDER = DataConfig(name="folder", workers=1)


def load(root, **changes):
    data = load_data(replace(FOLDER, **changes), str(root), log=lambda text: None)
    return leave_out(data).train, data.test


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "set", train={"a": 6, "b": 4}, test={"a": 2, "b": 3})


def index_of(labels, ids=None, paths=None, classes=3):
    labels = np.asarray(labels)
    ids = np.arange(len(labels)) if ids is None else np.asarray(ids)
    return SampleIndex(
        sample_ids=ids,
        paths=[f"p{i}" for i in ids] if paths is None else paths,
        labels=labels,
        clean_labels=None,
        class_names=tuple("abcdef"[:classes]),
    )


def test_paths_as_bytes():
    names = ["a/b.jpg", "1,2.jpg", "with blank.jpg", "\u6f22/\u00e9.jpg", os.fsdecode(b"\xff.jpg")]
    table = PathTable.of(names)
    assert list(table) == names
    assert table == names
    assert table[-1] == names[-1]
    assert table[1:3] == names[1:3]
    part = table.take(np.array([0, 3, 4]))
    assert list(part) == [names[0], names[3], names[4]]
    assert part.blob is table.blob
    assert list(part.take(np.array([1]))) == [names[3]]
    for wrong in ("", "a\0b"):
        with pytest.raises(ValueError, match="not a path"):
            PathTable.of(["a", wrong])


def test_fingerprint_of_a_part_equals_that_of_the_same_list():
    names = [f"d/{i}.jpg" for i in range(10)]
    rows = np.array([0, 1, 2, 5, 9])
    part = index_of([0] * 10, paths=names).take(rows)
    alone = index_of([0] * 5, ids=rows, paths=[names[row] for row in rows])
    assert part.sample_fingerprint() == alone.sample_fingerprint()


def test_a_subset_keeps_ids_and_finds_rows():
    index = index_of([0, 1, 2, 0, 1]).take(np.array([1, 3, 4]))
    assert index.sample_ids.tolist() == [1, 3, 4]
    assert index.paths == ["p1", "p3", "p4"]
    assert index.labels.tolist() == [1, 0, 1]
    assert index.rows_of([4, 1]).tolist() == [2, 0]
    for missing in (0, 2, 9):
        with pytest.raises(KeyError, match=str(missing)):
            index.rows_of([1, missing])


def test_samples_and_labels_have_separate_fingerprints():
    index = index_of([0, 1, 2])
    relabelled = index.with_noisy_labels(np.array([1, 1, 2]))
    assert relabelled.sample_fingerprint() == index.sample_fingerprint()
    assert relabelled.label_fingerprint() != index.label_fingerprint()
    assert relabelled.clean_labels.tolist() == [0, 1, 2]
    for other in (
        index_of([0, 1, 2], ids=[0, 1, 3], paths=index.paths),
        index_of([0, 1, 2], paths=["p0", "p1", "q2"]),
        index_of([0, 1, 2], paths=["p0", "p1p", "2"]),  # the same letters, divided differently
    ):
        assert other.sample_fingerprint() != index.sample_fingerprint()
        assert other.label_fingerprint() == index.label_fingerprint()


def test_known_clean_labels_stay_clean():
    index = replace(index_of([1, 1, 2]), clean_labels=np.array([0, 1, 2]))
    assert index.with_noisy_labels(np.array([2, 2, 2])).clean_labels.tolist() == [0, 1, 2]


def test_wrong_columns_are_refused():
    with pytest.raises(ValueError, match="paths has 2 entries, sample_ids has 3"):
        index_of([0, 1, 2], paths=["x", "y"])
    with pytest.raises(ValueError, match=r"\[0, 2\)"):
        index_of([0, 1, 2], classes=2)


def test_balanced_rows():
    labels = np.array([0] * 50 + [1] * 50 + [2] * 3)
    rows = balanced_rows(labels, 3, 20)
    assert np.bincount(labels[rows]).tolist() == [7, 7, 3]  # 20 = 7 + 7 + 6, but class 2 has only 3
    assert (np.diff(rows) > 0).all()
    assert np.array_equal(rows, balanced_rows(labels, 3, 20))
    assert balanced_rows(labels, 3, None).tolist() == list(range(103))
    assert len(balanced_rows(labels, 3, 500)) == 103
    with pytest.raises(UserError, match=r"^limit 2: below the number of classes, 3"):
        balanced_rows(labels, 3, 2)


def test_digits_have_one_split_stratified_by_class():
    train, test = (read_digits(split).index for split in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    assert not set(train.paths) & set(test.paths)
    assert len({*train.paths, *test.paths}) == 1797
    assert list(train.paths) == sorted(train.paths)
    assert train.sample_ids.tolist() == list(range(1437))
    shares = np.bincount(train.labels) / np.bincount(np.r_[train.labels, test.labels])
    assert np.abs(shares - 0.8).max() < 0.01
    images = open_dataset("digits", None).split("test").images
    assert images.array.shape == (360, 1, 8, 8)
    assert images.array.max() == 255
    assert read_digits("train").index.sample_fingerprint() == train.sample_fingerprint()


def test_digits_pixels_belong_to_their_labels():
    from sklearn.datasets import load_digits

    digits = load_digits()
    listing = read_digits("test")
    for row in (0, 100, 359):
        original = int(listing.index.paths[row].split("/")[1])
        assert listing.index.labels[row] == digits.target[original]
        pixels = listing.images.array[row][0]
        assert np.abs(pixels / 255 * 16 - digits.images[original]).max() < 0.05


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_folder_layout(tmp_path, test_name):
    write_folder(tmp_path, train={"b": 2, "a": 3}, test={"b": 1}, test_name=test_name)
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "a" / ".hidden.png").write_text("no image")
    (tmp_path / "train" / ".cache").mkdir()
    train, test = (open_dataset("auto", tmp_path).split(s).index for s in ("train", "test"))
    assert train.class_names == ("a", "b")
    assert train.paths == [f"train/{p}.png" for p in ("a/000", "a/001", "a/002", "b/000", "b/001")]
    assert train.labels.tolist() == [0, 0, 0, 1, 1]
    assert train.clean_labels is None
    assert test.paths == [f"{test_name}/b/000.png"]
    assert test.labels.tolist() == [1]  # by name: the test folder lacks class a


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jpeg", ".png", ".webp"])
def test_kinds_of_files(tmp_path, suffix):
    write_folder(tmp_path, train={"a": 1, "b": 1}, test={"a": 1}, suffix=suffix)
    assert [len(split) for split in load(tmp_path)] == [2, 1]


def test_a_broken_link_shifts_no_id(root):
    path = root / "train" / "a" / "002.png"
    path.unlink()
    path.symlink_to("/no/such/file")
    train, _ = load(root)
    assert len(train) == 10
    with pytest.raises(BrokenImage, match="no such file"):
        train.images.read(2)


def test_limit_keeps_ids_and_files(root):
    whole, _ = load(root)
    part, test = load(root, limit=4, test_limit=2)
    assert (len(part), len(test)) == (4, 2)
    assert part.index.sample_ids.max() > 3
    for row, sample in enumerate(part.index.sample_ids):
        assert part.index.paths[row] == whole.index.paths[sample]
        assert part.images.read(row) == whole.images.read(sample)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda r: None, "no such file or folder$"),
        (lambda r: r.symlink_to(r.name), "no such file or folder, it is a link that leads nowhere"),
        (
            lambda r: r.write_text(""),
            "is neither a folder nor a list nor a file of features",
        ),
        (lambda r: r.mkdir(), r"the folder is empty; pass (.|\n)*train/<class>"),
        (lambda r: (r / "images").mkdir(parents=True), r"\(found: images/\)\n(.|\n)*missing"),
        (
            lambda r: [(r / s).mkdir(parents=True) for s in ("train", "test")],
            r"\(found: test/, train/\)\n(.|\n)*missing: images",
        ),
        (lambda r: write_folder(r, train={"a": 2}, test={"a": 1}), r"only one class \(a\)"),
        (
            lambda r: write_folder(r, train={"a": 1, "b": 1}, test={"c": 1}),
            r"test/c: this class is not one of the training classes",
        ),
        (
            lambda r: write_folder(r, train={"a": 1, "b": 0}, test={"a": 1}),
            r"train: only one class \(a\)",
        ),
    ],
)
@pytest.mark.parametrize("name", ["auto", "folder"])
def test_wrong_folder_is_named_with_a_remedy(tmp_path, prepare, message, name):
    prepare(tmp_path / "set")
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / "set", name=name)
    assert str(tmp_path / "set") in str(error.value)
    assert len(str(error.value).splitlines()) <= 10


def test_flat_folders_are_not_class_folders(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").write_bytes(b"")
        (tmp_path / f"{name}.csv").write_text(f"path,label\n{name}/0.jpg,0\n")
    assert open_dataset("auto", tmp_path).layout.name == "table"


def test_names_of_data_sets_and_splits_are_checked(tmp_path):
    with pytest.raises(UserError, match="has no split nosuch; choose from train, test"):
        open_dataset("digits", None).split("nosuch")
    with pytest.raises(UserError, match=r"^root: data set folder needs a folder"):
        open_dataset("folder", None)
    with pytest.raises(
        UserError, match=r"^name nosuch: no such data set; choose from auto, digits"
    ):
        open_dataset("nosuch", tmp_path)


def test_every_layout_is_a_choice_of_the_option():
    assert set(get_args(datasets.DatasetName)) == {"auto", "digits", *datasets.LAYOUTS}


def test_excluded_samples_shift_no_id(root, tmp_path, monkeypatch):
    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path / "cache"))
    whole, test = load(root)
    rows = [(i, whole.index.paths[i], "broken") for i in (7, 2)]
    for path, option in ((default_exclusion_file(whole), "auto"), (tmp_path / "x.csv", None)):
        write_exclusions(path, rows)
        part, same = load(root, exclude=option or str(path))
        assert part.index.sample_ids.tolist() == [0, 1, 3, 4, 5, 6, 8, 9]
        assert [part.index.paths[r] for r in (2, 6)] == [whole.index.paths[i] for i in (3, 8)]
        assert part.images.read(6) == whole.images.read(8)
        assert len(same) == len(test)
    assert len(load(root, exclude="none")[0]) == 10
    # A copy has its own list of broken files.
    shutil.copytree(root, tmp_path / "copy")
    assert len(load(tmp_path / "copy")[0]) == 10
    write_exclusions(default_exclusion_file(test), [(4, test.index.paths[4], "broken")])
    assert [len(split) for split in load(root)] == [8, 4]
    # A list that the user names applies only to the training split.
    assert [len(split) for split in load(root, exclude=str(tmp_path / "x.csv"))] == [8, 5]


@pytest.mark.parametrize("sample_id", [11, 1, "x"])
def test_excluded_samples_are_found_by_path(root, tmp_path, sample_id):
    whole, _ = load(root)
    write_exclusions(tmp_path / "x.csv", [(sample_id, "train/a/000.png", "broken")])
    assert read_exclusions(tmp_path / "x.csv", whole.index) == {0: "broken"}


def test_exclusions_of_another_data_set_are_refused(root, tmp_path):
    whole, _ = load(root)
    write_exclusions(tmp_path / "x.csv", [("x", "y", "broken")])
    with pytest.raises(UserError, match=r"^table .*x\.csv: 1 of its 1 samples are not in this"):
        read_exclusions(tmp_path / "x.csv", whole.index)
    with pytest.raises(UserError, match=r"data\.exclude .*nosuch\.csv: no such file.*verify"):
        load(root, exclude=str(tmp_path / "nosuch.csv"))
    (tmp_path / "other.csv").write_text("name,label\na,1\n")
    with pytest.raises(UserError, match=r"other\.csv: is no exclusion list, it has no column path"):
        load(root, exclude=str(tmp_path / "other.csv"))


def test_labels_of_a_file_replace_the_given_labels(root, tmp_path):
    whole, _ = load(root)
    noise = inject(whole.index.labels, num_classes=2, kind="symmetric-exclusive", rate=0.5, seed=0)
    save_labels(tmp_path / "noisy.npz", noise, whole.index)
    part, _ = load(root, label_file=str(tmp_path / "noisy.npz"), limit=4)
    assert np.array_equal(part.index.labels, noise.labels[part.index.sample_ids])
    assert np.array_equal(part.index.clean_labels, whole.index.labels[part.index.sample_ids])
    with pytest.raises(UserError, match=r"label_file .*nosuch: no such file"):
        load(root, label_file=str(tmp_path / "nosuch"))
    with pytest.raises(UserError, match="label_key worse: is for the labels of CIFAR-N"):
        load(root, label_file=str(tmp_path / "noisy.npz"), label_key="worse")


@pytest.mark.parametrize(
    ("changes", "size", "resize"),
    [
        ({}, 10, 10),  # the shorter side of the first image
        ({"image_size": 6}, 6, 6),
        ({"image_size": 224, "crop": "random"}, 224, 256),
        ({"image_size": 227, "crop": "resized", "resize": 256}, 227, 256),
    ],
)
def test_sizes(tmp_path, changes, size, resize):
    write_folder(tmp_path, train={"a": 1, "b": 1}, test={"a": 1}, size=(12, 10))
    config = replace(FOLDER, **changes)
    transform = make_transform(config, load(tmp_path)[0])
    assert (transform.size, transform.resize) == (size, resize)


def test_impossible_sizes(tmp_path):
    write_folder(tmp_path, train={"a": 1, "b": 1}, test={"a": 1})
    train, _ = load(tmp_path)
    with pytest.raises(UserError, match="resize 100: is below the image size, 224"):
        make_transform(replace(FOLDER, image_size=224, resize=100), train)
    digits = open_dataset("digits", None).split("train")
    with pytest.raises(UserError, match="crop resized: images that come as arrays"):
        make_transform(replace(FOLDER, crop="resized"), digits)
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"a/000\.png cannot be read as an image .*nor can the"):
        make_transform(FOLDER, train)


def test_samples_are_found_by_their_path_and_ids_break_ties() -> None:
    index = SampleIndex(
        np.arange(6), PathTable.of(["a", "b", "b", "c", "d", "b"]), np.zeros(6, int), None, ("x",)
    )
    paths = PathTable.of(["c", "b", "b", "z", "a", "b", "b", "a"])
    ids = np.array([0, 5, 9, 9, 9, 1, 9, 9])
    assert index.match(paths, ids).tolist() == [3, 5, 2, -1, 0, 1, -1, 0]
    assert index.match(PathTable.of(["b", "b"])).tolist() == [1, 2]
    assert index.match(PathTable.of([])).tolist() == []


def test_equal_hashes_of_different_paths_are_no_match(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PathTable, "hashes", lambda table: np.zeros(len(table), dtype=np.int64))
    index = SampleIndex(np.arange(1), PathTable.of(["a"]), np.zeros(1, int), None, ("x",))
    assert index.match(PathTable.of(["b", "a"])).tolist() == [-1, 0]
