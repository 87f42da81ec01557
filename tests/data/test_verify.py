"""`alr-fast data verify`: excluded files, remarks on others, and resuming."""

import csv
import errno
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alr_fast.data.__main__ import main
from alr_fast.data.broken import (
    default_exclusion_file,
    find_exclusions,
    verify_command,
    write_exclusions,
)
from alr_fast.data.checks import verify as module
from alr_fast.data.checks.examine import KINDS, NOTES
from alr_fast.data.checks.verify import KnownFiles, verify_split
from alr_fast.data.datasets import open_dataset
from alr_fast.train import main as train_main
from alr_fast.training.config.schema import DataConfig
from alr_fast.training.run_data import leave_out, load_data
from helpers import broken_files
from helpers.commands import commands
from helpers.image_folder import write_folder

# Kind that `verify` reports for each broken file.
EXPECTED = {
    "missing": "missing",
    "directory": "unreadable",
    "unreadable": "unreadable",
    "empty": "empty",
    "one byte": "not an image",
    "only a start": "truncated",
    "html": "not an image",
    "zeros": "not an image",
    "truncated": "truncated",
    "slightly truncated": "truncated",
    "without the end marker": "truncated",
    "zeroed tail and end": "truncated",
    "progressive truncated": "truncated",
    "headers alone": "truncated",
    "long Huffman table": "truncated",
    "Huffman counts": "damaged",
    "12 bits": "unknown kind of JPEG",
    "arithmetic JPEG": "unknown kind of JPEG",
    "lossless JPEG": "unknown kind of JPEG",
    "no tables": "damaged pixels",
    "huge": "too large",
    "no pixels": "damaged",
    "png truncated": "truncated",
    "png slightly truncated": "truncated",
    "png of zeros": "damaged",
    "png damaged pixels": "damaged",
    "png of few pixels": "truncated",
    "png without an end of its pixels": "damaged pixels",
    "webp truncated": "truncated",
    "webp slightly truncated": "truncated",
    "webp damaged pixels": "damaged",
    "gif truncated": "truncated",
    "bmp truncated": "truncated",
    "tiff truncated": "truncated",
    "flipped bits": "damaged pixels",
    "zero tail": "damaged pixels",
    "missing rows": "damaged pixels",
    "too tall": "damaged pixels",
}
OTHER_FORMAT = "format differs from the name"
REMARKS = {
    "cmyk": {"CMYK"},
    "gray": {"gray"},
    "turned": {"rotated by EXIF"},
    "upside down": {"rotated by EXIF"},
    "png": {OTHER_FORMAT},
    "png 16 bits": {OTHER_FORMAT, "gray", "16 bits"},
    "png gray": {OTHER_FORMAT, "gray"},
    "png 1 bit": {OTHER_FORMAT, "gray"},
    "png transparent": {OTHER_FORMAT},
    "png palette": {OTHER_FORMAT},
    "png turned": {OTHER_FORMAT, "rotated by EXIF"},
    "webp": {OTHER_FORMAT},
    "webp lossless": {OTHER_FORMAT},
    "webp turned": {OTHER_FORMAT, "rotated by EXIF"},
    "webp animated": {OTHER_FORMAT},
    "gif": {OTHER_FORMAT},
    "gif animated": {OTHER_FORMAT},
    "bmp": {OTHER_FORMAT},
    "tiff": {OTHER_FORMAT},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def zoo(tmp_path):
    """A table of files of every kind, ``train/<kind>.jpg``, and two good test files."""
    kinds = [
        kind for kind in broken_files.KINDS if kind != "unreadable" or os.geteuid()
    ]  # root may read everything
    for kind in kinds:
        broken_files.write_broken(tmp_path / f"train/{kind}.jpg", kind)
    broken_files.write_good(tmp_path / "test/0.jpg")
    broken_files.write_good(tmp_path / "test/1.jpg")
    rows = [f"train/{kind}.jpg,{k % 2},train" for k, kind in enumerate(kinds)]
    rows += ["test/0.jpg,0,test", "test/1.jpg,1,test"]
    (tmp_path / "set.csv").write_text("path,label,split\n" + "\n".join(rows) + "\n")
    return tmp_path / "set.csv"


def small(tmp_path, count=100):
    return write_folder(
        tmp_path / "set",
        train={"a": count // 2, "b": count // 2},
        test={"a": 2, "b": 2},
        suffix=".jpg",
    )


def listed(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def list_of(root, split="train"):
    return default_exclusion_file(open_dataset("auto", root).split(split))


def examined(monkeypatch, stop_after=None):
    """Collects the rows that are read; interrupts reading after ``stop_after`` rows."""
    rows = []
    examine = module._Scanner._examine

    def counting(self, row):
        if len(rows) == stop_after:
            raise KeyboardInterrupt
        rows.append(row)
        return examine(self, row)

    monkeypatch.setattr(module._Scanner, "_examine", counting)
    return rows


def test_every_kind_of_file(zoo, capsys):
    index = open_dataset("auto", zoo).split("train").index
    assert main(["verify", str(zoo)]) == 1
    found = {}
    for line in listed(list_of(zoo)):
        assert index.paths[int(line["id"])] == line["path"]
        kind = line["path"].removeprefix("train/").removesuffix(".jpg")
        found[kind] = line["reason"].split(" (")[0]
    skipped = set() if os.geteuid() else {"unreadable"}
    assert found == {k: v for k, v in EXPECTED.items() if k not in skipped}
    assert set(EXPECTED.values()) <= set(KINDS)
    assert set(EXPECTED) | set(broken_files.FINE) == set(broken_files.KINDS)
    assert listed(list_of(zoo, "test")) == []  # header alone
    output = capsys.readouterr().out
    fine = len(index) - len(found)
    assert f"train: {len(index)} files, {fine} fine and {len(found)} excluded" in output
    assert str(list_of(zoo)) in output


def test_unusual_files_get_remarks(zoo):
    dataset = open_dataset("auto", zoo)
    split = dataset.split("train")
    report = verify_split(split, dataset.found.root, workers=2)
    found = {}
    for row, bits in enumerate(report.notes.tolist()):
        if bits:
            kind = split.index.paths[row].removeprefix("train/").removesuffix(".jpg")
            found[kind] = {note for k, note in enumerate(NOTES) if bits >> k & 1}
    assert found == REMARKS
    again = verify_split(split, dataset.found.root, workers=2)
    assert again.notes.tolist() == report.notes.tolist()
    assert again.read == len(again.broken) == len(report.broken)


def test_training_leaves_out_listed_files_and_keeps_the_ids(tmp_path):
    root = small(tmp_path)
    before = open_dataset("folder", root).split("train").index
    for kind, row in (("truncated", 3), ("flipped bits", 70)):
        broken_files.write_broken(root / before.paths[row], kind)
    assert main(["verify", str(root), "--split", "train"]) == 1
    lines = []
    train = leave_out(load_data(DataConfig(name="auto"), str(root), log=lines.append)).train.index
    kept = np.setdiff1d(np.arange(100), [3, 70])
    assert train.sample_ids.tolist() == kept.tolist()
    assert train.paths == before.take(kept).paths
    assert any("2 samples are left out" in line for line in lines)
    assert (
        len(
            leave_out(
                load_data(DataConfig(name="auto", exclude="none"), str(root), log=print)
            ).train
        )
        == 100
    )
    # After a repair the list is empty again.
    for row in (3, 70):
        broken_files.write_good(root / before.paths[row])
    assert main(["verify", str(root), "--split", "train"]) == 0
    assert len(leave_out(load_data(DataConfig(name="auto"), str(root), log=print)).train) == 100


@pytest.mark.parametrize("workers", ["1", "3"])
def test_an_interrupted_scan_resumes(tmp_path, monkeypatch, capsys, workers):
    root = small(tmp_path, 1000)
    broken_files.write_broken(root / "train/a/010.jpg", "truncated")
    call = ["verify", str(root), "--split", "train", "--workers", workers]
    with monkeypatch.context() as patch:
        first = examined(patch, stop_after=600)
        assert main(call) == 130
    assert "the next call resumes" in capsys.readouterr().err
    assert not list_of(root).exists()
    second = examined(monkeypatch)
    assert main(call) == 1
    # Unfinished chunks of the threads are lost, and broken files are read again.
    assert len(second) <= 1000 - 600 + 1 + 32 * (4 * int(workers) + 1 + int(workers))
    assert set(first) | set(second) == set(range(1000))
    assert [line["path"] for line in listed(list_of(root))] == ["train/a/010.jpg"]


def test_changed_files_are_read_again(tmp_path, monkeypatch):
    root = small(tmp_path)
    assert main(["verify", str(root)]) == 0
    broken_files.write_broken(root / "train/a/007.jpg", "truncated")
    rows = examined(monkeypatch)
    assert main(["verify", str(root)]) == 1
    assert rows == [7]
    os.remove(root / "train/b/000.jpg")  # listed again: other ids, another fingerprint
    assert main(["verify", str(root), "--split", "train"]) == 1
    assert len(rows) == 1 + 99


def rot(path):
    """Damages a file without changing its size and modification time."""
    stat = path.stat()
    path.write_bytes(path.read_bytes()[:-2] + b"\0\0")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_change_that_leaves_size_and_time_is_noticed(tmp_path, monkeypatch):
    root = small(tmp_path)
    assert main(["verify", str(root)]) == 0
    rot(root / "train/a/007.jpg")
    rows = examined(monkeypatch)
    assert main(["verify", str(root)]) == 1
    assert rows == [7]


def test_again_reads_all_files(tmp_path, monkeypatch):
    root = small(tmp_path)
    stamp = module._stamp_of
    # A mount whose times do not change.
    monkeypatch.setattr(module, "_stamp_of", lambda path: (*stamp(path)[:1], 0, 0))
    assert main(["verify", str(root)]) == 0
    rot(root / "train/a/007.jpg")
    assert main(["verify", str(root)]) == 0
    assert main(["verify", str(root), "--again"]) == 1


def test_another_copy_of_the_same_samples_is_read(tmp_path):
    root = small(tmp_path)
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copy2)
    rot(root / "train/a/007.jpg")
    assert main(["verify", str(tmp_path / "copy")]) == 0
    assert main(["verify", str(root)]) == 1


def test_a_file_in_two_splits_is_read_once(tmp_path, monkeypatch):
    dataset = open_dataset("folder", small(tmp_path))
    root, whole = dataset.found.root, dataset.split("train")
    broken_files.write_broken(root / whole.index.paths[41], "empty")
    part = whole.take(np.arange(40, 60))
    known, rows = KnownFiles(), examined(monkeypatch)
    verify_split(whole, root, workers=2, known=known)
    assert len(rows) == 100
    report = verify_split(part, root, workers=2, known=known)
    assert len(rows) == 101
    assert list(report.broken) == [1]


def test_files_unknown_to_the_other_split_are_read(tmp_path, monkeypatch):
    dataset = open_dataset("folder", small(tmp_path))
    root, whole = dataset.found.root, dataset.split("train")
    broken_files.write_broken(root / whole.index.paths[70], "empty")
    known, rows = KnownFiles(), examined(monkeypatch)
    verify_split(whole.take(np.arange(40, 60)), root, workers=2, known=known)
    report = verify_split(whole, root, workers=2, known=known)
    assert sorted(rows[20:]) == [*range(40), *range(60, 100)]
    assert list(report.broken) == [70]


def test_output_names_the_list(tmp_path):
    root = small(tmp_path)
    broken_files.write_broken(root / "train/a/007.jpg", "html")
    path = tmp_path / "mine.csv"
    assert main(["verify", str(root), "--split", "train", "--output", str(path)]) == 1
    assert listed(path) == [{"id": "7", "path": "train/a/007.jpg", "reason": "not an image"}]
    assert not list_of(root).exists()
    config = DataConfig(name="auto", exclude=str(path))
    assert len(leave_out(load_data(config, str(root), log=print)).train) == 99


def test_arrays_need_no_verification(capsys):
    assert main(["verify", ".", "--data", "digits"]) == 0
    assert "nothing to verify" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--output", "x.csv"], "name one with --split"),
        (["--split", "val"], "no folder val with class folders"),
        (["--split", "train", "--output", "no/such/x.csv"], "no file can be written there"),
        (["--data", "nonsense"], "--data nonsense: no such data set"),
        (["--workers", "0"], "--workers 0: must be 1 or more"),
        (["--nonsense"], "--help lists every option"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, capsys, extra, message):
    root = small(tmp_path)
    assert main(["verify", str(root), *extra]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not list_of(root).exists()


def test_a_missing_root_is_named(tmp_path, capsys):
    assert main(["verify", str(tmp_path / "nowhere")]) == 2
    assert (
        capsys.readouterr().err == f"error: root {tmp_path / 'nowhere'}: no such file or folder\n"
    )


def test_all_names_every_unusual_file(tmp_path, capsys):
    root = small(tmp_path)
    names = [f"train/a/{number:03d}.jpg" for number in range(5)]
    for name in names:
        broken_files.write_broken(root / name, "gray")
        with open(root / name, "ab") as file:  # not the same image five times
            file.write(name.encode())
    assert main(["verify", str(root), "--split", "train"]) == 0
    few = capsys.readouterr().out
    assert [name in few for name in names] == [True] * 3 + [False] * 2
    assert main(["verify", str(root), "--split", "train", "--all"]) == 0
    every = capsys.readouterr().out
    assert all(name in every for name in names)


def data_command(text):
    """The command that a message names, without its interpreter: the arguments of `main`."""
    (words,) = [words for words in commands(text) if words[:2] == ["data", "verify"]]
    return words[1:]


def train(root, *extra):
    options = ["--methods", "ce", "--optim.epochs", "1", "--data.image_size", "8"]
    runs = str(Path(root).parent / "runs")
    return train_main(["--data-root", str(root), "--runs", runs, *options, *map(str, extra)])


@pytest.mark.parametrize(
    ("place", "kind"),
    [("set", "folder"), ("it's", "list"), ("with blank", "columns"), ("$(touch x)", "folder")],
)
def test_the_command_that_training_names_makes_it_train(tmp_path, monkeypatch, capsys, place, kind):
    """Message, command, success: whatever the folder is called, from any folder."""
    root = write_folder(tmp_path / place, train={"a": 8, "b": 8}, test={"a": 2, "b": 2})
    (root / "train/a/003.png").write_bytes(b"")
    call = [root]
    if kind != "folder":
        columns = "path,label,split" if kind == "list" else "image,kind,part"
        lines = [
            f"{path.relative_to(root)},{path.parent.name},{path.parents[1].name}"
            for path in sorted(root.rglob("*.png"))
        ]
        (root / "my list.csv").write_text("\n".join([columns, *lines]) + "\n")
        call = [root / "my list.csv"]
    if kind == "columns":
        call += ["--data.columns", "path=image,label=kind,split=part"]
    assert train(*call) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--data.max_broken" in error
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(data_command(error)) == 1
    assert train(*call) == 0
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_command_runs_when_it_is_pasted(tmp_path, capsys):
    root = write_folder(tmp_path / "my set", train={"a": 4, "b": 4}, test={"a": 1, "b": 1})
    (root / "train/a/003.png").write_bytes(b"")
    command = verify_command(open_dataset("auto", root).split("train"))
    assert "'" in command
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "train: 8 files, 7 fine and 1 excluded" in done.stdout


def test_when_nothing_can_be_read_no_list_is_written(tmp_path, capsys):
    """A disk that is not mounted must not leave out every sample for good."""
    root = small(tmp_path, 6)
    gone = tmp_path / "gone"
    dataset = open_dataset("auto", root)
    split = dataset.split("train")
    (root / "train").rename(gone)
    assert verify_split(split, root, workers=1).broken.keys() == set(range(6))
    gone.rename(root / "train")
    for path in (root / "train").rglob("*.jpg"):
        path.rename(path.with_suffix(".kept"))
        path.write_bytes(b"")
    assert main(["verify", str(root)]) == 1
    output = capsys.readouterr().out
    (line,) = [line for line in output.splitlines() if "no file can be read" in line]
    assert "restore the files" in line
    assert not list_of(root).exists() and list_of(root, "test").exists()
    assert train(root) == 2  # says what to call, as for any broken files
    assert data_command(capsys.readouterr().err) == data_command(line)
    for path in (root / "train").rglob("*.kept"):
        path.rename(path.with_suffix(".jpg"))
    assert main(data_command(line)) == 0
    assert train(root) == 0


def test_a_list_of_all_samples_is_written_again(tmp_path, capsys):
    root = small(tmp_path, 6)
    index = open_dataset("auto", root).split("train").index
    write_exclusions(list_of(root), [(i, index.paths[i], "missing") for i in range(6)])
    assert train(root) == 2
    error = capsys.readouterr().err
    assert "all 6 training samples are left out" in error and error.count("\n") == 1
    assert main(data_command(error)) == 0
    assert train(root) == 0


def test_a_list_of_exclusions_that_is_missing(tmp_path, capsys):
    root = small(tmp_path, 6)
    mine = tmp_path / "mine.csv"
    call = [root, "--data.exclude", mine]
    assert train(*call) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no such file" in error
    assert main([*data_command(error), "--split", "train", "--output", str(mine)]) == 0
    assert train(*call) == 0


def test_a_pipe_among_the_images_is_excluded(tmp_path, capsys):
    root = small(tmp_path, 6)
    (root / "train/a/000.jpg").unlink()
    os.mkfifo(root / "train/a/000.jpg")
    assert main(["verify", str(root)]) == 1
    assert "train: 6 files, 5 fine and 1 excluded" in capsys.readouterr().out
    (line,) = listed(list_of(root))
    assert line["reason"] == "unreadable (not a regular file)"
    assert train(root) == 0


def counts(output):
    """Files, fine, excluded, read and known of each split, from the lines of `verify`."""
    pattern = (
        r"(\w+): (\d+) files, (\d+) fine and (\d+) excluded; (\d+) read in [^,\n]*"
        r"(?:, (\d+) known)?"
    )
    return {name: [int(n or 0) for n in numbers] for name, *numbers in re.findall(pattern, output)}


def test_the_numbers_add_up(tmp_path, capsys):
    root = small(tmp_path, 10)
    for name, kind in (("train/a/001.jpg", "truncated"), ("test/b/001.jpg", "html")):
        broken_files.write_broken(root / name, kind)
    for expected in (
        {"train": [10, 9, 1, 10, 0], "test": [4, 3, 1, 4, 0]},
        {"train": [10, 9, 1, 1, 9], "test": [4, 3, 1, 1, 3]},
    ):
        assert main(["verify", str(root)]) == 1
        found = counts(capsys.readouterr().out)
        assert found == expected
        for total, fine, excluded, read, known in found.values():
            assert total == fine + excluded == read + known
    assert [len(listed(list_of(root, name))) for name in ("train", "test")] == [1, 1]


def test_a_cache_without_room_for_the_records_is_one_line(tmp_path, monkeypatch, capsys):
    """Records written through a mapping without room would end the process with SIGBUS."""
    root = small(tmp_path, 6)
    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path / "cache"))

    def full(handle, start, count):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert main(["verify", str(root)]) == 2
    error = capsys.readouterr().err
    assert "No space left on device; free some space" in error and error.count("\n") == 1


def test_records_that_are_cut_short_are_made_again(tmp_path, monkeypatch, capsys):
    root = small(tmp_path, 6)
    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path / "cache"))
    for size in (None, 0, 100, 300):
        for path in tmp_path.glob("cache/verify/*/rows-*.npy"):
            os.truncate(path, path.stat().st_size if size is None else size)
        assert main(["verify", str(root)]) == 0
    assert capsys.readouterr().out.count("6 files, 6 fine and 0 excluded; 6 read") == 4


