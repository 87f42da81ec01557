"""Folders of classes as people keep them: every image is used, or said to be left out."""

import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alr_fast.data import inventory
from alr_fast.data.datasets import open_dataset
from alr_fast.data.layouts.base import NoSplit
from alr_fast.data.layouts.splits import role_in, role_of
from alr_fast.errors import UserError
from helpers.layouts import write_tree


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))


def opened(root, content, **options):
    return open_dataset("auto", write_tree(root, content), **options)


def pairs(split):
    names = split.index.class_names
    return [(p, names[k]) for p, k in zip(split.index.paths, split.index.labels, strict=True)]


def said(split, *words):
    """Whether one of the remarks contains all these words."""
    return any(all(word in remark for word in words) for remark in split.remarks)


TRAIN = {"train/a/1.png": 0, "train/b/1.png": 1}


def test_every_suffix_and_every_depth_is_used(tmp_path):
    suffixes = (".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".jfif", ".jpe", ".webp")
    content = {f"train/a/{k}{suffix}": 0 for k, suffix in enumerate(suffixes)}
    content |= {"train/a/x.JPG": 0, "train/b/deep/er/1.png": 1, "train/b/2.png": 1}
    dataset = opened(tmp_path, content)
    train = dataset.split("train")
    assert {path for path, _ in pairs(train)} == set(content)
    assert train.index.paths[:] == sorted(content)
    assert all(len(train.images.read(row)) > 20 for row in range(len(train)))
    assert said(train, "up to 3 folders deep", "no classes")


def test_what_is_not_taken_is_said_in_a_line(tmp_path):
    content = TRAIN | {
        "train/a/notes.txt": "x",
        "train/b/more/label.json": "x",
        "train/b/more/other.txt": "x",
        "train/stray.jpg": 0,
        "train/readme.md": "x",
        "train/c": None,
        "train/d/only.txt": "x",
        "train/@eaDir/1.png": 0,
        "train/a/__MACOSX/._1.png": "x",
        "extra/1.png": 0,
        "loose.png": 0,
        "lost+found": None,
    }
    train = opened(tmp_path, content).split("train")
    assert pairs(train) == [("train/a/1.png", "a"), ("train/b/1.png", "b")]
    assert said(train, "not taken: 3 .txt, 1 .json, 1 .md")
    assert said(train, "no images in the class folders c, d: left out")
    assert said(train, "1 .jpg beside the class folders")
    assert said(train, "skipped: 1 @eaDir, 1 __MACOSX") or said(train, "1 __MACOSX", "1 @eaDir")
    assert said(train, "1 .png in extra, which is no split")
    assert said(train, "1 .png in no folder of a split")
    assert all("\n" not in remark for remark in train.remarks)
    again = open_dataset("auto", tmp_path).split("train")
    assert again.remarks == train.remarks


def test_a_plain_folder_has_no_remarks(tmp_path):
    dataset = opened(tmp_path, TRAIN | {"test/a/1.png": 0, "test/.DS_Store": "x"})
    assert dataset.split("train").remarks == dataset.split("test").remarks == ()


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize(
    "test", ["test", "Testing", "val", "valid", "Validation", "dev", "eval", "VAL"]
)
def test_splits_have_synonyms(tmp_path, train, test):
    content = {f"{train}/a/1.png": 0, f"{train}/b/1.png": 1, f"{test}/b/1.png": 1}
    dataset = opened(tmp_path, content)
    assert dataset.layout.name == "folder"
    assert len(dataset.split("train")) == 2
    assert pairs(dataset.split("test")) == [(f"{test}/b/1.png", "b")]
    assert dataset.split("train").remarks == ()


def test_val_beside_test_is_said_and_can_be_used(tmp_path):
    dataset = opened(tmp_path, TRAIN | {"test/a/1.png": 0, "val/b/1.png": 1, "dev/b/2.png": 1})
    assert pairs(dataset.split("test")) == [("test/a/1.png", "a")]
    assert pairs(dataset.split("val")) == [("val/b/1.png", "b")]
    assert said(dataset.split("train"), "1 .png in val", "test is for testing")
    assert said(dataset.split("train"), "1 .png in dev")


def test_another_folder_of_the_same_split_is_said(tmp_path):
    files = {f"{s}/{c}/1.png": 0 for s in ("Train", "training", "test", "testing") for c in "ab"}
    write_tree(tmp_path, files)
    assert open_dataset("auto", tmp_path).split("train").remarks == (
        "not used: 2 .png in training, as Train is used",
        "not used: 2 .png in testing, as test is used",
    )


def test_a_test_folder_without_labels_is_said(tmp_path):
    dataset = opened(tmp_path, TRAIN | {"test/1.png": 0, "test/2.png": 0})
    assert said(dataset.split("train"), "2 .png in test, which has no class folders")
    with pytest.raises(NoSplit, match="test: images without class folders"):
        dataset.split("test")
    write_tree(tmp_path, {"valid/a/1.png": 0})
    assert pairs(open_dataset("auto", tmp_path).split("test")) == [("valid/a/1.png", "a")]


@pytest.mark.parametrize("prefix", ["", "train/", "data/train/", "archive/images/"])
def test_without_a_test_split(tmp_path, prefix):
    content = {f"{prefix}{k}/x{n}.png": k for k in (0, 2, 10) for n in range(2)}
    dataset = opened(tmp_path, content)
    train = dataset.split("train")
    assert dataset.layout.name == "folder"
    assert train.index.class_names == ("0", "2", "10")  # by value; the samples by path
    assert [label for _, label in pairs(train)] == ["0", "0", "10", "10", "2", "2"]
    assert "without a test split" in dataset.found.what
    for name in ("test", "val"):
        with pytest.raises(NoSplit):
            dataset.split(name)


def test_classes_beside_splits_without_a_folder_for_training(tmp_path):
    dataset = opened(tmp_path, {"cat/1.png": 0, "dog/1.png": 1, "test/1.png": 0, "readme.md": "x"})
    assert [label for _, label in pairs(dataset.split("train"))] == ["cat", "dog"]
    assert said(dataset.split("train"), "1 .png in test")
    dataset = opened(tmp_path / "b", {"cat/1.png": 0, "dog/1.png": 1, "Test/dog/1.png": 0})
    assert pairs(dataset.split("test")) == [("Test/dog/1.png", "dog")]


def test_a_class_may_be_called_train(tmp_path):
    dataset = opened(tmp_path, {"bus/1.png": 0, "car/1.png": 1, "train/1.png": 2})
    assert dataset.split("train").index.class_names == ("bus", "car", "train")


def test_splits_within_class_folders(tmp_path):
    content = {f"{name}/{split}/{k}.png": 0 for name in ("cat", "dog")
               for split in ("Train", "Test") for k in range(2)}  # fmt: skip
    dataset = opened(tmp_path, content)
    assert [p for p, _ in pairs(dataset.split("train"))] == sorted(p for p in content if "Tr" in p)
    assert [p for p, _ in pairs(dataset.split("test"))] == sorted(p for p in content if "Te" in p)


@pytest.mark.parametrize(
    "content",
    [
        {"images/1.jpg": 0, "labels/1.txt": "x"},
        {"train/images/1.jpg": 0, "train/labels/1.txt": "x"},
        {"images/train/1.jpg": 0, "labels/train/1.txt": "x"},
        {"images/1.jpg": 0, "masks/1.png": 0},
        {"train/images/1.jpg": 0, "train/masks/1.png": 0},
        {"JPEGImages/1.jpg": 0, "Annotations/1.xml": "x"},
        {"all/1.jpg": 0, "all/2.jpg": 0},
        {"train/1.jpg": 0, "test/2.jpg": 0},
        {"1.jpg": 0, "2.jpg": 0},
    ],
)
def test_no_folders_of_classes(tmp_path, content):
    write_tree(tmp_path, content)
    with pytest.raises(UserError, match="none of the known layouts"):
        open_dataset("auto", tmp_path)


def test_links_are_followed_once(tmp_path):
    write_tree(tmp_path, TRAIN)
    (tmp_path / "train" / "a" / "loop").symlink_to(tmp_path / "train")
    (tmp_path / "train" / "a" / "b").symlink_to(tmp_path / "train" / "b")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "train" / "b" / "2.png").symlink_to(tmp_path / "train" / "b" / "1.png")
    train = open_dataset("auto", tmp_path).split("train")
    assert [path for path, _ in pairs(train)] == ["train/a/1.png", "train/b/1.png", "train/b/2.png"]
    assert said(train, "not followed: train/a/b, train/a/loop")


