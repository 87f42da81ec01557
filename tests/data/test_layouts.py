"""Every layout is read like its public download, by name and by ``auto``."""

import io
import os
import pickle
import struct
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from alr_fast.data.datasets import LAYOUTS, open_dataset
from alr_fast.data.label_files.cifar_n import read_cifar_n
from alr_fast.data.layouts import cifar, webvision
from alr_fast.data.layouts.base import Found, NoSplit
from alr_fast.data.layouts.lists import read_list
from alr_fast.errors import UserError
from helpers.image_folder import write_folder
from helpers.layouts import (
    CIFAR10_NAMES,
    CLOTHING_NAMES,
    FOOD_NAMES,
    WEBVISION_CLASSES,
    WEBVISION_NAMES,
    WNIDS,
    pixels,
    python2_pickle,
    write_animal10n,
    write_cifar10,
    write_cifar100,
    write_cifar_n,
    write_clothing1m,
    write_food101n,
    write_ilsvrc12,
    write_lines,
    write_table,
    write_webvision,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path / "cache"))


def pairs(index):
    return list(zip(index.paths, index.labels.tolist(), strict=True))


def listing_of(root, name, split):
    layout = LAYOUTS[name]
    return layout.read(layout.find(root), split)


def check(root, name, expected, *, auto=None):
    """Compares every split with the expected one; ``auto`` is the layout that `auto` recognises."""
    assert open_dataset("auto", root).layout.name == (auto or name)
    dataset = open_dataset(name, root)
    for split in expected:
        data = dataset.split(split)
        assert pairs(data.index) == expected[split]
        assert data.index.sample_ids.tolist() == list(range(len(expected[split])))
        if data.images.array is None:
            for path in data.index.paths:
                with Image.open(os.path.join(dataset.found.root, path)) as image:
                    image.load()
        sources = dataset.layout.read(dataset.found, split).sources
        assert sources and all(path.exists() for path in sources)
    return dataset


def refused(root, name, split="train"):
    """The error message for a split, one line; of ten if the layout is not recognised."""
    with pytest.raises(UserError) as caught:
        open_dataset(name, root).split(split)
    message = str(caught.value)
    assert message.count("\n") < (10 if message.startswith("root ") else 1)
    return message


def edit(path, old, new):
    content = path.read_bytes()
    assert old.encode() in content
    path.write_bytes(content.replace(old.encode(), new.encode(), 1))


def written(tmp_path, content: bytes):
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    return path


def test_a_list_is_read_in_order(tmp_path):
    path = written(
        tmp_path, "b/1,2.jpg 1\r\n\r\n  a b/ü.jpg\t0\r\nc..d.jpg 2".encode() + b"\n\xff.jpg 0"
    )
    table, labels = read_list(path, 3)
    assert list(table) == ["b/1,2.jpg", "a b/ü.jpg", "c..d.jpg", os.fsdecode(b"\xff.jpg")]
    assert labels.tolist() == [1, 0, 2, 0]
    assert labels.dtype == np.int64


