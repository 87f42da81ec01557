"""Data sets of Hugging Face: Parquet files with the bytes of the images, and the folders that
``Dataset.save_to_disk`` writes.

A column contains the images, as bytes or with a path beside them, another one the labels.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.classes import ClassMap, alike, distinct, names_of_labels
from alr_fast.data.images.sources import ColumnImages
from alr_fast.data.index import PathTable
from alr_fast.data.inventory import scan
from alr_fast.data.layouts.arrow_folder import folders_on_disk, is_on_disk, table_on_disk
from alr_fast.data.layouts.base import Found, Layout, Listing, NoSplit, new_index
from alr_fast.data.layouts.image_columns import (
    bytes_of,
    check_types,
    group_of_parquet,
    image_columns,
    parquet_schema,
    read_parquet,
    stored_names,
)
from alr_fast.data.layouts.splits import SPLITS, role_in, role_of
from alr_fast.errors import UserError
from alr_fast.utils.text import some_names

LABELS = ("label", "labels", "fine_label", "class", "target", "category")
CLEAN_LABELS = ("clean_label", "clean_labels", "true_label")
_MOST_FOLDERS = 20
_LARGE_GROUP = 200  # rows, above which random reading is slow enough to say so


@dataclass(frozen=True)
class _Source:
    """Files of one data set.

    Attributes:
        files: Split -> Parquet files, or the one folder of `save_to_disk`.
        image: Column of the images.
        label: Column of the labels.
        clean: Column of the clean labels; None without one.
        on_disk: Whether these are folders of `save_to_disk`.
    """

    files: tuple[tuple[str, tuple[Path, ...]], ...]
    image: str
    label: str
    clean: str | None
    on_disk: bool


def find(root: Path, columns: Mapping[str, str] | None = None) -> Found | None:
    """Parquet files with images, in the folder or in one in it; or a folder of `save_to_disk`.

    Raises:
        UserError: A folder of `save_to_disk` cannot be read; or the columns are not there; or
            several data sets lie in the folder.
    """
    on_disk = is_on_disk(root)
    if on_disk:
        files = folders_on_disk(root)
        schema = table_on_disk(files["train"][0]).schema if "train" in files else None
    else:
        files = _parquet_files(root)
        schema = parquet_schema(files["train"][0]) if "train" in files else None
    if schema is None:
        return None
    columns = dict(columns or {})
    image = _column(schema, columns.get("path"), image_columns(schema), root)
    if image is None:
        return None
    names = [name for name in schema.names if name != image]
    label = columns.get("label") or next((name for name in LABELS if name in names), None)
    if label is None or label not in names:
        raise UserError(
            f"{root}: has images, but no column {label or ' or '.join(LABELS[:2])} of labels; name "
            f"one of {some_names(names) or 'none'} (label=NAME)",
            argument="columns" if label else None,
            value=label,
        )
    clean = columns.get("clean_label") or next((n for n in CLEAN_LABELS if n in names), None)
    source = _Source(tuple(files.items()), image, label, clean, on_disk)
    kind = "Arrow files of save_to_disk" if on_disk else "Parquet files with images"
    what = f"{kind} in {root} (columns {image} and {label}); splits {', '.join(files)}"
    lists = tuple(path for paths in files.values() for path in paths)
    return Found(root if root.is_dir() else root.parent, what, lists, detail=source)


def _column(schema: Any, asked: str | None, images: list[str], root: Path) -> str | None:
    if asked is None:
        return images[0] if images else None
    if asked not in images:
        return None  # a list of paths
    return asked


def _parquet_files(root: Path) -> dict[str, tuple[Path, ...]]:
    """Split -> files with images."""
    if root.is_file():
        return {"train": (root,)} if root.suffix.lower() == ".parquet" else {}
    places = [root, *(root / name for name in _names(root).folders[:_MOST_FOLDERS])]
    by_place: dict[Path, dict[str, list[Path]]] = {}
    for place in places:
        files = [place / n for n in _names(place).others if n.lower().endswith(".parquet")]
        files = [path for path in files if path.is_file()]  # no pipe, which would be waited for
        role = role_of(place.name) if place != root else None
        for path in files:
            split = role or role_in(path.stem) or "train"
            key = root if role else place
            by_place.setdefault(key, {}).setdefault(split, []).append(path)
    usable = {
        place: files
        for place, files in by_place.items()
        if "train" in files
        and (schema := parquet_schema(files["train"][0]))
        and image_columns(schema)
    }
    if len(usable) > 1:
        raise UserError(
            f"{root}: several data sets lie in it ({some_names([p.name for p in usable])}); pass "
            "the folder of one"
        )
    chosen = next(iter(usable.values())) if usable else {}
    return {split: tuple(chosen[split]) for split in SPLITS if split in chosen}


def _names(folder: Path) -> Any:
    try:
        return scan(folder, most=100_000)
    except OSError:
        return scan(folder, most=0)


def read(found: Found, split: str) -> Listing:
    """Lists the samples of a split in the order of their files; reads labels, but no images.

    Classes are those of the feature ``ClassLabel``, or the labels of the training samples. The path
    of a sample is the name that is stored with its image if these names differ, else its file and
    its position in it: ``train-00000-of-00002/00042``.

    Raises:
        NoSplit: There are no labelled samples for this split.
        UserError: A file cannot be read or lacks a column; or a label is missing or no class.
    """
    source = cast(_Source, found.detail)
    files = dict(source.files)
    wanted = (split, "val") if split == "test" else (split,)
    chosen = next((name for name in wanted if name in files), None)
    if chosen is None:
        raise NoSplit(f"{found.root}: no file of split {' or '.join(wanted)}")
    names, remarks = _class_names(source, files["train"])
    parts = [_read_part(source, path) for path in files[chosen]]
    given = np.concatenate([part.labels for part in parts])
    hidden = all(str(value) in ("-1", "-1.0") for value in given.tolist())
    if split != "train" and len(given) and hidden:
        raise NoSplit(f"{found.root}: the labels of split {chosen} are hidden (-1)")
    schema = _schema_of(source, files["train"][0])
    where = f"{found.root}, row {{}} of split {chosen}".format
    listed = _names_of_feature(schema, source.label)
    classes = _Classes(ClassMap(names), listed is not None, where)
    labels = classes.codes(given, listed)
    clean = None
    if source.clean is not None:
        values = np.concatenate([cast(Any, part.clean) for part in parts])
        clean = classes.codes(values, _names_of_feature(schema, source.clean))
    index = new_index(_paths(parts), labels, names, clean)
    images = ColumnImages(
        list(files[chosen]),
        partial(_group_on_disk if source.on_disk else group_of_parquet, column=source.image),
        np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.labels) for part in parts]),
        np.concatenate([np.repeat(np.arange(len(p.groups), dtype=np.int32), p.groups)
                        for p in parts]),
        np.concatenate([np.arange(rows) for part in parts for rows in part.groups]),
        index.paths,
    )  # fmt: skip
    largest = max((rows for part in parts for rows in part.groups), default=0)
    if not source.on_disk and largest > _LARGE_GROUP:
        remarks.append(
            f"split {chosen}: the Parquet files hold up to {largest:,} images in a group, which is "
            "read whole for each image; packed, they load faster"
        )
    return Listing(index, found.lists, images, tuple(remarks))


@dataclass(frozen=True)
class _Part:
    """Labels and names of the images in one file; ``groups`` are the numbers of rows of each."""

    path: Path
    labels: Any
    clean: Any
    names: list[str | None]
    groups: list[int]


def _read_part(source: _Source, path: Path) -> _Part:
    wanted = [source.label, *([source.clean] if source.clean else [])]
    if source.on_disk:
        table = table_on_disk(path)
        check_types(path, wanted, table.schema)
        groups = [len(chunk) for chunk in table.column(source.image).chunks]
        columns = [table.column(name).to_pylist() for name in wanted]
        names = stored_names(table.column(source.image))
    else:
        groups, columns, names = read_parquet(path, source.image, wanted)
    labels = [_objects(column) for column in columns]
    clean = labels[1] if source.clean else None
    return _Part(path, labels[0], clean, names or [None] * len(labels[0]), groups)


def _objects(values: list[Any]) -> Any:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _paths(parts: Sequence[_Part]) -> PathTable:
    names = [Path(name).name if name else "" for part in parts for name in part.names]
    if "" not in names and len(set(names)) == len(names) and not any("\0" in n for n in names):
        return PathTable.of(names)

    def numbered() -> Iterator[str]:
        for part in parts:
            yield from (f"{part.path.stem}/{row:05d}" for row in range(len(part.labels)))

    return PathTable.of(numbered())


def _class_names(source: _Source, files: Sequence[Path]) -> tuple[tuple[str, ...], list[str]]:
    """Names of the classes, and lines about them."""
    names = _names_of_feature(_schema_of(source, files[0]), source.label)
    if names is None:
        places: dict[str, str] = {}
        for path in files:
            texts, first, _ = distinct(_read_part(source, path).labels)
            for text, row in zip(texts, first.tolist(), strict=True):
                places.setdefault(text, f"{path}, row {row}, column {source.label}")
        names = names_of_labels(list(places), where=list(places.values()).__getitem__)
    if len(names) < 2:
        raise UserError(f"{files[0].parent}: fewer than two classes; training needs two or more")
    return names, alike(names)


@dataclass(frozen=True)
class _Classes:
    """The classes, and how labels stand for them.

    Attributes:
        map: The classes.
        listed: Whether a feature names them; else they are the labels of training.
        where: ``where(row)`` names the place of a row in a message.
    """

    map: ClassMap
    listed: bool
    where: Callable[[int], str]

    def codes(
        self, values: NDArray[np.object_], names: tuple[str, ...] | None
    ) -> NDArray[np.int64]:
        """Class of each label, int64 [N].

        Args:
            values: Labels as they are stored, [N].
            names: Of the feature ``ClassLabel`` of their column, None without one. Integers count
                them, even if these names are numbers.
        """
        if names is not None and all(isinstance(value, int) for value in values.tolist()):
            numbers = values.astype(np.int64)
            wrong = np.flatnonzero((numbers < 0) | (numbers >= len(names)))
            if len(wrong):
                raise UserError(
                    f"{self.where(wrong[0])}: label {numbers[wrong[0]]} is none of the "
                    f"{len(names)} classes, which count from 0; correct or remove it"
                )
            if names == self.map.names:
                return numbers
            values = np.array(names, dtype=object)[numbers]
        return self.map.codes(values, where=self.where, argument=None, positions=self.listed)


def _schema_of(source: _Source, path: Path) -> Any:
    return table_on_disk(path).schema if source.on_disk else parquet_schema(path)


def _names_of_feature(schema: Any, label: str) -> tuple[str, ...] | None:
    """Names in the metadata of `datasets`: the feature ``ClassLabel``."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])["info"]
        names = info["features"][label]["names"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names) if len(set(names)) == len(names) else None


def _group_on_disk(path: Path, group: int, *, column: str) -> Any:
    return bytes_of(table_on_disk(path).column(column).chunk(group))


LAYOUT = Layout(
    "huggingface",
    "Parquet files with the bytes of the images and a column label, or a folder of save_to_disk",
    find,
    read,
    SPLITS,
    options=("columns",),
)