def test_a_link_to_its_own_class_does_not_make_test_images_training_ones(tmp_path):
    write_tree(tmp_path, {f"{k}/{split}/1.png": 0 for k in "ab" for split in ("train", "test")})
    (tmp_path / "a" / "train" / "back").symlink_to(tmp_path / "a")
    train = open_dataset("auto", tmp_path).split("train")
    assert [path for path, _ in pairs(train)] == ["a/train/1.png", "b/train/1.png"]
    assert said(train, "not followed: a/train/back")


def test_a_class_folder_that_leads_above_the_classes_is_not_entered(tmp_path):
    write_tree(tmp_path, TRAIN)
    (tmp_path / "train" / "c").symlink_to(tmp_path)
    train = open_dataset("auto", tmp_path).split("train")
    assert [path for path, _ in pairs(train)] == ["train/a/1.png", "train/b/1.png"]
    assert said(train, "not followed: train/c")


def test_an_unreadable_class_folder_is_named(tmp_path, monkeypatch):
    write_tree(tmp_path, TRAIN | {"train/b/deep/2.png": 1})
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("/deep"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(inventory.os, "scandir", refuse)
    with pytest.raises(UserError, match="train/b/deep: Permission denied; make the folder"):
        open_dataset("auto", tmp_path).split("train")


def test_classes_that_look_alike_are_said(tmp_path):
    content = {"train/Cat/1.png": 0, "train/cat/1.png": 0, "train/None/1.png": 1}
    assert said(opened(tmp_path, content).split("train"), "'Cat' and 'cat'", "one class")


def test_a_cached_listing_follows_changes_in_depth(tmp_path):
    write_tree(tmp_path, TRAIN | {"train/b/deep/2.png": 1})
    for path in [tmp_path, *tmp_path.rglob("*")]:
        os.utime(path, (1e9, 1e9))
    assert len(open_dataset("auto", tmp_path).split("train")) == 3
    write_tree(tmp_path, {"train/b/deep/3.png": 1})
    assert len(open_dataset("auto", tmp_path).split("train")) == 4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"1.jpg": 0, "2.jpg": 1}, ["2 .jpg", "folder: ", "a folder for each class"]),
        ({"train/1.jpg": 0, "test/1.jpg": 1}, ["missing: two or more class folders", "in train"]),
        ({"images/1.jpg": 0, "labels/1.txt": "x"}, ["beside each other are none"]),
        ({"notes.txt": "x"}, ["found: notes.txt", "missing: images"]),
        ({"info/x.txt": "x"}, ["webvision-mini: ", "it has info; missing: google, val_images_256"]),
        ({"meta/imagelist.tsv": "x"}, ["food101n: ", "missing: meta/classes.txt, images"]),
        ({"list.csv": "who,what,why\na,b,c\n"}, ["table: ", "columns who, what, why"]),
        (
            {"list.csv": "path,label\nx.jpg,1\n"},
            ["list.csv: names images in its column"],
        ),
        ({"list.csv": "x.jpg,1\ny.jpg,0\n"}, ["list.csv has no header; write path,label"]),
        ({"cat/1.jpg": 0, "cat/2.jpg": 0}, ["folder: ", "a second class folder beside cat"]),
        ({"@eaDir/1.jpg": 0}, ["empty but for 1 hidden or system"]),
    ],
)
def test_an_error_shows_the_nearest_layouts(tmp_path, content, words):
    write_tree(tmp_path, content)
    with pytest.raises(UserError) as caught:
        open_dataset("auto", tmp_path)
    lines = str(caught.value).splitlines()
    assert 2 <= len(lines) <= 10
    assert lines[0].startswith(f"root {tmp_path}: ")
    assert all(len(line) < 300 for line in lines)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("root", ["s3://bucket/x", "https://x.y/z.csv", "gs:/bucket/x"])