def test_the_mark_of_utf_8_belongs_to_no_path(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfa.jpg 0\nb.jpg 1\n")
    assert list(read_list(path, 2)[0]) == ["a.jpg", "b.jpg"]


def test_a_list_with_a_prefix_and_kept_classes(tmp_path):
    path = written(tmp_path, b"a.jpg 0\nb.jpg 2\n./x//c.jpg 1\n")
    table, labels = read_list(path, 3, prefix="images/", keep=2)
    assert list(table) == ["images/a.jpg", "images/x/c.jpg"]
    assert labels.tolist() == [0, 1]
    nothing, none = read_list(path, 4, keep=0)
    assert len(nothing) == len(none) == 0


@pytest.mark.parametrize("prefix", ["", "images/"])
@pytest.mark.parametrize(
    ("lines", "line", "what"),
    [
        ("a.jpg 0\nb.jpg\n", 2, "expected 'path label'"),
        ("a.jpg 0\n\nb.jpg x\n", 3, "expected 'path label', found 'b.jpg x'"),
        ("a.jpg 3\n", 1, "label 3 is out of range, labels are 0 to 2"),
        ("a.jpg -1\n", 1, "label -1 is out of range"),
        ("a.jpg 99999999999999999999999\n", 1, "is out of range"),
        ("a.jpg 0\n../b.jpg 0\n", 2, "leads out of the data folder"),
        ("a.jpg 0\nx/../../b.jpg 0\n", 2, "leads out of the data folder"),
        ("a.jpg 0\n/etc/b.jpg 0\n", 2, "leads out of the data folder"),
        ("a.jpg 0\nx/.. 0\n", 2, "leads out of the data folder"),
        ("a.jpg 0\nb\0.jpg 0\n", 2, "zero byte"),
        ("a.jpg 0\nb.jpg 1\n\na.jpg 0\n", 4, "names 'a.jpg' again, as line 1 did"),
        ("x/a.jpg 0\nb.jpg 1\nx/./a.jpg 0\n", 3, "names"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, lines, line, what, prefix):
    path = written(tmp_path, lines.encode())
    with pytest.raises(UserError) as caught:
        read_list(path, 3, prefix=prefix)
    message = str(caught.value).replace("images/", "")
    assert message.startswith(f"{path}, line {line}: ")
    assert what in message
    assert "\n" not in message


def test_an_empty_or_missing_list_is_named(tmp_path):
    for path in (written(tmp_path, b" \r\n\n"), tmp_path / "nothing.txt"):
        with pytest.raises(UserError, match=path.name):
            read_list(path, 3)


def test_a_long_list_takes_little_more_memory_than_its_bytes(tmp_path):
    count = 20_000
    path = written(
        tmp_path, b"".join(b"images/%d/%08d.jpg 1\n" % (k % 10, k) for k in range(count))
    )
    tracemalloc.start()
    table, _ = read_list(path, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(table) == count
    assert peak < 120 * count  # a list of strings takes 80 bytes a path


@pytest.mark.parametrize("pick", [lambda root: root, lambda root: root / "cifar-10-batches-py"])
@pytest.mark.parametrize("dump", [python2_pickle, pickle.dumps, lambda v: pickle.dumps(v, 2)])
def test_cifar10(tmp_path, pick, dump):
    expected = write_cifar10(tmp_path, dump=dump)
    dataset = check(pick(tmp_path), "cifar10", expected)
    assert dataset.found.root == tmp_path / "cifar-10-batches-py"
    train = dataset.split("train")
    assert train.index.class_names == CIFAR10_NAMES
    assert train.index.clean_labels.tolist() == train.index.labels.tolist()
    assert train.index.paths[23] == "data_batch_2/00003"
    array = train.images.array
    assert array.dtype == np.uint8 and array.shape == (100, 3, 32, 32)
    for row, (_, label) in enumerate(expected["train"]):
        image = pixels(label, 10, row, 32, 32).transpose(2, 0, 1)
        np.testing.assert_array_equal(array[row], image)


def test_cifar10_takes_its_names_from_the_download(tmp_path):
    write_cifar10(tmp_path)
    meta = tmp_path / "cifar-10-batches-py" / "batches.meta"
    meta.write_bytes(python2_pickle({"label_names": list("abcdefghij")}))
    assert listing_of(tmp_path, "cifar10", "test").index.class_names == tuple("abcdefghij")
    meta.unlink()
    assert listing_of(tmp_path, "cifar10", "test").index.class_names == CIFAR10_NAMES
    meta.write_bytes(python2_pickle({"label_names": list("abcdefghi")}))
    assert "9 class names, expected 10" in refused(tmp_path, "cifar10")
    meta.write_bytes(python2_pickle({"label_names": list("abcdefghia")}))
    assert "names the class a twice" in refused(tmp_path, "cifar10")


@pytest.mark.parametrize("pick", [lambda root: root, lambda root: root / "cifar-100-python"])
@pytest.mark.parametrize("meta", [True, False])
def test_cifar100(tmp_path, pick, meta):
    from alr_fast.noise.classes import CIFAR100_SUPERCLASSES

    dataset = check(pick(tmp_path), "cifar100", write_cifar100(tmp_path, meta=meta))
    train = dataset.split("train")
    fine = sorted(name for members in CIFAR100_SUPERCLASSES.values() for name in members)
    assert train.index.class_names == tuple(fine)
    assert train.index.clean_labels.tolist() == train.index.labels.tolist()
    assert train.images.array.shape == (200, 3, 32, 32)
    np.testing.assert_array_equal(
        dataset.split("test").images.array[1], pixels(8, 100, 1001, 32, 32).transpose(2, 0, 1)
    )


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"labels": [0] * 19}, "19 labels for 20 images"),
        ({"labels": [0] * 19 + [10]}, "label 10 of image 19 is out of range, labels are 0 to 9"),
        ({"labels": [-1] + [0] * 19}, "label -1 of image 0 is out of range"),
        ({"labels": ["cat"] * 20}, "'labels' is not a list of integers"),
        ({"labels": [2**70] * 20}, "'labels' is not a list of integers"),
        ({"labels": None}, "'labels' is not a list of integers"),
        ({"data": np.zeros((20, 3000), np.uint8)}, "shape [20, 3000], expected [N, 3072]"),
        ({"data": np.zeros((20, 3, 32, 32), np.uint8)}, "not a uint8 array [N, 3072]"),
        ({"data": np.zeros((20, 3072), np.int8)}, "not a uint8 array [N, 3072]"),
        ({"data": [1, 2]}, "not a uint8 array [N, 3072]"),
    ],
)
def test_a_wrong_batch_of_cifar_is_named(tmp_path, change, what):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    content = {"data": np.zeros((20, 3072), np.uint8), "labels": [0] * 20}
    path.write_bytes(pickle.dumps(content))
    open_dataset("cifar10", tmp_path).split("train")
    path.write_bytes(pickle.dumps(content | change))
    message = refused(tmp_path, "cifar10")
    assert message.startswith(f"{path}: ") and what in message


def test_a_missing_or_cut_batch_of_cifar_is_named(tmp_path):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    content = path.read_bytes()
    for damaged in (content[:-100], b"", b"<html>", pickle.dumps([1]), pickle.dumps({"data": 1})):
        path.write_bytes(damaged)
        assert refused(tmp_path, "cifar10").startswith(f"{path}: ")
    path.unlink()
    assert refused(tmp_path, "cifar10").startswith(f"{path}: no such file")
    open_dataset("cifar10", tmp_path).split("test")


