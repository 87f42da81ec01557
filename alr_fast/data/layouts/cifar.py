"""CIFAR-10 and CIFAR-100: the Python pickles of the public download.

``cifar-10-batches-py/{data_batch_1..5,test_batch}`` and ``cifar-100-python/{train,test}``
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.images.sources import ArrayImages
from alr_fast.data.layouts.base import (
    Found,
    Layout,
    Listing,
    check_labels,
    new_index,
    numbered_paths,
    present,
)
from alr_fast.data.layouts.lists import checked_names
from alr_fast.errors import UserError
from alr_fast.utils import pickles
from alr_fast.utils.files import open_regular
from alr_fast.utils.pickles import Global, Instance
from alr_fast.utils.text import error_text

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle
    bowl boy bridge bus butterfly camel can castle caterpillar cattle
    chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
    dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
    mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
    plain plate poppy porcupine possum rabbit raccoon ray road rocket
    rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(_CIFAR100_NAMES.split())
SHAPE = (3, 32, 32)
_RESTORE = "restore it from the download"
_MOST_BYTES = 1 << 28  # the largest file, train of CIFAR-100, has 155 MB


@dataclass(frozen=True)
class _Variant:
    """The differences between CIFAR-10 and CIFAR-100."""

    title: str
    folder: str
    files: dict[str, tuple[str, ...]]  # split -> its pickles, in order
    labels: str
    meta: str
    meta_names: str
    class_names: tuple[str, ...]


_CIFAR10 = _Variant(
    title="CIFAR-10",
    folder="cifar-10-batches-py",
    files={"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)},
    labels="labels",
    meta="batches.meta",
    meta_names="label_names",
    class_names=CIFAR10_CLASSES,
)
_CIFAR100 = _Variant(
    title="CIFAR-100",
    folder="cifar-100-python",
    files={"train": ("train",), "test": ("test",)},
    labels="fine_labels",
    meta="meta",
    meta_names="fine_label_names",
    class_names=CIFAR100_CLASSES,
)


def find(root: Path, variant: _Variant) -> Found | None:
    """The folder of the pickles or its parent; one of the pickles is enough."""
    for folder in (root, root / variant.folder):
        if any((folder / name).is_file() for names in variant.files.values() for name in names):
            return Found(folder, f"{variant.title} pickles in {folder}")
    return None


def read(found: Found, split: str, variant: _Variant) -> Listing:
    """Reads a split: pixels uint8 [N, 3, 32, 32], in the order of the pickles.

    The path of a sample is its pickle and its position in it: ``data_batch_1/00042``. The labels
    are the true ones.

    Raises:
        UserError: A pickle is missing or damaged, contains other things than arrays and lists, an
            array of another shape, another number of labels than of images, or a label out of
            range.
    """
    files = [present(found.root / name) for name in variant.files[split]]
    meta = found.root / variant.meta
    class_names = variant.class_names
    sources = tuple(files)
    if meta.is_file():
        class_names = _meta_names(meta, variant)
        sources += (meta,)
    batches = [_read_batch(file, variant.labels, len(class_names)) for file in files]
    paths = numbered_paths([file.name for file in files], [len(pixels) for pixels, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    index = new_index(paths, labels, class_names, clean_labels=labels)
    array = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, *SHAPE)
    return Listing(index, sources, ArrayImages(array))


def _read_batch(
    path: Path, key: str, num_classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    content = read_pickle(path)
    width = int(np.prod(SHAPE))
    pixels, labels = (_entry(content, name, path) for name in ("data", key))
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise UserError(f"{path}: 'data' is not a uint8 array [N, {width}]; {_RESTORE}")
    if pixels.shape[1] != width:
        raise UserError(
            f"{path}: 'data' has shape {list(pixels.shape)}, expected [N, {width}]; {_RESTORE}"
        )
    labels = integers(labels, f"{path}: '{key}'")
    if len(labels) != len(pixels):
        raise UserError(f"{path}: {len(labels)} labels for {len(pixels)} images; {_RESTORE}")
    check_labels(labels, num_classes, str(path), "image")
    return pixels, labels


def _meta_names(path: Path, variant: _Variant) -> tuple[str, ...]:
    names = _entry(read_pickle(path), variant.meta_names, path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: '{variant.meta_names}' is not a list of names; {_RESTORE}")
    return checked_names(tuple(names), path, len(variant.class_names))


def _entry(content: Any, key: str, path: Path) -> Any:
    if not isinstance(content, dict) or key not in content:
        raise UserError(f"{path}: no entry '{key}' in this pickle; {_RESTORE}")
    return content[key]


def integers(values: Any, what: str) -> NDArray[np.int64]:
    """A list or an array of integers as int64 [N].

    Args:
        values: The list or array.
        what: Its name, for messages.

    Raises:
        UserError: It is something else.
    """
    if isinstance(values, list) and all(type(value) is int for value in values):
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError:
            pass
    elif isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iu":
        return values.astype(np.int64)
    raise UserError(f"{what} is not a list of integers; {_RESTORE}")


def read_pickle(path: Path) -> Any:
    """Reads a pickle of numbers, strings, bytes, lists, dicts and numeric numpy arrays.

    Strings of Python 2 are read as Latin-1. Nothing that the pickle names is imported or called, so
    a file from an unknown source can be read safely.

    Raises:
        UserError: The file cannot be read, is damaged, or contains other things.
    """
    try:
        with open_regular(path, _MOST_BYTES) as file:
            return unpickle(file, path, _MOST_BYTES)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; {_RESTORE}") from error


def unpickle(file: IO[bytes], path: Path, limit: int) -> Any:
    """The next pickle, of at most ``limit`` bytes, in an open file; see `read_pickle`."""
    try:
        return _plain(pickles.load(file, limit=limit, known=_MAKERS.__contains__), {})
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise almost any exception
        raise UserError(
            f"{path}: not a pickle of arrays, lists and numbers ({error_text(error)}); {_RESTORE}"
        ) from error


def _dtype(value: Any) -> np.dtype[Any]:
    """A type of numbers, from what would be called for a ``numpy.dtype``."""
    if type(value) is not Instance or value.maker != _DTYPE:
        raise UnpicklingError("an array without a type")
    name, order = value.arguments[0], "<" if value.state is None else value.state[1]
    if not re.fullmatch(r"[biuf][1248]", name) or order not in ("<", ">", "|", "="):
        raise UnpicklingError(f"an array of type {name}")
    return np.dtype(order + name)


def _array(raw: Any, dtype: Any, shape: Any = (), order: Any = "C") -> Any:
    """An array, or the number that it is; numpy's own unpickling would trust its state."""
    raw = raw.encode("latin1") if isinstance(raw, str) else _plain(raw, {})
    array = np.frombuffer(raw, _dtype(dtype)).reshape(shape, order="F" if order == "F" else "C")
    return array if array.ndim else array.item()


