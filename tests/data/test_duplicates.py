"""The same image under two labels, in train and in test, or twice."""

import csv

import numpy as np
import pytest

from alr_fast.data.__main__ import main
from alr_fast.data.broken import read_exclusions
from alr_fast.data.checks.duplicates import (
    SAME_LABEL,
    TRAIN_AND_TEST,
    TWO_LABELS,
    duplicates_file,
    find_duplicates,
)
from alr_fast.data.checks.verify import VerifyReport, verify_split
from alr_fast.data.datasets import open_dataset
from alr_fast.data.index import PathTable, SampleIndex
from alr_fast.training.config.schema import DataConfig
from alr_fast.training.run_data import leave_out, load_data
from helpers.image_folder import write_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    return write_folder(
        tmp_path / "set", train={"a": 6, "b": 6}, test={"a": 3, "b": 3}, suffix=".jpg"
    )


def copy(root, source, *targets):
    for target in targets:
        (root / target).write_bytes((root / source).read_bytes())


def file_of(root, split="train"):
    return duplicates_file(open_dataset("auto", root).split(split))


def listed(root, split="train"):
    with open(file_of(root, split), newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_kind_is_said_and_listed(root, capsys):
    copy(root, "train/a/001.jpg", "train/b/002.jpg")
    copy(root, "train/a/004.jpg", "test/a/000.jpg", "test/a/002.jpg")
    copy(root, "train/b/000.jpg", "train/b/004.jpg", "train/b/005.jpg")
    copy(root, "train/a/005.jpg", "train/b/003.jpg", "test/b/001.jpg")
    both = f"{TWO_LABELS}, {TRAIN_AND_TEST}"
    expected = {
        "train/a/001.jpg": ("a", TWO_LABELS, "train/b/002.jpg (b)"),
        "train/b/002.jpg": ("b", TWO_LABELS, "train/a/001.jpg (a)"),
        "train/a/004.jpg": ("a", TRAIN_AND_TEST, "test/a/000.jpg (a) = test/a/002.jpg (a)"),
        "train/a/005.jpg": ("a", both, "train/b/003.jpg (b) = test/b/001.jpg (b)"),
        "train/b/003.jpg": ("b", both, "train/a/005.jpg (a) = test/b/001.jpg (b)"),
        "train/b/000.jpg": ("b", SAME_LABEL, "train/b/004.jpg (b) = train/b/005.jpg (b)"),
        "train/b/004.jpg": ("b", SAME_LABEL, "train/b/000.jpg (b) = train/b/005.jpg (b)"),
        "train/b/005.jpg": ("b", SAME_LABEL, "train/b/000.jpg (b) = train/b/004.jpg (b)"),
    }
    index = open_dataset("auto", root).split("train").index
    for _ in range(2):  # the second call reads no file
        assert main(["verify", str(root)]) == 0
        output = capsys.readouterr().out
        lines = {line.split("  ")[0]: line.split() for line in output.splitlines()}
        for kind, count in ((TWO_LABELS, "5"), (TRAIN_AND_TEST, "6"), (SAME_LABEL, "3")):
            assert lines[kind][len(kind.split())] == count
            assert "kept" in lines[kind]
        assert "train/a/001.jpg (a) = train/b/002.jpg (b)" in output
        found = {r["path"]: (r["label"], r["reason"], r["same_as"]) for r in listed(root)}
        assert found == expected
        paths = [row["path"] for row in listed(root, "test")]
        assert sorted(paths) == [f"test/{k}.jpg" for k in ("a/000", "a/002", "b/001")]
    assert "0 read in" in output and "12 known from before" in output
    for row in listed(root):
        assert index.paths[int(row["id"])] == row["path"]


def test_without_duplicates_nothing_is_said(root, capsys):
    assert main(["verify", str(root)]) == 0
    assert "several times" not in capsys.readouterr().out
    assert not file_of(root).exists()


def test_a_list_of_duplicates_that_are_gone_is_removed(root):
    kept = (root / "train/b/002.jpg").read_bytes()
    copy(root, "train/a/001.jpg", "train/b/002.jpg")
    assert main(["verify", str(root)]) == 0
    assert listed(root)
    (root / "train/b/002.jpg").write_bytes(kept)
    assert main(["verify", str(root)]) == 0
    assert not file_of(root).exists()


def test_broken_files_are_no_duplicates(root):
    for name in ("train/a/001.jpg", "train/b/001.jpg", "test/a/001.jpg"):
        (root / name).write_bytes(b"<html>")
    assert main(["verify", str(root)]) == 1
    assert not file_of(root).exists()


def test_a_list_made_of_it_is_left_out(root):
    copy(root, "train/a/001.jpg", "train/b/002.jpg", "test/a/000.jpg", "test/a/001.jpg")
    assert main(["verify", str(root)]) == 0
    config = DataConfig(name="auto", exclude=str(file_of(root)))
    data = leave_out(load_data(config, str(root), log=print))
    assert data.train.index.sample_ids.tolist() == [0, 2, 3, 4, 5, 6, 7, 9, 10, 11]
    assert read_exclusions(file_of(root), open_dataset("auto", root).split("train").index) == {
        1: f"{TWO_LABELS}, {TRAIN_AND_TEST}",
        8: f"{TWO_LABELS}, {TRAIN_AND_TEST}",
    }


def test_all_names_every_group(root, capsys):
    for k in range(6):
        copy(root, f"train/a/00{k}.jpg", f"train/b/00{k}.jpg")
    assert main(["verify", str(root)]) == 0
    assert capsys.readouterr().out.count(" = ") == 3
    assert main(["verify", str(root), "--all"]) == 0
    assert capsys.readouterr().out.count(" = ") == 6


def test_a_file_that_train_and_test_list(root, capsys):
    lines = ["train/a/000.jpg,0,train", "train/b/000.jpg,1,train", "train/a/000.jpg,0,test"]
    (root / "set.csv").write_text("\n".join(["path,label,split", *lines]) + "\n")
    assert main(["verify", str(root / "set.csv")]) == 0
    assert "train/a/000.jpg (0) = train/a/000.jpg (0)" in capsys.readouterr().out


def test_the_records_of_a_packed_set(root, tmp_path, capsys):
    copy(root, "train/a/001.jpg", "train/b/002.jpg")
    assert main(["pack", str(root), str(tmp_path / "out")]) == 0
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert "train/a/001.jpg (a) = train/b/002.jpg (b)" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["first byte", "last byte", "any byte", "size"])
def test_files_that_differ_by_a_byte_are_not_the_same(root, change):
    """Images whose pixels are not compressed share most of their bytes."""
    rng = np.random.default_rng(0)
    comment = rng.integers(0, 256, 60_000, dtype=np.uint8).tobytes()
    segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big")
    data = (root / "train/a/000.jpg").read_bytes()
    at = {"first byte": 0, "last byte": len(comment) - 1}.get(change, 20_000)
    other = bytearray(comment)
    other[at] ^= 1
    if change == "size":
        other = other[:-1]
    end = b"\xff\xfe" + (len(other) + 2).to_bytes(2, "big") + other
    (root / "train/a/001.jpg").write_bytes(data[:2] + segment + comment + data[2:])
    (root / "train/b/001.jpg").write_bytes(data[:2] + end + data[2:])
    split = open_dataset("auto", root).split("train")
    report = verify_split(split, root, workers=1)
    assert not report.broken
    assert not find_duplicates({"train": report}).counts()
    copy(root, "train/a/001.jpg", "train/b/001.jpg")
    report = verify_split(split, root, workers=1)
    assert find_duplicates({"train": report}).counts() == {TWO_LABELS: 2}