class Command:
    """An object whose pickle runs a command when the standard unpickler loads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def nested(value):
    return {"data": [value]}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("wrap", [lambda value: value, nested])
def test_a_pickle_that_runs_a_command_is_refused(tmp_path, wrap, protocol):
    victim, path = tmp_path / "victim", tmp_path / "batch"
    path.write_bytes(pickle.dumps(wrap(Command(victim)), protocol))
    with pytest.raises(UserError, match=rf"{path}.* asks for (posix|nt)\.system"):
        cifar.read_pickle(path)
    assert not victim.exists()
    pickle.loads(path.read_bytes())
    assert victim.exists()  # the standard unpickler does run it


@pytest.mark.parametrize(
    "value",
    [
        np.array([{}, []], dtype=object),
        np.array(["a"]),
        np.zeros(2, dtype=[("a", "i4")]),
        {"set": {1}},
        (1, 2),
        np.float64,
        print,
        torch.float32,
    ],
)
def test_a_pickle_with_anything_else_is_refused(tmp_path, value):
    path = tmp_path / "batch"
    for protocol in (2, 5):
        path.write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(UserError, match="restore it from the download"):
            cifar.read_pickle(path)


def test_a_pickle_with_a_forged_array_is_refused(tmp_path):
    path = tmp_path / "batch"
    honest = pickle.dumps(np.arange(6, dtype=np.int64).reshape(2, 3), 2)
    path.write_bytes(honest)
    assert cifar.read_pickle(path).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert honest.count(b"K\x02K\x03\x86") == 1
    path.write_bytes(honest.replace(b"K\x02K\x03\x86", b"K\x7fK\x03\x86"))  # a larger shape
    with pytest.raises(UserError, match="reshape"):
        cifar.read_pickle(path)
    path.write_bytes(honest.replace(b"X\x02\x00\x00\x00i8", b"X\x02\x00\x00\x00O8"))
    with pytest.raises(UserError, match="type O8"):
        cifar.read_pickle(path)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_are_read_unchanged(tmp_path, protocol):
    path = tmp_path / "batch"
    content = {
        "c": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "float": np.array([0.5, -1.0], dtype=np.float32),
        "empty": np.zeros((0, 3), dtype=np.int64),
        "scalars": [np.int64(3), np.float64(0.5), 7, None, True],
        "bytes": b"\0\xff",
        "no bytes": b"",
    }
    path.write_bytes(pickle.dumps(content, protocol))
    found = cifar.read_pickle(path)
    assert list(found) == list(content)
    for name in ("c", "fortran", "big", "float", "empty"):
        assert found[name].dtype == content[name].dtype
        np.testing.assert_array_equal(found[name], content[name], strict=True)
    assert found["scalars"] == [3, 0.5, 7, None, True]
    assert found["bytes"] == b"\0\xff" and found["no bytes"] == b""


@pytest.fixture
def clean():
    return (np.arange(100) * 3 // 2) % 10


@pytest.mark.parametrize("zipped", [True, False])
def test_cifar_n(tmp_path, clean, zipped):
    path = tmp_path / "CIFAR-10_human.pt"
    content = write_cifar_n(path, clean, zipped=zipped)
    for key, name in {
        "worse": "worse_label",
        "aggre": "aggre_label",
        "random1": "random_label1",
        "random2": "random_label2",
        "random3": "random_label3",
        "random_label3": "random_label3",
        "worse_label": "worse_label",
    }.items():
        labels = read_cifar_n(path, key, clean)
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(labels, content[name], strict=True)
    assert len({read_cifar_n(path, k, clean).tobytes() for k in ("worse", "aggre", "random1")}) == 3


@pytest.mark.parametrize("zipped", [True, False])
def test_cifar100_n(tmp_path, zipped):
    clean = np.arange(300) % 100
    path = tmp_path / "CIFAR-100_human.pt"
    content = write_cifar_n(path, clean, 100, zipped=zipped)
    for key in ("noisy", "noisy_label"):
        np.testing.assert_array_equal(read_cifar_n(path, key, clean), content["noisy_label"])
    for key in ("worse", "noisy_coarse", "noisy_coarse_label", "clean_label", "coarse"):
        with pytest.raises(UserError, match=f"no labels {key}; choose from noisy$"):
            read_cifar_n(path, key, clean)


def test_cifar_n_in_another_order_is_refused(tmp_path, clean):
    path = tmp_path / "CIFAR-10_human.pt"
    write_cifar_n(path, clean)
    there = clean.copy()
    there[[7, 8]] = there[[8, 7]]
    with pytest.raises(UserError, match=rf"{path}.* first at sample 7 \(0 here, 2 there\)"):
        read_cifar_n(path, "worse", there)
    with pytest.raises(UserError, match="has 100 labels, the training split 99"):
        read_cifar_n(path, "worse", clean[:99])
    with pytest.raises(UserError, match=r"choose from aggre, worse, random1, random2, random3$"):
        read_cifar_n(path, "noisy", clean)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"worse_label": np.zeros(99, np.int64)}, "'worse_label' has 99 labels"),
        (
            {"worse_label": np.full(100, 10)},
            "'worse_label': label 10 of sample 0 is out of range",
        ),
        ({"worse_label": np.full(100, -1)}, "'worse_label': label -1 of sample 0"),
        ({"worse_label": np.zeros(100)}, "'worse_label' is not a list of integers"),
        ({"worse_label": torch.zeros(100)}, "contains torch tensors|asks for torch"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_wrong_labels_of_cifar_n_are_named(tmp_path, clean, change, what, zipped):
    path = tmp_path / "human.pt"
    content = write_cifar_n(path, clean) | change
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=what) as caught:
        read_cifar_n(path, "worse", clean)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).count(str(path)) == 1


@pytest.mark.parametrize("zipped", [True, False])
def test_cifar_n_with_a_command_is_refused(tmp_path, clean, zipped):
    path, victim = tmp_path / "human.pt", tmp_path / "victim"
    torch.save({"clean_label": Command(victim)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"asks for posix\.system"):
        read_cifar_n(path, "worse", clean)
    assert not victim.exists()


def test_other_files_than_cifar_n_are_refused(tmp_path, clean):
    path = tmp_path / "human.pt"
    with pytest.raises(UserError, match="No such file"):
        read_cifar_n(path, "worse", clean)
    buffer = io.BytesIO()
    np.savez(buffer, clean_label=clean)
    torch.save([1], path)
    listed = path.read_bytes()
    for content in (b"", b"<html>", buffer.getvalue(), listed, listed[:-50], pickle.dumps(3)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=str(path)):
            read_cifar_n(path, "worse", clean)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("convention", ["A", "B"])
def test_clothing1m(tmp_path, convention, end):
    expected = write_clothing1m(tmp_path, convention, end=end)
    dataset = check(tmp_path, "clothing1m", expected)
    counts = {split: len(rows) for split, rows in expected.items()}
    assert counts == {"train": 42, "clean_train": 14, "val": 14, "test": 28}
    path = dataset.split("train").index.paths[0]
    assert path.startswith("images/") == (convention == "B") and "," in path
    for split in dataset.layout.splits:
        index = dataset.split(split).index
        assert index.class_names == CLOTHING_NAMES
        if split == "train":
            assert index.clean_labels is None
        else:
            assert index.clean_labels.tolist() == index.labels.tolist()


def test_clothing1m_with_linked_images(tmp_path):
    expected = write_clothing1m(tmp_path / "set")
    (tmp_path / "set" / "images").rename(tmp_path / "elsewhere")
    (tmp_path / "set" / "images").symlink_to(tmp_path / "elsewhere")
    check(tmp_path / "set", "clothing1m", expected)


@pytest.mark.parametrize(
    ("split", "name"),
    [
        ("train", "noisy_label_kv.txt"),
        ("train", "noisy_train_key_list.txt"),
        ("train", "category_names_eng.txt"),
        ("clean_train", "clean_train_key_list.txt"),
        ("val", "clean_val_key_list.txt"),
        ("test", "clean_label_kv.txt"),
        ("test", "clean_test_key_list.txt"),
    ],
)
def test_a_missing_list_of_clothing1m_is_named(tmp_path, split, name):
    write_clothing1m(tmp_path)
    (tmp_path / "annotations" / name).unlink()
    assert refused(tmp_path, "clothing1m", split).startswith(
        f"{tmp_path}/annotations/{name}: no such"
    )


def test_wrong_lists_of_clothing1m_are_named(tmp_path):
    write_clothing1m(tmp_path)
    kv, keys = (tmp_path / "annotations" / f"noisy_{n}.txt" for n in ("label_kv", "train_key_list"))
    good_kv, good_keys = kv.read_text(), keys.read_text().splitlines()

    kv.write_text(good_kv.replace(good_keys[4], "images/other.jpg"))
    message = refused(tmp_path, "clothing1m")
    assert message.startswith(f"{keys}, line 5: '{good_keys[4]}' has no label in {kv};")

    kv.write_text(f"{good_kv}{good_keys[4]} 14\n")
    assert refused(tmp_path, "clothing1m").startswith(f"{kv}, line 44: label 14 is out of range")
    same = next(line for line in good_kv.splitlines() if line.startswith(good_keys[4]))
    kv.write_text(f"{good_kv}{same}\n")
    open_dataset("clothing1m", tmp_path).split("train")
    label = int(same.split()[1])
    kv.write_text(f"{good_kv}{good_keys[4]} {(label + 1) % 14}\n")
    message = refused(tmp_path, "clothing1m")
    assert message.startswith(f"{kv}, line 44: ") and f"{label} on an earlier line" in message
    kv.write_text(good_kv)

    write_lines(keys, [*good_keys, good_keys[2]])
    assert f"{keys}, line 43: names '{good_keys[2]}' again" in refused(tmp_path, "clothing1m")
    outside = "images/../../x.jpg"
    write_lines(keys, [outside])
    kv.write_text(f"{outside} 3\n")
    assert f"{keys}, line 1: '{outside}' leads out of" in refused(tmp_path, "clothing1m")


def test_clothing1m_without_images_is_refused(tmp_path):
    write_clothing1m(tmp_path)
    (tmp_path / "images").rename(tmp_path / "pictures")
    message = refused(tmp_path, "clothing1m")
    assert "looked for the folders images/ and 0 to 9, found annotations, pictures" in message


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_webvision(tmp_path, end):
    expected = write_webvision(tmp_path, end=end)
    dataset = check(tmp_path, "webvision", expected)
    assert [len(expected[s]) for s in ("google", "flickr", "train", "test")] == [78, 52, 130, 52]
    for split in dataset.layout.splits:
        index = dataset.split(split).index
        assert list(index.class_names) == WEBVISION_NAMES
        assert index.clean_labels is None
    assert webvision.wnids(tmp_path) == WNIDS
    fingerprint = dataset.split("train").index.sample_fingerprint()
    assert (
        fingerprint
        == type(index)(
            sample_ids=np.arange(130),
            paths=[path for path, _ in expected["train"]],
            labels=np.zeros(130, np.int64),
            clean_labels=None,
            class_names=("a",),
        ).sample_fingerprint()
    )


@pytest.mark.parametrize("flickr", [True, False])
def test_mini_webvision(tmp_path, flickr):
    full = write_webvision(tmp_path, flickr=flickr)
    expected = {
        "train": [(path, k) for path, k in full["google"] if k < 50],
        "test": [(path, k) for path, k in full["test"] if k < 50],
    }
    assert len(expected["train"]) == 75 and len(expected["test"]) == 50
    auto = "webvision" if flickr else "webvision-mini"
    dataset = check(tmp_path, "webvision-mini", expected, auto=auto)
    for split in dataset.layout.splits:
        assert list(dataset.split(split).index.class_names) == WEBVISION_NAMES[:50]


def test_wrong_lists_of_webvision_are_named(tmp_path):
    write_webvision(tmp_path)
    google, val = (tmp_path / "info" / n for n in ("train_filelist_google.txt", "val_filelist.txt"))
    good = google.read_text()
    google.write_text(f"{good}google/x.jpg 52\n")
    for name in ("webvision", "webvision-mini"):
        assert f"{google}, line 79: label 52 is out of range, labels are 0 to 51" in refused(
            tmp_path, name
        )
    google.write_text(f"{good}../x.jpg 51\n")
    assert f"{google}, line 79: '../x.jpg' leads out" in refused(tmp_path, "webvision")
    google.write_text(good)
    edit(val, "val000003.jpg", "/val000003.jpg")
    assert f"{val}, line 3: '/val000003.jpg' leads out" in refused(tmp_path, "webvision", "test")
    edit(val, "/val000003.jpg", "val000001.jpg")
    assert f"{val}, line 3: names 'val_images_256/val000001.jpg' again, as line 1" in refused(
        tmp_path, "webvision", "test"
    )
    val.unlink()
    assert refused(tmp_path, "webvision", "test").startswith(f"{val}: no such file")
    (tmp_path / "val_images_256").rename(tmp_path / "val")
    val.write_text("a.jpg 0\n")
    assert f"{tmp_path}/val_images_256: no such" in refused(tmp_path, "webvision", "test")
    synsets = tmp_path / "info" / "synsets.txt"
    edit(synsets, WNIDS[4], WNIDS[3])
    assert f"{synsets}: lists a WordNet id twice" in refused(tmp_path, "webvision")
    edit(synsets, f"{WNIDS[2]} animal", "Animal")
    assert f"{synsets}, line 3: expected 'n01440764 name" in refused(tmp_path, "webvision")
    synsets.unlink()
    assert refused(tmp_path, "webvision").startswith(f"{synsets}: No such file")


ILSVRC_FORMS = ["wnids", "numbers", "list", "list-wnids"]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("form", ILSVRC_FORMS)
def test_ilsvrc12_is_mapped_by_wordnet_id(tmp_path, form, inside):
    write_ilsvrc12(tmp_path, form)
    if inside and form.startswith("list"):
        (tmp_path / "val.txt").rename(tmp_path / "val" / "val.txt")
    # Labels in another order than the WordNet ids: only a mapping by id finds them.
    order = np.random.default_rng(0).permutation(50).tolist()
    wnids = [WNIDS[k] for k in order]
    names = tuple(WEBVISION_NAMES[k] for k in order)
    root = tmp_path / "val" if inside else tmp_path
    found, listing = webvision.read_ilsvrc12(root, wnids, names)
    assert isinstance(found, Found) and found.root == tmp_path / "val"
    assert len(listing.index) == 50  # without 2 of other classes
    assert listing.index.class_names == names
    assert listing.index.sample_ids.tolist() == list(range(50))
    for path, label in pairs(listing.index):
        k = order[label]
        number = int(path.rsplit("_", 1)[1].removesuffix(".JPEG"))
        assert number == k * 37 % 101
        with Image.open(found.root / path) as image:
            brightness = np.asarray(image).mean()
        assert abs(brightness - (20 + 200 * k // (WEBVISION_CLASSES - 1) + 7.5)) < 2
    assert listing.sources and all(path.exists() for path in listing.sources)


@pytest.mark.parametrize("form", ILSVRC_FORMS)
def test_a_class_that_ilsvrc12_lacks_is_named(tmp_path, form):
    write_ilsvrc12(tmp_path, form, classes=49)
    with pytest.raises(UserError, match=rf"no images of class {WNIDS[49]} \(animal 49\)"):
        webvision.read_ilsvrc12(tmp_path, WNIDS[:50], tuple(WEBVISION_NAMES[:50]))


def test_ilsvrc12_without_a_list_is_refused(tmp_path):
    write_ilsvrc12(tmp_path, "list")

    def message():
        with pytest.raises(UserError) as caught:
            webvision.read_ilsvrc12(tmp_path, WNIDS[:50], tuple(WEBVISION_NAMES[:50]))
        return str(caught.value)

    lines = (tmp_path / "val.txt").read_text()
    (tmp_path / "val.txt").write_text(f"{lines}{lines.splitlines()[0]}\n")
    assert f"{tmp_path}/val.txt, line 53: names" in message()
    (tmp_path / "val.txt").write_text(f"{lines}a.JPEG tench\n")
    assert f"{tmp_path}/val.txt, line 53: expected 'file target'" in message()
    (tmp_path / "val.txt").write_text(f"{lines}../a.JPEG 3\n")
    assert f"{tmp_path}/val.txt, line 53: '../a.JPEG' leads out" in message()
    (tmp_path / "val.txt").unlink()
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("490\n361\n")
    assert "ground_truth.txt is not such a list" in message()
    (tmp_path / "one.txt").write_text(lines)
    webvision.read_ilsvrc12(tmp_path, WNIDS[:50], tuple(WEBVISION_NAMES[:50]))
    (tmp_path / "two.txt").write_text(lines)
    assert "several lists (one.txt, two.txt)" in message()


ANIMALS = (
    *("cat", "lynx", "wolf", "coyote", "cheetah"),
    *("jaguar", "chimpanzee", "orangutan", "hamster", "guinea pig"),
)


@pytest.mark.parametrize("form", ["records", "flat", "folders"])
def test_animal10n(tmp_path, form):
    expected = write_animal10n(tmp_path, form, per_class=3)
    # Ten numbered folders may be any data set: they are read as animals only by name.
    auto = "folder" if form == "folders" else "animal10n"
    dataset = check(tmp_path, "animal10n", expected, auto=auto)
    assert len(expected["train"]) == 30 and len(expected["test"]) == 10
    for split in ("train", "test"):
        index = dataset.split(split).index
        assert index.class_names == ANIMALS
        assert index.clean_labels is None
    if form == "records":
        array = dataset.split("test").images.array
        assert array.dtype == np.uint8 and array.shape == (10, 3, 64, 64)
        for row, (_, label) in enumerate(expected["test"]):
            np.testing.assert_array_equal(
                array[row], pixels(label, 10, 0, 64, 64).transpose(2, 0, 1)
            )


def test_ten_numbered_folders_are_not_recognised_as_animals(tmp_path):
    write_animal10n(tmp_path, "folders")
    assert open_dataset("auto", tmp_path).split("train").index.class_names == tuple("0123456789")


def test_records_are_read_in_the_order_of_their_numbers(tmp_path):
    write_animal10n(tmp_path, "records")
    for number in range(6, 11):
        os.link(tmp_path / "data_batch_1.bin", tmp_path / f"data_batch_{number}.bin")
    paths = listing_of(tmp_path, "animal10n", "train").index.paths
    names = list(dict.fromkeys(path.split("/")[0] for path in paths))
    assert names == [f"data_batch_{number}" for number in range(1, 11)]


def test_wrong_records_of_animal10n_are_named(tmp_path):
    write_animal10n(tmp_path, "records")
    third = tmp_path / "data_batch_3.bin"
    content = third.read_bytes()
    third.write_bytes(content[:-1])
    assert refused(tmp_path, "animal10n").startswith(f"{third}: {len(content) - 1} bytes are no")
    third.write_bytes(content[:12296] + struct.pack("<ii", 1, 10) + content[12304:])
    message = refused(tmp_path, "animal10n")
    assert message.startswith(f"{third}: label 10 of record 1 is out of range, labels are 0 to 9")
    third.write_bytes(b"")
    assert len(listing_of(tmp_path, "animal10n", "train").index) == 16
    third.unlink()
    assert refused(tmp_path, "animal10n").startswith(f"{third}: no such file")
    (tmp_path / "test_batch.bin").unlink()
    assert refused(tmp_path, "animal10n", "test").startswith(f"{tmp_path}/test_batch.bin: no such")


def test_the_binary_version_of_cifar10_is_not_recognised_as_animals(tmp_path):
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        (tmp_path / f"{name}.bin").write_bytes(bytes(3073 * 4))
    (tmp_path / "batches.meta.txt").write_text("airplane\n")
    assert "none of the known layouts" in refused(tmp_path, "auto")


@pytest.mark.parametrize("name", ["x_1.jpg", "10_1.jpg", "7.jpg", "cat.jpg"])
def test_an_image_without_a_label_in_its_name_is_named(tmp_path, name):
    write_animal10n(tmp_path, "flat")
    (tmp_path / "training" / name).write_bytes(b"")
    message = refused(tmp_path, "animal10n")
    assert message.startswith(f"{tmp_path}/training/{name}: expected the name <label>_<rest>.jpg")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("where", ["merged", "child", "sibling"])
def test_food101n(tmp_path, where, end):
    root = tmp_path / "Food-101N"
    expected = write_food101n(root, where, end=end)
    dataset = check(root, "food101n", expected)
    assert len(expected["train"]) == 8 and len(expected["test"]) == 4
    assert dataset.split("train").index.class_names == FOOD_NAMES
    assert dataset.split("train").index.clean_labels is None


def test_wrong_lists_of_food101n_are_named(tmp_path):
    root = tmp_path / "set"
    write_food101n(root)
    train, test, classes = (root / "meta" / n for n in ("imagelist.tsv", "test.txt", "classes.txt"))
    good = train.read_text()
    for line, what in (
        ("pizza/1.jpg", "'pizza/1.jpg' does not begin with a class of"),
        ("baklava", "'baklava' does not begin with a class of"),
        ("baklava/../../../1.jpg", "leads out of the data folder"),
        (good.splitlines()[3], "again, as line 4 did"),
    ):
        train.write_text(f"{good}{line}\n")
        message = refused(root, "food101n")
        assert message.startswith(f"{train}, line 10: ") and what in message
    train.write_text(good.split("\n", 1)[1])
    assert f"{train}, line 1: expected a header" in refused(root, "food101n")
    train.write_text(good)
    edit(classes, "baklava", "apple_pie")
    assert f"{classes}: names the class apple_pie twice" in refused(root, "food101n")
    edit(classes, "\napple_pie\n", "\nbaklava\n")
    test.unlink()
    message = refused(root, "food101n", "test")
    assert message.startswith(f"{test}: no such file") and "unpack food-101" in message
    (root / "images").rename(root / "pictures")
    assert f"{root}/images: no such" in refused(root, "food101n")


def to_parquet(file, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), file)


@pytest.mark.parametrize("names", [False, True])
def test_a_table_with_a_column_for_the_split(tmp_path, names):
    expected = write_table(tmp_path, names=names)
    assert len(expected["train"]) == 9 and len(expected["test"]) == 3
    dataset = check(tmp_path / "all.csv", "table", expected)
    assert dataset.found.root == tmp_path
    for split, rows in expected.items():
        index = dataset.split(split).index
        assert index.class_names == (("ant", "bee", "cat") if names else ("0", "1", "2"))
        true = [("ant", "bee", "cat").index(path[7:10]) for path, _ in rows]
        assert index.clean_labels.tolist() == true
    assert index.clean_labels.tolist() == index.labels.tolist()  # in test, not in train


def test_a_parquet_table(tmp_path):
    expected = write_table(tmp_path)
    rows = [(p, k, s) for s, part in expected.items() for p, k in part]
    path, label, split = (list(column) for column in zip(*rows, strict=True))
    to_parquet(tmp_path / "all.parquet", label=label, split=split, other=label, path=path)
    dataset = check(tmp_path / "all.parquet", "table", expected)
    assert dataset.split("train").index.clean_labels is None
    assert dataset.split("train").index.class_names == ("0", "1", "2")

    to_parquet(tmp_path / "bad.parquet", path=path, split=split, label=[*label[:-1], None])
    message = refused(tmp_path / "bad.parquet", "table")
    assert message.startswith(f"{tmp_path}/bad.parquet, row 12: label is empty")
    to_parquet(tmp_path / "all.parquet", path=path, split=split, label=[float(k) for k in label])
    check(tmp_path / "all.parquet", "table", expected)
    label[-1] = float("nan")
    to_parquet(tmp_path / "bad.parquet", path=path, split=split, label=[float(k) for k in label])
    message = refused(tmp_path / "bad.parquet", "table", "test")
    assert message.startswith(f"{tmp_path}/bad.parquet, row 12: label 'nan' is a missing value")
    to_parquet(tmp_path / "bad.parquet", path=path, split=split)
    assert "no column label" in refused(tmp_path / "bad.parquet", "table")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    assert "bad.parquet: cannot be read as Parquet" in refused(tmp_path / "bad.parquet", "table")


def test_parquet_without_pyarrow_names_a_remedy(tmp_path, monkeypatch):
    (tmp_path / "all.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = refused(tmp_path / "all.parquet", "table")
    assert message.startswith(f"{tmp_path}/all.parquet: ") and "pip install 'pyarrow>=" in message


@pytest.mark.parametrize("test", ["test.csv", "val.csv", "val.tsv"])
def test_a_pair_of_tables(tmp_path, test):
    (tmp_path / "train.csv").write_bytes(
        b"\xef\xbb\xbfpath;label\r\n\r\n./a b.jpg;dog\r\nx/1,2.jpg; cat \r\n"
    )
    delimiter = "\t" if test.endswith("tsv") else ","
    (tmp_path / test).write_text(f"label{delimiter}path\ncat{delimiter}c.jpg\n")
    dataset = open_dataset("auto", tmp_path)
    assert dataset.layout.name == "table"
    train, tested = (dataset.layout.read(dataset.found, split) for split in ("train", "test"))
    assert pairs(train.index) == [("a b.jpg", 1), ("x/1,2.jpg", 0)]
    assert pairs(tested.index) == [("c.jpg", 0)]
    assert train.index.class_names == tested.index.class_names == ("cat", "dog")
    assert train.index.clean_labels is None
    assert set(train.sources) == {tmp_path / "train.csv", tmp_path / test}


def test_val_is_the_test_split_if_there_is_no_test(tmp_path):
    path = tmp_path / "all.csv"
    lines = ["path,label,split", "a,0,train", "b,1,train", "c,1,val", "d,0,test"]
    write_lines(path, lines)
    assert list(listing_of(path, "table", "test").index.paths) == ["d"]
    write_lines(path, lines[:-1])
    assert list(listing_of(path, "table", "test").index.paths) == ["c"]


def test_two_tables_in_one_folder_are_different_data_sets(tmp_path):
    for name, label in (("one.csv", 0), ("two.csv", 1)):
        write_lines(
            tmp_path / name,
            ["path,label,split", f"a,{label},train", "b,1,train", "c,0,train", "d,0,test"],
        )
    founds = [LAYOUTS["table"].find(tmp_path / name) for name in ("one.csv", "two.csv")]
    assert founds[0] != founds[1]
    assert [found.lists for found in founds] == [(tmp_path / "one.csv",), (tmp_path / "two.csv",)]
    labels = [LAYOUTS["table"].read(found, "train").index.labels.tolist() for found in founds]
    assert labels == [[0, 1, 0], [1, 1, 0]]


@pytest.mark.parametrize("split", [None, "train"])
def test_a_table_without_test_rows_is_training_data(tmp_path, split):
    path = tmp_path / "all.csv"
    end = "" if split is None else f",{split}"
    header = "path,label" if split is None else "path,label,split"
    write_lines(path, [header, f"a,1{end}", f"b,0{end}", f"c,1{end}"])
    dataset = open_dataset("auto", path)
    assert pairs(dataset.split("train").index) == [("a", 1), ("b", 0), ("c", 1)]
    with pytest.raises(NoSplit, match=f"^{path}: no row has split test or val$"):
        dataset.split("test")


HEADER = "path,label,split"
TEST = "z,0,test"


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (["path,split", "a,train"], ": no column label;"),
        (["a.jpg,3,train", "b.jpg,3,test"], ": no column path;"),
        (["path,label,label,split", "a,0,0,train"], ": several columns label"),
        ([HEADER, "a,0,train", "b,1,trian", TEST], ", line 3: split 'trian' is not one of"),
        ([HEADER, TEST], ": no row has split train"),
        ([HEADER, "a,0,train", "b, c,1,train", TEST], ", line 3: 4 fields, the header has 3"),
        ([HEADER, "a,0,train", '"b\nb",1', TEST], ", line 3: 2 fields, the header has 3"),
        ([HEADER, "a,0,train", ",1,train", TEST], ", line 3: path is empty"),
        ([HEADER, "a,0,train", "b,,train", TEST], ", line 3: label is empty"),
        ([f"{HEADER},clean_label", "a,0,train,"], ", line 2: clean_label is empty"),
        ([HEADER, "a,0,train", "../b,1,train", TEST], ", line 3: '../b' leads out"),
        ([HEADER, "a,0,train", "/b,1,train", TEST], ", line 3: '/b' leads out"),
        ([HEADER, "a,0,train", "b,1,train", "a,0,train", TEST], ", line 4: names 'a' again"),
        ([HEADER, "a,0,train", "b,-1,train", TEST], ", line 3: label '-1' is below 0"),
        ([HEADER, "a,1,train", "b,2.5,train", TEST], ", line 3: label '2.5' is a fraction"),
        ([HEADER, "a,1,train", "b,NaN,train", TEST], ", line 3: label 'NaN' is a missing value"),
        (
            [f"{HEADER},clean_label", "a,0,train,cat", "b,1,train,dog", f"{TEST},cat"],
            ": labels and clean labels have no class in common",
        ),
        ([HEADER, "a,0,train", "b,0,train", TEST], ": only one class (0)"),
    ],
)
def test_a_wrong_table_is_named(tmp_path, lines, what):
    path = tmp_path / "all.csv"
    write_lines(path, lines)
    assert refused(path, "table").startswith(f"{path}{what}")


def test_features_in_columns_of_their_own_are_sent_to_a_file_of_features(tmp_path):
    path = tmp_path / "all.csv"
    write_lines(path, ["width,height,label", "1.5,2.5,0", "2.5,3.5,1"])
    assert refused(path, "table").endswith("belong into an .npz file, with X and y")
    write_lines(path, ["path,width,split", "a,1.5,train"])
    assert ".npz" not in refused(path, "table")


UNKNOWN = [("01", "2"), ("12", "0"), ("01", "cat"), ("xy", "z")]


@pytest.mark.parametrize(("known", "unknown"), UNKNOWN)
def test_a_test_class_that_is_not_a_training_class_is_named(tmp_path, known, unknown):
    path = tmp_path / "all.csv"
    train = [f"{k},{k},train" for k in known]
    write_lines(path, [HEADER, *train, f"b,{known[0]},test", f"c,{unknown},test"])
    open_dataset("table", path).split("train")
    assert refused(path, "table", "test").startswith(
        f"{path}, line 5: label '{unknown}' is not one"
    )


def test_an_empty_table_is_refused(tmp_path):
    for content in ("", "path,label\n"):
        (tmp_path / "train.csv").write_text(content)
        (tmp_path / "test.csv").write_text("path,label\na,0\n")
        assert refused(tmp_path, "table").startswith(f"{tmp_path}/train.csv: no ")


def test_auto_names_the_files_that_it_looked_for(tmp_path):
    (tmp_path / "readme").write_text("")
    message = refused(tmp_path, "auto")
    assert "found: readme" in message
    for layout in LAYOUTS.values():
        assert layout.name in message
        assert "\n" not in layout.looked_for
        assert {"train", "test"} <= set(layout.splits)
        assert f"{layout.name}: {layout.looked_for}" in refused(tmp_path, layout.name)
    assert "readme: none of the known layouts: is neither a" in refused(tmp_path / "readme", "auto")


def test_a_folder_of_classes_is_recognised(tmp_path):
    write_folder(tmp_path, train={"a": 1, "b": 1}, test={"a": 1})
    assert open_dataset("auto", tmp_path).layout.name == "folder"


def test_no_reader_opens_an_image(tmp_path):
    for name, write in (
        ("clothing1m", write_clothing1m),
        ("webvision", write_webvision),
        ("food101n", write_food101n),
    ):
        expected = write(tmp_path / name)
        for path in {path for rows in expected.values() for path, _ in rows}:
            (tmp_path / name / path).unlink()
        dataset = open_dataset("auto", tmp_path / name)
        for split in dataset.layout.splits:
            listing = dataset.layout.read(dataset.found, split)
            assert pairs(listing.index) == expected[split]