def _reconstructed(value: Instance) -> Any:
    _, shape, dtype, fortran, raw = value.state
    return _array(raw, dtype, shape, "F" if fortran else "C")


# What a pickle may ask to be called, and what it then gets. numpy 2 has renamed its modules; both
# names occur. Protocols below 3 call a function for bytes.
_DTYPE = Global("numpy", "dtype")
_MAKERS: dict[Global, Callable[[Instance], Any] | None] = {
    _DTYPE: None,  # a part of an array
    Global("numpy", "ndarray"): None,
    Global("_codecs", "encode"): lambda value: value.arguments[0].encode("latin1"),
    Global("builtins", "bytes"): lambda value: b"",
    Global("__builtin__", "bytes"): lambda value: b"",
}
for _core in ("numpy.core", "numpy._core"):
    _MAKERS |= {
        Global(f"{_core}.multiarray", "_reconstruct"): _reconstructed,
        Global(f"{_core}.multiarray", "scalar"): lambda value: _array(*value.arguments[1::-1]),
        Global(f"{_core}.numeric", "_frombuffer"): lambda value: _array(*value.arguments),
    }


def _plain(value: Any, known: dict[int, Any]) -> Any:
    """The value with arrays in place of what would be called for them.

    Args:
        value: From `pickles.load`.
        known: Results by the identity of the value: parts that occur often are converted once.
    """
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if id(value) in known:
        return known[id(value)]
    result: Any
    if type(value) is dict:
        result = known[id(value)] = {}
        result.update((key, _plain(item, known)) for key, item in value.items())
    elif type(value) is list:
        result = known[id(value)] = []
        result.extend(_plain(item, known) for item in value)
    elif type(value) is Instance and (make := _MAKERS[value.maker]) is not None:
        result = known[id(value)] = make(value)
    else:
        raise UnpicklingError(f"it contains a {type(value).__name__}")
    return result


def _layout(name: str, variant: _Variant) -> Layout:
    files = ", ".join(file for files in variant.files.values() for file in files)
    return Layout(
        name,
        f"{variant.folder} or its files {files}",
        partial(find, variant=variant),
        partial(read, variant=variant),
    )


CIFAR10 = _layout("cifar10", _CIFAR10)
CIFAR100 = _layout("cifar100", _CIFAR100)
