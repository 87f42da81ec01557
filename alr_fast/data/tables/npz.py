"""Arrays in .npy and .npz files, whose sizes are looked at before anything is unpacked.

An archive of some MB may unpack to many GB, and the header of an array may claim any size.
"""

import contextlib
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from alr_fast.errors import UserError
from alr_fast.utils.files import open_regular
from alr_fast.utils.text import error_text, readable

NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")


class ArraysError(UserError):
    """A file of arrays cannot be used.

    Attributes:
        problem: The message without the file and how to fix it.
    """

    problem = ""

    @classmethod
    def about(cls, path: Path, problem: str, remedy: str) -> "ArraysError":
        """The error about a file."""
        error = cls(f"{path}: {problem}; {remedy}")
        error.problem = problem
        return error


@dataclass(frozen=True)
class ArrayHeader:
    """What the file says about an array.

    Attributes:
        shape: Its shape.
        dtype: Its type.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Bytes in memory."""
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size


class Arrays:
    """An open .npz file, or an .npy file as an archive with one array.

    Attributes:
        headers: Name -> header of each array.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path = path
        self._file = file
        self._archive = None
        self.headers: dict[str, ArrayHeader] = {}
        file.seek(0)
        if file.read(len(NPY_MAGIC)) == NPY_MAGIC:
            with self._failing("as an .npy file"):
                self.headers[""] = self._header("")
            return
        with self._failing("as an .npz file"):
            self._archive = zipfile.ZipFile(file)
            members = self._archive.namelist()
        for name in members:
            if name.endswith(".npy"):
                array = name.removesuffix(".npy")
                with self._failing(array):
                    self.headers[array] = self._header(array)

    def read(self, name: str, most: int) -> NDArray[Any]:
        """An array.

        Args:
            name: Its name.
            most: Largest number of bytes that it may need.

        Raises:
            UserError: It is damaged, needs more, or contains Python objects.
        """
        header = self.headers[name]
        if header.size > most:
            shape = " x ".join(map(str, header.shape)) or "a single value"
            raise ArraysError.about(
                self._path,
                f"{name or 'the array'} is {header.dtype} of shape {shape}, "
                f"{readable(header.size)}, more than the {readable(most)} that it may need here",
                "pass the right file",
            )
        with self._failing(name or "the array"), self._open(name) as file:
            return np.asarray(npy.read_array(file, allow_pickle=False))

    def _header(self, name: str) -> ArrayHeader:
        """Reads the header of an array, and compares it with the bytes that there are."""
        with self._open(name) as file:
            version = npy.read_magic(file)
            if version not in ((1, 0), (2, 0), (3, 0)):
                raise ValueError(f"version {version}")
            # numpy offers no function for version 3, which only has another encoding.
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(file)
            header = ArrayHeader(tuple(map(int, shape)), dtype)
            there = self._size(name) - file.tell()
        if min(header.shape, default=0) < 0:
            raise ValueError(f"shape {header.shape}")
        if not dtype.hasobject and header.size != there:
            raise ValueError(f"{there} bytes of an array of {header.size}")
        return header

    def _size(self, name: str) -> int:
        if self._archive is None:
            return os.fstat(self._file.fileno()).st_size
        return self._archive.getinfo(f"{name}.npy").file_size

    @contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        if self._archive is None:
            self._file.seek(0)
            yield self._file
            return
        with self._archive.open(f"{name}.npy") as member:
            yield member

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        """Turns whatever a damaged file raises into a `UserError`."""
        try:
            yield
        except Exception as error:  # ValueError, OSError, EOFError, BadZipFile, zlib.error, ...
            problem, remedy = f"{what} cannot be read ({error_text(error)})", "write it again"
            if "allow_pickle" in str(error):
                problem = f"{what} contains Python objects, which are not loaded"
                remedy = (
                    "save texts as np.array(texts, dtype=str), and vectors of one length as one "
                    "array"
                )
            raise ArraysError.about(self._path, problem, remedy) from error


def names_of_arrays(file: IO[bytes]) -> list[str]:
    """Names of the arrays in an open archive; empty if it is another one, or damaged."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except Exception:  # BadZipFile, OSError, ValueError, NotImplementedError, ...
        return []
    return [name.removesuffix(".npy") for name in names if name.endswith(".npy")]


def is_npz(path: Path) -> bool:
    """Whether a file is an archive of arrays."""
    try:
        with open_regular(path) as file:
            return bool(names_of_arrays(file))
    except OSError:
        return False


@contextmanager
def open_npz(path: Path) -> Iterator[Arrays]:
    """Opens an .npy or .npz file and reads the headers.

    Raises:
        UserError: The file cannot be read, or is damaged.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open_regular(path))
        except OSError as error:
            raise ArraysError.about(path, error_text(error), "name a readable file") from error
        yield Arrays(path, file)
