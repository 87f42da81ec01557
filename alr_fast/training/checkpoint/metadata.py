"""The metadata of a checkpoint, which is a pickle, read without calling what it names.

`torch.distributed.checkpoint` (DCP) unpickles ``.metadata``, and a pickle may run any program. Here
its content becomes the few objects of DCP that reading needs, after every entry has been compared
with the files that it refers to.
"""

import io
import math
import os
import re
import zipfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from alr_fast.errors import UserError
from alr_fast.utils import pickles
from alr_fast.utils.files import open_regular
from alr_fast.utils.pickles import Global, Instance
from alr_fast.utils.text import error_text

METADATA = ".metadata"
DATA_FILE = r"__[0-9]{1,6}_[0-9]{1,6}\.distcp"
_MOST_BYTES = 1 << 28
_DCP = "torch.distributed.checkpoint."


def read_metadata(folder: Path, sizes: Mapping[str, int]) -> Metadata:
    """Reads the metadata in the folder of a checkpoint.

    Args:
        folder: The folder.
        sizes: Bytes of each file in it, by name.

    Raises:
        UserError: The file is damaged, contains other things than tensors, or does not fit the
            other files.
    """
    path = folder / METADATA
    try:
        with open_regular(path, _MOST_BYTES) as file:
            content = pickles.load(file, limit=_MOST_BYTES, known=_is_known)
        return _metadata(content, sizes)
    # What a damaged file consists of can fail in any way, with a number too large for instance.
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read as the metadata of a checkpoint ({error_text(error)})"
        ) from error


def check_archives(metadata: Metadata, names: set[str], folder: Path) -> None:
    """Checks that stored tensors are archives without compression, of which a few bytes could fill
    the memory.

    Raises:
        UserError: One is compressed, or damaged.
    """
    for index, storage in metadata.storage_data.items():
        if index.fqn not in names:
            continue
        path = folder / storage.relative_path
        try:
            with open_regular(path) as file:
                part = _Slice(file, storage.offset, storage.length)
                with zipfile.ZipFile(part) as archive:
                    unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > storage.length:
                raise zipfile.BadZipFile("it unpacks to more than it has")
        except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: {index.fqn} cannot be read ({error_text(error)})") from error


