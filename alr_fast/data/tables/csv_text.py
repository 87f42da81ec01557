"""Reads CSV files with pyarrow: fields divided by comma, semicolon or tab, quoted by RFC 4180."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.tables.base import Batch, TableError
from alr_fast.data.tables.cells import BLANKS, original, unquoted
from alr_fast.data.tables.encoding import decoded, utf8_pieces
from alr_fast.data.tables.roles import role_of
from alr_fast.utils.text import error_text, is_utf8_bytes

DELIMITERS = ",;\t"
_LARGEST_ROW = 1 << 25  # bytes; a longer one has a quote that is never closed
_QUOTE, _LF, _CR = b'"\n\r'


class CsvFile:
    """An open CSV file.

    Args:
        file: The file, open for reading bytes.
        path: Its name, for messages.
        encoding: That of its mark, None without one.
        start: Length of the mark.
        chosen: Role -> column that the user chose.

    Attributes:
        columns: Names of the columns.
        remarks: See `Table`.
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
        self.remarks: list[str] = []
        start_rows = next(self._pieces(DELIMITERS), None)
        rows = [] if start_rows is None else start_rows.records(2)
        if not rows:
            raise TableError(path, "no header; the first line must name the columns")
        self._delimiter = _delimiter(rows)
        header = [
            original(unquoted(decoded(name, keep=encoding is not None)))
            for name in _fields(rows[0], self._delimiter)
        ]
        self.columns = [name.strip(BLANKS) for name in header]
        # Blanks around names of files are theirs, unless the names of columns have such, too.
        self._padded = {
            column: name != column for column, name in zip(self.columns, header, strict=True)
        }
        self._are_paths = {name: role_of(name, chosen) == "path" for name in self.columns}

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[Batch]:
        """See `Table`."""
        header = True
        for piece in self._pieces(self._delimiter):
            numbers, arrays = self._parsed(piece, columns)
            for first in range(int(header), len(numbers), rows):
                some = slice(first, first + rows)
                yield Batch(numbers[some], {name: a[some] for name, a in arrays.items()})
            header = header and not len(numbers)

    def _pieces(self, delimiters: str) -> Iterator["_Rows"]:
        """Whole rows from the beginning on, some MB at a time."""
        self._file.seek(self._start)
        rest, line = b"", 1
        for piece in utf8_pieces(self._file, self._path, self._encoding):
            rows = _Rows(rest + piece, line, delimiters)
            rest = rows.text[rows.end :]
            if len(rest) > _LARGEST_ROW:
                self._fail_open(rows)
            line += rows.lines
            if rows.end:
                yield rows
        if rest:
            rows = _Rows(rest, line, delimiters, last=True)
            if rows.open_line is not None:
                self._fail_open(rows)
            yield rows

    def _fail_open(self, rows: "_Rows") -> NoReturn:
        problem, line = "a quote is opened and never closed", rows.open_line
        if line is None:
            problem, line = "is too long for a row of a table", rows.first_line + rows.lines
        raise TableError(f"{self._path}, line {line}", f"{problem}; correct it")

    def _parsed(
        self, rows: "_Rows", columns: Sequence[str]
    ) -> tuple[NDArray[np.int64], dict[str, NDArray[np.object_]]]:
        """Numbers of the lines, and the columns."""
        import pyarrow
        from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions, read_csv

        numbers = rows.numbers()
        text = rows.text[: rows.end]
        if not len(numbers):
            return numbers, {}
        wrong: list[Any] = []

        def stop(row: Any) -> str:
            wrong.append(row)
            return "error"

        utf8 = is_utf8_bytes(text)
        if not utf8:  # a character for each byte: pyarrow handles texts, and its errors quote them
            text = text.decode("latin1").encode()
        names = [str(k) for k in range(len(self.columns))]
        first = dict(zip(self.columns[::-1], names[::-1], strict=True))  # of several of one name
        keys = {name: first[name] for name in columns}
        try:
            table = read_csv(
                pyarrow.BufferReader(text),
                # One block, and one thread: the numbers of wrong rows are known only then.
                read_options=ReadOptions(
                    column_names=names, use_threads=False, block_size=len(text)
                ),
                parse_options=ParseOptions(
                    delimiter=self._delimiter,
                    newlines_in_values=rows.quoted,
                    invalid_row_handler=stop,
                ),
                # Texts as they are: nothing is a number, a date or a missing value here.
                convert_options=ConvertOptions(
                    column_types=dict.fromkeys(keys.values(), pyarrow.string()),
                    include_columns=list(dict.fromkeys(keys.values())),
                    check_utf8=False,
                ),
            )
        except pyarrow.ArrowInvalid as error:
            if not wrong:
                raise TableError(self._path, f"{error_text(error)}; correct it") from error
            raise TableError(
                f"{self._path}, line {numbers[wrong[0].number - 1]}",
                f"{wrong[0].actual_columns} fields, the header has {len(names)}; correct the line, "
                "and quote a field that contains a delimiter",
            ) from error
        if table.num_rows != len(numbers):
            raise TableError(
                f"{self._path}, lines {numbers[0]} to {numbers[-1]}",
                "quotes stand in the middle of fields, so that it is not clear where lines end; "
                "double quotes inside of quoted fields",
            )
        around = {mark for mark in (b"'", b' "', b'\t"') if mark in text}
        arrays = {
            name: self._texts(name, table[key].to_numpy().tolist(), around, utf8=utf8)
            for name, key in keys.items()
        }
        return numbers, arrays

    def _texts(
        self, name: str, values: list[str], around: set[bytes], *, utf8: bool
    ) -> NDArray[np.object_]:
        """Texts of a column as they were meant.

        Args:
            name: The column.
            values: Its cells; unless ``utf8``, a character for each byte.
            around: The marks around texts that occur.
            utf8: Whether all cells are UTF-8.
        """
        is_path = self._are_paths[name]
        if not utf8:
            keep = is_path or self._encoding is not None
            as_bytes = [text.encode("latin1") for text in values]
            values = [decoded(text, keep=keep) for text in as_bytes]
            if not (keep or all(map(is_utf8_bytes, as_bytes))):
                self._remark()
        if not is_path or self._padded[name]:
            if around - {b"'"}:
                values = list(map(unquoted, values))
            values = [text.strip(BLANKS) for text in values]
        if b"'" in around:
            values = list(map(original, values))
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array

    def _remark(self) -> None:
        line = f"{self._path}: is not UTF-8; texts are read as Windows-1252"
        if line not in self.remarks:
            self.remarks.append(line)