def test_an_address_is_refused_as_one(root):
    with pytest.raises(UserError, match="is an address; only files on a disk are read"):
        open_dataset("auto", root)


def test_roles_of_names():
    assert [role_of(name) for name in ("Train", "eval", "x", "test ")] == [
        *("train", "val", None, "test")
    ]
    assert role_in("imagenet-train-000012") == "train"
    assert role_in("Test_labels") == "test"
    assert role_in("train_test") is role_in("constraint") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": "path"}, r"columns path: must be path=NAME,label=NAME"),
        ({"columns": "paht=x"}, r"must be path=NAME"),
        ({"columns": "path=x,path=y"}, r"must be path=NAME"),
        ({"columns": {"path": "x"}}, r"columns: names the columns of a list, for .*table; leave"),
        ({"images": "x"}, r"images x: names the folder of the images of a list, for table; leave"),
    ],
)
def test_options_for_lists_are_refused_elsewhere(tmp_path, options, message):
    write_tree(tmp_path, TRAIN)
    with pytest.raises(UserError, match=message):
        open_dataset("folder", tmp_path, **options)


NAMES = st.sampled_from(
    ["train", "Test", "val", "dev", "cat", "dog", "10", "9", "images", "@eaDir", ".cache", "deep"]
)
FILES = st.sampled_from(["1.png", "2.JPG", "3.bmp", "a.txt", "labels.csv", ".x.png"])


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sets(st.tuples(st.lists(NAMES, max_size=4), FILES).map(lambda p: "/".join([*p[0], p[1]])),
               max_size=14))  # fmt: skip
