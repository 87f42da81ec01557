"""Members of uncompressed tar files and where they lie, from their headers alone.

Several times as fast as `tarfile`. Formats: ustar, pax, and GNU tar with its long names.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from alr_fast.errors import UserError
from alr_fast.utils.files import open_regular

_BLOCK = 512
_MOST_NAME = 1 << 20  # bytes of a header with a long name
_LONGEST_NUMBER = 20  # digits of a length


class Member(NamedTuple):
    """A regular file in a tar file."""

    name: str
    offset: int
    size: int


def members(path: Path) -> Iterator[Member]:
    """Regular files of an uncompressed tar file in their order; reads headers only.

    Raises:
        UserError: It cannot be read, or a header is damaged.
    """
    try:
        with open_regular(path) as file:
            length = os.fstat(file.fileno()).st_size
            position, long_name = 0, None
            extended: dict[str, bytes] = {}
            while position + _BLOCK <= length:
                header = os.pread(file.fileno(), _BLOCK, position)
                if not header.strip(b"\0"):
                    return  # the end: blocks of zeros
                size = _number(header[124:136], path, position)
                if _checksum(header) != _number(header[148:156], path, position):
                    raise _damaged(path, position)
                kind = header[156:157]
                if "size" in extended and kind not in b"xgLK":
                    size = int(extended["size"])
                data = position + _BLOCK
                if size < 0 or data + size > length:
                    raise UserError(f"{path}: ends within a member; restore the shard")
                if kind == b"L" and size <= _MOST_NAME:
                    long_name = os.pread(file.fileno(), size, data).rstrip(b"\0")
                elif kind == b"x" and size <= _MOST_NAME:
                    extended = _extended(os.pread(file.fileno(), size, data), path, position)
                elif kind not in b"gK":
                    if kind in b"0\0":
                        prefix = (
                            header[345:500].rstrip(b"\0") if header[257:262] == b"ustar" else b""
                        )
                        if header[257:265] == b"ustar  \0":
                            prefix = b""  # GNU tar uses these bytes for times
                        name = header[:100].split(b"\0")[0]
                        name = prefix + b"/" + name if prefix else name
                        name = extended.get("path", long_name or name)
                        if b"\0" in name:
                            raise _damaged(path, position)
                        yield Member(os.fsdecode(name), data, size)
                    long_name, extended = None, {}
                position = data + -(-size // _BLOCK) * _BLOCK
            if position < length:
                raise UserError(f"{path}: ends within a header; restore the shard")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; restore the shard") from error


def _number(field: bytes, path: Path, position: int) -> int:
    """A number of a header: octal digits, or of GNU tar binary after a byte 0x80."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise _damaged(path, position) from None


def _checksum(header: bytes) -> int:
    return sum(header) - sum(header[148:156]) + 8 * 32


def _extended(data: bytes, path: Path, position: int) -> dict[str, bytes]:
    """Records ``length key=value`` of a pax header."""
    records = {}
    at = 0
    try:
        while at < len(data):
            end = data.index(b" ", at, at + _LONGEST_NUMBER)
            length = int(data[at:end])
            if length <= end - at + 1:
                raise ValueError
            key, _, value = data[end + 1 : at + length].partition(b"=")
            records[key.decode()] = value[:-1]
            at += length
        if "size" in records:
            int(records["size"])
    except (ValueError, UnicodeDecodeError):
        raise _damaged(path, position) from None
    return records


def _damaged(path: Path, position: int) -> UserError:
    return UserError(f"{path}: no tar header at byte {position:,}; restore the shard")
