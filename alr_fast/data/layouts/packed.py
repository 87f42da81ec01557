"""Data sets of `python -m alr_fast.data pack`: tar files (shards) and an index.

``packed.json``, ``<split>-000000.tar`` and so on, ``index/<split>.*.npy``

Ids, paths and labels are those of the original data set. Its fingerprint stays the same, so its
exclusion lists, label files and label banks remain valid.
"""

import hashlib
import json
import resource
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from alr_fast.data.images import ShardImages
from alr_fast.data.index import SampleIndex
from alr_fast.data.layouts.base import Found, Layout, Listing, NoSplit
from alr_fast.errors import UserError

MANIFEST = "packed.json"
VERSION = 1
INDEX_FOLDER = "index"
# The splits of all layouts; the manifest lists those that were packed.
SPLITS = ("train", "test", "val", "clean_train", "google", "flickr")
_PACK = "python -m alr_fast.data pack"
_SPARE_FILES = 256  # files that a process opens in addition to the shards


def find(root: Path) -> Found | None:
    """A folder with a manifest."""
    return Found(root, f"packed shards in {root}") if (root / MANIFEST).is_file() else None


def read(found: Found, split: str) -> Listing:
    """Lists a split; maps its index into memory and does not open its shards.

    Raises:
        NoSplit: The split was not packed.
        UserError: It was not packed completely; or shards or index have changed.
    """
    root = found.root
    manifest = read_manifest(root)
    plan = manifest["splits"].get(split)
    if plan is None:
        raise NoSplit(
            f"{root}: the split {split} was not packed, the folder has "
            f"{', '.join(manifest['splits'])}; add it with `{_PACK} ROOT {root} --split {split}`"
        )
    if plan["shards"] is None:
        raise UserError(
            f"{root}: packing of the split {split} was interrupted; call `{_PACK}` again"
        )
    shards = check_sizes(root, plan["shards"])
    file = partial(column_file, root / INDEX_FOLDER, split)
    try:
        index = SampleIndex.load(file, plan["class_names"], has_clean_labels=plan["clean_labels"])
        shard, offset, size = (np.load(file(name)) for name in ("shard", "offset", "size"))
        if any(column.shape != (plan["count"],) for column in (index.labels, shard, offset, size)):
            raise ValueError("columns of another length")
        if index.label_fingerprint() != plan["label_fingerprint"]:
            raise ValueError("labels that are not those that were packed")
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"{root / INDEX_FOLDER}: the index of the split {split} is damaged ({error}); call "
            f"`{_PACK}` again"
        ) from error
    allow_open_files(len(shards))
    left_out = dict(plan["left_out"].values())
    images = ShardImages(shards, shard, offset, size, index.paths, left_out)
    return Listing(index, images=images)


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a packed folder.

    Raises:
        UserError: It cannot be read, or a later version of this library wrote it.
    """
    path = root / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version, splits = manifest["version"], manifest["splits"]
        known = isinstance(splits, dict) and isinstance(version, int)
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise UserError(f"{path}: cannot be read as a manifest; pack the data set again")
    if version != VERSION:
        raise UserError(
            f"{path}: is of version {version}, this library reads {VERSION}; pack the data again"
        )
    return manifest


def check_sizes(root: Path, shards: list[dict[str, Any]]) -> list[Path]:
    """Paths of the shards, after a check of their sizes.

    Raises:
        UserError: One is missing or has another size.
    """
    paths = []
    for shard in shards:
        path = root / shard["name"]
        try:
            size = path.stat().st_size
        except OSError as error:
            raise _changed(path, error.strerror or str(error)) from error
        if size != shard["bytes"]:
            raise _changed(path, f"{size:,} bytes, {shard['bytes']:,} were written")
        paths.append(path)
    return paths


def check_shards(
    found: Found, splits: Iterable[str], progress: Callable[[list], Iterable] = iter
) -> None:
    """Reads every shard of these splits and compares its checksum.

    Args:
        found: The packed folder.
        splits: Names of splits, empty for all. Those that were not packed are skipped.
        progress: Wraps the iteration over the shards.

    Raises:
        UserError: A shard has changed.
    """
    manifest = read_manifest(found.root)
    names = list(splits) or manifest["splits"]
    plans = [manifest["splits"].get(name) or {} for name in names]
    shards = [shard for plan in plans for shard in plan.get("shards") or ()]
    check_sizes(found.root, shards)
    for shard in progress(shards):
        path = found.root / shard["name"]
        if sha256_of(path) != shard["sha256"]:
            raise _changed(path, "its checksum has changed")


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _changed(path: Path, change: str) -> UserError:
    return UserError(
        f"{path}: {change}; restore the shard, or delete it and call `{_PACK}` as before, which "
        "writes it again"
    )


def column_file(folder: Path, split: str, name: str) -> Path:
    """File of one column of a split's index."""
    return folder / f"{split}.{name}.npy"


def allow_open_files(shards: int) -> None:
    """Raises the limit of open files, often 1024, as every shard stays open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = shards + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


LAYOUT = Layout("packed", f"{MANIFEST} of `{_PACK}`", find, read, SPLITS)
