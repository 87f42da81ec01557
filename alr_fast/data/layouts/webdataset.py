"""Shards of WebDataset that others wrote: tar files with ``<key>.jpg`` and ``<key>.cls`` or
``<key>.json``. They are read where they lie: an index of their members is built on opening.

`alr_fast.data.layouts.packed` reads shards of this library, which have an index.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np

from alr_fast.data.classes import ClassMap, alike, distinct, names_of_labels
from alr_fast.data.images.sources import ShardImages
from alr_fast.data.index import PathTable
from alr_fast.data.inventory import IMAGE_SUFFIXES, scan
from alr_fast.data.layouts.base import Found, Layout, Listing, NoSplit, new_index
from alr_fast.data.layouts.packed import allow_open_files
from alr_fast.data.layouts.splits import SPLITS, role_in, role_of
from alr_fast.data.tar_members import Member, members
from alr_fast.errors import UserError
from alr_fast.utils.files import open_regular
from alr_fast.utils.text import some_names

_MANY = 200_000  # samples, whose index takes ten seconds
_PROBE = 16  # members of a shard that `find` looks at
_MOST_LABEL = 1 << 20  # bytes of a member with a label
_KEYS = ("label", "cls", "class", "class_id", "class_name", "target", "category")


def find(root: Path, columns: Mapping[str, str] | None = None) -> Found | None:
    """Tar files with images and labels, in the folder or in folders of splits."""
    label = dict(columns or {}).get("label")
    shards = _shards(root)
    if "train" not in shards:
        return None
    suffixes = _suffixes(shards["train"][0])
    if suffixes is None:
        return None
    source = label or next((name for name in ("cls", "json") if name in suffixes), None)
    if source is None:
        return None
    number = sum(map(len, shards.values()))
    what = f"{number:,} WebDataset shards in {root} (splits {', '.join(shards)})"
    lists = tuple(path for paths in shards.values() for path in paths)
    folder = root if root.is_dir() else root.parent
    return Found(folder, what, lists, detail=(tuple(shards.items()), source))


def _shards(root: Path) -> dict[str, tuple[Path, ...]]:
    """Split -> its shards, by their names and the folders that they lie in."""
    if root.is_file():
        return {"train": (root,)} if root.suffix.lower() == ".tar" else {}
    shards: dict[str, list[Path]] = {}
    top = scan(root, most=100_000)
    for folder in ("", *(name for name in top.folders if role_of(name))):
        files = scan(root, folder, 100_000).others if folder else top.others
        for name in files:
            if name.lower().endswith(".tar"):
                split = role_of(folder) or role_in(Path(name).stem) or "train"
                shards.setdefault(split, []).append(root / folder / name)
    return {split: tuple(shards[split]) for split in SPLITS if split in shards}


def _suffixes(shard: Path) -> set[str] | None:
    """Suffixes of the first samples without their dot; None if these are no samples."""
    keys: dict[str, set[str]] = {}
    try:
        for number, member in enumerate(members(shard)):
            if number == _PROBE:
                break
            key, suffix = _split_name(member.name)
            keys.setdefault(key, set()).add(suffix)
    except UserError:
        return None
    whole = [found for found in keys.values() if len(found) > 1 and _image(found)]
    return set.union(*whole) if whole else None


def _split_name(name: str) -> tuple[str, str]:
    """Key and suffix: the name is divided at the first dot behind the last slash."""
    folder, slash, base = name.rpartition("/")
    key, _, suffix = base.partition(".")
    return f"{folder}{slash}{key}", suffix.lower()


def _image(suffixes: Mapping[str, object] | set[str]) -> str | None:
    return next((suffix for suffix in suffixes if f".{suffix}" in IMAGE_SUFFIXES), None)


class _Samples:
    """The samples of one split."""

    def __init__(self) -> None:
        self.shard: list[int] = []
        self.offset: list[int] = []
        self.size: list[int] = []
        self.paths: list[str] = []
        self.labels: list[str] = []
        self.others = 0  # without an image or a label

    def add(self, number: int, path: Path, source: str) -> None:
        """Adds those of a shard."""
        with open_regular(path) as file:
            key, sample = None, dict[str, Member]()
            prefix = f"{path.stem}/"
            for member in members(path):
                own, suffix = _split_name(member.name)
                if own != key:
                    self._add(number, prefix, file.fileno(), key, sample, source)
                    key, sample = own, {}
                sample.setdefault(suffix, member)
            self._add(number, prefix, file.fileno(), key, sample, source)

    def _add(
        self,
        number: int,
        prefix: str,
        file: int,
        key: str | None,
        sample: dict[str, Member],
        source: str,
    ) -> None:
        if key is None:
            return
        image, label = _image(sample), _label(sample, source, file)
        if image is None or label is None:
            self.others += 1
            return
        self.shard.append(number)
        self.offset.append(sample[image].offset)
        self.size.append(sample[image].size)
        self.paths.append(f"{prefix}{key}.{image}")
        self.labels.append(label)


def _label(sample: dict[str, Member], source: str, file: int) -> str | None:
    """The label of a sample: the text of a member, or a value of its JSON; None without one."""
    direct = sample.get(source)
    if source != "json" and direct is not None:
        return _content(direct, file).decode("utf-8", "surrogateescape").strip()
    if "json" not in sample:
        return None
    try:
        content = json.loads(_content(sample["json"], file))
    except (ValueError, RecursionError):  # the latter of brackets in brackets
        return None
    if not isinstance(content, dict):
        return None
    keys = _KEYS if source == "json" else (source,)
    value = next((content[key] for key in keys if key in content), None)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _content(member: Member, file: int) -> bytes:
    return os.pread(file, min(member.size, _MOST_LABEL), member.offset)


def read(found: Found, split: str) -> Listing:
    """Lists the samples of a split in the order of its shards.

    Classes are the labels of the training samples. The path of a sample is its shard and its name
    in it: ``train-000000/n01440764_18.jpg``.

    Raises:
        NoSplit: There are no shards for this split.
        UserError: A shard is damaged or names a sample twice; or a label is missing or no class.
    """
    shards, source = cast(tuple, found.detail)
    shards = dict(shards)
    wanted = (split, "val") if split == "test" else (split,)
    chosen = next((name for name in wanted if name in shards), None)
    if chosen is None:
        raise NoSplit(f"{found.root}: no shards of split {' or '.join(wanted)}")
    train = _samples(shards["train"], source)
    samples = train if chosen == "train" else _samples(shards[chosen], source)
    texts, first, _ = distinct(np.array(train.labels, dtype=object))
    names = names_of_labels(texts, where=lambda k: train.paths[first[k]])
    if len(names) < 2:
        raise UserError(f"{found.root}: fewer than two classes; training needs two or more")
    labels = ClassMap(names).codes(
        np.array(samples.labels, dtype=object),
        where=lambda row: samples.paths[row],
        argument=None,
        positions=False,
    )
    if len(set(samples.paths)) < len(samples.paths):
        twice, _ = Counter(samples.paths).most_common(1)[0]
        raise UserError(
            f"{found.root}: two samples are called {twice}; rename a shard or one of them"
        )
    table = PathTable.of(samples.paths)
    index = new_index(table, labels, names)
    allow_open_files(len(shards[chosen]))
    images = ShardImages(
        list(shards[chosen]),
        np.array(samples.shard, dtype=np.int32),
        np.array(samples.offset, dtype=np.int64),
        np.array(samples.size, dtype=np.int64),
        table,
        {p: "the file is empty" for p, size in zip(samples.paths, samples.size, strict=True)
         if not size},
    )  # fmt: skip
    remarks = alike(names)
    if len(table) > _MANY:
        remarks.append(
            f"split {chosen}: the index of {len(table):,} samples is built whenever the data is "
            "opened; packed, it opens at once"
        )
    if samples.others:
        remarks.append(
            f"split {chosen}: {samples.others:,} samples without an image or a label are left out"
        )
    return Listing(index, tuple(shards[chosen]), images, tuple(remarks))


def _samples(shards: tuple[Path, ...], source: str) -> _Samples:
    samples = _Samples()
    for number, path in enumerate(shards):
        samples.add(number, path, source)
    if not samples.paths:
        raise UserError(
            f"{some_names([path.name for path in shards])}: no sample with an image and a label "
            f"{source}; name another as columns (label=NAME)"
        )
    return samples


LAYOUT = Layout(
    "webdataset",
    "tar files with <key>.jpg and <key>.cls or <key>.json",
    find,
    read,
    SPLITS,
    options=("columns",),
)
