"""The cached list of a split: taken only if what it was read from is the same."""

import json
import os
import pwd
import shutil
import stat
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from alr_fast.data import cache as module
from alr_fast.data import columns, datasets
from alr_fast.data.broken import find_exclusions
from alr_fast.data.cache import CacheEntry, cache_folder
from alr_fast.data.datasets import open_dataset
from alr_fast.data.index import PathTable
from alr_fast.data.layouts.base import Found, Listing, new_index
from alr_fast.errors import UserError
from helpers.image_folder import write_folder
from helpers.layouts import write_clothing1m, write_food101n

ARRAYS = ("paths", "offsets", "labels", "clean_labels")


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "set", train={"a": 6, "b": 4}, test={"a": 2, "b": 3})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Caches lists however young their sources are."""
    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_SETTLE_NS", 0)
    return tmp_path / "cache" / "index"


@pytest.fixture(params=["own times", "no times", "time of the mount"])
def mount(request, monkeypatch):
    """Times of files and folders as file systems report them."""
    if request.param == "own times":
        return
    ns = 0 if request.param == "no times" else 123_456_789_123_456_789

    def constant(path):
        found = os.stat(path)
        names = ("st_mode", "st_ino", "st_size", "st_dev")
        times = {"st_ctime_ns": ns, "st_mtime_ns": ns}
        return SimpleNamespace(**{name: getattr(found, name) for name in names}, **times)

    monkeypatch.setattr(module, "os", SimpleNamespace(**{**vars(os), "stat": constant}))
    # Neither is a file system that keeps times.
    monkeypatch.setattr(module, "_file_systems", lambda: {os.stat("/").st_dev: "fuse.remote"})


@pytest.fixture
def calls(monkeypatch):
    """The splits that the layouts `folder` and `table` list, in order."""
    listed = []
    for name in ("folder", "table"):
        layout = datasets.LAYOUTS[name]

        def read(found, split, layout=layout):
            listed.append(split)
            return layout.read(found, split)

        monkeypatch.setitem(datasets.LAYOUTS, name, replace(layout, read=read))
    return listed


def write_table(path, labels):
    lines = [f"{k}.jpg,{label},train" for k, label in enumerate(labels)] + ["9.jpg,0,test"]
    path.write_text("\n".join(["path,label,split", *lines]) + "\n")


def copy_times(path, before):
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_second_opening_reads_the_cache(root, cache, calls, mount, monkeypatch):
    monkeypatch.setattr(columns, "_SMALL", 0)
    first = open_dataset("folder", root).split("train")
    again = open_dataset("folder", root).split("train")
    assert calls == ["train"]
    assert isinstance(again.index.paths.blob, np.memmap)
    assert again.index.paths == first.index.paths
    assert np.array_equal(again.index.labels, first.index.labels)
    assert again.index.class_names == first.index.class_names
    assert again.index.sample_fingerprint() == first.index.sample_fingerprint()
    assert again.remarks == first.remarks
    assert again.images.read(3) == first.images.read(3)
    assert open_dataset("folder", root).split("test").index.paths[0].startswith("test/")
    assert not [p for p in root.rglob("*") if p.name.endswith(".npy")]


def test_a_stored_list_that_is_cut_short_while_it_is_used(root, cache, calls):
    """Reading a page of a mapping that is no longer in the file ends the process with SIGBUS."""
    expected = open_dataset("folder", root).split("train").index.paths[:]
    used = open_dataset("folder", root).split("train")
    assert calls == ["train"]
    for path in cache.rglob("*.npy"):
        os.truncate(path, 0)
    assert used.index.paths[:] == expected
    assert open_dataset("folder", root).split("train").index.paths[:] == expected
    assert calls == ["train", "train"]


def test_lists_and_their_folders_have_the_permissions_of_the_umask(root, cache):
    before = os.umask(0o002)
    try:
        open_dataset("folder", root).split("train")
    finally:
        os.umask(before)
    found = {stat.S_IMODE(path.stat().st_mode) for path in cache.rglob("*") if path.is_file()}
    assert found == {0o664}
    found = {stat.S_IMODE(path.stat().st_mode) for path in cache.rglob("*") if path.is_dir()}
    assert found == {0o775}


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "class", "replaced"])
def test_a_changed_folder_is_listed_again(root, cache, calls, mount, change):
    before = open_dataset("folder", root).split("train").index.paths[:]
    folder = root / "train" / "b"
    times = folder.stat()
    if change == "added":
        (folder / "zzz.png").write_bytes(b"")
    elif change == "removed":
        (folder / "000.png").unlink()
    elif change == "renamed":
        (folder / "000.png").rename(folder / "999.png")
    elif change == "class":
        (root / "train" / "c").mkdir()
        (root / "train" / "c" / "0.png").write_bytes(b"")
    else:
        folder.rename(root / "old")
        shutil.copytree(root / "old", folder)
        (folder / "000.png").rename(folder / "001.jpg")
    copy_times(folder, times)
    copy_times(root / "train", times)
    after = open_dataset("folder", root).split("train").index.paths[:]
    assert calls == ["train", "train"]
    grown = {"added": 1, "class": 1, "removed": -1}
    assert len(after) - len(before) == grown.get(change, 0)
    assert after != before


@pytest.mark.parametrize("how", ["written", "replaced"])
def test_another_list_of_the_same_size_and_time_is_read(tmp_path, cache, calls, mount, how):
    path = tmp_path / "set.csv"
    write_table(path, [0, 1, 1])
    assert open_dataset("table", path).split("train").index.labels.tolist() == [0, 1, 1]
    assert open_dataset("table", path).split("train").index.labels.tolist() == [0, 1, 1]
    before = path.stat()
    write_table(path if how == "written" else tmp_path / "new", [1, 0, 1])
    if how == "replaced":
        os.replace(tmp_path / "new", path)
    copy_times(path, before)
    assert path.stat().st_size == before.st_size
    assert open_dataset("table", path).split("train").index.labels.tolist() == [1, 0, 1]
    assert calls == ["train", "train"]


def test_a_list_with_a_new_time_alone_is_not_read_again(tmp_path, cache, calls, mount):
    write_table(tmp_path / "set.csv", [0, 1, 1])
    open_dataset("table", tmp_path / "set.csv").split("train")
    os.utime(tmp_path / "set.csv", (1e9, 1e9))
    open_dataset("table", tmp_path / "set.csv").split("train")
    assert calls == ["train"]


@pytest.mark.parametrize("file_system", ["ext4", "nfs"])
@pytest.mark.parametrize("ns", [0, 315532800 * 10**9, 1_700_000_001 * 10**9, 5_000_000])
def test_coarse_times_are_no_short_cut(root, monkeypatch, file_system, ns):
    found = os.stat(root)

    def coarse(path):
        return SimpleNamespace(
            **{name: getattr(found, name) for name in ("st_mode", "st_ino", "st_dev")},
            **{"st_ctime_ns": ns, "st_mtime_ns": ns},
        )

    monkeypatch.setattr(module, "os", SimpleNamespace(**{**vars(os), "stat": coarse}))
    monkeypatch.setattr(module, "_file_systems", lambda: {found.st_dev: file_system})
    assert module._state(root)[1] == "names"


def test_fine_times_are_a_short_cut_where_the_file_system_keeps_them(root, monkeypatch):
    while os.stat(root).st_ctime_ns % 10**6 == 0:  # by chance
        root.touch()
    for name, kind in (("ext4", "times"), ("exfat", "names"), ("fuse.sshfs", "names")):
        types = {os.stat(root).st_dev: name}
        monkeypatch.setattr(module, "_file_systems", lambda types=types: types)
        assert module._state(root)[1] == kind
    monkeypatch.setattr(module, "_file_systems", dict)
    assert module._state(root)[1] == "names"


def test_mounts_are_known_by_their_device():
    assert module._file_systems()[os.stat("/proc").st_dev] == "proc"


def test_a_test_split_depends_on_the_training_classes(tmp_path, cache, mount):
    root = write_folder(
        tmp_path / "set", train={"a": 1, "c": 1}, test={"a": 1, "c": 1}, test_name="val"
    )
    assert open_dataset("folder", root).split("test").index.labels.tolist() == [0, 1]
    (root / "train" / "b").mkdir()
    (root / "train" / "b" / "x.png").write_bytes(b"")
    assert open_dataset("folder", root).split("test").index.labels.tolist() == [0, 2]
    (root / "test" / "b").mkdir(parents=True)
    (root / "test" / "b" / "y.png").write_bytes(b"")
    assert open_dataset("folder", root).split("test").index.paths == ["test/b/y.png"]


def test_images_that_were_moved_have_other_paths(tmp_path, cache, mount):
    """The lists stay the same; where the images lie decides how the paths begin."""
    write_clothing1m(tmp_path / "c", "B")
    before = open_dataset("clothing1m", tmp_path / "c").split("val").index.paths[:]
    for folder in (tmp_path / "c" / "images").iterdir():
        folder.rename(tmp_path / "c" / folder.name)
    (tmp_path / "c" / "images").rmdir()
    after = open_dataset("clothing1m", tmp_path / "c").split("val")
    assert after.index.paths == [path.removeprefix("images/") for path in before]
    assert after.images.read(0)

    write_food101n(tmp_path / "f", "sibling")
    before = open_dataset("food101n", tmp_path / "f").split("test").index.paths[:]
    shutil.copytree(tmp_path / "food-101", tmp_path / "f" / "food-101")
    after = open_dataset("food101n", tmp_path / "f").split("test").index.paths
    assert after == [path.removeprefix("../") for path in before]


def test_a_source_that_has_just_changed_is_not_cached(root, cache, calls, monkeypatch):
    monkeypatch.setattr(module, "_SETTLE_NS", 2 * 10**9)
    for path in [root, *root.rglob("*")]:
        os.utime(path, (1e9, 1e9))  # a time that anybody can set
    for _ in range(2):
        open_dataset("folder", root).split("train")
    assert calls == ["train", "train"]
    assert not list(cache.rglob("*"))


def test_a_list_that_changes_while_it_is_read_is_not_cached(tmp_path, cache, monkeypatch):
    path = tmp_path / "set.csv"
    write_table(path, [0, 1, 1])
    layout = datasets.LAYOUTS["table"]

    def read(found, split):
        listing = layout.read(found, split)
        before = path.stat()
        write_table(path, [1, 0, 1])
        copy_times(path, before)
        return listing

    with monkeypatch.context() as patch:
        patch.setitem(datasets.LAYOUTS, "table", replace(layout, read=read))
        open_dataset("table", path).split("train")
    assert open_dataset("table", path).split("train").index.labels.tolist() == [1, 0, 1]


def test_two_lists_in_one_folder_have_separate_caches(tmp_path, cache):
    for name, labels in (("one", [0, 1, 0]), ("two", [1, 0, 1])):
        write_table(tmp_path / f"{name}.csv", labels)
    for _ in range(2):
        for name, labels in (("one", [0, 1, 0]), ("two", [1, 0, 1])):
            split = open_dataset("table", tmp_path / f"{name}.csv").split("train")
            assert split.index.labels.tolist() == labels


def test_whatever_the_reader_depends_on_is_part_of_the_key(tmp_path, cache):
    found = Found(tmp_path, "a folder")
    entries = [
        CacheEntry("folder", found, "train"),
        CacheEntry("table", found, "train"),
        CacheEntry("folder", found, "test"),
        CacheEntry("folder", replace(found, root=tmp_path / "x"), "train"),
        CacheEntry("folder", replace(found, column="clip"), "train"),
        CacheEntry("folder", replace(found, lists=(tmp_path / "x.csv",)), "train"),
    ]
    assert len({entry._folder for entry in entries}) == len(entries)
    described = CacheEntry("folder", replace(found, what="other words"), "train")
    assert described._folder == entries[0]._folder


def test_a_part_of_a_table_of_paths_is_stored_alone(tmp_path, cache):
    (tmp_path / "source").touch()
    paths = PathTable.of(["a", "bb", "ccc", "dddd"])
    whole = new_index(paths, np.array([0, 1, 1, 0]), ("x", "y"))
    part = paths.take(np.array([3, 1]))
    index = new_index(part, np.array([1, 0]), ("x", "y"), np.array([1, 1]))
    entry = CacheEntry("table", Found(tmp_path, ""), "train")
    entry.store(Listing(index, (tmp_path / "source",), remarks=("said",)), 2**62)
    stored = entry.load()
    assert stored.index.paths == ["dddd", "bb"]
    assert stored.index.clean_labels.tolist() == [1, 1]
    assert stored.remarks == ("said",)
    # Ids that are not those of a whole split are not stored.
    other = CacheEntry("table", Found(tmp_path, ""), "test")
    other.store(Listing(whole.take(np.array([1, 3])), (tmp_path / "source",)), 2**62)
    assert other.load() is None


def cut(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])


def damage(path, harm):
    data = path.read_bytes()
    if harm == "missing":
        path.unlink()
    elif harm == "not an array":
        path.write_bytes(b"not an array")
    elif harm == "zip":
        path.write_bytes(b"PK\x03\x04" + data)
    elif harm == "zeros":
        path.write_bytes(data[:128] + bytes(len(data) - 128))
    elif harm == "fifo":
        path.unlink()
        os.mkfifo(path)
    elif harm == "folder":
        path.unlink()
        path.mkdir()
    elif harm == "huge":
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<i8", "fortran_order": False, "shape": (2**50,)}
            )
    else:
        cut(path, float(harm))


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(
    "harm",
    ["missing", "not an array", "zip", "zeros", "fifo", "folder", "huge", "0", "0.3", "0.99"],
)
def test_damaged_arrays_are_read_again(tmp_path, cache, calls, name, harm):
    lines = [f"dir/{k}.jpg,{k % 2},{k % 2},train" for k in range(1000)] + ["9.jpg,0,0,test"]
    text = "\n".join(["path,label,clean_label,split", *lines]) + "\n"
    (tmp_path / "set.csv").write_text(text)
    before = open_dataset("table", tmp_path / "set.csv").split("train").index
    (path,) = cache.glob(f"*/{name}.npy")
    damage(path, harm)
    for count in (2, 2):  # the second time from the cache, which was written again
        after = open_dataset("table", tmp_path / "set.csv").split("train").index
        assert calls == ["train"] * count
        assert after.paths == before.paths
        assert after.labels.tolist() == before.labels.tolist()
        assert after.clean_labels.tolist() == before.clean_labels.tolist()


def test_paths_that_end_elsewhere_are_read_again(root, cache, calls):
    before = open_dataset("folder", root).split("train").index.paths[:]
    (path,) = cache.glob("*/paths.npy")
    blob = np.load(path)
    end = np.flatnonzero(blob == 0)[3]
    blob[end - 1 : end + 1] = blob[[end, end - 1]]
    np.save(path, blob)
    assert open_dataset("folder", root).split("train").index.paths == before
    assert calls == ["train", "train"]


@pytest.mark.parametrize("change", [{"version": 0}, {"class_names": 5}, {"sources": None},
                                    {"sources": [["x"]]}, {"arrays": 1}, {"remarks": 1},
                                    {"labels": ""}, "[]", "", "{", "1"])  # fmt: skip
def test_damaged_facts_are_read_again(root, cache, calls, change):
    open_dataset("folder", root).split("train")
    (facts,) = cache.glob("*/facts.json")
    whole = json.loads(facts.read_text())
    facts.write_text(change if isinstance(change, str) else json.dumps({**whole, **change}))
    assert len(open_dataset("folder", root).split("train")) == 10
    assert calls == ["train", "train"]


def test_a_cache_that_cannot_be_written_is_no_error(root, tmp_path, monkeypatch, cache, capfd):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path / "file"))
    assert len(open_dataset("folder", root).split("train")) == 10
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o500)
    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path / "cache"))
    assert len(open_dataset("folder", root).split("train")) == 10
    (tmp_path / "cache").chmod(0o700)
    assert capfd.readouterr().err.count("\n") <= 1


def without_home(monkeypatch):
    for name in ("ALR_FAST_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", dict().__getitem__)  # KeyError: a number without a name


def test_a_user_without_a_home_folder_has_no_cache(root, cache, calls, monkeypatch):
    without_home(monkeypatch)
    for _ in range(2):
        split = open_dataset("folder", root).split("train")
    assert calls == ["train", "train"]
    assert find_exclusions(split, "auto") is None
    with pytest.raises(UserError, match="set ALR_FAST_CACHE to a writable folder"):
        cache_folder()


def test_the_folder_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("ALR_FAST_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("ALR_FAST_CACHE", "")
    assert cache_folder() == tmp_path / ".cache" / "alr_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(cache_folder()) == "/x/alr_fast"


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_cached_files_follow_the_umask(root, cache, umask):
    before = os.umask(umask)
    try:
        open_dataset("folder", root).split("train")
    finally:
        os.umask(before)
    (entry,) = cache.iterdir()
    assert stat.S_IMODE(entry.stat().st_mode) == 0o777 & ~umask
    for path in entry.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
