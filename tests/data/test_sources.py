"""Images in files, Parquet, Arrow and tar files: the same batches, and the same commands."""

import re

import numpy as np
import pytest
import torch

from alr_fast.data.__main__ import main
from alr_fast.data.broken import default_exclusion_file
from alr_fast.data.datasets import open_dataset
from alr_fast.data.loaders.choose import LoaderChoice, has_dali, make_loader
from alr_fast.data.loaders.memory import decode_all
from alr_fast.data.loaders.transform import Transform
from alr_fast.data.sampler import ShuffledSampler
from helpers.layouts import SOURCE_LABELS, SOURCES, image_bytes, write_idx, write_source

needs_dali = pytest.mark.skipif(not has_dali(), reason="NVIDIA DALI is not installed")
loaders = pytest.mark.parametrize("name", [
    "memory", "torch", pytest.param("dali", marks=needs_dali)
])  # fmt: skip
sources = pytest.mark.parametrize("form", SOURCES)
CROP = Transform(size=8, crop="pad", resize=8, padding=2, flip=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))


def batches(split, name, epochs=1):
    sampler = ShuffledSampler(len(split), 4)
    options = {}
    if name == "memory":
        options["decoded"] = decode_all(split, CROP.size, rows=sampler.rows, resize=CROP.resize)
    loader = make_loader(LoaderChoice(name, ""), split, sampler, CROP,
                         device=torch.device("cpu"), workers=2, **options)  # fmt: skip
    found = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        found += list(loader)
    return found


@loaders
@pytest.mark.parametrize("form", SOURCES[1:])
def test_batches_are_those_of_files(tmp_path, name, form):
    files = open_dataset("auto", write_source(tmp_path / "files", "list")).split("train")
    other = open_dataset("auto", write_source(tmp_path / "other", form)).split("train")
    expected, found = batches(files, name, 2), batches(other, name, 2)
    assert len(expected) == len(found) == 6
    for one, two in zip(expected, found, strict=True):
        assert all(torch.equal(one[key], two[key]) for key in ("image", "label", "index"))
        assert (one["label"] >= 0).all()


@sources
def test_verify_reads_every_image_once(tmp_path, capsys, form):
    root = write_source(tmp_path, form)
    assert main(["verify", str(root)]) == 0
    text = capsys.readouterr().out
    assert "train: 12 files, 12 fine and 0 excluded; 12 read in" in text
    assert "test: skipped" in text
    assert main(["verify", str(root)]) == 0
    assert "0 read in" in capsys.readouterr().out


@sources
def test_a_broken_image_is_excluded(tmp_path, capsys, form):
    root = write_source(tmp_path, form)
    data = image_bytes(SOURCE_LABELS[7], 7)
    for path in filter(lambda path: path.is_file(), root.rglob("*")):
        content = path.read_bytes()
        if content.count(data[60:]) == 1:  # damages the compressed pixels
            at = content.index(data[60:])
            path.write_bytes(content[: at + 9] + b"\xff" * 20 + content[at + 29 :])
    split = open_dataset("auto", root).split("train")
    assert [k for k in range(12) if split.images.read(k) != image_bytes(k % 3, k)] == [7]
    assert main(["verify", str(root)]) == 1
    assert "12 files, 11 fine and 1 excluded" in capsys.readouterr().out
    listed = default_exclusion_file(split).read_text()
    assert split.index.paths[7] in listed


@sources
def test_packed_they_stay_the_same(tmp_path, capsys, form):
    root = write_source(tmp_path / "set", form)
    assert main(["pack", str(root), str(tmp_path / "out")]) == 0
    assert re.search(r"train: 12 samples, in 1 shards", capsys.readouterr().out)
    before, after = (open_dataset("auto", p).split("train") for p in (root, tmp_path / "out"))
    assert after.index.sample_fingerprint() == before.index.sample_fingerprint()
    assert after.index.label_fingerprint() == before.index.label_fingerprint()
    assert [after.images.read(k) for k in range(12)] == [image_bytes(k % 3, k) for k in range(12)]


def test_idx_files_are_packed_and_need_no_check(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8)).astype(np.uint8)
    write_idx(tmp_path / "set" / "train-images-idx3-ubyte", images)
    write_idx(tmp_path / "set" / "train-labels-idx1-ubyte", np.arange(6, dtype=np.uint8) % 2)
    assert main(["verify", str(tmp_path / "set")]) == 0
    assert "there is nothing to verify" in capsys.readouterr().out
    assert main(["pack", str(tmp_path / "set"), str(tmp_path / "out")]) == 0
    assert len(open_dataset("auto", tmp_path / "out").split("train")) == 6


def test_a_validation_split_is_not_verified_twice(tmp_path, capsys):
    from helpers.layouts import write_tree

    content = {"train/a/1.png": 0, "train/b/1.png": 1, "val/a/1.png": 0, "test/b/2.png": 1}
    write_tree(tmp_path, content)
    assert main(["verify", str(tmp_path)]) == 0
    assert "val: 1 files" in capsys.readouterr().out
    (tmp_path / "test" / "b" / "2.png").unlink()
    (tmp_path / "test" / "b").rmdir()
    assert main(["verify", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "test: 1 files" in text and "val:" not in text
    write_tree(tmp_path, {"test/a/1.png": 0, "val/c/1.png": 1})
    assert main(["verify", str(tmp_path)]) == 0
    assert "val: skipped" in capsys.readouterr().out  # a class that is not in train


@pytest.mark.parametrize("command", ["verify", "pack"])
def test_options_for_lists(tmp_path, capsys, command):
    root = write_source(tmp_path / "set", "list")
    out = [str(tmp_path / "out")] if command == "pack" else []
    options = ["--columns", "path=id,label=breed", "--images", str(root / "pictures")]
    assert main([command, str(root), *out, *options]) == 0
    assert "path = id, label = breed" in capsys.readouterr().out
    assert main([command, str(root), *out, "--columns", "label=race"]) == 2
    assert "--columns: " in capsys.readouterr().err
    assert main([command, str(root), *out, "--columns", "label"]) == 2
    assert "--columns label: must be path=NAME" in capsys.readouterr().err
    assert main([command, str(root), *out, "--images", "/nowhere"]) == 2
    assert "--images /nowhere: no such folder" in capsys.readouterr().err