class _Slice(io.RawIOBase):
    """A part of an open file as a file."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError(22, "a place before the beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        data = self._file.read(max(0, min(len(buffer), self._length - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _is_known(name: Global) -> bool:
    """Whether the pickle of a metadata may mention a name; all of them become plain data."""
    if name.module == "torch":
        return name.name == "Size" or isinstance(getattr(torch, name.name, None), torch.dtype)
    return name.module.startswith(_DCP) or name in _KNOWN


_SIZE = Global("torch", "Size")
_KNOWN = {
    Global("builtins", "getattr"),  # Python 3.11.0 to 3.11.3 writes members of an Enum so
    Global("torch.serialization", "_get_layout"),
    Global("collections", "OrderedDict"),
    Global("pathlib", "PosixPath"),
    Global("pathlib._local", "PosixPath"),  # of Python 3.13
}


def _metadata(content: Any, sizes: Mapping[str, int]) -> Metadata:
    whole = _fields(content, "metadata.Metadata")
    storage = {
        _index(key): _storage(value, sizes) for key, value in _entries(whole, "storage_data")
    }
    _check_apart(list(storage.values()))
    left = dict(storage)  # each chunk has a place of its own
    tensors: dict[str, Any] = {
        _text(name): _tensor(_text(name), value, left)
        for name, value in _entries(whole, "state_dict_metadata")
    }
    return Metadata(tensors, storage_data=storage, storage_meta=StorageMeta())


def _tensor(
    name: str, value: Any, left: dict[MetadataIndex, _StorageInfo]
) -> TensorStorageMetadata:
    """A tensor whose chunks lie in it, fill it, and have their bytes; takes these from ``left``."""
    if type(value) is Instance and value.maker == Global(f"{_DCP}metadata", "BytesStorageMetadata"):
        raise UnpicklingError(f"{name} is an object, not a tensor")
    fields = _fields(value, "metadata.TensorStorageMetadata")
    size, dtype = _size(fields["size"]), _dtype(fields["properties"])
    chunks, count = [], 0
    for item in _list(fields["chunks"]):
        chunk = _fields(item, "metadata.ChunkStorageMetadata")
        offsets, sizes = _size(chunk["offsets"]), _size(chunk["sizes"])
        stored = left.pop(MetadataIndex(name, offsets), None)
        if stored is None:
            raise UnpicklingError(f"{name} has a part that is not stored")
        if not len(offsets) == len(sizes) == len(size) or any(
            a + b > c for a, b, c in zip(offsets, sizes, size, strict=True)
        ):
            raise UnpicklingError(f"{name} has a part outside of it")
        if math.prod(sizes) * dtype.itemsize > stored.length:
            raise UnpicklingError(f"{name} has a part larger than what is stored")
        chunks.append(ChunkStorageMetadata(offsets, sizes))
        count += math.prod(sizes)
    if count != math.prod(size):
        raise UnpicklingError(f"{name} is stored in parts that do not make it up")
    return TensorStorageMetadata(TensorProperties(dtype=dtype), size, chunks)


def _index(value: Any) -> MetadataIndex:
    fields = _fields(value, "metadata.MetadataIndex")
    offset = fields.get("offset")
    return MetadataIndex(_text(fields["fqn"]), None if offset is None else _size(offset))


def _storage(value: Any, sizes: Mapping[str, int]) -> _StorageInfo:
    fields = _fields(value, "filesystem._StorageInfo")
    name = _text(fields["relative_path"])
    offset, length = _number(fields["offset"]), _number(fields["length"])
    if re.fullmatch(DATA_FILE, name) is None or offset + length > sizes.get(name, -1):
        raise UnpicklingError(f"it refers to bytes {offset} to {offset + length} of {name}")
    if fields.get("transform_descriptors"):
        raise UnpicklingError("a tensor that is stored transformed")
    return _StorageInfo(name, offset, length)


def _check_apart(storage: list[_StorageInfo]) -> None:
    """Checks that no bytes are used twice: a small file could be a tensor of any size."""
    places = sorted((item.relative_path, item.offset, item.length) for item in storage)
    for (name, start, length), (other, following, _) in pairwise(places):
        if name == other and start + length > following:
            raise UnpicklingError(f"it uses byte {following} of {name} twice")


def _dtype(value: Any) -> torch.dtype:
    """The type in the properties of a tensor; later versions of torch append to their state."""
    name = Global(f"{_DCP}metadata", "TensorProperties")
    if type(value) is Instance and value.maker == name and type(value.state) is tuple:
        first = value.state[0]
        dtype = getattr(torch, first.name, None) if type(first) is Global else None
        if isinstance(dtype, torch.dtype):
            return dtype
    raise UnpicklingError("a tensor without a type")


def _size(value: Any) -> torch.Size:
    if type(value) is not Instance or value.maker != _SIZE or len(value.arguments) != 1:
        raise UnpicklingError("a shape is missing")
    (shape,) = value.arguments
    if type(shape) not in (tuple, list) or len(shape) > 64:
        raise UnpicklingError("a shape of another kind")
    return torch.Size(map(_number, shape))


def _fields(value: Any, name: str) -> dict[str, Any]:
    """The attributes of an instance of a class of DCP."""
    module, _, kind = name.rpartition(".")
    if type(value) is not Instance or value.maker != Global(_DCP + module, kind):
        raise UnpicklingError(f"a {kind} is missing")
    return value.fields()


def _entries(fields: dict[str, Any], name: str) -> list[tuple[Any, Any]]:
    value = fields.get(name)
    if type(value) is not dict:
        raise UnpicklingError(f"it has no {name}")
    return list(value.items())


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise UnpicklingError("a list is missing")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise UnpicklingError("a name is missing")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise UnpicklingError("a size out of range")
    return value
