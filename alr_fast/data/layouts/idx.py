"""Files of MNIST and its relatives: ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``,
``t10k-...`` for testing, with or without ``.gz``.

Format: two zero bytes, the type (8 for unsigned bytes), the number of dimensions, each dimension
as big-endian int32, then the values.
"""

import gzip
import os
import re
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.classes import sort_names
from alr_fast.data.images.sources import ArrayImages
from alr_fast.data.inventory import scan
from alr_fast.data.layouts.base import Found, Layout, Listing, NoSplit, new_index, numbered_paths
from alr_fast.data.layouts.splits import role_in
from alr_fast.errors import UserError
from alr_fast.utils.files import open_regular
from alr_fast.utils.machine import available_memory
from alr_fast.utils.text import readable

_NAME = re.compile(r"(.*)(images|labels)[.-]idx[1-4][.-]ubyte(\.gz)?")
_MOST_BYTES = 1 << 40
_MOST_RATIO = 1100  # of bytes to those that gzip makes of them
_COPIES = 2  # of the values, while they are read and arranged


def find(root: Path) -> Found | None:
    """Images and labels for training, in the folder, in ``raw`` or in ``<name>/raw``."""
    if not root.is_dir():
        return None
    for folder in _folders(root):
        files = _files(folder)
        if "train" in files:
            where = f"idx files {files['train'][0].name} and {files['train'][1].name} in {folder}"
            return Found(folder, where, detail=tuple(sorted(files.items())))
    return None


def _folders(root: Path) -> list[Path]:
    inner = [root / name for name in scan(root, most=10_000).folders[:20]]
    return [root, *inner, *(path / "raw" for path in inner if (path / "raw").is_dir())]


def _files(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Split -> images and labels."""
    pairs: dict[str, dict[str, Path]] = {}
    try:
        names = scan(folder, most=10_000).others
    except OSError:
        return {}
    for name in names:
        found = _NAME.fullmatch(name)
        if found:
            split = "test" if "t10k" in found[1] else role_in(found[1]) or "train"
            pairs.setdefault(split, {}).setdefault(found[2], folder / name)
    return {split: (pair["images"], pair["labels"]) for split, pair in pairs.items()
            if len(pair) == 2}  # fmt: skip


def read(found: Found, split: str) -> Listing:
    """Reads a split: pixels uint8 [N, 1, S, S], or [N, 3, S, S].

    Classes are the labels of the training images. The path of a sample is its file and its position
    in it: ``train-images-idx3-ubyte/00042``.

    Raises:
        NoSplit: There are no files for testing.
        UserError: A file is damaged or of another type, or the numbers of images and labels differ.
    """
    files: Mapping[str, tuple[Path, Path]] = dict(cast(tuple, found.detail))
    if split not in files:
        raise NoSplit(f"{found.root}: no files {split}-images and {split}-labels")
    values = np.unique(_read(files["train"][1], (1,)))
    names = sort_names(map(str, values.tolist()))
    if len(names) < 2:
        raise UserError(f"{files['train'][1]}: fewer than two classes; training needs two or more")
    images, written = _read(files[split][0], (3, 4)), _read(files[split][1], (1,))
    path = files[split][0]
    if len(images) != len(written):
        raise UserError(
            f"{path}: {len(images):,} images for {len(written):,} labels; restore both files"
        )
    if images.ndim == 4:  # with the channels last or first
        images = images if images.shape[1] in (1, 3) else images.transpose(0, 3, 1, 2)
    else:
        images = images[:, None]
    if images.shape[1] not in (1, 3) or images.shape[2] != images.shape[3]:
        shape = " x ".join(map(str, images.shape[1:]))
        raise UserError(f"{path}: images of {shape}; must be squares of one or three channels")
    labels = np.searchsorted(values, written)
    wrong = np.flatnonzero(values[labels.clip(max=len(values) - 1)] != written)
    if len(wrong):
        raise UserError(
            f"{files[split][1]}: label {written[wrong[0]]} of image {wrong[0]} is not one of the "
            f"{len(names)} training classes; restore the file"
        )
    table = numbered_paths([path.name.removesuffix(".gz")], [len(images)])
    index = new_index(table, labels.astype(np.int64), names)
    return Listing(index, files[split], ArrayImages(np.ascontiguousarray(images)))


def _read(path: Path, dimensions: tuple[int, ...]) -> NDArray[np.uint8]:
    """The array in a file of unsigned bytes.

    Raises:
        UserError: It cannot be read, has another type or other dimensions, or another length.
    """
    try:
        with ExitStack() as stack:
            file: Any = stack.enter_context(open_regular(path))
            handle = file
            if path.suffix == ".gz":
                file = stack.enter_context(gzip.GzipFile(fileobj=file))
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0":
                raise UserError(f"{path}: does not begin like an idx file; download it again")
            if head[2] != 8 or head[3] not in dimensions:
                raise UserError(
                    f"{path}: has type {head[2]} and {head[3]} dimensions; must be unsigned bytes "
                    f"(8) of {' or '.join(map(str, dimensions))} dimensions"
                )
            sizes = file.read(4 * head[3]).ljust(4 * head[3], b"\0")
            shape = np.frombuffer(sizes, ">i4").astype(np.int64)
            size = int(np.prod(shape.astype(object)))
            length = os.fstat(handle.fileno()).st_size
            most = length - 4 - len(sizes) if file is handle else _MOST_RATIO * length
            if (shape < 1).any() or size > _MOST_BYTES:
                raise UserError(f"{path}: its dimensions are damaged; download it again")
            if size > most:
                raise _cut_off(path, size)
            if _COPIES * size > available_memory():
                raise UserError(
                    f"{path}: needs {readable(size)}, more memory than there is; make it smaller"
                )
            data = bytearray()
            while block := file.read(min(size + 1 - len(data), 1 << 24)):
                data += block
    except (OSError, EOFError, zlib.error) as error:
        text = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: {text}; download it again") from error
    if len(data) != size:
        raise _cut_off(path, size)
    return np.frombuffer(data, np.uint8).reshape(shape.tolist())


def _cut_off(path: Path, size: int) -> UserError:
    return UserError(
        f"{path}: does not have the {size:,} values that it announces; download it again"
    )


LAYOUT = Layout(
    "idx",
    "train-images-idx3-ubyte and train-labels-idx1-ubyte (of MNIST and others), perhaps .gz",
    find,
    read,
)
