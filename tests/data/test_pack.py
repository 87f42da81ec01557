"""`alr-fast data pack` and the layout `packed`: the same samples from large files."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from alr_fast.data.__main__ import main
from alr_fast.data.datasets import LAYOUTS, Dataset, Split, open_dataset
from alr_fast.data.images.sources import ArrayImages, BrokenImage
from alr_fast.data.layouts import packed
from alr_fast.data.layouts.base import Found
from alr_fast.data.packing import pack as module
from alr_fast.data.packing.pack import Packer
from alr_fast.errors import UserError
from alr_fast.training.config.schema import DataConfig
from alr_fast.training.run_data import leave_out, load_data
from helpers import broken_files
from helpers.image_folder import write_folder

BROKEN = {5: "truncated", 6: "html", 55: "png truncated"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    """60 training images in 3 or 4 shards of 1 MiB: 3 broken, one a JPEG, the others PNGs."""
    root = write_folder(
        tmp_path / "set", train={"a": 30, "b": 30}, test={"a": 3, "b": 3}, size=(224, 160)
    )
    index = open_dataset("folder", root).split("train").index
    for row, kind in BROKEN.items():
        broken_files.write_broken(root / index.paths[row], kind)
    broken_files.write_good(root / index.paths[20])
    return root


def pack(root, out, *extra):
    return main(["pack", str(root), str(out), "--shard-mb", "1", *map(str, extra)])


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refused(capsys, *call):
    assert main([str(part) for part in call]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_the_same_samples_come_back(root, tmp_path):
    out = tmp_path / "out"
    assert pack(root, out) == 0
    for name in ("train", "test"):
        before, after = (open_dataset("auto", path).split(name) for path in (root, out))
        assert after.index.sample_ids.tolist() == before.index.sample_ids.tolist()
        assert after.index.paths == before.index.paths
        assert after.index.labels.tolist() == before.index.labels.tolist()
        assert after.index.class_names == before.index.class_names
        assert after.index.clean_labels is None
        assert after.index.sample_fingerprint() == before.index.sample_fingerprint()
        assert after.index.label_fingerprint() == before.index.label_fingerprint()
        broken = BROKEN if name == "train" else {}
        assert after.images.absent().tolist() == list(broken)
        for row in range(len(before)):
            if row in broken:
                with pytest.raises(BrokenImage, match="left out when packed: "):
                    after.images.read(row)
                assert after.images.name(row) == before.index.paths[row]
            else:
                assert after.images.read(row) == before.images.read(row)
    assert len(list(out.glob("train-*.tar"))) >= 3
    assert all(path.stat().st_size <= 1 << 20 for path in out.glob("*.tar"))


def test_a_part_keeps_its_reasons(root, tmp_path):
    assert pack(root, tmp_path / "out") == 0
    split = open_dataset("packed", tmp_path / "out").split("train")
    part = split.take(np.array([4, 6, 20, 59]))
    assert part.index.sample_ids.tolist() == [4, 6, 20, 59]
    with pytest.raises(BrokenImage, match="left out when packed: not an image"):
        part.images.read(1)
    assert part.images.read(3) == split.images.read(59)
    assert part.images.name(3).endswith(".tar:train/b/029.png")


def test_members_are_those_of_webdataset(root, tmp_path):
    out = tmp_path / "out"
    assert pack(root, out) == 0
    index = open_dataset("folder", root).split("train").index
    seen = []
    for path in sorted(out.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            for image, label in zip(members[::2], members[1::2], strict=True):
                row = int(image.name.split(".")[0])
                assert image.name == f"{row:09d}.{'jpg' if row == 20 else 'png'}"
                assert label.name == f"{row:09d}.cls"
                assert int(tar.extractfile(label).read()) == index.labels[row]
                data = (root / index.paths[row]).read_bytes()
                assert tar.extractfile(image).read() == data
                assert (image.mtime, image.uid, image.gid, image.uname) == (0, 0, 0, "")
                seen.append(row)
    assert seen == [row for row in range(60) if row not in BROKEN]


def test_the_index_equals_that_of_dalis_tool(root, tmp_path):
    wds2idx = pytest.importorskip("wds2idx")
    out = tmp_path / "out"
    assert pack(root, out) == 0
    for path in out.glob("*.tar"):
        with wds2idx.IndexCreator(str(path), str(tmp_path / "idx"), verbose=False) as creator:
            creator.create_index()
        assert path.with_suffix(".idx").read_text() == (tmp_path / "idx").read_text()


def test_dalis_own_reader_reads_the_shards(root, tmp_path):
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn, pipeline_def

    out = tmp_path / "out"
    assert pack(root, out) == 0
    shards = sorted(out.glob("train-*.tar"))

    @pipeline_def(batch_size=57, num_threads=1, device_id=None)
    def pipeline():
        return tuple(
            fn.readers.webdataset(
                paths=[str(path) for path in shards],
                index_paths=[str(path.with_suffix(".idx")) for path in shards],
                ext=["png;jpg", "cls"],
            )
        )

    reader = pipeline()
    reader.build()
    images, labels = reader.run()
    split = open_dataset("folder", root).split("train")
    rows = [row for row in range(60) if row not in BROKEN]
    for place, row in enumerate(rows):
        assert images.at(place).tobytes() == split.images.read(row)
        assert labels.at(place).tobytes() == b"%d" % split.index.labels[row]


def test_two_packings_are_byte_identical(root, tmp_path):
    assert pack(root, tmp_path / "one", "--workers", 1) == 0
    assert pack(root, tmp_path / "two", "--workers", 4) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_killed_packing_resumes(root, tmp_path, monkeypatch, capsys):
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert pack(root, whole) == 0
    with monkeypatch.context() as patch:
        record = module.ShardPlan.record

        def stopping(self, row):
            if row == 45:
                raise KeyboardInterrupt
            return record(self, row)

        patch.setattr(module.ShardPlan, "record", stopping)
        assert pack(root, out) == 130
    capsys.readouterr()
    assert "was interrupted" in refused(capsys, "verify", out)
    begun = sorted(path.name for path in out.glob("*.tar"))
    assert 1 <= len(begun) < len(list(whole.glob("*.tar")))
    (out / f".train-{len(begun):06}.tar.0123456789abcdef.tmp").write_bytes(b"of a killed call")
    times = {name: (out / name).stat().st_mtime_ns for name in begun}
    assert pack(root, out) == 0
    assert {name: (out / name).stat().st_mtime_ns for name in begun} == times
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("harm", ["delete", "shorten", "flip", "labels", "empty index"])
def test_a_changed_shard_is_named_and_written_again(root, tmp_path, capsys, harm):
    out = tmp_path / "out"
    assert pack(root, out) == 0
    before = contents(out)
    shard = sorted(out.glob("train-*.tar"))[-1]
    data = shard.read_bytes()
    if harm == "delete":
        os.remove(shard)
        (out / f".{shard.name}.0123456789abcdef.tmp").write_bytes(data[:1000])
    elif harm == "shorten":
        shard.write_bytes(data[:-1])
    elif harm == "flip":
        shard.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    elif harm == "labels":
        np.save(out / "index" / "train.labels.npy", np.zeros(60, np.int64))
    else:
        (out / "index" / "train.labels.npy").write_bytes(b"")
    expected = {"labels": "labels that are not", "empty index": "is damaged"}
    if harm == "flip":  # only the checksum detects it
        assert len(open_dataset("packed", out).split("train")) == 60
    else:
        with pytest.raises(UserError, match=expected.get(harm, shard.name)):
            open_dataset("packed", out).split("train")
    capsys.readouterr()
    assert ("index" if harm in expected else shard.name) in refused(capsys, "verify", out)
    assert pack(root, out) == 0
    assert contents(out) == before


def test_another_data_set_is_refused(root, tmp_path, capsys):
    out = tmp_path / "out"
    assert pack(root, out) == 0
    before = contents(out)
    index = open_dataset("folder", root).split("train").index
    other = write_folder(tmp_path / "other", train={"a": 9, "b": 9}, test={"a": 1, "b": 1})
    assert "from other samples" in refused(capsys, "pack", other, out, "--shard-mb", 1)
    third = write_folder(tmp_path / "third", train={"x": 9, "y": 9}, test={"x": 1, "y": 1})
    assert "other classes" in refused(capsys, "pack", third, out, "--shard-mb", 1)
    assert "shards of another size" in refused(capsys, "pack", root, out, "--shard-mb", 2)
    broken_files.write_good(root / index.paths[0])
    assert "files of other sizes" in refused(capsys, "pack", root, out, "--shard-mb", 1)
    assert contents(out) == before


def test_folders_with_other_content_are_refused(root, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert "is not empty" in refused(capsys, "pack", root, tmp_path / "full")
    assert "is not empty" in refused(capsys, "pack", root, root)
    assert "is a file" in refused(capsys, "pack", root, tmp_path / "full" / "notes.txt")
    assert contents(tmp_path / "full") == {"notes.txt": b"mine"}


def test_a_full_disk_is_detected_before_anything_is_written(root, tmp_path, capsys, monkeypatch):
    usage = module.shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    assert "make room" in refused(capsys, "pack", root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_splits_can_be_added_later(root, tmp_path, capsys):
    out = tmp_path / "out"
    assert pack(root, out, "--split", "train") == 0
    with pytest.raises(
        UserError, match="the split test was not packed, the folder has train; add it"
    ):
        open_dataset("packed", out).split("test")
    assert pack(root, out, "--split", "test") == 0
    assert len(open_dataset("packed", out).split("test")) == 6
    assert len(open_dataset("packed", out).split("train")) == 60


def test_every_split_of_every_layout_can_be_packed():
    assert {name for layout in LAYOUTS.values() for name in layout.splits} == set(packed.SPLITS)


def test_excluded_files_are_left_out_and_lists_carry_over(root, tmp_path, capsys):
    out = tmp_path / "out"
    index = open_dataset("folder", root).split("train").index
    data = (root / index.paths[20]).read_bytes()
    broken_files.write_broken(root / index.paths[20], "flipped bits")
    assert main(["verify", str(root)]) == 1
    assert pack(root, out) == 0
    split = open_dataset("packed", out).split("train")
    with pytest.raises(BrokenImage, match="left out when packed: excluded: damaged pixels"):
        split.images.read(20)
    # Training on the shards leaves them out without any list.
    train = leave_out(load_data(DataConfig(name="auto"), str(out), log=print)).train
    assert train.index.sample_ids.tolist() == [i for i in range(60) if i not in {*BROKEN, 20}]
    assert main(["verify", str(out)]) == 1
    assert "left out when packed" in capsys.readouterr().out
    # The exclusion list is part of the plan.
    assert "another exclusion list" in refused(
        capsys, "pack", root, out, "--shard-mb", 1, "--exclude", "none"
    )
    assert data != (root / index.paths[20]).read_bytes()


def test_arrays_become_pngs(tmp_path):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, size=(30, 3, 32, 32), dtype=np.uint8)
    base = open_dataset("digits", None).split("train").take(np.arange(30))
    split = Split(base.index, ArrayImages(array))
    packer = Packer(tmp_path, shard_mb=1, workers=2, track=lambda items, **_: items)
    dataset = Dataset(LAYOUTS["cifar10"], Found(tmp_path / "source", "made up"))
    (plan,) = packer.check(dataset, {"train": split}, "none").values()
    packer.pack(plan)
    after = open_dataset("auto", tmp_path).split("train")
    assert after.index.clean_labels.tolist() == base.index.clean_labels.tolist()
    for row in range(30):
        with Image.open(io.BytesIO(after.images.read(row))) as image:
            assert (np.asarray(image).transpose(2, 0, 1) == array[row]).all()


def test_a_split_of_broken_files_alone(tmp_path, capsys):
    root = write_folder(tmp_path / "set", train={"a": 2, "b": 2}, test={"a": 1, "b": 1})
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"")
    error = refused(capsys, "pack", root, tmp_path / "out")
    assert "train/a/000.png: is unreadable (the file is empty)" in error


def test_a_manifest_of_a_later_version_is_refused(root, tmp_path, capsys):
    assert pack(root, tmp_path / "out") == 0
    path = tmp_path / "out" / "packed.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 9}))
    assert "is of version 9" in refused(capsys, "verify", tmp_path / "out")
    path.write_text("{")
    assert "cannot be read as a manifest" in refused(capsys, "verify", tmp_path / "out")


def test_training_reads_the_shards(tmp_path):
    pytest.importorskip("nvidia.dali")
    from alr_fast import train

    root = write_folder(
        tmp_path / "set", train={"a": 40, "b": 40}, test={"a": 8, "b": 8}, suffix=".jpg"
    )
    assert pack(root, tmp_path / "out") == 0
    options = {
        "data-root": tmp_path / "out",
        "data.loader": "dali",
        "data.crop": "resized",
        "data.crop_padding": 0,
        "data.image_size": 32,
        "methods": "ce",
        "optim.epochs": 1,
        "optim.batch_size": 16,
        "runs": tmp_path / "runs",
    }
    assert train.main([word for k, v in options.items() for word in (f"--{k}", str(v))]) == 0
    (summary,) = (tmp_path / "runs").glob("2*/summary.json")
    assert json.loads(summary.read_text())["methods"]["ce"]["test_accuracy_last"] >= 0