class _Rows:
    """Text that begins with a row, and where its rows end.

    Args:
        text: The text, UTF-8.
        first_line: Number of its first line.
        delimiters: The delimiter, or those that it may be.
        last: Whether the file ends with it.

    Attributes:
        end: One past the last complete row.
        lines: Number of lines before ``end``.
        quoted: Whether there are quotes.
        open_line: Line of the quote that is open at the end of the text; None without one.
    """

    def __init__(
        self, text: bytes, first_line: int, delimiters: str, *, last: bool = False
    ) -> None:
        self.text = text
        self.first_line = first_line
        self.quoted = _QUOTE in text
        self.open_line: int | None = None
        ends = self._line_ends = _line_ends(text, last=last)
        if self.quoted:
            spans, is_open = _quoted_spans(text, delimiters.encode())
            if is_open:
                before = np.searchsorted(ends, spans[-1, 0], side="right")
                self.open_line = first_line + int(before)
            inside = np.searchsorted(spans.reshape(-1), ends) % 2 == 1
            ends = ends[~inside]
        if last and (not len(ends) or ends[-1] < len(text)):
            ends = np.append(ends, len(text))
        self._ends = ends
        self.end = int(ends[-1]) if len(ends) else 0
        self.lines = int(np.searchsorted(self._line_ends, self.end, side="right"))

    def _starts(self) -> NDArray[np.int64]:
        """First byte of each row that is not an empty line."""
        starts = np.append(0, self._ends)[:-1]
        if not len(starts):
            return starts
        first = np.frombuffer(self.text, dtype=np.uint8)[starts]
        return starts[(first != _LF) & (first != _CR)]

    def numbers(self) -> NDArray[np.int64]:
        """Number of the first line of each row that is not empty, int64."""
        return self.first_line + np.searchsorted(self._line_ends, self._starts(), side="right")

    def records(self, count: int) -> list[bytes]:
        """The first rows that are not empty."""
        starts = self._starts()[:count]
        stops = self._ends[np.searchsorted(self._ends, starts, side="right")]
        pairs = zip(starts.tolist(), stops.tolist(), strict=True)
        return [self.text[start:stop].rstrip(b"\r\n") for start, stop in pairs]


