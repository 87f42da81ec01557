"""ANIMAL-10N: 64x64 photographs of ten animals that are easily confused.

``data_batch_*.bin`` and ``test_batch.bin``; or ``training/`` and ``testing/`` with
``<label>_<rest>.jpg``; or ``train/{0..9}/`` and ``test/{0..9}/``.
"""

import re
from pathlib import Path

import numpy as np

from alr_fast.data.images.sources import ArrayImages
from alr_fast.data.index import PathTable
from alr_fast.data.layouts.base import (
    IMAGE_SUFFIXES,
    Found,
    Layout,
    Listing,
    check_labels,
    list_images,
    new_index,
    numbered_paths,
    present,
)
from alr_fast.data.layouts.class_folders import list_class_folders
from alr_fast.errors import UserError

CLASSES = (
    *("cat", "lynx", "wolf", "coyote", "cheetah"),
    *("jaguar", "chimpanzee", "orangutan", "hamster", "guinea pig"),
)
SHAPE = (3, 64, 64)
RECORD = np.dtype([("id", "<i4"), ("label", "<i4"), ("pixels", "u1", SHAPE)])  # 12,296 bytes
_DIGITS = tuple(str(k) for k in range(len(CLASSES)))
_FLAT = {"train": "training", "test": "testing"}


def find(root: Path) -> Found | None:
    """One of the three forms.

    Folders ``train/{0..9}`` may be any data set of ten classes: for ``auto`` they are a plain
    folder of classes; they are read as ANIMAL-10N only if the user names this data set.
    """
    if _batches(root) and not (root / "batches.meta.txt").is_file():  # CIFAR-10 has that file
        return Found(root, f"ANIMAL-10N records in {root}")
    if all((root / name).is_dir() for name in _FLAT.values()):
        return Found(root, f"ANIMAL-10N images in {root}/training and {root}/testing")
    if all((root / split / digit).is_dir() for split in ("train", "test") for digit in _DIGITS):
        return Found(root, f"ANIMAL-10N images in {root}/train/0 to 9 and {root}/test/0 to 9")
    return None


def read(found: Found, split: str) -> Listing:
    """Lists one split: records in their order, image files in sorted order.

    Records contain the pixels, too, uint8 [N, 3, 64, 64]; the path of a sample is then its file and
    its position in the file: ``data_batch_1/00042``.

    Raises:
        UserError: A file or folder is missing, a record is incomplete, or a label is out of range;
            the message names the record or the image.
    """
    root = found.root
    if _batches(root):
        return _read_records(_batches(root) if split == "train" else [root / "test_batch.bin"])
    if (root / _FLAT["train"]).is_dir():
        return _read_flat(root / _FLAT[split])
    listing = list_class_folders(root, present(root / split), _DIGITS)
    index = listing.index
    return Listing(new_index(index.paths, index.labels, CLASSES), listing.sources)


def _batches(root: Path) -> list[Path]:
    """``data_batch_<number>.bin`` by number: 2 before 10."""
    return sorted((path for path in root.glob("*.bin") if _number(path) >= 0), key=_number)


def _number(path: Path) -> int:
    """Number in the name of a file of training records; -1 for other names."""
    match = re.fullmatch(r"data_batch_(\d+)", path.stem)
    return int(match[1]) if match else -1


def _read_records(files: list[Path]) -> Listing:
    counts = [_count(present(file)) for file in files]
    array = np.empty((sum(counts), *SHAPE), dtype=np.uint8)
    labels = np.empty(len(array), dtype=np.int64)
    first = 0
    for file, count in zip(files, counts, strict=True):
        if not count:
            continue  # an empty file cannot be memory-mapped
        records = np.memmap(file, dtype=RECORD, mode="r", shape=(count,))
        array[first : first + count] = records["pixels"]
        labels[first : first + count] = records["label"]
        check_labels(records["label"], len(CLASSES), str(file), "record")
        first += count
    paths = numbered_paths([file.stem for file in files], counts)
    index = new_index(paths, labels, CLASSES)
    return Listing(index, tuple(files), ArrayImages(array))


def _count(file: Path) -> int:
    if _number(file) > 1:  # the file before it must exist, too
        present(file.with_name(f"data_batch_{_number(file) - 1}.bin"))
    size = file.stat().st_size
    if size % RECORD.itemsize:
        raise UserError(
            f"{file}: {size} bytes are not a multiple of {RECORD.itemsize}, the size of a record; "
            "restore it from the download"
        )
    return size // RECORD.itemsize


def _read_flat(folder: Path) -> Listing:
    files = list_images(present(folder))
    if not files:
        raise UserError(f"{folder}: no images in it; looked for {' '.join(IMAGE_SUFFIXES)}")
    labels = np.empty(len(files), dtype=np.int64)
    for row, name in enumerate(files):
        label, separator, _ = name.partition("_")
        if not separator or label not in _DIGITS:
            raise UserError(
                f"{folder / name}: expected the name <label>_<rest>.jpg with a label from 0 to "
                f"{len(CLASSES) - 1}; rename or remove the file"
            )
        labels[row] = int(label)
    table = PathTable.of(f"{folder.name}/{name}" for name in files)
    return Listing(new_index(table, labels, CLASSES), (folder,))


LAYOUT = Layout(
    "animal10n",
    "data_batch_*.bin and test_batch.bin; training/ and testing/ with <label>_<rest>.jpg; or "
    "train/0 to 9 and test/0 to 9",
    find,
    read,
    marks=tuple(_FLAT.values()),
)
