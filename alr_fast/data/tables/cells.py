"""Texts in cells of CSV files: what spreadsheets put around them, or need around them.

A spreadsheet runs a text as a formula if it begins with ``=``, ``+``, ``-`` or ``@``. Such a text
is written with an apostrophe before it, and read without; a text that has apostrophes before such a
character anyway gets one more. The page of the report does the same (``marks.js``).
"""

import csv
import io
import re
from collections.abc import Iterable
from typing import IO, Any

import numpy as np

# The characters, and their wide forms of East Asian scripts.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
BLANKS = " \t"


def harmless(text: str) -> str:
    """A text as it is written into a CSV file, so that no spreadsheet runs it."""
    return f"'{text}" if _FORMULA.match(text) else text


def original(text: str) -> str:
    """The text that `harmless` was given."""
    return text[1:] if text[:1] == "'" and _FORMULA.match(text, 1) else text


def unquoted(text: str) -> str:
    """A text without the quotes that follow blanks: only then the CSV format keeps them."""
    inner = text.strip(BLANKS)
    if text[:1] in BLANKS and len(inner) > 1 and inner[0] == inner[-1] == '"':
        return inner[1:-1].replace('""', '"')
    return text


class CsvWriter:
    """Writes rows of numbers and texts as CSV; texts are harmless in spreadsheets.

    The table readers of this package read them back as they were, non-UTF-8 bytes of file names
    included.

    Args:
        file: A file that is open for writing bytes.
        all_utf8: Whether no text contains non-UTF-8 bytes. A file with such bytes begins with the
            mark of UTF-8, so that nobody takes them for another encoding.
    """

    def __init__(self, file: IO[bytes], *, all_utf8: bool = True) -> None:
        encoding = "utf-8" if all_utf8 else "utf-8-sig"
        self._text = io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline="")
        self._writer = csv.writer(self._text)

    def write_columns(self, columns: Iterable[Any]) -> None:
        """Writes rows: column by column a list of texts or numbers, or an array, [M] each."""
        self._writer.writerows(zip(*map(_values, columns), strict=True))

    def write_row(self, row: Iterable[Any]) -> None:
        """Writes one row."""
        self._writer.writerow(
            [harmless(value) if isinstance(value, str) else value for value in row]
        )

    def __enter__(self) -> "CsvWriter":
        return self

    def __exit__(self, *error: object) -> None:
        """Hands everything to the file, which stays open."""
        self._text.detach()


def _values(column: Any) -> Iterable[Any]:
    """The values of a column; float32 with the fewest digits that identify the number."""
    if isinstance(column, np.ndarray) and column.dtype != object:
        return map(str, column) if column.dtype == np.float32 else column.tolist()
    return [harmless(value) if isinstance(value, str) else value for value in column]