def test_a_closed_cache_has_no_list(tmp_path, monkeypatch):
    root = small(tmp_path, 6)
    (split,) = [open_dataset("auto", root).split("train")]
    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path / "cache"))
    stat = os.stat

    def closed(path, *arguments, **options):
        if "cache" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", closed)  # root may enter every folder
    assert find_exclusions(split, "auto") is None


def test_a_user_without_a_home_folder_is_told_what_to_set(tmp_path, monkeypatch, capsys):
    root = small(tmp_path, 6)
    for name in ("ALR_FAST_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", dict().__getitem__)  # KeyError: a number without a name
    assert train(root) == 0
    assert main(["verify", str(root)]) == 2
    error = capsys.readouterr().err
    assert "set ALR_FAST_CACHE to a writable folder" in error and error.count("\n") == 1
    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    assert main(["verify", str(root)]) == 2
    error = capsys.readouterr().err
    assert "set ALR_FAST_CACHE to a writable folder" in error and error.count("\n") == 1
    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path / "cache"))
    assert main(["verify", str(root)]) == 0


def test_lists_follow_the_umask(tmp_path):
    root = small(tmp_path, 6)
    before = os.umask(0o022)
    try:
        assert main(["verify", str(root)]) == 0
    finally:
        os.umask(before)
    for path in (tmp_path / "cache").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path


