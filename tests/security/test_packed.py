"""Packed sets of a stranger: their index is compared with the shards before anything is read."""

import json
import os
import shutil

import numpy as np
import pytest

from alr_fast import train
from alr_fast.data.__main__ import main as data
from alr_fast.data.layouts.packed_format import _checksum
from helpers.forged import bounded
from helpers.image_folder import write_folder

OPTIONS = ["--optim.epochs", "1", "--methods", "ce", "--model.name", "conv-mini", "--log.show"]
OPTIONS += ["quiet", "--data.workers", "1", "--log.to", "csv"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    root = write_folder(folder / "set", train={"a": 4, "b": 4}, test={"a": 1, "b": 1})
    assert data(["pack", str(root), str(folder / "out"), "--workers", "1"]) == 0
    return folder / "out"


@pytest.fixture
def packed(original, tmp_path):
    return shutil.copytree(original, tmp_path / "out")


def refused(packed, tmp_path, capsys, *, commands=("train", "verify")):
    """Both commands end with one line; returns the lines."""
    argv = ["--data-root", str(packed), "--runs", str(tmp_path / "runs"), *OPTIONS]
    lines = []
    for name in commands:
        capsys.readouterr()
        with bounded(gigabytes=2):
            if name == "train":
                status = train.main(argv)
            else:
                status = data(["verify", str(packed), "--workers", "1"])
        output = capsys.readouterr()
        assert status in (1, 2), name
        if status == 2:
            assert output.err.startswith("error: ") and output.err.count("\n") == 1, output.err
        lines.append(output.err + output.out)
    assert not (tmp_path / "runs").exists()
    return lines


def column(packed, name, change):
    path = packed / "index" / f"train.{name}.npy"
    values = np.load(path)
    changed = change(values)
    np.save(path, values if changed is None else changed)
    # As a stranger would make it: without sums.
    edit(
        packed,
        lambda manifest: [split.pop("records", None) for split in manifest["splits"].values()],
    )


def edit(packed, change):
    path = packed / "packed.json"
    manifest = json.loads(path.read_text())
    manifest.pop("sha256", None)
    change(manifest)
    manifest["sha256"] = _checksum(manifest)
    path.write_text(json.dumps(manifest))


def put(row, value):
    def change(values):
        values[row] = value

    return change


COLUMN_NAMES = ("shard", "offset", "size", "paths", "offsets", "labels")
COLUMNS = {
    "an offset below 0": ("offset", put(2, -512)),
    "an offset far away": ("offset", put(2, 10**15)),
    "a size below 0": ("size", put(2, -1)),
    "a size of 2^40": ("size", put(2, 2**40)),
    "a size of 0": ("size", put(2, 0)),
    "shard -1": ("shard", put(2, -1)),
    "shard -2": ("shard", put(2, -2)),
    "shard 99": ("shard", put(2, 99)),
    "a path offset of 1e9": ("offsets", put(2, 10**9)),
    "a path offset below 0": ("offsets", put(2, -5)),
    "too few": ("size", lambda values: values[:-1]),
    "floats": ("offset", lambda values: values.astype(np.float64)),
    "objects": ("size", lambda values: np.array([b"x"] * len(values))),
    "two dimensions": ("size", lambda values: values[:, None]),
    "labels out of range": ("labels", put(0, 77)),
    "labels below 0": ("labels", put(0, -7)),
}


@pytest.mark.parametrize(("name", "change"), COLUMNS.values(), ids=COLUMNS)
def test_columns_are_checked(packed, tmp_path, capsys, name, change):
    column(packed, name, change)
    refused(packed, tmp_path, capsys)


def shard(**values):
    return lambda manifest: manifest["splits"]["train"]["shards"][0].update(values)


def split(**values):
    return lambda manifest: manifest["splits"]["train"].update(values)


MANIFESTS = {
    "a shard elsewhere": shard(name="../../etc/passwd"),
    "an absolute shard": shard(name="/etc/passwd"),
    "a shard that is no text": shard(name=["train-000000.tar"]),
    "a negative size": shard(bytes=-1),
    "a huge size": shard(bytes=2**80),
    "a split elsewhere": lambda m: m["splits"].update({"../x": m["splits"].pop("train")}),
    "splits as a list": lambda m: m.update(splits=[]),
    "no splits": lambda m: m.pop("splits"),
    "a count that is a text": split(count="8"),
    "a huge count": split(count=2**61),
    "names as a text": split(class_names="ab"),
    "shards as an object": split(shards={}),
    "no classes": split(class_names=[]),
    "left out as a list": split(left_out=[1, 2]),
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_manifests_of_another_shape(packed, tmp_path, capsys, change):
    edit(packed, change)
    refused(packed, tmp_path, capsys)


@pytest.mark.parametrize("kind", ["link", "pipe", "device", "folder"])
def test_shards_are_files_of_the_folder(packed, tmp_path, capsys, kind):
    path = packed / "train-000000.tar"
    moved = path.rename(tmp_path / "moved.tar")
    if kind == "link":
        path.symlink_to(moved)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    for line in refused(packed, tmp_path, capsys):
        assert "train-000000.tar" in line


@pytest.mark.parametrize("name", [f"index/train.{c}.npy" for c in COLUMN_NAMES])
def test_pipes_are_not_waited_for(packed, tmp_path, capsys, name):
    (packed / name).unlink()
    os.mkfifo(packed / name)
    refused(packed, tmp_path, capsys)
