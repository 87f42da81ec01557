"""The cache folder, and the lists of samples in it.

Listing millions of samples takes seconds, opening a stored list less than one. A stored list is
taken only if what it was read from is the same: lists by their content, folders by the names in
them. Times replace the names of a folder only on file systems that keep them, see `_state`.
"""

import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import stat
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.index import SampleIndex
from alr_fast.data.layouts.base import Found, Listing
from alr_fast.errors import UserError
from alr_fast.utils.files import open_regular
from alr_fast.utils.system import NO_HOME, home_folder

_VERSION = 4  # of the stored lists: raise it when a reader lists the same files in another way
_SETTLE_NS = 2 * 10**9  # a younger file may change again without a change of its times
_BLOCK = 1 << 22  # bytes that are hashed at once

# File systems that set the time of a folder's last change (ctime, which users cannot set back)
# themselves and finely. Others report the time of the mount, 0, or that of another machine's files.
_KEEP_TIMES = {
    *("bcachefs", "beegfs", "btrfs", "ceph", "ext2", "ext3", "ext4", "f2fs", "gpfs", "lustre"),
    *("nfs", "nfs4", "overlay", "tmpfs", "xfs", "zfs"),
}


def cache_folder() -> Path:
    """The folder of indices and exclusion lists: ``ALR_FAST_CACHE``, else ``alr_fast`` in the
    user's cache folder (``XDG_CACHE_HOME``, ``~/.cache``).

    Raises:
        UserError: The user has no home folder, and no other is named.
    """
    given, shared = os.environ.get("ALR_FAST_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(os.path.expanduser(given))
    home = home_folder()
    if not shared and home == NO_HOME:
        raise UserError(
            "there is no home folder for the cache; set ALR_FAST_CACHE to a writable folder"
        )
    return (Path(shared) if shared else home / ".cache") / "alr_fast"


class CacheEntry:
    """The stored list of one split: arrays, and facts about them and their sources.

    Without a usable cache folder `load` finds nothing and `store` writes nothing.

    Args:
        layout: Name of the layout.
        found: What the layout found.
        split: Name of the split.
    """

    def __init__(self, layout: str, found: Found, split: str) -> None:
        # All that a reader depends on; `what` describes it.
        lists = tuple(path.absolute() for path in found.lists)
        place = dataclasses.replace(found, what="", root=found.root.absolute(), lists=lists)
        key = repr((layout, split, place))
        name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        try:
            self._folder: Path | None = cache_folder() / "index" / name
        except UserError:
            self._folder = None

    def load(self) -> Listing | None:
        """The stored list; None if there is none, it is damaged, or its sources have changed."""
        folder = self._folder
        if folder is None:
            return None
        try:
            with open_regular(folder / "facts.json") as file:
                facts = json.load(file)
            if facts["version"] != _VERSION or not all(map(_unchanged, facts["sources"])):
                return None
            index = SampleIndex.load(
                lambda name: self._file(folder, name),
                facts["class_names"],
                has_clean_labels="clean_labels" in facts["arrays"],
            )
            if _digest(index) != facts["labels"]:
                return None
            return Listing(index, remarks=tuple(facts["remarks"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def store(self, listing: Listing, began: int) -> None:
        """Stores a list, unless a source may have changed since reading began.

        Args:
            listing: The list.
            began: Time in ns when reading began.
        """
        if self._folder is None or not listing.sources or listing.images is not None:
            return
        if not np.array_equal(listing.index.sample_ids, np.arange(len(listing.index))):
            return  # `load` numbers them
        try:
            if any(os.stat(path).st_ctime_ns > began - _SETTLE_NS for path in listing.sources):
                return
            self._write(self._folder, listing, [_state(path) for path in listing.sources])
        except OSError:
            return  # without the cache, opening the data set only takes longer

    def _write(self, folder: Path, listing: Listing, sources: list[list[Any]]) -> None:
        index = listing.index
        blob, offsets = index.paths.compact()
        arrays: dict[str, NDArray[Any]] = {
            **{"paths": blob, "offsets": offsets},
            "labels": index.labels,
        }
        if index.clean_labels is not None:
            arrays["clean_labels"] = index.clean_labels
        facts = {
            "version": _VERSION,
            "sources": sources,
            "arrays": list(arrays),
            "class_names": index.class_names,
            "labels": _digest(index),
            "remarks": listing.remarks,
        }
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Not `tempfile.mkdtemp`, whose folder nobody else may read: a cache may be shared.
        fresh = folder.with_name(f".{folder.name}-{secrets.token_hex(8)}")
        fresh.mkdir()
        try:
            for name, array in arrays.items():
                with open(self._file(fresh, name), "xb") as file:
                    np.save(file, array)
            (fresh / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    @staticmethod
    def _file(folder: Path, name: str) -> Path:
        return folder / f"{name}.npy"


def _digest(index: SampleIndex) -> str:
    """SHA-256 (hex) of given and clean labels: a power cut may leave zeros in their files."""
    digest = hashlib.sha256(np.ascontiguousarray(index.labels, "<i8").data)
    if index.clean_labels is not None:
        digest.update(np.ascontiguousarray(index.clean_labels, "<i8").data)
    return digest.hexdigest()


def _state(path: Path, kind: str | None = None) -> list[Any]:
    """What must stay the same for a stored list to be valid: path, kind and value of a source.

    Kinds are ``content`` for a file, and for a folder ``times`` if its file system keeps them, else
    ``names``.

    Args:
        path: File or folder.
        kind: The kind to determine; None for the best one.

    Raises:
        OSError: It cannot be read.
    """
    found = os.stat(path)
    if not stat.S_ISDIR(found.st_mode):
        return [os.fspath(path.absolute()), "content", _content(path)]
    if kind is None:
        # A time without a fraction of a millisecond comes from a coarse clock, or was made up.
        fine = found.st_ctime_ns % 10**6 != 0
        known = fine and _file_systems().get(found.st_dev) in _KEEP_TIMES
        kind = "times" if known else "names"
    times = [found.st_ino, found.st_ctime_ns, found.st_mtime_ns]
    value = _names(path) if kind == "names" else times
    return [os.fspath(path.absolute()), kind, value]


def _unchanged(state: list[Any]) -> bool:
    path, kind, _ = state
    return _state(Path(path), kind) == state


def _content(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _names(folder: Path) -> str:
    """SHA-256 (hex) of the sorted names in a folder."""
    names = sorted(os.listdir(os.fsencode(folder)))
    return hashlib.sha256(b"\0".join(names)).hexdigest()


@cache
def _file_systems() -> dict[int, str]:
    """Device number -> type of each mounted file system; empty where it is unknown."""
    types = {}
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields = line.split()
                major, minor = fields[2].split(":")
                types[os.makedev(int(major), int(minor))] = fields[fields.index("-") + 1]
    except (OSError, ValueError, IndexError):
        return {}
    return types
