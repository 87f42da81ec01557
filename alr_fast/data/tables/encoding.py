"""Encodings of text tables: UTF-8, with or without a mark, UTF-16 with one, Windows-1252.

Without a mark, a text that is not UTF-8 is Windows-1252, as spreadsheets save it. Names of files
are bytes, though, and may be in any encoding: the bytes of a path are kept, as lone surrogates, see
`os.fsdecode`; `alr_fast.data.paths` decides by the files that exist. With the mark of UTF-8 the
bytes of all texts are kept: then they are names of files or folders, as this package writes them.
"""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from alr_fast.data.tables.base import TableError

_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_PIECE = 1 << 21  # bytes that are read at once


def mark_of(start: bytes) -> tuple[str | None, int]:
    """Encoding that the first bytes of a file name, or None, and the length of their mark."""
    for mark, name in _MARKS.items():
        if start.startswith(mark):
            return name, len(mark)
    return None, 0


def utf8_pieces(file: IO[bytes], path: Path, encoding: str | None) -> Iterator[bytes]:
    """The rest of a file in UTF-8, some MB at a time; non-UTF-8 bytes as they are.

    Raises:
        TableError: The text is not in the encoding of its mark.
    """
    if encoding in (None, "utf-8"):
        while piece := file.read(_PIECE):
            yield piece
        return
    decoder = codecs.getincrementaldecoder(str(encoding))()
    try:
        while piece := file.read(_PIECE):
            yield decoder.decode(piece).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise TableError(
            path, f"is no valid {encoding} text ({error}); save it as UTF-8"
        ) from error


def from_windows(text: str) -> str:
    """A text whose bytes that are not UTF-8, see `os.fsdecode`, are taken for Windows-1252."""
    return decoded(text.encode("utf-8", "surrogateescape"), keep=False)


def decoded(text: bytes, *, keep: bool) -> str:
    """A text in UTF-8, else Windows-1252; with ``keep`` other bytes stay, as surrogates."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        if not keep:
            try:
                return text.decode("cp1252")
            except UnicodeDecodeError:
                pass  # it has no character for five of the bytes
        return text.decode("utf-8", "surrogateescape")
