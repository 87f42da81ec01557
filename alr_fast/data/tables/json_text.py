"""Reads JSON: a line for each sample, or a list of objects."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.tables.base import Batch, TableError
from alr_fast.data.tables.encoding import utf8_pieces
from alr_fast.data.tables.roles import FLAGS, role_of
from alr_fast.utils.text import error_text, is_encodable, shown

_LARGEST = 1 << 28  # bytes of a list, which is kept in memory whole
_FIRST = 1000  # lines that name the columns
_HOW = 'write a line {"path": ..., "label": ...} for each sample, or a list of such objects'


class JsonFile:
    """An open file of JSON objects; see `alr_fast.data.tables.csv_text.CsvFile`.

    Numbers are texts as written.

    Attributes:
        columns: Names in the first objects.
        unit: ``line``, or ``row`` of a list.
    """

    def __init__(
        self,
        file: IO[bytes],
        path: Path,
        *,
        encoding: str | None,
        start: int,
        chosen: Mapping[str, str],
    ) -> None:
        self._file, self._path, self._encoding, self._start = file, path, encoding, start
        self._chosen = chosen
        self._decoder = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)
        first = next((line for _, line in self._lines()), b"").lstrip()
        self.unit = "row" if first.startswith(b"[") else "line"
        columns: dict[str, None] = {}
        for _, record in zip(range(_FIRST), self._records(), strict=False):
            columns.update(dict.fromkeys(record[1]))
        if not columns:
            raise TableError(path, f"contains no objects with values; {_HOW}")
        self.columns = list(columns)

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[Batch]:
        """See `Table`."""
        known = set(self.columns)
        numbers: list[int] = []
        values: dict[str, list[Any]] = {name: [] for name in columns}
        for number, record in self._records():
            new = record.keys() - known
            if new:
                self._fail(
                    f"has {min(new)}, which no one of the first {_FIRST} has; write it there, too, "
                    "null where it is unknown",
                    number,
                )
            numbers.append(number)
            for name, column in values.items():
                column.append(record.get(name))
            if len(numbers) == rows:
                yield self._batch(numbers, values)
                numbers, values = [], {name: [] for name in columns}
        if numbers:
            yield self._batch(numbers, values)

    def _batch(self, numbers: list[int], values: dict[str, list[Any]]) -> Batch:
        arrays = {name: self._array(name, column, numbers) for name, column in values.items()}
        return Batch(np.array(numbers, dtype=np.int64), arrays)

    def _array(self, name: str, values: list[Any], numbers: list[int]) -> NDArray[Any]:
        kinds, role = set(map(type, values)), role_of(name, self._chosen)
        if kinds == {list} and role is None:
            try:
                return np.array(values, dtype=np.float64).reshape(len(values), -1)
            except (TypeError, ValueError):
                self._fail(f"{name} is no list of as many numbers as in other rows", numbers[0])
        for kind, found in ((list, "a list"), (dict, "an object"), (bool, "true or false")):
            if kind in kinds and not (kind is bool and role in FLAGS):
                row = next(k for k, value in enumerate(values) if type(value) is kind)
                self._fail(f"{name} is {found}; must be a text or a number", numbers[row])
        array = np.empty(len(values), dtype=object)
        array[:] = ["" if value is None else str(value) for value in values]
        for row, text in enumerate(array):
            if not (text.isascii() or is_encodable(text)):
                self._fail(f"{name} contains half a character ({shown(text)})", numbers[row])
        return array

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number and values of each object."""
        if self.unit == "row":
            text = b"".join(self._pieces(_LARGEST))
            records = self._decoded(text, None)
            if not isinstance(records, list):
                self._fail(f"is no list of objects; {_HOW}")
            for number, record in enumerate(records, 1):
                yield number, self._checked(record, number)
            return
        for number, line in self._lines():
            yield number, self._checked(self._decoded(line, number), number)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Number and text of each line that is not empty."""
        parts: list[bytes] = []  # of the line that is not complete
        size, before = 0, 0
        for piece in self._pieces():
            parts.append(piece)
            size += len(piece)
            if b"\n" not in piece and size <= _LARGEST:
                continue
            *lines, rest = b"".join(parts).split(b"\n")
            parts, size = [rest], len(rest)
            for number, line in enumerate(lines, before + 1):
                if line.strip():
                    yield number, line
            before += len(lines)
            if len(rest) > _LARGEST:
                self._fail("the line is too long", before + 1)
        rest = b"".join(parts)
        if rest.strip():
            yield before + 1, rest

    def _pieces(self, limit: int | None = None) -> Iterator[bytes]:
        self._file.seek(self._start)
        size = 0
        for piece in utf8_pieces(self._file, self._path, self._encoding):
            size += len(piece)
            if limit is not None and size > limit:
                self._fail(f"is a list of more than {limit >> 20} MB; write a line for each sample")
            yield piece

    def _decoded(self, text: bytes, number: int | None) -> Any:
        try:
            return self._decoder.decode(text.decode("utf-8", "surrogateescape").strip())
        except (ValueError, RecursionError) as error:  # the latter of brackets in brackets
            self._fail(f"is no JSON ({error_text(error)}); {_HOW}", number)

    def _checked(self, record: Any, number: int) -> dict[str, Any]:
        if not isinstance(record, dict):
            self._fail(f"is no object; {_HOW}", number)
        return record

    def _fail(self, problem: str, number: int | None = None) -> NoReturn:
        where = "" if number is None else f", {self.unit} {number}"
        raise TableError(f"{self._path}{where}", problem)
