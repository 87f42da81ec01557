"""Files: atomic replacement, locks, reading what may be anything, errors as one line.

A folder may have been shared or downloaded. Nothing here follows a symbolic link that lies at the
name of a file to be written, and what the system cannot do (locks, flushing, modes, reserved space)
is left out, not an error.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO, cast

from alr_fast.errors import UserError
from alr_fast.utils.system import flush_to_disk, make_link, set_mode, try_lock
from alr_fast.utils.text import readable

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS = 20  # to make a new file
_LONGEST = 200  # bytes of a name that leave room for the rest of a temporary one, below 255

# How to put right what the system refused, by the number of its error.
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.ENOENT: "restore its folder",
    errno.ENOTDIR: "pass another folder",
    errno.ESTALE: "restore its folder",
    errno.ELOOP: "remove the link",
    errno.EISDIR: "move the folder away",
    errno.ENAMETOOLONG: "pass a shorter one",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EIO: "check the disk",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an `OSError` in the block into a `UserError` with the file and how to fix it."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "make it writable")
        raise UserError(f"{path}: {error.strerror or error}; {remedy} and try again") from error


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns an `OSError` in the block into a `UserError` with the file and how to fix it.

    Args:
        path: What is named if the error names no file.
    """
    try:
        yield
    except OSError as error:
        where, denied = _refused(error, path)
        remedy = "make it readable" if denied else "check the disk"
        raise UserError(f"{where}: {error.strerror or error}; {remedy} and try again") from error


@contextlib.contextmanager
def naming_files() -> Iterator[None]:
    """Turns an `OSError` about a file that nobody has handled into a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        where, denied = _refused(error, Path())
        remedy = "change its permissions" if denied else _REMEDIES.get(error.errno or 0, "check it")
        raise UserError(f"{where}: {error.strerror or error}; {remedy} and try again") from error


def _refused(error: OSError, path: Path) -> tuple[Path, bool]:
    """The file that an error is about, ``path`` if it names none, and whether access was denied.

    If a folder keeps the file from being reached, it is the one that is meant.
    """
    if isinstance(error.filename, str | bytes):
        path = Path(os.fsdecode(error.filename))
    denied = error.errno in (errno.EACCES, errno.EPERM)
    return (_closed(path) if denied else path), denied


def _closed(path: Path) -> Path:
    """The folder that keeps a path from being read; the path itself if no folder does."""
    effective = os.access in os.supports_effective_ids
    for folder in reversed(path.parents):
        if os.path.isdir(folder) and not os.access(folder, os.X_OK, effective_ids=effective):
            return folder
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the path of an empty temporary file, which replaces ``path`` at the end of the block.

    The temporary file lies in the same folder, under a name that cannot be guessed, and only its
    owner can read it until it is complete. ``path`` then keeps its permissions, a new file has the
    usual ones. If ``path`` is a symbolic link, the link is replaced; the file that it points to
    stays as it is. If the block fails, ``path`` keeps its previous content. What killed processes
    left behind is removed.

    Raises:
        UserError: The block or the replacement raised an `OSError`, see `writing`.
    """
    with writing(path), temporary(path) as fresh:
        yield fresh.path
        fresh.publish()


