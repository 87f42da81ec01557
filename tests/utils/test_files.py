import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
import time

import pytest

from alr_fast.errors import UserError
from alr_fast.utils.files import (
    locked,
    open_appending,
    open_regular,
    own_folder,
    reading,
    replace_link,
    replacing,
    temporary,
    write_text,
    writing,
)
from alr_fast.utils.system import reserve_space
from helpers.patience import PATIENCE


def failing(number):
    def call(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return call


@pytest.fixture
def umask():
    """Sets the umask for a test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


# Atomic replacement


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as fresh:
        fresh.write_text("half")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]
    with replacing(path) as fresh:
        fresh.write_text("new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "new")]


def test_the_temporary_name_lies_beside_the_file_and_differs_each_time(tmp_path):
    path, seen = tmp_path / "a.txt", set()
    for _ in range(3):
        with replacing(path) as fresh:
            assert fresh.parent == tmp_path
            assert mode(fresh) == 0o600  # nobody else reads it before it is complete
            seen.add(fresh.name)
    assert len(seen) == 3


@pytest.mark.parametrize("length", [250, 255])
def test_a_name_as_long_as_the_system_allows(tmp_path, length):
    path = tmp_path / ("é" * (length // 2) + "x" * (length % 2))
    write_text(path, "text")
    assert path.read_text() == "text"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_at_the_name_is_replaced_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    link = tmp_path / "run" / "report.html"
    link.parent.mkdir()
    link.symlink_to(precious)
    write_text(link, "report")
    assert not link.is_symlink()
    assert (link.read_text(), precious.read_text()) == ("report", "mine")


def test_a_temporary_file_exchanged_for_a_link_is_refused(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    path = tmp_path / "a.txt"
    with pytest.raises(UserError, match="remove the link"), replacing(path) as fresh:
        fresh.unlink()
        fresh.symlink_to(precious)
    assert precious.read_text() == "mine"
    assert not path.exists()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("mask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o777, 0o000)]
)
def test_a_new_file_has_the_permissions_of_the_umask(tmp_path, umask, mask, expected):
    umask(mask)
    path = tmp_path / "a.txt"
    write_text(path, "text")
    assert mode(path) == expected
    assert os.umask(mask) == mask  # as it was


@pytest.mark.parametrize("known", [0o600, 0o640, 0o444, 0o755])
def test_an_existing_file_keeps_its_permissions(tmp_path, umask, known):
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(known)
    write_text(path, "new")
    assert mode(path) == known
    assert path.read_text() == "new"


def test_what_a_killed_process_left_behind_is_removed(tmp_path):
    code = """
import os, sys
from pathlib import Path
from alr_fast.utils.files import replacing
with replacing(Path(sys.argv[1])) as fresh:
    fresh.write_text("half")
    os.kill(os.getpid(), 9)
"""
    path = tmp_path / "a.txt"
    subprocess.run([sys.executable, "-c", code, path], check=False, timeout=PATIENCE)
    (left,) = tmp_path.iterdir()
    others = [tmp_path / ".b.txt.0123456789abcdef.tmp", tmp_path / ".a.txt.tmp"]
    for other in others:
        other.write_text("of somebody else")
    with replacing(path) as fresh:
        assert not left.exists()
        with replacing(path) as second:  # files being written are not left behind
            assert fresh.exists()
            second.write_text("second")
        fresh.write_text("first")
    assert path.read_text() == "first"
    assert all(other.exists() for other in others)


def test_a_link_among_the_leftovers_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / ".a.txt.0123456789abcdef.tmp").symlink_to(precious)
    os.mkfifo(tmp_path / ".a.txt.0123456789abcdee.tmp")
    write_text(tmp_path / "a.txt", "text")
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("moment", ["before", "while"])
def test_a_new_file_taken_for_a_leftover_is_made_again(tmp_path, monkeypatch, moment):
    lock, calls = fcntl.flock, []

    def taken(handle, operation):
        calls.append(handle)
        if len(calls) == 1:
            (new,) = tmp_path.iterdir()
            new.unlink()
            if moment == "while":
                raise BlockingIOError
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", taken)
    write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"
    assert len(calls) == 2


def test_an_unpublished_temporary_file_leaves_nothing(tmp_path):
    with temporary(tmp_path / "a.tar") as file:
        file.path.write_text("rejected")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EDQUOT, "Disk quota exceeded; free some space"),
        (errno.EROFS, "Read-only file system; make it writable"),
        (errno.EACCES, "Permission denied; make it writable"),
        (errno.ENOENT, "No such file or directory; restore its folder"),
        (errno.ESTALE, "Stale file handle; restore its folder"),
        (errno.ENAMETOOLONG, "File name too long; pass a shorter one"),
        (errno.EIO, "Input/output error; check the disk"),
    ],
)
def test_a_file_that_cannot_be_written_is_an_error_of_one_line(tmp_path, number, remedy):
    with pytest.raises(UserError) as caught, writing(tmp_path / "x"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == f"{tmp_path / 'x'}: {remedy} and try again"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing/a.txt", "No such file or directory; restore its folder and try again"),
        ("file/a.txt", "Not a directory; pass another folder and try again"),
        ("folder", "Is a directory; move the folder away and try again"),
        ("x" * 256, "File name too long; pass a shorter one and try again"),
    ],
)
def test_a_place_where_no_file_can_be(tmp_path, path, reason):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError) as caught:
        write_text(tmp_path / path, "text")
    assert str(caught.value) == f"{tmp_path / path}: {reason}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


# What a system may lack


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_flush(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", failing(number))
    write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_error_of_the_flush_keeps_the_old_content(tmp_path, monkeypatch, number):
    (tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(UserError, match=os.strerror(number)):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_file_system_without_modes(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fchmod", failing(errno.EPERM))
    write_text(tmp_path / "a.txt", "text")
    with locked(tmp_path / "lock", busy="busy"):
        assert (tmp_path / "a.txt").read_text() == "text"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", failing(number))
    monkeypatch.setattr(fcntl, "lockf", failing(number))
    left = tmp_path / ".a.txt.0123456789abcdef.tmp"  # perhaps another process is writing it
    left.touch()
    write_text(tmp_path / "a.txt", "text")
    assert left.exists()
    with locked(tmp_path / "lock", busy="busy"), locked(tmp_path / "lock", busy="busy"):
        pass


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_links(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "symlink", failing(number))
    replace_link(tmp_path / "latest", "run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_be_written_but_not_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "scandir", failing(errno.EACCES))
    write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"


@pytest.mark.parametrize("missing", ["function", "support"])
def test_space_is_reserved_without_the_system_call(tmp_path, monkeypatch, missing):
    if missing == "function":
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", failing(errno.EOPNOTSUPP))
    path = tmp_path / "a"
    with path.open("wb") as file:
        reserve_space(file.fileno(), (1 << 20) + 1)
    assert path.stat().st_size == (1 << 20) + 1
    assert path.stat().st_blocks * 512 >= 1 << 20


def test_a_full_disk_while_space_is_reserved(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
    with (tmp_path / "a").open("wb") as file, pytest.raises(OSError, match="No space"):
        reserve_space(file.fileno(), 10)


# Links and folders


def test_a_link_is_replaced_in_one_step(tmp_path):
    link = tmp_path / "latest"
    for target in ("one", "two"):
        replace_link(link, target)
        assert os.readlink(link) == target
    assert [p.name for p in tmp_path.iterdir()] == ["latest"]


def test_a_folder_is_not_reached_through_a_link(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "link").symlink_to(elsewhere)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("link", "dangling"):
        with pytest.raises(UserError, match=rf"{name}: is a symbolic link.*replace it with a fol"):
            own_folder(tmp_path / name)
    own_folder(tmp_path / "new" / "folder")
    own_folder(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: File exists"):
        own_folder(tmp_path / "file")


# Locks


def test_a_lock_file_keeps_its_content_and_says_who_is_busy(tmp_path):
    path = tmp_path / "lock"
    path.write_text("content")
    code = """
import sys
from pathlib import Path
from alr_fast.errors import UserError
from alr_fast.utils.files import locked
try:
    locked(Path(sys.argv[1]), busy="in use")
except UserError as error:
    print(error)
"""
    with locked(path, busy="in use"):
        done = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=PATIENCE
        )
    assert done.stdout == "in use\n"
    assert path.read_text() == "content"


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EWOULDBLOCK])
def test_the_answer_of_the_system_to_a_held_lock(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "lockf", failing(number))
    with pytest.raises(UserError, match="in use"):
        locked(tmp_path / "lock", busy="in use")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOLCK, errno.ENOSYS])
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere EACCES may be a held lock")
def test_a_refused_lock_is_no_held_one(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "lockf", failing(number))
    locked(tmp_path / "lock", busy="in use").close()


def test_a_file_system_whose_new_files_always_seem_to_be_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", failing(errno.EAGAIN))
    write_text(tmp_path / "file", "text")
    assert os.listdir(tmp_path) == ["file"]


def test_new_files_that_are_always_removed(tmp_path, monkeypatch):
    def removed(handle, operation):
        for path in tmp_path.iterdir():
            path.unlink()

    monkeypatch.setattr(fcntl, "flock", removed)
    with pytest.raises(UserError, match="its new files are removed by another process"):
        write_text(tmp_path / "file", "text")


@pytest.mark.parametrize("existing", [True, False])
def test_a_lock_is_not_opened_through_a_link(tmp_path, existing):
    precious = tmp_path / "precious"
    if existing:
        precious.write_text("mine")
    (tmp_path / ".lock").symlink_to(precious)
    with pytest.raises(UserError) as caught:
        locked(tmp_path / ".lock", busy="busy")
    path = tmp_path / ".lock"
    assert str(caught.value) == f"{path}: is a symbolic link; remove the link and try again"
    assert precious.exists() == existing


def test_a_pipe_or_a_folder_as_lock(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, reason in (("pipe", "not a regular file"), ("folder", "Is a directory")):
        with pytest.raises(UserError, match=f"{name}: {reason}"):
            locked(tmp_path / name, busy="busy")


def test_a_lock_in_a_read_only_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "open", failing(errno.EACCES))  # root may write everywhere
    with pytest.raises(UserError, match="lock: Permission denied; make it writable"):
        locked(tmp_path / "lock", busy="busy")


def test_a_lock_under_an_unusual_umask(tmp_path, umask):
    umask(0o777)
    for _ in range(2):
        with locked(tmp_path / "lock", busy="busy"):
            pass
    assert mode(tmp_path / "lock") == 0o600


# Appending and reading


def test_appending_never_follows_a_link(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "log").symlink_to(precious)
    with pytest.raises(OSError, match="is a symbolic link"):
        open_appending(tmp_path / "log")
    assert precious.read_text() == "mine"
    for text in (b"a", b"b"):
        with open_appending(tmp_path / "new") as file:
            file.write(text)
    assert (tmp_path / "new").read_bytes() == b"ab"


def test_a_regular_file_is_read_through_links_too(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").symlink_to("a")
    for name in ("a", "b"):
        with open_regular(tmp_path / name, limit=5) as file:
            assert file.read() == b"12345"


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        began = time.monotonic()
        for name, reason in {
            "pipe": "not a regular file",
            "endless": "not a regular file",
            "socket": "not a regular file",
            "folder": "Is a directory",
            "loop": "Too many levels of symbolic links",
            "missing": "No such file or directory",
        }.items():
            with pytest.raises(OSError) as caught:
                open_regular(tmp_path / name)
            assert caught.value.strerror == reason
        assert time.monotonic() - began < PATIENCE
    left = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(OSError):
            open_regular(tmp_path / "pipe")
    assert len(os.listdir("/proc/self/fd")) == left


def test_a_file_above_the_limit_is_refused_unread(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(60 * 10**9)
    with pytest.raises(OSError) as caught:
        open_regular(tmp_path / "sparse", limit=10**6)
    assert caught.value.strerror == "the file has 60.0 GB, more than the 1 MB that are read"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EACCES, "make it readable"), (errno.EPERM, "make it readable"), (errno.EIO, "check")],
)
@pytest.mark.parametrize("name", [str, os.fsencode, None])
def test_a_file_that_cannot_be_read_is_an_error_of_one_line(tmp_path, number, remedy, name):
    file = tmp_path / "a" / "b"
    with pytest.raises(UserError) as caught, reading(tmp_path):
        raise OSError(number, os.strerror(number), *(() if name is None else (name(str(file)),)))
    where = tmp_path if name is None else file
    assert str(caught.value).startswith(f"{where}: {os.strerror(number)}; {remedy}")


def test_the_folder_that_is_closed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, *_, **__: path != tmp_path / "closed")
    with pytest.raises(UserError) as caught, reading(tmp_path):
        (tmp_path / "closed").mkdir()
        name = str(tmp_path / "closed" / "a" / "b")
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
    assert str(caught.value).startswith(f"{tmp_path / 'closed'}: Permission denied")
