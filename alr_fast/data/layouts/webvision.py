"""WebVision 1.0, its first 50 classes (mini-WebVision), and the ILSVRC12 validation images as a
second test set.

``info/{train_filelist_google,train_filelist_flickr,val_filelist}.txt``, ``info/synsets.txt``,
images in ``google/``, ``flickr/`` and ``val_images_256/``
"""

import os
from functools import partial
from pathlib import Path

import numpy as np

from alr_fast.data.index import PathTable
from alr_fast.data.layouts.base import (
    IMAGE_SUFFIXES,
    Found,
    Layout,
    Listing,
    list_images,
    new_index,
    present,
)
from alr_fast.data.layouts.lists import SampleList, joined, numbered_lines, read_list, shown
from alr_fast.errors import UserError
from alr_fast.utils.files import open_regular

MINI_CLASSES = 50
_VAL_IMAGES = "val_images_256"
_LIST_OF = {
    "google": "info/train_filelist_google.txt",
    "flickr": "info/train_filelist_flickr.txt",
    "test": "info/val_filelist.txt",
}
_SYNSETS = "info/synsets.txt"


def find(root: Path) -> Found | None:
    """A root with both lists of training images and the folder of Flickr's images."""
    needed = (root / _LIST_OF["google"], root / _LIST_OF["flickr"])
    if not all(path.is_file() for path in needed) or not (root / "flickr").is_dir():
        return None
    return Found(root, f"WebVision 1.0 in {root}")


def find_mini(root: Path) -> Found | None:
    """A root with the list of Google's images; Flickr's are not needed."""
    if not (root / _LIST_OF["google"]).is_file():
        return None
    return Found(root, f"mini-WebVision, the first {MINI_CLASSES} classes of Google's in {root}")


def read(found: Found, split: str, mini: bool = False) -> Listing:
    """Lists one split in the order of its lists, in ``train`` Google's images before Flickr's.

    Args:
        found: The root.
        split: ``train``, ``test`` (the validation images), or one source of the training images.
        mini: Only Google's images of the first 50 classes. Ids number these images.

    Raises:
        UserError: A list or a folder of images is missing; or a label is out of range, a path
            leaves the root or repeats an earlier one: the message names list and line.
    """
    root = found.root
    names = class_names(root)
    parts = {"train": ("google",) if mini else ("google", "flickr")}.get(split, (split,))
    tables, labels, sources = [], [], [root / _SYNSETS]
    for part in parts:
        path = present(root / _LIST_OF[part])
        prefix = f"{_VAL_IMAGES}/" if part == "test" else ""
        present(root / (prefix or part), "unpack the images there")
        keep = MINI_CLASSES if mini else None
        table, values = read_list(path, len(names), root=root, prefix=prefix, keep=keep)
        tables.append(table)
        labels.append(values)
        sources.append(path)
    kept = names[:MINI_CLASSES] if mini else names
    return Listing(new_index(joined(tables), np.concatenate(labels), kept), tuple(sources))


def wnids(root: Path) -> list[str]:
    """WordNet ids of the classes, in the order of the labels."""
    return [wnid for wnid, _ in _synsets(root / _SYNSETS)]


def class_names(root: Path) -> tuple[str, ...]:
    """First name of each class, with its WordNet id if several classes have that name.

    ImageNet has two cranes and two maillots, but names must be unique.
    """
    synsets = _synsets(root / _SYNSETS)
    names = [name for _, name in synsets]
    return tuple(name if names.count(name) == 1 else f"{name} ({wnid})" for wnid, name in synsets)


def _synsets(path: Path) -> list[tuple[str, str]]:
    """WordNet id and first name on each line, such as ``n01440764 tench, Tinca tinca``."""
    synsets = []
    for number, line in numbered_lines(path):
        wnid, *rest = line.decode("utf-8", "replace").split(None, 1)
        name = rest[0].split(",", 1)[0].strip() if rest else ""
        if not name or not _is_wnid(wnid):
            raise UserError(
                f"{path}, line {number}: expected 'n01440764 name, ...', found {shown(line)}; "
                "restore it from the download"
            )
        synsets.append((wnid, name))
    if len({wnid for wnid, _ in synsets}) != len(synsets):
        raise UserError(f"{path}: lists a WordNet id twice; restore it from the download")
    return synsets


def _is_wnid(text: str) -> bool:
    return len(text) == 9 and text[0] == "n" and text[1:].isdecimal()


