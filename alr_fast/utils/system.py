"""Calls that a system, a file system or a container may refuse, and what goes on without them.

All code of this package makes them here, so that no place takes for granted that they work.
"""

import contextlib
import errno
import fcntl
import getpass
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY})
NO_HOME = Path("/nonexistent")  # as Debian calls the home of users that have none
_ZEROS = 1 << 20  # bytes per write on a file system that cannot reserve space


def try_lock(handle: int, lock: Callable[[int, int], object]) -> bool | None:
    """Locks an open file without waiting.

    Args:
        handle: Its descriptor.
        lock: `fcntl.flock`, whose lock belongs to the open file and to forked processes, too, or
            `fcntl.lockf`, whose lock belongs to this process alone.

    Returns:
        Whether it is locked now; False if another holds the lock; None if there are no locks here:
        network file systems and sandboxes refuse them with many errors.
    """
    try:
        lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # On Linux EACCES is a refusal; elsewhere another process may hold the lock.
        return False if error.errno == errno.EACCES and sys.platform != "linux" else None
    return True


def set_mode(handle: int, mode: int) -> None:
    """Sets the permissions of an open file, on file systems that have some."""
    with contextlib.suppress(OSError):
        os.fchmod(handle, mode)


def flush_to_disk(handle: int) -> None:
    """Waits until a file or folder is on the disk, if its file system can tell.

    Raises:
        OSError: It could not be written.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


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
        return
    except AttributeError:
        pass  # not on every system
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    for offset in range(0, num_bytes, _ZEROS):
        # A disk that becomes full accepts a part of the data first and fails the next call.
        end = min(offset + _ZEROS, num_bytes)
        while offset < end:
            offset += os.pwrite(handle, bytes(end - offset), offset)


def make_link(path: Path, target: str) -> bool:
    """Makes a symbolic link; returns whether the file system has such links.

    Raises:
        OSError: The folder cannot be written.
    """
    try:
        os.symlink(target, path)
    except OSError as error:
        if error.errno in (errno.EPERM, *UNSUPPORTED):
            return False
        raise
    return True


def home_folder() -> Path:
    """The home folder of the user, `NO_HOME` for one without any: a number that no list of users
    knows, as containers have them."""
    home = os.path.expanduser("~")
    return Path(home) if os.path.isabs(home) else NO_HOME


def user_name() -> str | None:
    """Name of the user; None for one that no list of users knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the latter since Python 3.13
        return None


def provide_home() -> None:
    """Prepares a command for a home folder that is missing or cannot be written.

    Packages that would end with an error go on without their files in `NO_HOME`. Matplotlib, which
    then needs a second longer, does not say so in every run.
    """
    if home_folder() == NO_HOME:
        os.environ["HOME"] = str(NO_HOME)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
