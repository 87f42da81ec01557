"""Data sets of `alr-fast data pack`: tar files (shards) and an index.

``packed.json``, ``<split>-000000.tar`` and so on, ``index/<split>.*.npy``

Ids, paths and labels are those of the original data set. Its fingerprint stays the same, so its
exclusion lists, label files and label banks remain valid.
"""

import resource
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.columns import read_column
from alr_fast.data.images.sources import ShardImages
from alr_fast.data.index import SampleIndex
from alr_fast.data.layouts.base import Found, Layout, Listing, NoSplit
from alr_fast.data.layouts.packed_format import (
    INDEX_FOLDER,
    MANIFEST,
    changed,
    check_members,
    check_records,
    check_sizes,
    column_file,
    pack_command,
    read_manifest,
    records_digest,
    remedy,
    sha256_of,
)
from alr_fast.errors import UserError
from alr_fast.utils.text import error_text

# The splits of all layouts; the manifest lists those that were packed.
SPLITS = ("train", "test", "val", "clean_train", "google", "flickr")
# Shard, int32 [N], offset and size, int64 [N], of each row's record.
Records = tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]
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
            f"{', '.join(manifest['splits'])}; add it with `{pack_command(root, '--split', split)}`"
        )
    if plan["shards"] is None:
        raise UserError(
            f"{root}: packing of the split {split} was interrupted; call `{pack_command(root)}` "
            "again, as before"
        )
    shards = check_sizes(root, plan["shards"])
    index, records = _index_of(root, split, plan)
    allow_open_files(len(shards))
    left_out = dict(plan["left_out"].values())
    return Listing(index, images=ShardImages(shards, *records, index.paths, left_out))


def _damaged_index(root: Path, split: str, error: Exception) -> UserError:
    return UserError(
        f"{root / INDEX_FOLDER}: the index of the split {split} is damaged ({error_text(error)}); "
        f"{remedy(root)}"
    )


def _index_of(root: Path, split: str, plan: dict[str, Any]) -> tuple[SampleIndex, Records]:
    """As `_read_index`; raises `UserError`."""
    try:
        return _read_index(root, split, plan)
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        raise _damaged_index(root, split, error) from error


def _read_index(root: Path, split: str, plan: dict[str, Any]) -> tuple[SampleIndex, Records]:
    """Samples of a split, and the shard, offset and size of their records.

    Raises:
        OSError: A file is missing or cannot be read.
        ValueError: A file is damaged, or does not belong to the shards.
    """
    file = partial(column_file, root / INDEX_FOLDER, split)
    index = SampleIndex.load(file, plan["class_names"], has_clean_labels=plan["clean_labels"])
    shard = read_column(file("shard"), np.int32)
    offset, size = (read_column(file(name), np.int64) for name in ("offset", "size"))
    if any(len(column) != plan["count"] for column in (index.labels, shard, offset, size)):
        raise ValueError("its columns have different lengths")
    check_records(shard, offset, size, [known["bytes"] for known in plan["shards"]])
    left_out = [int(sample_id) for sample_id in plan["left_out"]]
    if sorted(left_out) != np.flatnonzero(shard < 0).tolist():
        raise ValueError(f"other samples lack a record than {MANIFEST} says")
    if any(index.paths[int(key)] != path for key, (path, _) in plan["left_out"].items()):
        raise ValueError(f"its paths are not those in {MANIFEST}")
    if index.sample_fingerprint() != plan["sample_fingerprint"]:
        raise ValueError("samples that are not those that were packed")
    if index.label_fingerprint() != plan["label_fingerprint"]:
        raise ValueError("labels that are not those that were packed")
    columns = {"shard": shard, "offset": offset, "size": size}
    if index.clean_labels is not None:
        columns["clean_labels"] = index.clean_labels
    if plan.get("records", digest := records_digest(columns)) != digest:
        raise ValueError("records that are not those that were packed")
    return index, (shard, offset, size)


def check_shards(
    found: Found, splits: Iterable[str], progress: Callable[[list], Iterable] = iter
) -> None:
    """Reads every shard of these splits and compares its checksum.

    Args:
        found: The packed folder.
        splits: Names of splits, empty for all. Those that were not packed are skipped.
        progress: Wraps the iteration over the shards.

    Raises:
        UserError: A shard has changed, or the index does not fit it.
        OSError: A file cannot be read.
    """
    manifest = read_manifest(found.root)["splits"]
    work: list[_ShardCheck] = []
    for name in list(splits) or manifest:
        plan = manifest.get(name)
        if plan is not None and plan["shards"] is not None:
            work += _shard_checks(found.root, name, plan)
    for check in progress(work):
        try:
            if sha256_of(check.path) != check.sha256:
                raise changed(check.path, "its checksum has changed")
            check_members(check.path, check.rows, check.offset, check.size)
        except UserError:
            raise
        except ValueError as error:
            raise _damaged_index(found.root, check.split, error) from error


class _ShardCheck(NamedTuple):
    """A shard, and the rows, offsets and sizes of its records according to the index."""

    split: str
    path: Path
    sha256: str
    rows: NDArray[np.int64]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]


def _shard_checks(root: Path, split: str, plan: dict[str, Any]) -> Iterator[_ShardCheck]:
    paths = check_sizes(root, plan["shards"])
    _, (shard, offset, size) = _index_of(root, split, plan)
    rows = np.flatnonzero(shard >= 0)
    parts = np.split(rows, np.flatnonzero(np.diff(shard[rows])) + 1)
    for path, known, part in zip(paths, plan["shards"], parts, strict=True):
        yield _ShardCheck(split, path, known["sha256"], part, offset[part], size[part])


def allow_open_files(shards: int) -> None:
    """Raises the limit of open files, often 1024, as every shard stays open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = shards + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


LAYOUT = Layout("packed", f"{MANIFEST} of `alr-fast data pack`", find, read, SPLITS)