def _line_ends(text: bytes, *, last: bool) -> NDArray[np.int64]:
    """One past each line end (LF, CR LF or CR), int64; a CR at the end may be half of one."""
    values = np.frombuffer(text, dtype=np.uint8)
    ends = values == _LF
    if _CR in text:
        alone = values == _CR
        alone[:-1] &= values[1:] != _LF
        alone[-1:] &= last
        ends |= alone
    return np.flatnonzero(ends) + 1


def _quoted_spans(text: bytes, delimiters: bytes) -> tuple[NDArray[np.int64], bool]:
    """First byte of each quoted text and one past its last, int64 [M, 2], ascending.

    A field with doubled quotes is several adjacent texts. And whether the last one is open.
    """
    values = np.frombuffer(text, dtype=np.uint8)
    quotes = np.flatnonzero(values == _QUOTE)
    borders = np.frombuffer(delimiters + b"\n\r", dtype=np.uint8)
    before = np.append(_LF, values)[quotes]
    after = np.append(values, _LF)[quotes + 1]
    opens = np.isin(before, borders)
    closes = np.isin(after, borders)
    doubled = np.diff(quotes, prepend=-2) == 1
    # Quotes at the borders of fields, and pairs of them inside: every second one closes.
    if (opens | doubled)[::2].all() and (closes | np.append(doubled[1:], False))[1::2].all():
        is_open = len(quotes) % 2 == 1
        if is_open:
            quotes = np.append(quotes, len(text))
        return quotes.reshape(-1, 2) + np.array([0, 1]), is_open
    return _spans_one_by_one(quotes.tolist(), opens.tolist(), len(text))


def _spans_one_by_one(
    quotes: list[int], opens: list[bool], size: int
) -> tuple[NDArray[np.int64], bool]:
    """`_quoted_spans` of a text with quotes in the middle of fields, which are characters."""
    spans, is_open = [], False
    k = 0
    while k < len(quotes):
        first = k
        k += 1
        if not opens[first]:
            continue
        while k + 1 < len(quotes) and quotes[k + 1] == quotes[k] + 1:
            k += 2
        is_open = k == len(quotes)
        spans.append((quotes[first], size if is_open else quotes[k]))
        k += 1
    return np.array(spans, dtype=np.int64).reshape(-1, 2) + np.array([0, 1]), is_open


def _delimiter(rows: list[bytes]) -> str:
    """The delimiter that divides the header into names that are known, else into the most names,
    and the next row likewise."""

    def fit(mark: str) -> tuple[int, int, bool]:
        header, *others = [_fields(row, mark) for row in rows]
        known = sum(role_of(name.decode("latin1")) is not None for name in header)
        return known, len(header), all(len(row) == len(header) for row in others)

    return max(DELIMITERS, key=fit)


def _fields(row: bytes, delimiter: str) -> list[bytes]:
    """Fields of one row."""
    text = row.decode("latin1")  # a byte a character
    try:
        fields = next(csv.reader([text], delimiter=delimiter, strict=False), [])
    except csv.Error:
        fields = text.split(delimiter)
    return [field.encode("latin1") for field in fields]
