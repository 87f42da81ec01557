"""Arrays of one dimension as the columns of a table: .npz files, and .npy files of labels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.tables.base import Batch, Table, TableError, texts
from alr_fast.data.tables.npz import Arrays, ArraysError
from alr_fast.data.tables.roles import FLAGS, role_of
from alr_fast.utils.machine import available_memory

_LARGEST = 1 << 31  # bytes of a column
_KINDS = "iufUS"


@contextmanager
def open_arrays(file: IO[bytes], path: Path, chosen: dict[str, str]) -> Iterator[Table]:
    """Opens a file of arrays; see `open_table`. The only array of an .npy file is ``label``."""
    try:
        arrays = Arrays(path, file)
        headers = {name or "label": header for name, header in arrays.headers.items()}
        names = {name or "label": name for name in arrays.headers}

        def batches(columns: Sequence[str], rows: int) -> Iterator[Batch]:
            for name in columns:
                header, role = headers[name], role_of(name, chosen)
                kinds = f"{_KINDS}b" if role in FLAGS else _KINDS
                is_vector = name in vectors and role is None
                if header.dtype.kind not in kinds or not (len(header.shape) == 1 or is_vector):
                    shape = " x ".join(map(str, header.shape)) or "a single value"
                    raise TableError(
                        path,
                        f"{name} is {header.dtype} of shape {shape}; must be one number or one "
                        "text for each sample",
                    )
            most = min(_LARGEST, available_memory() // 2)
            lengths = {name: headers[name].shape[0] for name in columns}
            if len(set(lengths.values())) > 1:
                found = ", ".join(f"{count:,} of {name}" for name, count in lengths.items())
                raise TableError(path, f"the arrays differ in length: {found}; store one for each")
            read = {name: _column(arrays.read(names[name], most)) for name in columns}
            for first in range(0, max(lengths.values()), rows):
                some = {name: array[first : first + rows] for name, array in read.items()}
                count = len(next(iter(some.values())))
                yield Batch(np.arange(first + 1, first + 1 + count), some)

        vectors = [
            name
            for name, header in headers.items()
            if len(header.shape) == 2 and header.dtype.kind in "iuf" and header.shape[1] > 1
        ]
        roles = {role_of(name, chosen) for name in headers}
        yield Table(
            path,
            "row",
            list(headers),
            batches,
            vectors=vectors,
            chosen=chosen,
            in_order="label" in roles and not roles & {"path", "id"},
        )
    except ArraysError as error:
        raise TableError(path, str(error).removeprefix(f"{path}: ")) from error


def _column(array: NDArray[Any]) -> NDArray[Any]:
    return texts(array.tolist()) if array.dtype.kind in "USb" else array