def test_every_image_of_any_tree_is_used_or_counted(tmp_path_factory, paths):
    root = tmp_path_factory.mktemp("tree")
    write_tree(root, dict.fromkeys(sorted(paths), b"x"))
    images = {path for path in paths if path.lower().endswith((".png", ".jpg", ".bmp"))
              and not any(part.startswith((".", "@")) for part in path.split("/"))}  # fmt: skip
    try:
        dataset = open_dataset("auto", root)
        train = dataset.split("train")
    except UserError as error:
        assert len(str(error).splitlines()) <= 10
        return
    base = os.path.relpath(dataset.found.root, root)
    used = {os.path.normpath(f"{base}/{path}") for path in train.index.paths}
    assert used <= images and len(train.index.class_names) >= 2
    remarks = train.remarks
    try:
        test = dataset.split("test")
    except NoSplit:
        pass
    except UserError as error:
        assert "not one of the training classes" in str(error)
        return
    else:
        tests = {os.path.normpath(f"{base}/{path}") for path in test.index.paths}
        assert tests <= images and not tests & used
        used |= tests
        remarks += test.remarks
    said = [re.split(r" (?:in|beside) ", remark)[0] for remark in remarks
            if "not used: " in remark]  # fmt: skip
    count = sum(int(number) for text in said for number in re.findall(r"(\d+) \.", text))
    assert len(used) + count == len(images), (sorted(images - used), remarks)


@pytest.mark.parametrize(
    "name",
    [
        *("train.tar", "train.csv", "train.parquet", "data/train.parquet", "dataset_dict.json"),
        *("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz", "train/a/1.png", "1.jpg"),
    ],
)
def test_pipes_are_not_waited_for(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(tmp_path / name)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(UserError):
        open_dataset("auto", tmp_path).split("train")
