"""CIFAR-10 and CIFAR-100: the Python pickles of the public download.

``cifar-10-batches-py/{data_batch_1..5,test_batch}`` and ``cifar-100-python/{train,test}``
"""

import pickle
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.images import ArrayImages
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
        with open(path, "rb") as file:
            return unpickle(file, path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; {_RESTORE}") from error


def unpickle(file: IO[bytes], path: Path) -> Any:
    """The next pickle in an open file; see `read_pickle`."""
    try:
        return _plain(_Unpickler(file, encoding="latin1").load())
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise almost any exception
        raise UserError(
            f"{path}: not a pickle of arrays, lists and numbers ({error_text(error)}); {_RESTORE}"
        ) from error


class _Dtype:
    """Stand-in for ``numpy.dtype`` in a pickle."""

    def __init__(self, name: str, align: Any = False, copy: Any = True) -> None:
        self.name = name
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def numeric(self) -> np.dtype[Any]:
        if not re.fullmatch(r"[biuf][1248]", self.name) or self.order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"an array of type {self.name}")
        return np.dtype(self.order + self.name)


@dataclass(eq=False)
class _Array:
    """Stand-in for ``numpy.ndarray`` in a pickle: numpy's own unpickling would trust the state in
    the file."""

    dtype: Any = None
    raw: Any = b""
    shape: Any = ()
    order: Literal["C", "F"] = "C"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, fortran, self.raw = state
        self.order = "F" if fortran else "C"

    def value(self) -> NDArray[Any] | int | float | bool:
        if type(self.dtype) is not _Dtype:
            raise pickle.UnpicklingError("an array without a type")
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw
        array = np.frombuffer(raw, self.dtype.numeric()).reshape(self.shape, order=self.order)
        return array if array.ndim else array.item()


# numpy 2 has renamed its modules; both names occur. Protocols below 3 call a function for bytes.
_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): "ndarray",
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
    ("builtins", "bytes"): lambda: b"",
    ("__builtin__", "bytes"): lambda: b"",
}
for _core in ("numpy.core", "numpy._core"):
    _KNOWN |= {
        (f"{_core}.multiarray", "_reconstruct"): lambda kind, shape, dtype: _Array(),
        (f"{_core}.multiarray", "scalar"): lambda dtype, raw: _Array(dtype, raw),
        (f"{_core}.numeric", "_frombuffer"): lambda raw, dtype, shape, order: _Array(
            dtype, raw, shape, order
        ),
    }


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it contains torch tensors")


def _plain(value: Any) -> Any:
    if type(value) is _Array:
        return value.value()
    if type(value) is dict:
        return {key: _plain(item) for key, item in value.items()}
    if type(value) is list:
        return [_plain(item) for item in value]
    if value is None or type(value) in (bool, int, float, str, bytes, bytearray):
        return value
    raise pickle.UnpicklingError(f"it contains a {type(value).__name__}")


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
