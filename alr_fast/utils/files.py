"""Writing files: atomic replacement, errors as one line, locks, reserved space."""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from alr_fast.errors import UserError

_ZEROS = 1 << 20  # bytes per write on a file system that cannot reserve space


def reserve_space(handle: int, num_bytes: int) -> None:
    """Sets the size of an open file and allocates all of its space on the disk.

    Without allocated space, a write into the memory-mapped file kills the process with SIGBUS when
    the disk is full.

    Args:
        handle: File descriptor of an empty file.
        num_bytes: The size, above 0.

    Raises:
        OSError: The disk is full, or the file would exceed a size limit.
    """
    try:
        os.posix_fallocate(handle, 0, num_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        for offset in range(0, num_bytes, _ZEROS):
            # A disk that becomes full accepts a part of the data first and fails the next call.
            end = min(offset + _ZEROS, num_bytes)
            while offset < end:
                offset += os.pwrite(handle, bytes(end - offset), offset)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an `OSError` in the block into a `UserError` with the file and how to fix it."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space" if full else "make it writable"
        raise UserError(f"{path}: {error.strerror or error}; {remedy} and try again") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path; the file written there replaces ``path`` at the end of the block.

    If the block fails, ``path`` keeps its previous content.

    Raises:
        UserError: The block or the replacement raised an `OSError`, see `writing`.
    """
    fresh = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            yield fresh
            with fresh.open("rb+") as file:
                os.fsync(file.fileno())  # network file systems report a full disk only here
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


def replace_link(link: Path, target: str) -> None:
    """Points a symbolic link, new or existing, to another target in one step.

    Raises:
        UserError: It cannot be written, see `writing`.
    """
    fresh = link.with_name(f".{link.name}-{os.getpid()}")
    with writing(link):
        fresh.symlink_to(target)
        os.replace(fresh, link)


def locked(path: Path, *, busy: str) -> TextIO:
    """Opens a file and locks it for this process until the file is closed or the process ends.

    Processes forked from this one do not hold the lock. On a file system without locks the file is
    only opened.

    Args:
        path: The lock file, created if missing.
        busy: Message of the error if another process holds the lock.

    Raises:
        UserError: Another process holds the lock, or the file cannot be opened.
    """
    with writing(path):
        file = path.open("w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(busy) from error
    except OSError:
        pass  # a file system without locks
    return file