class Temporary(NamedTuple):
    """An empty file, see `temporary`: write to ``path``, then `publish` gives it its name."""

    path: Path
    target: Path
    mode: int

    def publish(self) -> None:
        """Flushes the file to the disk and gives it its name and permissions.

        Raises:
            OSError: It cannot be written.
        """
        handle = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            set_mode(handle, self.mode)
            flush_to_disk(handle)  # network file systems report a full disk only here
        finally:
            os.close(handle)
        os.replace(self.path, self.target)


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Temporary]:
    """Makes an empty file beside ``path``, removed at the end of the block unless it has been
    published; see `replacing`.

    Raises:
        OSError: It cannot be created.
    """
    _remove_leftovers(path)
    handle, fresh = _new_file(path)
    try:
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        set_mode(handle, 0o600)  # also where the umask keeps files from their owner
        with contextlib.suppress(OSError):
            known = os.lstat(path).st_mode
            mode = stat.S_IMODE(known) & 0o777 if stat.S_ISREG(known) else mode
        yield Temporary(fresh, path, mode)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink()
        os.close(handle)  # last: until then the lock protects the file from `_remove_leftovers`


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a file, as `replacing` does."""
    with replacing(path) as fresh:
        fresh.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Replaces a file with a text, as `replacing` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: dict) -> None:
    """Replaces a file with a JSON object, as `replacing` does."""
    write_text(path, json.dumps(content) + "\n")


def replace_link(link: Path, target: str) -> None:
    """Points a symbolic link, new or existing, to another target in one step.

    On a file system without links, there is none afterwards.

    Raises:
        UserError: It cannot be written, see `writing`.
    """
    fresh = link.with_name(f".{link.name}.{secrets.token_hex(8)}.tmp")
    with writing(link):
        if not make_link(fresh, target):
            return
        try:
            os.replace(fresh, link)
        except OSError:
            fresh.unlink()
            raise


def own_folder(path: Path, *, parents: bool = True) -> None:
    """Makes a folder if it is missing.

    Args:
        path: The folder.
        parents: Whether to make missing parents, too.

    Raises:
        UserError: It cannot be made, or its name is a symbolic link, through which files would be
            written elsewhere.
    """
    if os.path.islink(path):
        raise UserError(
            f"{path}: is a symbolic link, and files written into it would land elsewhere; replace "
            "it with a folder and try again"
        )
    with writing(path):
        path.mkdir(parents=parents, exist_ok=True)


class KnownFolder:
    """Notices that a folder was removed, moved or replaced since.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # Some file systems give a file another number each time.
        self._comparable = self._same()

    def in_place(self) -> bool:
        """Whether the path still leads to the folder."""
        return self._same() if self._comparable else os.path.isdir(self.path)

    def _same(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._handle), os.lstat(self.path))
        except OSError:
            return False

    def close(self) -> None:
        """Forgets the folder; a second call does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def open_appending(path: Path) -> BinaryIO:
    """Opens a file for appending, created if missing; never through a symbolic link.

    Raises:
        OSError: It cannot be opened, or is not a regular file.
    """
    return os.fdopen(_open_own(path, os.O_WRONLY | os.O_APPEND), "ab")


def open_regular(path: str | os.PathLike[str], limit: int | None = None) -> BinaryIO:
    """Opens a file for reading, without ever waiting for one.

    Links are followed: data sets are often made of them. Pipes, devices, sockets and folders, which
    could block or never end, are refused.

    Args:
        path: The file.
        limit: Most bytes that it may have; None for any number.

    Raises:
        OSError: It cannot be opened, is not a regular file, or is larger than ``limit``;
            ``strerror`` says it in words.
    """
    name = os.fspath(path)
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # sockets, and devices that do not exist
            raise OSError(errno.EINVAL, "not a regular file", name) from error
        raise
    try:
        _check_regular(handle, name)
        size = os.fstat(handle).st_size
        if limit is not None and size > limit:
            raise OSError(
                errno.EFBIG,
                f"the file has {readable(size)}, more than the {readable(limit)} that are read",
                name,
            )
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def locked(path: Path, *, busy: str) -> TextIO:
    """Opens a file and locks it for this process until the file is closed or the process ends.

    The content of the file stays as it is. Processes forked from this one do not hold the lock. On
    a file system without locks the file is only opened.

    Args:
        path: The lock file, created if missing.
        busy: Message of the error if another process holds the lock.

    Raises:
        UserError: Another process holds the lock, or the file cannot be opened, a symbolic link or
            a pipe for example.
    """
    with writing(path):
        file = os.fdopen(_open_own(path, os.O_RDWR), "r+")
    if try_lock(file.fileno(), fcntl.lockf) is False:
        file.close()
        raise UserError(busy)
    return cast(TextIO, file)


def _open_own(path: Path, flags: int) -> int:
    """A descriptor of a regular file, created if missing, that is not reached through a link."""
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a symbolic link", str(path)) from error
        if error.errno == errno.ENXIO:
            raise OSError(errno.EINVAL, "not a regular file", str(path)) from error
        raise
    try:
        _check_regular(handle, str(path))
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        if mode & 0o600 != 0o600:  # an unusual umask: it could not be opened again
            set_mode(handle, mode | 0o600)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _check_regular(handle: int, name: str) -> None:
    kind = os.fstat(handle).st_mode
    if stat.S_ISDIR(kind):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if not stat.S_ISREG(kind):
        raise OSError(errno.EINVAL, "not a regular file", name)


def _new_file(path: Path) -> tuple[int, Path]:
    """A locked descriptor and the path of a new file beside another one.

    Its lock ends with this process, however it ends: see `_remove_leftovers`.
    """
    for attempt in range(_ATTEMPTS):
        fresh = path.with_name(f".{_stem(path)}.{secrets.token_hex(8)}.tmp")
        handle = os.open(fresh, _NEW, 0o666)
        locked_now = try_lock(handle, fcntl.flock)
        gone = os.fstat(handle).st_nlink == 0
        # On a file system that always says so, a lock of another process means nothing.
        if not gone and (locked_now is not False or attempt == _ATTEMPTS - 1):
            return handle, fresh
        os.close(handle)  # another process took it for a leftover before it was locked
        with contextlib.suppress(OSError):
            os.unlink(fresh)
    raise OSError(errno.EBUSY, "its new files are removed by another process", str(path))


def _stem(path: Path) -> str:
    """The beginning of the temporary names of a file."""
    name = os.fsencode(path.name)
    return path.name if len(name) <= _LONGEST else hashlib.sha256(name).hexdigest()[:32]


def _remove_leftovers(path: Path) -> None:
    """Removes the temporary files of a path whose processes were killed: nobody locks them.

    On a file system without locks they remain.
    """
    pattern = re.compile(rf"\.{re.escape(_stem(path))}\.[0-9a-f]{{16}}\.tmp")
    try:
        with os.scandir(path.parent) as entries:
            found = [entry.path for entry in entries if pattern.fullmatch(entry.name)]
    except OSError:
        return  # a folder that can be written but not listed
    for name in found:
        with contextlib.suppress(OSError):
            handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if try_lock(handle, fcntl.flock):
                    os.unlink(name)
            finally:
                os.close(handle)