def forbid(monkeypatch, folder):
    """Makes a folder unreadable, also for the tests of a superuser."""
    inside = os.fspath(folder) + os.sep

    def forbidding(function, of_folder):
        def call(path=".", *args, **options):
            name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
            name = os.path.abspath(name) if name else ""
            if name.startswith(inside) or (of_folder and name + os.sep == inside):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
            return function(path, *args, **options)

        return call

    monkeypatch.setattr(os, "access", lambda path, *_, **__: Path(path).resolve() != folder)
    for name, of_folder in (("stat", False), ("open", False), ("scandir", True), ("listdir", True)):
        monkeypatch.setattr(os, name, forbidding(getattr(os, name), of_folder))


@pytest.mark.parametrize("place", [".", "train", "train/a", "test"])
@pytest.mark.parametrize("command", ["verify", "pack"])
def test_an_unreadable_folder_is_named(tmp_path, monkeypatch, capsys, place, command):
    root = small(tmp_path, 6)
    call = [command, str(root), *([str(tmp_path / "out")] if command == "pack" else [])]
    with monkeypatch.context() as patch:
        forbid(patch, (root / place).resolve())
        assert main(call) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "readable" in error
        assert f"error: {root / place}: Permission denied; make" in error
    assert main(call) == 0


@pytest.mark.parametrize("place", ["packed.json", "index", "train-000000.tar"])
def test_an_unreadable_part_of_a_packed_set_is_named(tmp_path, monkeypatch, capsys, place):
    root = small(tmp_path, 6)
    out = tmp_path / "out"
    assert main(["pack", str(root), str(out)]) == 0
    with monkeypatch.context() as patch:
        if place == "index":
            forbid(patch, out / place)
        else:
            real = os.open

            def refusing(path, *args, **options):
                if os.fspath(path) == str(out / place):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
                return real(path, *args, **options)

            patch.setattr(os, "open", refusing)
        assert main(["verify", str(out)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and str(out / place) in error
        assert "Permission denied; make it readable" in error
    assert main(["verify", str(out)]) == 0
