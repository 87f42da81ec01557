"""Shards of WebDataset that others wrote are read in place."""

import json
import tarfile

import pytest

from alr_fast.data.datasets import open_dataset
from alr_fast.data.layouts.base import NoSplit
from alr_fast.data.tar_members import members
from alr_fast.errors import UserError
from helpers.layouts import image_bytes, write_shard


def sample(key, label, number=0, kind="cls"):
    content = {
        "cls": str(label).encode(),
        "json": json.dumps({"label": label, "width": 3}).encode(),
    }[kind]
    return [(f"{key}.png", image_bytes(label % 6, number)), (f"{key}.{kind}", content)]


@pytest.mark.parametrize("kind", ["cls", "json"])
@pytest.mark.parametrize("place", ["{}-000{}.tar", "{}/000{}.tar"])
def test_shards_are_read_in_place(tmp_path, kind, place):
    labels = {("train", 0): [2, 10], ("train", 1): [3, 2], ("val", 0): [10]}
    for (split, number), values in labels.items():
        content = [m for n, k in enumerate(values) for m in sample(f"a/s{n}", k, n, kind)]
        write_shard(tmp_path / place.format(split, number), content)
    dataset = open_dataset("auto", tmp_path)
    assert dataset.layout.name == "webdataset"
    train, test = dataset.split("train"), dataset.split("test")
    assert train.index.class_names == test.index.class_names == ("2", "3", "10")
    assert train.index.labels.tolist() == [0, 2, 1, 0] and test.index.labels.tolist() == [2]
    assert [train.images.read(row) for row in range(4)] == [
        image_bytes(k % 6, n) for n, k in ((0, 2), (1, 10), (0, 3), (1, 2))
    ]
    assert train.index.paths[1] == ("000" if "/" in place else "train-000") + "0/a/s1.png"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(tmp_path, format):
    names = ["a.jpg", "x" * 99, "y" * 50 + "/" + "z" * 90 + ".jpg", "ü/é.cls"]
    if format != tarfile.USTAR_FORMAT:
        names.append("long/" * 60 + "end.png")
    content = [(name, bytes(range(n * 100))) for n, name in enumerate(names, 0) if n < 3]
    content += [(name, b"12") for name in names[3:]]
    write_shard(tmp_path / "a.tar", content, format=format)
    with tarfile.open(tmp_path / "a.tar", "a", format=format) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        (tmp_path / "last").write_bytes(b"x" * 700)
        tar.add(tmp_path / "last", "last.bin")
    with tarfile.open(tmp_path / "a.tar") as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]
    assert len(expected) == len(names) + 1
    assert [tuple(member) for member in members(tmp_path / "a.tar")] == expected


def test_other_members_and_incomplete_samples_are_left_out(tmp_path):
    content = [
        *sample("a", 0),
        ("a.txt", b"a caption"),
        ("b.png", image_bytes(1)),
        *sample("c", 1),
        ("d.cls", b"1"),
    ]
    write_shard(tmp_path / "x.tar", content)
    train = open_dataset("auto", tmp_path).split("train")
    assert train.index.paths == ["x/a.png", "x/c.png"]
    assert any("2 samples without an image or a label" in remark for remark in train.remarks)


def test_a_key_of_the_json_can_be_named(tmp_path):
    content = []
    for number, name in enumerate("ab"):
        written = json.dumps({"label": 0, "kind": name}).encode()
        content += [(f"{number}.png", image_bytes(number)), (f"{number}.json", written)]
    write_shard(tmp_path / "x.tar", content)
    dataset = open_dataset("auto", tmp_path, columns="label=kind")
    assert dataset.split("train").index.class_names == ("a", "b")
    with pytest.raises(UserError, match="label nothing; name another"):
        open_dataset("auto", tmp_path, columns="label=nothing").split("train")


def test_without_shards_for_testing(tmp_path):
    write_shard(tmp_path / "x.tar", [*sample("a", 0), *sample("b", 1)])
    for name in ("test", "val"):
        with pytest.raises(NoSplit):
            open_dataset("auto", tmp_path / "x.tar").split(name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:1700], "ends within a member"),
        (lambda data: data[:1500], "ends within a header"),
        (lambda data: data[:1024] + b"x" * 512 + data[1536:], "no tar header at byte 1,024"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path, damage, message):
    write_shard(tmp_path / "train-1.tar", [*sample("a", 0), *sample("b", 1)])
    path = tmp_path / "train-2.tar"
    write_shard(path, [("a.cls", b"0"), ("a.png", image_bytes(0) * 9), *sample("b", 1)])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"{path.name}: {message}"):
        open_dataset("auto", tmp_path).split("train")


def test_a_sample_twice_is_named(tmp_path):
    write_shard(tmp_path / "x.tar", [*sample("a", 0), *sample("b", 1), *sample("a", 0)])
    with pytest.raises(UserError, match=r"two samples are called x/a\.png"):
        open_dataset("auto", tmp_path).split("train")


def test_other_tar_files_are_no_shards(tmp_path):
    write_shard(tmp_path / "images.tar", [("a.jpg", b"x"), ("b.jpg", b"x")])
    with pytest.raises(UserError, match="none of the known layouts"):
        open_dataset("auto", tmp_path)


def test_many_samples_are_said(tmp_path, monkeypatch):
    write_shard(tmp_path / "x.tar", [*sample("a", 0), *sample("b", 1)])
    assert open_dataset("auto", tmp_path).split("train").remarks == ()
    monkeypatch.setattr("alr_fast.data.layouts.webdataset._MANY", 1)
    assert "the index of 2 samples" in open_dataset("auto", tmp_path).split("train").remarks[0]
