"""Writing files: atomic replacement, locks, errors as one line, reserved space."""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from alr_fast.errors import UserError

_ZEROS = 1 << 20  # bytes written in one go where a file system cannot reserve space


def reserve_space(handle: int, num_bytes: int) -> None:
    """Gives an open file its size and all its space on the disk.

    A mapped file without the space kills the process by SIGBUS when the disk is full.

    Args:
        handle: file descriptor of an empty file.
        num_bytes: the size, above 0.

    Raises:
        OSError: the disk is full, or the file would be larger than is allowed.
    """
    try:
        os.posix_fallocate(handle, 0, num_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        for offset in range(0, num_bytes, _ZEROS):
            _write_all(handle, bytes(min(_ZEROS, num_bytes - offset)), offset)


def _write_all(handle: int, data: bytes, offset: int) -> None:
    # A disk that becomes full takes a part first, and refuses the next call.
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes one line of it where ``path`` cannot be written.

    Raises:
        UserError: In place of an `OSError`, with the name of the file and the way out.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space" if full else "make it writable"
        raise UserError(
            f"{path}: {error.strerror or error}; {remedy} and try again (a run that was stopped "
            "goes on with --resume auto)"
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name to write to, which becomes ``path`` in one step at the end.

    Whatever happens on the way, ``path`` is what it was before, or complete.

    Raises:
        UserError: As `writing` does.
    """
    fresh = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            yield fresh
            with fresh.open("rb+") as file:
                os.fsync(file.fileno())  # network file systems tell of a full disk only here
            os.replace(fresh, path)
        except BaseException:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise


def write_text(path: Path, text: str) -> None:
    """Replaces a file with a text, as `replacing` does."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict) -> None:
    """Replaces a file with a JSON object, as `replacing` does."""
    write_text(path, json.dumps(content) + "\n")


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Holds an exclusive lock on a file, which is created if it is missing.

    Args:
        path: The file.
        busy: Message of the error if another process holds the lock.

    Raises:
        UserError: Another process holds the lock.
        OSError: The file cannot be opened.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(busy) from None
        yield