def report_of(digests, labels=None, paths=None):
    count = len(digests)
    labels = np.zeros(count, np.int64) if labels is None else np.array(labels)
    table = PathTable.of(f"{k}" for k in range(count)) if paths is None else PathTable.of(paths)
    index = SampleIndex(np.arange(count), table, labels, None, ("a", "b"))
    halves = np.stack([np.array(digests, np.uint64), np.array(digests, np.uint64) % 7], axis=1)
    return VerifyReport(index, {}, np.zeros(count, np.uint8), 0, halves)


def members(found):
    groups = map(found.members, range(len(found.kinds)))
    return [[(member.split, member.path) for member in group] for group in groups]


def test_a_file_that_several_training_splits_list_counts_once():
    train = report_of([1, 2, 3], paths=["x", "y", "z"])
    part = report_of([1, 3, 2], paths=["x", "z", "w"])
    found = find_duplicates({"train": train, "google": part})
    assert members(found) == [[("train", "y"), ("google", "w")]]
    assert found.kinds == [(SAME_LABEL,)]


def test_groups_follow_the_order_of_their_images():
    found = find_duplicates({"train": report_of([9, 8, 7, 8, 9, 6, 7], [0, 1, 0, 0, 0, 1, 0])})
    assert found.row.tolist() == [0, 4, 1, 3, 2, 6]
    assert found.group.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.kinds == [(SAME_LABEL,), (TWO_LABELS,), (SAME_LABEL,)]
    assert found.counts() == {TWO_LABELS: 2, SAME_LABEL: 4}


def test_halves_of_digests_are_not_enough():
    report = report_of([1, 1])
    report.digests[1, 1] += 1
    assert not find_duplicates({"train": report}).counts()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_files(count):
    found = find_duplicates({"train": report_of(list(range(1, count + 1)))})
    assert not found.counts() and not len(found.row)


def test_many_files():
    rng = np.random.default_rng(0)
    digests = rng.integers(1, 2**63, 600_000, dtype=np.uint64)
    digests[-1000:] = digests[:1000]
    paths = PathTable.of(b"%d" % k for k in range(len(digests)))
    index = SampleIndex(np.arange(len(digests)), paths, np.zeros(len(digests), int), None, ("a",))
    halves = np.stack([digests, digests], axis=1)
    report = VerifyReport(index, {}, np.zeros(1, np.uint8), 0, halves)
    found = find_duplicates({"train": report})
    assert found.counts() == {SAME_LABEL: 2000}