def read_ilsvrc12(
    root: Path, wnids: list[str], class_names: tuple[str, ...]
) -> tuple[Found, Listing]:
    """Lists the ILSVRC12 validation images of some classes, as a second test set.

    There are three forms: ``val/<WordNet id>/*``; ``val/<number>/*``, where classes are numbered in
    the order of their WordNet ids; and images in ``val/`` with a list of ``file target`` lines,
    where a target is a WordNet id or such a number. The ids of the development kit are other
    numbers, and its file of them is not such a list. Images of other classes are left out.

    Args:
        root: The folder that contains ``val/``, or ``val`` itself.
        wnids: WordNet ids of the K classes in the order of their labels. If classes are numbered,
            these must be the first K of all by WordNet id, as for WebVision.
        class_names: Names of the K classes.

    Returns:
        Folder of the images, and their list, sorted by class folder or in the order of the list.

    Raises:
        UserError: There are no such images, a class has none, or the list is wrong; the message
            names the line.
    """
    present(root, "pass the folder of the ILSVRC12 validation images")
    folder = root / "val" if (root / "val").is_dir() else root
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    for number, wnid in enumerate(sorted(wnids)):
        label_of[str(number)] = label_of[wnid]
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    classes = [name for name in names if _is_wnid(name) or name.isdecimal()]
    if classes:
        if any(map(_is_wnid, classes)) and not all(map(_is_wnid, classes)):
            raise UserError(f"{folder}: has folders of WordNet ids and of numbers; keep one kind")
        form = "class folders"
        listing = _class_folders(folder, classes, label_of, class_names)
    else:
        path = _target_list(root, folder)
        form = f"with the list {path}"
        listing = _target_lines(path, folder, label_of, class_names)
    counts = np.bincount(listing.index.labels, minlength=len(wnids))
    if not counts.all():
        k = int(np.flatnonzero(counts == 0)[0])
        raise UserError(
            f"{folder}: no images of class {wnids[k]} ({class_names[k]}); restore them from the "
            "download"
        )
    return Found(folder, f"ILSVRC12 validation images in {folder}, {form}"), listing


def _class_folders(
    folder: Path, classes: list[str], label_of: dict[str, int], class_names: tuple[str, ...]
) -> Listing:
    chosen = [name for name in classes if _key(name) in label_of]
    chosen.sort(key=lambda name: _key(name).zfill(9))  # 2 before 10
    samples = [(name, file) for name in chosen for file in list_images(folder / name)]
    paths = PathTable.of(f"{name}/{file}" for name, file in samples)
    labels = np.array([label_of[_key(name)] for name, _ in samples], dtype=np.int64)
    sources = (folder, *(folder / name for name in chosen))
    return Listing(new_index(paths, labels, class_names), sources)


def _key(target: str) -> str:
    return str(int(target)) if target.isdecimal() else target  # 007 is 7


def _target_list(root: Path, folder: Path) -> Path:
    """The list for images without class folders, beside them or beside ``val/``."""
    lists = sorted({path for base in (root, folder) for path in base.glob("*.txt")
                    if path.is_file()})  # fmt: skip
    fitting = []
    for path in lists:
        try:
            with open_regular(path) as file:
                first = file.readline(4096).split()
        except OSError:
            continue
        if len(first) == 2 and first[0].decode("utf-8", "replace").lower().endswith(IMAGE_SUFFIXES):
            fitting.append(path)
    # ILSVRC12 has lists of several splits; that of the validation images is val.txt.
    chosen = [path for path in fitting if path.name == "val.txt"] or fitting
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        state = f"several lists ({', '.join(path.name for path in chosen)}); keep one"
    else:
        seen = f"; {', '.join(path.name for path in lists)} is not such a list" if lists else ""
        state = f"no class folders and no list of 'file target' lines in a .txt file{seen}"
    raise UserError(
        f"{folder}: {state}; looked for val/<WordNet id>/*, val/<number>/*, or images with a list"
    )


def _target_lines(
    path: Path, folder: Path, label_of: dict[str, int], class_names: tuple[str, ...]
) -> Listing:
    samples = SampleList(path, root=folder)
    beside = os.fsencode(folder.name) + b"/"
    for number, line in numbered_lines(path):
        name, *target = line.rsplit(None, 1)
        key = _key(target[0].decode("ascii", "replace")) if target else ""
        if not key.isdecimal() and not _is_wnid(key):
            raise UserError(
                f"{path}, line {number}: expected 'file target', found {shown(line)}; a target is "
                "a WordNet id or the number of a class"
            )
        if key in label_of:
            samples.add(name.removeprefix(beside), label_of[key], number)
    index = new_index(samples.paths(), samples.labels(), class_names)
    return Listing(index, (path,))


WEBVISION = Layout(
    "webvision",
    "info/train_filelist_google.txt and info/train_filelist_flickr.txt, with google/, flickr/ and "
    "val_images_256/",
    find,
    read,
    ("train", "test", "google", "flickr"),
    ("info", "google", "flickr", _VAL_IMAGES),
)
MINI = Layout(
    "webvision-mini",
    "info/train_filelist_google.txt, with google/ and val_images_256/",
    find_mini,
    partial(read, mini=True),
    marks=("info", "google", _VAL_IMAGES),
)
